"""A campaign against runs, journals and commands: kills at any moment, damaged files, two runs in one folder.

    python benchmarks/torture.py --out benchmarks/records/torture.json   # everything: two hours of processor time
    python benchmarks/torture.py --parts hostile --only certify --share 0.1 --seed 7 --out part.json
    python benchmarks/torture.py --page                                  # the record goes into docs/promises.md

Parts may be run one after another, or at the same time, into one record; it notes for each on which commit.

- ``training``: ``deepzero train`` is killed (SIGKILL), half of the times before one of its operations on files in the
  folder of the run, which is drawn, half of the times at an instant that is drawn, on one process and on two; it is
  started again until it ends. Its weights must be those of an undisturbed run, to the bit.
- ``billed``: training against a black box that writes a bill for every call is killed at drawn instants and started
  again. No query whose answer is in the journal may be billed again, and the weights must be the undisturbed ones.
- ``journals``: files of a journal, closed or of a killed process, are damaged. Opening it must be an error, or every
  answer must be there, to the bit.
- ``hostile``: files that a command opens when nothing is wrong with them, which is seen by running it, are damaged, and
  the command runs on them. It must end by itself with an exit code and a message; a traceback, a signal or a minute of
  the processor is a failure.
- ``folders``: two trainings are started in one folder at almost the same time. One must be refused by name, the other
  one must end with the undisturbed weights.

Every trial has a seed of its own, which a failure is recorded with; nothing else is random. Processes are forked off
one that has imported what they will import, and done nothing else. The script ends with 1 if a trial failed. Linux or
macOS.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import importlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import deepzero as dz
from deepzero.cli import main
from deepzero.errors import JournalError
from deepzero.executors import journal_file
from deepzero.folder_lock import FileLock
from deepzero.measure.measurement_record import command_line, environment, heading, write_record
from deepzero.stopwatch import Stopwatch
from deepzero.tasks import correction, defense
from deepzero.tasks.classification import DataConfig

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path.insert(0, str(TESTS))
import damage  # noqa: E402 - the damages that the tests of readers make, too

SMALL = ("--epochs", "1", "--limit", "128", "--batch-size", "16")
TRAIN = ("train", "digits", *SMALL, "--checkpoint-steps", "1", "--quiet")
REPRODUCE = ("reproduce", "fig2", "--scale", "smoke", "--only", "method=FO", "--quiet")
LIMIT = 600.0
"""Seconds after which a process hangs, on a machine that may be busy."""
PROCESSOR = 60
"""Seconds of the processor that a command may take on damaged files."""
WORKERS, SIZE, STEPS = 3, 20, 12
"""Threads that ask the black box, its inputs, and the steps of its training."""


@dataclass
class Findings:
    """Outcomes of a part.

    Attributes:
        trials: how many there were.
        outcomes: their number by kind.
        failures: what went wrong, with the seed.
        seconds: it took.
    """

    trials: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    def note(self, outcome: str, *, seed: int, failed: bool = False, **details: Any) -> None:
        """Count a trial."""
        self.trials += 1
        self.outcomes[outcome] += 1
        if failed:
            self.failures.append({"seed": seed, "outcome": outcome, **details})

    def record(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "trials": self.trials,
            "outcomes": dict(sorted(self.outcomes.items())),
            "failures": self.failures,
            "seconds": round(self.seconds, 1),
        }


@dataclass(frozen=True)
class Child:
    """A process that was forked off, in a group of its own.

    Attributes:
        pid: its number.
        output: what it prints.
    """

    pid: int
    output: Path

    def wait(self, limit: float = LIMIT) -> int | None:
        """Its exit code, negative for a signal; None if it was still there at the limit, and was killed."""
        watch = Stopwatch()
        while watch.seconds() < limit:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        self.abort()
        return None

    def abort(self) -> None:
        """End the process; where it was stands in its output."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGABRT)
        time.sleep(1.0)
        self.kill()

    def kill(self) -> int | None:
        """End the process and all that it started, at once; its exit code, which it may have had before."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return None

    def text(self) -> str:
        """What it has printed."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""


