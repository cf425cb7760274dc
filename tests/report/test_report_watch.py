"""A page that follows runs: a real server, asked over HTTP while a real run grows."""

from __future__ import annotations

import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from email.message import Message
from pathlib import Path
from urllib.parse import unquote

import pytest
from pages import Page

from deepzero.errors import InvalidInputError
from deepzero.report.live_page import FAREWELL, Watch
from deepzero.tasks import classification
from deepzero.tasks.classification import (
    ClassificationConfig,
    DataConfig,
    EstimatorConfig,
    ModelConfig,
)
from deepzero.training import TrainingConfig

CONFIG = ClassificationConfig(
    data=DataConfig(name="digits", limit=64, batch_size=16),
    model=ModelConfig(name="mlp", options={"hidden": (8,)}),
    estimator=EstimatorConfig(method="fo"),
    training=TrainingConfig(epochs=2, warmup_epochs=0),
)


def ask(watch: Watch, path: str = "", **headers: str) -> tuple[int, str, Message]:
    request = urllib.request.Request(watch.address + path, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("watched") / "run"
    classification.train(CONFIG, out=path)
    return path


@pytest.fixture
def growing(finished: Path, tmp_path: Path) -> Iterator[Path]:
    """A run as it is after its first step."""
    path = tmp_path / "run"
    shutil.copytree(finished, path)
    (path / "summary.json").unlink()
    lines = (finished / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (path / "metrics.jsonl").write_bytes(lines[0])
    return path


def test_a_run_that_begins_grows_and_ends_is_followed_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with Watch([path], interval=0.1) as watch:
        status, page, _ = ask(watch)
        assert status == 200
        assert "not started yet" in page
        assert "Waiting for the run to begin." in Page(page).texts
        classification.train(replace(CONFIG, training=replace(CONFIG.training, epochs=1)), out=path)
        _, body, headers = ask(watch, "content?seen=nothing")
        assert "mlp on digits, fo" in body
        assert "test accuracy" in body
        assert (headers["X-Done"], unquote(headers["X-State"])) == ("1", "Finished: nothing more will come.")
        begun = time.monotonic()
        watch.until_done()
        assert time.monotonic() - begun < FAREWELL


def test_a_browser_that_is_looking_is_told_of_the_end_however_long_drawing_takes(
    growing: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Watch([growing], interval=0.05) as watch:
        ask(watch)
        draw = watch._draw

        def slow() -> tuple[str, str]:
            time.sleep(0.3)
            return draw()

        monkeypatch.setattr(watch, "_draw", slow)
        shutil.copy(finished / "summary.json", growing)
        begun, ended = time.monotonic(), []
        ending = threading.Thread(target=lambda: (watch.until_done(), ended.append(time.monotonic())))
        ending.start()
        answer = ask(watch, "content?seen=nothing")
        assert (answer[0], answer[2]["X-Done"]) == (200, "1")
        ending.join(60)
        assert ended[0] - begun >= 0.3  # not before the page was drawn


def test_nobody_is_waited_for_where_nobody_looks(finished: Path) -> None:
    with Watch([finished]) as watch:
        begun = time.monotonic()
        watch.until_done()
        assert time.monotonic() - begun < FAREWELL


def test_only_what_is_new_is_sent(growing: Path, finished: Path) -> None:
    with Watch([growing]) as watch:
        _, page, _ = ask(watch)
        seen = page.partition('data-seen="')[2].partition('"')[0]
        status, body, headers = ask(watch, f"content?seen={seen}")
        assert (status, body, headers["X-Done"], headers["X-State"]) == (204, "", "0", "Running.")
        assert "step 1, epoch 1, of 2 epochs" in page
        (growing / "metrics.jsonl").write_bytes((finished / "metrics.jsonl").read_bytes())
        status, body, headers = ask(watch, f"content?seen={seen}")
        assert status == 200
        assert "step 8, epoch 2, of 2 epochs" in body
        assert headers["X-Seen"] != seen
        assert ask(watch, f"content?seen={headers['X-Seen']}")[0] == 204


def test_the_page_asks_nobody_else(growing: Path) -> None:
    with Watch([growing]) as watch:
        _, page, headers = ask(watch)
    assert "connect-src 'self'" in headers["Content-Security-Policy"]
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    read = Page(page)
    assert read.attributes("src") == []
    assert {link for link in read.attributes("href") if not link.startswith("#")} == {"data:,"}


def test_it_listens_on_this_machine_only_and_answers_to_its_own_name_only(growing: Path) -> None:
    with Watch([growing]) as watch:
        assert watch.address.startswith("http://127.0.0.1:")
        port = watch.address.rstrip("/").rpartition(":")[2]
        assert watch._server.server_address[0] == "127.0.0.1"
        assert ask(watch, Host=f"localhost:{port}")[0] == 200
        status, body, _ = ask(watch, Host=f"evil.example:{port}")
        assert (status, "digits" in body) == (403, False)
        assert ask(watch, "run.json")[0] == 404
        assert ask(watch, "../../etc/passwd")[0] == 404


def test_a_port_that_is_taken_or_none_and_an_interval_that_is_none(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InvalidInputError, match=f"port {port} is in use by another program; choose another --port"):
            Watch([tmp_path], port=port)
    with pytest.raises(InvalidInputError, match="port must be a number from 0"):
        Watch([tmp_path], port=70000)
    with pytest.raises(InvalidInputError, match="interval must be a finite number above 0"):
        Watch([tmp_path], interval=0.0)


def test_the_port_is_free_afterwards(growing: Path) -> None:
    with Watch([growing]) as first:
        port = int(first.address.rstrip("/").rpartition(":")[2])
    with Watch([growing], port=port) as second:
        assert ask(second)[0] == 200


def test_several_runs_are_done_when_all_are(growing: Path, finished: Path) -> None:
    with Watch([finished, growing]) as watch:
        _, body, headers = ask(watch, "content")
        assert "Comparison of 2 runs" in body
        assert headers["X-Done"] == "0"
        shutil.copy(finished / "summary.json", growing)
        assert ask(watch, "content")[2]["X-Done"] == "1"


def test_a_run_without_news_may_have_stopped_and_a_damaged_one_is_said_to_be(
    growing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Watch([growing]) as watch:
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 3725)
        said = unquote(ask(watch, "content")[2]["X-State"])
        assert said.startswith("Nothing was written for 62.0 min")
        monkeypatch.undo()
        (growing / "metrics.jsonl").write_text("{\n{}\n")
        status, body, _ = ask(watch, "content")
        assert status == 200
        assert "is damaged in line 1" in body


def test_many_browsers_at_a_time_see_the_same(growing: Path) -> None:
    with Watch([growing]) as watch:
        seen: list[str] = []
        askers = [threading.Thread(target=lambda: seen.append(ask(watch)[1])) for _ in range(4)]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
    assert len(seen) == 4
    assert len(set(seen)) == 1
