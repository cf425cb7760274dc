"""Runs as a page that follows them, served to this machine alone."""

from __future__ import annotations

import errno
import hashlib
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, quote, urlsplit

from deepzero.errors import DeepZeroError, InvalidInputError
from deepzero.files import read_from
from deepzero.report.figures import Document
from deepzero.report.folder_contents import RESULTS
from deepzero.report.html import content, framed
from deepzero.report.run_pages import documents
from deepzero.text import duration
from deepzero.training.run_folder import RECORD
from deepzero.validation import positive

HERE = "127.0.0.1"
QUIET = 60.0
"""Seconds without a new line after which a page says that the run may have stopped."""

PRESENT, FAREWELL = 10.0, 30.0
"""Seconds and an interval since the last question after which nobody is looking any more; seconds for which the page of
finished runs is kept, at most, for somebody who is."""

RULES = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"


@dataclass(frozen=True)
class View:
    """The page at a moment.

    Attributes:
        body: markup of the runs.
        seen: identifies it.
        state: in a sentence, how the runs are.
        done: all of them have finished.
    """

    body: str
    seen: str
    state: str
    done: bool


class Watch:
    """A server of one page that follows runs; a context manager, and the port is free after it.

    The page asks every few seconds whether there is anything new, and then replaces what has changed: nothing flickers,
    and what was opened stays open. It asks nobody but this server, which listens on 127.0.0.1 only and answers only
    requests that name it so. A folder need not hold a run yet.

    Args:
        paths: folders of runs.
        port: of the page; 0 for a free one.
        interval: seconds between two questions.

    Attributes:
        address: of the page.

    Raises:
        InvalidInputError: the port is taken or out of its domain, or the interval is not above 0.

    Example:
        >>> import tempfile, urllib.request
        >>> with tempfile.TemporaryDirectory() as folder, Watch([Path(folder) / "run"]) as watch:
        ...     page = urllib.request.urlopen(watch.address).read().decode()
        >>> "not started yet" in page
        True
    """

    def __init__(self, paths: Sequence[Path], *, port: int = 0, interval: float = 2.0) -> None:
        self.paths = list(paths)
        self.interval = positive("interval", interval, hint="2")
        if not 0 <= port <= 65535:
            raise InvalidInputError(f"port must be a number from 0 (a free one) to 65535, got {port}")
        self._lock = threading.Lock()
        self._files: Any = None
        self._asked = float("-inf")
        self._drawn: tuple[str, str] = ("", "")
        self._told_end = threading.Event()
        try:
            self._server = _Server((HERE, port), _handler(self))
        except OSError as error:
            why = "is in use by another program" if error.errno == errno.EADDRINUSE else f"cannot be used ({error})"
            raise InvalidInputError(f"port {port} {why}; choose another --port, or leave it out") from error
        self.address = f"http://{HERE}:{self._server.server_port}/"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def until_done(self) -> None:
        """Return when all runs have finished, and a browser that was looking has been told so."""
        while not self.finished():
            time.sleep(min(self.interval, 0.5))
        if time.monotonic() - self._asked < self.interval + PRESENT:
            self._told_end.wait(FAREWELL)
            time.sleep(self.interval)  # for a second browser

    def finished(self) -> bool:
        """True if every folder holds a finished run, or results."""
        return all((path / "summary.json").exists() or (path / RESULTS).exists() for path in self.paths)

    def view(self) -> View:
        """The runs as they are now; drawn again only if a file of theirs has changed."""
        self._asked = time.monotonic()
        with self._lock:  # drawing is for one thread at a time
            done = self.finished()
            if (found := self._signature()) != self._files:
                self._drawn, self._files = self._draw(), found
            return View(*self._drawn, self._state(done), done)

    def told(self, view: View) -> None:
        """A browser has been given this."""
        if view.done:
            self._told_end.set()

    @property
    def title(self) -> str:
        """Of the page."""
        return str(self.paths[0]) if len(self.paths) == 1 else f"{len(self.paths)} runs"

    def _signature(self) -> list[tuple[str, int, int]]:
        return [(str(file), stat.st_mtime_ns, stat.st_size) for file in self._watched() if (stat := _stat(file))]

    def _watched(self) -> list[Path]:
        return [file for path in self.paths for file in sorted(path.glob("*.json*"))]

    def _draw(self) -> tuple[str, str]:
        started = [path for path in self.paths if (path / RECORD).exists() or (path / RESULTS).exists()]
        waiting = [_not_begun(path) for path in self.paths if path not in started]
        try:
            with read_from(Path(", ".join(map(str, started))), advice="the page comes back when they are whole"):
                body = content([*(documents(started) if started else []), *waiting], title=self.title)
        except DeepZeroError as error:
            shown = [Document(title="This cannot be shown now", caption=str(error))]
            body = content([*shown, *waiting], title=self.title)
        return body, hashlib.sha256(body.encode()).hexdigest()[:16]

    def _state(self, done: bool) -> str:
        if done:
            return "Finished: nothing more will come."
        written = [stat.st_mtime for file in self._watched() if (stat := _stat(file))]
        if not written:
            return "Waiting for the run to begin."
        quiet = max(time.time() - max(written), 0.0)
        if quiet < QUIET:
            return "Running."
        return f"Nothing was written for {duration(quiet // 10 * 10)}: starting, in a long step, or stopped."