def forked(function: Callable[[], int], output: Path) -> Child:
    """Run a function in a process of its own, with its output in a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpgid(pid, pid)
        return Child(pid, output)
    code = 70
    try:
        os.setpgid(0, 0)
        target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(target, stream)
        faulthandler.enable()
        code = function()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def rehearsed(function: Callable[[], int], scratch: Path) -> int | None:
    """The exit code of a function in a process of its own, whose imports this process then makes as well."""
    names = scratch / "modules.txt"

    def run() -> int:
        code = function()
        names.write_text("\n".join(name for name in sys.modules if name != "__main__"))
        return code

    child = forked(run, scratch / "rehearsal.txt")
    code = child.wait()
    for name in names.read_text().split() if names.exists() else ():
        if name not in sys.modules:
            with contextlib.suppress(Exception):  # made while it ran, or a name that stands for another one
                importlib.import_module(name)
    return code


FILE_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate", "os.link", "shutil.rmtree")


def killed_at(operation: int, folder: Path, counted: Path | None = None) -> None:
    """From now on, die before the n-th operation on files below a folder; 0: count them in a file instead."""
    place, count = str(folder), 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in FILE_EVENTS or not arguments or not str(arguments[0]).startswith(place):
            return
        count += 1
        if count == operation:
            os.kill(os.getpid(), signal.SIGKILL)
        if counted is not None:
            counted.write_text(str(count))

    sys.addaudithook(watch)


def train_words(folder: Path) -> list[str]:
    """The training, from its beginning or on."""
    resumed = ("--resume",) if (folder / "run.json").exists() else ()
    words = ("train",) if resumed else TRAIN
    return [*words, *resumed, *(("--quiet",) if resumed else ()), "--out", str(folder)]


def training(trials: int, seed: int, scratch: Path, findings: Findings) -> None:
    """Kills of a training; one in five of the trials on two processes."""
    whole = scratch / "whole"
    counted = scratch / "operations"

    def undisturbed() -> int:
        killed_at(0, whole, counted)
        return main([*TRAIN, "--out", str(whole)])

    assert rehearsed(lambda: main([*TRAIN, "--out", str(scratch / "first")]), scratch) == 0
    watch = Stopwatch()
    assert forked(undisturbed, scratch / "whole.txt").wait() == 0, (scratch / "whole.txt").read_text()
    seconds, operations = watch.seconds(), int(counted.read_text())
    weights = (whole / "model.safetensors").read_bytes()
    watch = Stopwatch()
    assert _team(scratch / "team", scratch).wait() == 0, (scratch / "team.txt").read_text()
    assert (scratch / "team" / "model.safetensors").read_bytes() == weights
    team_seconds = watch.seconds()
    for trial in range(trials):
        draw = random.Random(f"{seed} training {trial}")
        folder = scratch / f"run{trial}"
        if trial % 5 == 4:
            kind = _killed_team(folder, draw, scratch, team_seconds)
        else:
            kind = _killed_run(folder, draw, scratch, seconds, operations)
        output = scratch / "again.txt"
        code = forked(lambda: main(train_words(folder)), output).wait()  # noqa: B023 - it ends within the turn
        same = (folder / "model.safetensors").exists() and (folder / "model.safetensors").read_bytes() == weights
        good = code == 0 and same and "Traceback" not in output.read_text()
        findings.note(
            f"{kind}: {'same weights' if good else 'failed'}",
            seed=trial,
            failed=not good,
            code=code,
            output=output.read_text()[-2000:],
        )
        if good:
            shutil.rmtree(folder)


def _killed_run(folder: Path, draw: random.Random, scratch: Path, seconds: float, operations: int) -> str:
    by_operation = draw.random() < 0.5
    number = draw.randrange(1, operations + 1) if by_operation else 0

    def run() -> int:
        if number:
            killed_at(number, folder)
        return main([*TRAIN, "--out", str(folder)])

    child = forked(run, scratch / "killed.txt")
    if by_operation:
        child.wait()
        return "killed at an operation"
    time.sleep(draw.uniform(0, seconds))
    child.kill()
    return "killed at an instant"


def _team(folder: Path, scratch: Path) -> subprocess.Popen[bytes]:
    """The training on two processes of torchrun."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "deepzero"]
    with (scratch / "team.txt").open("w") as output:
        return subprocess.Popen(
            [*launch, *TRAIN, "--out", str(folder)],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


def _killed_team(folder: Path, draw: random.Random, scratch: Path, seconds: float) -> str:
    """Two processes of torchrun: the launcher, or one of the two, is killed; the others must end by themselves."""
    with _team(folder, scratch) as process:
        watch = Stopwatch()
        until = draw.uniform(0.2, 1) * seconds
        while watch.seconds() < until and process.poll() is None:
            time.sleep(0.01)
        victims = [process.pid, *_children(process.pid)]
        with contextlib.suppress(ProcessLookupError):
            os.kill(draw.choice(victims), signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LIMIT)
        watch = Stopwatch()
        while _alive(victims) and watch.seconds() < LIMIT:
            time.sleep(0.05)
    left = _alive(victims)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return "killed in a team" if not left else "killed in a team, and orphans stayed"


def _children(pid: int) -> list[int]:
    listed = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(word) for word in listed.split()]


def _alive(pids: Sequence[int]) -> list[int]:
    def there(pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        state = Path(f"/proc/{pid}/stat")
        return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")

    return [pid for pid in pids if there(pid)]


def loss(weights: np.ndarray[Any, Any]) -> float:
    """The black box that is billed."""
    return float(np.sum(np.cos(weights * np.arange(1, SIZE + 1))))


def fit(bill: Path, journal: Path | None, out: Path) -> int:
    """Train with a black box that bills every call before it answers."""
    file = os.open(bill, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def paid(params: dict[str, Any]) -> float:
        os.write(file, f"{dz.query_key()}\n".encode())
        return loss(params["w"])

    box = dz.BlackBox(paid, {"w": np.linspace(0.1, 0.9, SIZE)})
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(WORKERS))
        kept = None if journal is None else stack.enter_context(dz.QueryJournal(journal, problem="torture"))
        zo = dz.CGE(box, step_size=1e-3, executor=pool, journal=kept)
        optimizer = torch.optim.Adam(box.parameters(), lr=0.05)
        for _ in range(STEPS):
            optimizer.zero_grad()
            zo.backward()
            optimizer.step()
    out.write_text(json.dumps(box.values["w"].tolist()))
    return 0


def billed(trials: int, seed: int, scratch: Path, findings: Findings) -> None:
    """Kills of a training whose every query costs; a new training begins whenever one has ended."""
    whole = scratch / "whole.json"
    assert rehearsed(lambda: fit(scratch / "first", None, scratch / "first.json"), scratch) == 0
    watch = Stopwatch()
    child = forked(lambda: fit(scratch / "bill", scratch / "whole.sqlite", whole), scratch / "out.txt")
    assert child.wait() == 0, child.text()
    seconds, weights = watch.seconds(), whole.read_text()
    place = _new_training(scratch, 0)
    for trial in range(trials):
        draw = random.Random(f"{seed} billed {trial}")
        before = _answered(place / "queries.sqlite")
        start = (place / "bill").stat().st_size if (place / "bill").exists() else 0
        child = forked(
            lambda: fit(place / "bill", place / "queries.sqlite", place / "out.json"),  # noqa: B023
            place / "out.txt",
        )
        time.sleep(draw.uniform(0, seconds))
        code = child.kill()
        again = before & set(_billed(place / "bill", start))
        ended = (place / "out.json").exists()
        wrong = ended and (place / "out.json").read_text() != weights
        failed = code not in (0, None, -signal.SIGKILL)
        kind = "billed again" if again else "other weights" if wrong else "ended" if ended else "killed"
        findings.note(
            "could not go on" if failed else kind,
            seed=trial,
            failed=bool(again) or wrong or failed,
            keys=sorted(again)[:3],
            output=child.text()[-2000:],
        )
        if ended:
            place = _new_training(scratch, trial + 1)
    child = forked(lambda: fit(place / "bill", place / "queries.sqlite", place / "out.json"), place / "out.txt")
    good = child.wait() == 0 and (place / "out.json").read_text() == weights
    findings.note(
        "went on to the end" if good else "did not", seed=trials, failed=not good, output=child.text()[-2000:]
    )


def _new_training(scratch: Path, number: int) -> Path:
    place = scratch / f"training{number}"
    place.mkdir()
    return place


def _answered(journal: Path) -> set[str]:
    """The queries whose answers are on disk; there are none in a file that is not made yet."""
    if not journal.exists() or not journal.stat().st_size or journal_file.is_unfinished(journal):
        return set()
    with journal_file.explained(journal), journal_file.reading(journal) as (db, form):
        return {row.key for row in journal_file.answers(db, form, journal)}


def _billed(bill: Path, start: int) -> list[str]:
    return bill.read_bytes()[start:].decode().split() if bill.exists() else []


def journals(trials: int, seed: int, scratch: Path, findings: Findings) -> None:
    """Damages of a closed journal, and of one whose process was killed."""
    draw = random.Random(f"{seed} journals")
    answers: dict[str, Any] = {f"{n:032x}": draw.uniform(-1, 1) for n in range(300)}
    answers |= {f"{n:032x}": None for n in range(300, 310)}
    answers |= {f"{n:032x}": np.array([draw.random() for _ in range(40)]) for n in range(310, 340)}
    sources = [scratch / "closed", scratch / "killed"]
    for source in sources:
        source.mkdir()
    _fill(sources[0] / "queries.sqlite", answers).close()
    kept = _fill(scratch / "open.sqlite", answers)
    for file in scratch.glob("open.sqlite*"):
        shutil.copy(file, sources[1] / file.name.replace("open", "queries"))
    kept.close()
    place = scratch / "damaged"
    for trial in range(trials):
        draw = random.Random(f"{seed} journals {trial}")
        source = sources[trial % 2]
        shutil.copytree(source, place)
        file = draw.choice(sorted(place.iterdir()))
        done = f"{file.name}: {damage.damaged(file, draw.randrange(2**32))}"
        if source is sources[0] and not (file.is_file() and file.stat().st_size):
            findings.note("closed: deleted or emptied, which is a new journal", seed=trial)
            shutil.rmtree(place)
            continue
        found = _read(place / "queries.sqlite", answers)
        findings.note(f"{source.name}: {found}", seed=trial, failed=found not in ("refused", "all there"), damage=done)
        shutil.rmtree(place)


def _fill(path: Path, answers: dict[str, Any]) -> dz.QueryJournal:
    journal = dz.QueryJournal(path, problem="torture")
    keys = list(answers)
    for start in range(0, len(keys), 7):
        journal.record({key: answers[key] for key in keys[start : start + 7]})
    return journal


def _read(path: Path, answers: dict[str, Any]) -> str:
    """The outcome of opening a journal and asking it for everything."""
    try:
        with dz.QueryJournal(path, problem="torture") as journal:
            found = journal.lookup(answers)
    except JournalError:
        return "refused"
    except dz.errors.InvalidInputError:
        return "refused"  # a folder in the file's place
    except Exception as error:
        return f"raised {type(error).__name__}: {error}"
    if any(repr(value) != repr(answers[key]) for key, value in found.items()):
        return "wrong answers"
    return "all there" if found.keys() == answers.keys() else "answers missing without a word"


def folders(trials: int, seed: int, scratch: Path, findings: Findings) -> None:
    """Two trainings in one folder."""
    whole = scratch / "whole"
    assert rehearsed(lambda: main([*TRAIN, "--out", str(whole)]), scratch) == 0
    weights = (whole / "model.safetensors").read_bytes()
    for trial in range(trials):
        draw = random.Random(f"{seed} folders {trial}")
        folder = scratch / f"run{trial}"
        first = forked(lambda: main([*TRAIN, "--out", str(folder)]), scratch / "first.txt")  # noqa: B023
        time.sleep(draw.choice((0.0, draw.uniform(0, 2))))
        second = forked(lambda: main(train_words(folder)), scratch / "second.txt")  # noqa: B023
        codes = {child: child.wait() for child in (first, second)}
        refused = [child for child, code in codes.items() if code == 2 and "Traceback" not in child.text()]
        named = [child for child in refused if str(folder) in " ".join(child.text().split())]
        path = folder / "model.safetensors"
        same = path.exists() and path.read_bytes() == weights
        good = sorted(str(code) for code in codes.values()) == ["0", "2"] and len(named) == 1 and same
        findings.note(
            "one refused by name, the other undisturbed" if good else "failed",
            seed=trial,
            failed=not good,
            codes=list(codes.values()),
            first=first.text()[-1500:],
            second=second.text()[-1500:],
        )


def hostile(trials: int, options: argparse.Namespace, scratch: Path, note: Callable[[str, Findings], None]) -> bool:
    """Damaged files in front of every command that reads some; True if a trial failed.

    Args:
        trials: for each command.
        options: seed, words of the commands, and number of processes.
        scratch: an empty folder.
        note: is called with each command that is done, in the process that tried it.
    """
    place = _place(scratch)
    chosen = [name for name in _commands() if not options.only or any(word in name for word in options.only)]

    def share(number: int) -> int:
        folder, failed = scratch / f"job{number}", False
        folder.mkdir()
        for name in chosen[number :: options.jobs]:
            findings, watch = Findings(), Stopwatch()
            _hostile_command(name, trials, options.seed, place, folder, findings)
            findings.seconds = watch.seconds()
            note(f"hostile, {name}", findings)
            failed |= bool(findings.failures)
        return int(failed)

    with ExitStack() as stack:
        children = [forked(partial(share, number), scratch / f"job{number}.txt") for number in range(options.jobs)]
        for child in children:
            stack.callback(child.kill)
        codes = [child.wait(limit=10 * 3600) for child in children]
    print("".join(child.text() for child in children), end="", flush=True)
    assert set(codes) <= {0, 1}, codes
    return 1 in codes


def _hostile_command(name: str, trials: int, seed: int, place: Path, scratch: Path, findings: Findings) -> None:
    """One command on damaged copies."""
    words, copy = _commands()[name], scratch / "copy"
    opened = _opened(words, place, copy, scratch)
    for trial in range(trials):
        draw = random.Random(f"{seed} hostile {name} {trial}")
        words.copy(place, copy)
        file = copy / draw.choice(opened)
        done = f"{file.relative_to(copy)}: {damage.damaged(file, draw.randrange(2**32))}"
        child = forked(lambda: _limited(copy, words.words), scratch / "out.txt")
        code, text = child.wait(), child.text()
        kind = _kind(code, text)
        findings.note(
            kind,
            seed=trial,
            failed=kind not in ("refused", "answered", "stopped"),
            damage=done,
            code=code,
            output=text[-1500:],
        )
        shutil.rmtree(copy)
    print(f"  {name} opens {len(opened)} files", flush=True)


def _opened(words: Words, place: Path, copy: Path, scratch: Path) -> list[str]:
    """The files to damage that a command opens on whole copies, of which it must have no complaint."""
    listed = scratch / "opened.txt"
    words.copy(place, copy)

    def run() -> int:
        found: set[str] = set()

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            if event in ("open", "sqlite3.connect") and arguments and isinstance(arguments[0], str | os.PathLike):
                name = os.fspath(arguments[0])
                named = name.removeprefix("file:").partition("?")[0] if isinstance(name, str) else ""
                path = Path.cwd() / named
                if path.is_relative_to(copy / words.reads) and path.is_file() and path.suffix != ".lock":
                    found.add(str(path.relative_to(copy)))

        there = {path.relative_to(copy) for path in (copy / words.reads).rglob("*") if path.is_file()}
        sys.addaudithook(watch)
        code = _inside(copy, words.words)
        listed.write_text("\n".join(sorted(name for name in found if Path(name) in there)))
        return code

    code = rehearsed(run, scratch)
    text = (scratch / "rehearsal.txt").read_text()
    assert code in (0, 75), (words, code, text[-2000:])
    assert "Traceback" not in text, (words, text[-2000:])
    shutil.rmtree(copy)
    opened = [name for name in listed.read_text().split("\n") if name and Path(name).suffix not in UNREAD]
    assert opened, (words, "opens nothing")
    return opened


def _limited(folder: Path, words: Sequence[str]) -> int:
    """A command within the seconds of the processor that it may take."""
    resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR, PROCESSOR + 5))
    return _inside(folder, words)