class _Server(ThreadingHTTPServer):
    """Ends at once, whatever browsers are waiting for, and says nothing of those that have gone away."""

    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report what went wrong, unless it is that nobody waits for the answer any more."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def _stat(file: Path) -> Any:
    try:
        return file.stat()
    except OSError:
        return None


def _not_begun(path: Path) -> Document:
    return Document(
        title=f"{path}: not started yet",
        caption="There is no run in this folder; as soon as one begins, it is shown here.",
    )


def live_page(watch: Watch, view: View) -> str:
    """The page with what is to be seen now, and the few lines that keep it up to date."""
    script = files("deepzero.report").joinpath("watch.js").read_text(encoding="utf-8")
    body = (
        f'<p id="state" role="status">{escape(view.state)}</p>\n'
        f'<div id="live" data-seen="{view.seen}" data-interval="{watch.interval:g}" data-done="{int(view.done)}">\n'
        f"{view.body}</div>\n<script>\n{script}</script>\n"
    )
    refresh = f'<noscript><meta http-equiv="refresh" content="{max(1, round(watch.interval))}"></noscript>\n'
    return framed(body, title=watch.title, head=f'<link rel="icon" href="data:,">\n{refresh if not view.done else ""}')


def _handler(watch: Watch) -> Callable[..., BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Answers for two addresses: the page, and what has changed on it."""

        def do_GET(self) -> None:
            host, _, _ = self.headers.get("Host", "").rpartition(":")
            address = urlsplit(self.path)
            if host not in (HERE, "localhost"):  # another site's name that leads here
                self._answer(HTTPStatus.FORBIDDEN, b"this page is for this machine only\n", "text/plain", {})
            elif address.path == "/":
                view = watch.view()
                self._answer(HTTPStatus.OK, live_page(watch, view).encode(), "text/html", {})
                watch.told(view)
            elif address.path == "/content":
                view = watch.view()
                known = parse_qs(address.query).get("seen") == [view.seen]
                headers = {"X-Seen": view.seen, "X-State": quote(view.state), "X-Done": str(int(view.done))}
                status = HTTPStatus.NO_CONTENT if known else HTTPStatus.OK
                self._answer(status, b"" if known else view.body.encode(), "text/html", headers)
                watch.told(view)
            else:
                self._answer(HTTPStatus.NOT_FOUND, b"there is only one page: /\n", "text/plain", {})

        def _answer(self, status: HTTPStatus, data: bytes, kind: str, headers: dict[str, str]) -> None:
            self.send_response(status)
            more = {"Cache-Control": "no-store", "Content-Security-Policy": RULES, "X-Content-Type-Options": "nosniff"}
            for name, value in {"Content-Type": f"{kind}; charset=utf-8", **more, **headers}.items():
                self.send_header(name, value)
            if status != HTTPStatus.NO_CONTENT:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the name that http.server gives
            """Requests are not worth a line."""

    return Handler