UNREAD = (".md", ".html", ".svg", ".gif")


def _kind(code: int | None, text: str) -> str:
    """The outcome of a command, in a word."""
    if code in (None, -signal.SIGXCPU):
        return "hangs"
    if "Traceback" in text:
        return "traceback"
    if code < 0:
        return f"signal {-code}"
    return {0: "answered", 1: "refused", 2: "refused", 75: "stopped"}.get(code, f"code {code}")


@dataclass(frozen=True)
class Words:
    """A command in front of damaged files.

    Attributes:
        words: the command line, in the folder of the copies.
        reads: the folder whose files are damaged.
        beside: files and folders that stay whole.
    """

    words: tuple[str, ...]
    reads: str
    beside: tuple[str, ...] = ()

    def copy(self, place: Path, to: Path) -> None:
        """Fresh copies of what it reads."""
        for name in (self.reads, *self.beside):
            source = place / name
            if source.is_dir():
                shutil.copytree(source, to / name)
            else:
                to.mkdir(exist_ok=True)
                shutil.copy(source, to / name)


AT_ONCE = ("--max-minutes", "1e-9")
"""A run that stops as soon as it has read everything."""
EXAMINED = ("--seconds", "0.05", "--json", "--out", "diagnosis")
CERTIFIED = ("--images", "2", "--trials", "200", "--radii", "0.0")
SPEED = ("--rounds", "1", "--threads", "1", "--seconds-per-side", "0.01")
BENCH = ("bench", "digits", *SPEED, "--out", "speed/bench.json")
DENSE = ("--sparsity", "0")


def _commands() -> dict[str, Words]:
    """Command lines for each command, and each option, that reads files of its own or of the user's."""
    new = (*AT_ONCE, *DENSE, "--out", "new", "--quiet")
    correct = ("correct", "--resume", "--out", "trained", "--data-dir", "flows")
    return {
        "train --resume": Words(("train", "--resume", "--out", "begun", "--quiet"), "begun"),
        "train --data": Words(("train", "--data", "table/t.csv", *new), "table"),
        "train --config": Words(("train", "--config", "settings/run.toml", *new), "settings"),
        "train --config, JSON": Words(("train", "--config", "record/run.json", *new), "record"),
        "train, own recipe": Words(("train", "own/recipe.py", *AT_ONCE, "--out", "new", "--quiet"), "own"),
        "evaluate": Words(("evaluate", "done"), "done"),
        "evaluate --data": Words(("evaluate", "rows", "--data", "table/t.csv"), "table", ("rows",)),
        "predict": Words(("predict", "done", "x.npy", "--out", "y.csv"), "done", ("x.npy",)),
        "predict, arrays": Words(("predict", "done", "inputs/x.npy", "--out", "y.csv"), "inputs", ("done",)),
        "predict, table": Words(("predict", "rows", "table/t.csv"), "table", ("rows",)),
        "predict, images": Words(("predict", "shots", "images/cats"), "images", ("shots",)),
        "export": Words(("export", "done", "m.pt2"), "done"),
        "report": Words(("report", "done", "--out", "r.html"), "done"),
        "report --surface": Words(("report", "done", "--surface", "--points", "3", "--out", "r.html"), "done"),
        "report, defense": Words(("report", "defense", "--out", "r.html"), "defense"),
        "report, correction": Words(("report", "correction", "--out", "r.html"), "correction"),
        "report, figure": Words(("report", "figure", "--out", "r.html"), "figure"),
        "doctor --data": Words(("doctor", "--data", "table/t.csv", *DENSE, *EXAMINED), "table"),
        "doctor --config": Words(("doctor", "--config", "settings/run.toml", *DENSE, *EXAMINED), "settings"),
        "doctor, own script": Words(("doctor", "own/box.py:make", *EXAMINED), "own"),
        "data, table": Words(("data", "table/t.csv"), "table"),
        "data, Parquet": Words(("data", "parquet/t.parquet"), "parquet"),
        "data, arrays": Words(("data", "arrays/a.npz"), "arrays"),
        "data, images": Words(("data", "images"), "images"),
        "data, IDX": Words(("data", "idx"), "idx"),
        "journal": Words(("journal", "kept/queries.sqlite", "--csv", "answers.csv"), "kept"),
        "journal --upgrade": Words(("journal", "old/queries.sqlite", "--upgrade"), "old"),
        "defend --resume": Words(("defend", "--resume", "--out", "stopped"), "stopped"),
        "defend --classifier": Words(
            ("defend", "--classifier", "model/c.onnx", "--method", "smoothing", "--out", "new"), "model"
        ),
        "certify": Words(("certify", "defense", *CERTIFIED), "defense"),
        "correct --resume": Words(correct, "trained", ("flows",)),
        "correct --data-dir": Words(correct, "flows", ("trained",)),
        "reproduce": Words((*REPRODUCE, "--out", "figure"), "figure"),
        "reproduce --known": Words((*REPRODUCE, "--known", "figure/results.json", "--out", "again"), "figure"),
        "bench --resume": Words((*BENCH, "--resume"), "speed"),
    }


def _place(scratch: Path) -> Path:
    """Folders of runs and data for the commands."""
    place = scratch / "place"
    place.mkdir()
    _bring(place)
    words = [
        ["train", "digits", *SMALL, "--quiet", "--out", "done"],
        ["train", "digits", *SMALL, "--checkpoint-steps", "1", "--quiet", "--out", "begun"],
        ["train", "--data", "table/t.csv", "--epochs", "1", *DENSE, "--quiet", "--out", "rows"],
        [
            "train",
            "--data",
            "images",
            "--estimator",
            "fo",
            "--epochs",
            "1",
            "--batch-size",
            "4",
            *DENSE,
            "--quiet",
            "--out",
            "shots",
        ],
        [*REPRODUCE, "--out", "figure"],
        [*BENCH],
    ]
    making = [(lambda line=line: _inside(place, line)) for line in words]
    for make in (*making, lambda: _made_tasks(place)):
        code = rehearsed(make, scratch)
        assert code in (0, 75), (code, (scratch / "rehearsal.txt").read_text()[-2000:])
    shutil.copytree(place / "correction", place / "trained")
    for name, last in (("begun", "."), ("stopped", "finetuning"), ("trained", "training")):
        _as_before_its_end(place / name, place / name / last)
    (place / "record").mkdir()
    shutil.copy(place / "done" / "run.json", place / "record" / "run.json")
    (place / "model").mkdir()
    shutil.copy(place / "defense" / "stages" / "classifier" / "classifier.onnx", place / "model" / "c.onnx")
    return place


def _bring(place: Path) -> None:
    """Files of the user's."""
    import own_files  # noqa: PLC0415 - needs Pillow
    import pyarrow  # noqa: PLC0415
    from pyarrow import parquet  # noqa: PLC0415

    draw = random.Random(0)
    rows = [(draw.gauss(k % 2 * 3, 1), draw.gauss(0, 1), "ab"[k % 2]) for k in range(80)]
    for folder in ("table", "parquet", "arrays", "inputs", "kept", "old", "settings", "own", "idx", "speed"):
        (place / folder).mkdir()
    text = "".join(f"{x:.3f},{y:.3f},{label}\n" for x, y, label in rows)
    (place / "table" / "t.csv").write_text(f"u,v,label\n{text}")
    columns = dict(zip(("u", "v", "label"), map(list, zip(*rows, strict=True)), strict=True))
    parquet.write_table(pyarrow.table(columns), place / "parquet" / "t.parquet")
    numbers = np.random.default_rng(0)
    np.savez(place / "arrays" / "a.npz", images=numbers.random((60, 8, 8)), labels=np.arange(60) % 3)
    np.save(place / "inputs" / "x.npy", numbers.random((4, 1, 8, 8)).astype(np.float32))
    shutil.copy(place / "inputs" / "x.npy", place / "x.npy")
    own_files.image_folder(place / "images", size=(8, 8), count=6)
    for split, count in (("train", 60), ("t10k", 20)):
        own_files.idx(place / "idx" / f"{split}-images-idx3-ubyte", own_files.noise(count, 8, 8))
        own_files.idx(place / "idx" / f"{split}-labels-idx1-ubyte", np.arange(count) % 3)
    (place / "settings" / "run.toml").write_text('recipe = "digits"\n[training]\nepochs = 1\n[data]\nlimit = 100\n')
    (place / "own" / "recipe.py").write_text(RECIPE)
    (place / "own" / "box.py").write_text(BOX)
    _fill(place / "kept" / "queries.sqlite", {f"{n:032x}": n / 7 for n in range(200)}).close()
    _fill_old(place / "old" / "queries.sqlite", {f"{n:032x}": n / 7 for n in range(200)})


RECIPE = """\
import torch
import deepzero as dz

def recipe(width: int = 3):
    torch.manual_seed(0)
    x = torch.randn(40, width)
    model = torch.nn.Linear(width, 2)
    zo = dz.CGE(model, loss=torch.nn.functional.cross_entropy)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    return dz.Trainer(model, zo, optimizer, [(x, (x.sum(1) > 0).long())] * 4, epochs=1, model_file=None)
"""
BOX = """\
import numpy as np

def make():
    return (lambda x: float(np.square(x - 1).sum())), np.zeros(4)
"""


def _fill_old(path: Path, answers: dict[str, float]) -> None:
    """A journal of the first version, which has no checksums."""
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute(f"PRAGMA application_id={0x647A6A31}")
        db.execute("CREATE TABLE answers (key TEXT PRIMARY KEY, loss REAL) WITHOUT ROWID")
        db.executemany("INSERT INTO answers VALUES (?, ?)", answers.items())


def _made_tasks(place: Path) -> int:
    """Defenses and a correction of the least size, which have finished; a defense is certified."""
    os.chdir(place)
    stage = defense.StageConfig(steps=4, batch_size=16)
    config = defense.DefenseConfig(
        data=DataConfig(name="digits", batch_size=16, limit=64),
        method="deepzero",
        finetuned="zo-grasp",
        denoiser=defense.DenoiserConfig(depth=3, width=4),
        classifier=stage,
        pretraining=stage,
        finetuning=defense.StageConfig(learning_rate=1e-3, batch_size=16),
        directions=4,
        budget=16 * 5 * 4,
    )
    for name in ("defense", "stopped"):
        assert defense.defend(config, out=name).summary is not None
    flows = correction.FlowConfig(resolution=8, training=(97.7, 195.3), test=(146.5,), warmup=2, frames=4)
    task = correction.CorrectionConfig(
        flow=flows, method="zo-sol", unroll=1, batch_size=2, widths=(2,), budget=60, sparsity=0.5
    )
    assert correction.correct(task, out="correction", data_dir="flows").summary is not None
    return main(["certify", "defense", *CERTIFIED])


def _as_before_its_end(run: Path, last: Path) -> None:
    """Make a run of one that has to make the last steps of its last stage again, and to conclude that and itself."""
    for folder in {run, last}:
        for name in ("summary.json", "model.safetensors"):
            (folder / name).unlink(missing_ok=True)
    checkpoints = sorted((last / "checkpoints").glob("step-*"))
    if len(checkpoints) > 1 and not checkpoints[-2].name.endswith("-00000000"):
        shutil.rmtree(checkpoints[-1])


def _inside(folder: Path, words: Sequence[str]) -> int:
    """A command in a folder."""
    os.chdir(folder)
    return main(list(words))


PARTS: dict[str, tuple[Callable[[int, int, Path, Findings], None], int]] = {
    "journals": (journals, 400),
    "billed": (billed, 100),
    "folders": (folders, 20),
    "training": (training, 100),
}
"""The parts, and how many trials each has."""
HOSTILE, EACH = "hostile", 200
"""The part of damaged files in front of commands, and its trials for each command."""


PAGE = TESTS.parent / "docs" / "promises.md"
RECORD = TESTS.parent / "benchmarks" / "records" / "torture.json"
MARKED = re.compile(r"(<!-- record: torture -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str) -> str:
    """The page with the outcomes of the recorded campaign between the marks."""
    return MARKED.sub(lambda found: f"{found[1]}\n{_section()}\n{found[2]}", page)


def _section() -> str:
    if not RECORD.exists():
        return "Not recorded yet.\n"
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    rows = [
        f"| {_titled(name)} | {part['trials']:,} | {_outcomes(part)} |" for name, part in _in_order(record["parts"])
    ]
    parts = record["parts"].values()
    failed, minutes = sum(len(part["failures"]) for part in parts), sum(part["seconds"] for part in parts) / 60
    commits = ", ".join(sorted({f"`{part['commit'][:10]}`" for part in parts}))
    told = (
        f"Recorded by `python benchmarks/torture.py`, {record['date'][:10]}, at commit {commits}, by processes that "
        f"took {minutes:.0f} minutes in all: {failed} of {sum(part['trials'] for part in parts):,} trials failed."
    )
    return "\n".join([told, "", "| part | trials | outcomes |", "|---|---:|---|", *rows, ""])


def _in_order(parts: dict[str, Any]) -> list[tuple[str, Any]]:
    order = [*PARTS, *(f"{HOSTILE}, {name}" for name in _commands())]
    return sorted(parts.items(), key=lambda item: order.index(item[0]))


def _titled(name: str) -> str:
    part, _, command = name.partition(", ")
    words, comma, files = command.partition(", ")
    return f"{part}, `deepzero {words}`{comma}{files}" if command else part


def _outcomes(part: dict[str, Any]) -> str:
    return "; ".join(f"{outcome} {count:,}" for outcome, count in part["outcomes"].items())


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        yield Path(name).resolve()


def campaign(options: argparse.Namespace) -> int:
    """Run the parts and write the record after each; 1 if a trial failed."""
    if options.page:
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return 0
    head, failed = heading(environment(libraries=("numba", "safetensors", "onnxruntime"))), False
    circumstances = _circumstances(options.seed)

    def note(name: str, findings: Findings) -> None:
        _note(options.out, head, name, {**circumstances, **findings.record()})
        _show(name, findings)

    for name in options.parts:
        with scratch_folder() as scratch:
            if name == HOSTILE:
                failed |= hostile(max(1, round(EACH * options.share)), options, scratch, note)
                continue
            part, usual = PARTS[name]
            findings, watch = Findings(), Stopwatch()
            part(max(1, round(usual * options.share)), options.seed, scratch, findings)
        findings.seconds = watch.seconds()
        note(name, findings)
        failed |= bool(findings.failures)
    return int(failed)


def _show(name: str, findings: Findings) -> None:
    print(f"{name}: {findings.trials} trials in {findings.seconds:.0f} s, {len(findings.failures)} failed")
    for outcome, count in sorted(findings.outcomes.items()):
        print(f"  {count:4d} {outcome}")
    for failure in findings.failures[:5]:
        print(json.dumps(failure, indent=1, default=str)[:1500], flush=True)


def _note(path: Path | None, head: dict[str, Any], name: str, part: dict[str, Any]) -> None:
    """Put a part into the record, beside those that are there."""
    if path is None:
        return
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    while not lock.acquire():
        time.sleep(0.1)
    parts = json.loads(path.read_text(encoding="utf-8"))["parts"] if path.exists() else {}
    write_record(path, {**head, "parts": {**parts, name: part}})
    lock.release()


def _circumstances(seed: int) -> dict[str, Any]:
    """Command and commit of a part, and its seed."""
    git = ["git", "-C", str(TESTS.parent)]
    commit, changed = (
        subprocess.run([*git, *words], capture_output=True, text=True, check=False).stdout.strip()
        for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno"))
    )
    return {"command": command_line(), "commit": commit, "changed_since": bool(changed), "seed": seed}


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=[*PARTS, HOSTILE], default=[*PARTS, HOSTILE])
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="of hostile: commands with such a word")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="commands of hostile at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, metavar="X", help="of the usual number of trials")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the record")
    parser.add_argument("--page", action="store_true", help="put the record into the page of the documentation")
    return parser.parse_args(words)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(campaign(arguments()))
