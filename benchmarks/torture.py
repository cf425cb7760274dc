"""A campaign against runs, journals and commands: kills at any moment, damaged files, two runs in one folder.

    python benchmarks/torture.py --out benchmarks/records/torture.json              # everything: half an hour
    python benchmarks/torture.py --parts journals billed --seed 7 --out part.json

- ``training``: ``deepzero train`` is killed (SIGKILL), half of the times before one of its operations on files in the
  folder of the run, which is drawn, half of the times at an instant that is drawn, on one process and on two; it is
  started again until it ends. Its weights must be those of an undisturbed run, to the bit.
- ``billed``: training against a black box that writes a bill for every call is killed at drawn instants and started
  again. No query whose answer is in the journal may be billed again, and the weights must be the undisturbed ones.
- ``journals``: files of a journal, closed or of a killed process, are damaged. Opening it must be an error, or every
  answer must be there, to the bit.
- ``hostile``: files that commands read are damaged, and the commands run on them. Each must end by itself with an exit
  code and a message; a traceback, a signal or a time-out is a failure.
- ``folders``: two trainings are started in one folder at almost the same time. One must be refused by name, the other
  one must end with the undisturbed weights.

Every trial has a seed of its own, which a failure is recorded with; nothing else is random. Processes are forked off
one that has loaded PyTorch. The script ends with 1 if a trial failed. Linux or macOS.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import deepzero as dz
from deepzero.cli import main
from deepzero.errors import JournalError
from deepzero.executors import journal_file
from deepzero.measure.measurement_record import environment, heading, write_record
from deepzero.stopwatch import Stopwatch

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path.insert(0, str(TESTS))
import damage  # noqa: E402 - the damages that the tests of readers make, too

TRAIN = ("train", "digits", "--epochs", "1", "--limit", "256", "--checkpoint-steps", "1", "--quiet")
REPRODUCE = ("reproduce", "fig2", "--scale", "smoke", "--only", "method=FO", "--quiet")
LIMIT = 120.0
"""Seconds after which a process hangs."""
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
        self.kill()
        return None

    def kill(self) -> None:
        """End the process and all that it started, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

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

    watch = Stopwatch()
    assert forked(undisturbed, scratch / "whole.txt").wait() == 0, (scratch / "whole.txt").read_text()
    seconds, operations = watch.seconds(), int(counted.read_text())
    weights = (whole / "model.safetensors").read_bytes()
    for trial in range(trials):
        draw = random.Random(f"{seed} training {trial}")
        folder = scratch / f"run{trial}"
        if trial % 5 == 4:
            kind = _killed_team(folder, draw, scratch)
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


def _killed_team(folder: Path, draw: random.Random, scratch: Path) -> str:
    """Two processes of torchrun: the launcher, or one of the two, is killed; the others must end by themselves."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "deepzero"]
    with (scratch / "team.txt").open("w") as output:
        process = subprocess.Popen(
            [*launch, *TRAIN, "--out", str(folder)],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        watch = Stopwatch()
        until = draw.uniform(3, 14)
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
    watch, whole = Stopwatch(), scratch / "whole.json"
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
        child.kill()
        code = 0 if (place / "out.json").exists() else None
        again = before & set(_billed(place / "bill", start))
        wrong = code == 0 and (place / "out.json").read_text() != weights
        kind = "billed again" if again else "other weights" if wrong else "ended" if code == 0 else "killed"
        findings.note(
            kind, seed=trial, failed=bool(again) or wrong, keys=sorted(again)[:3], output=child.text()[-2000:]
        )
        if code == 0:
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
    """The queries whose answers are on disk."""
    if not journal.exists():
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
    assert forked(lambda: main([*TRAIN, "--out", str(whole)]), scratch / "whole.txt").wait() == 0
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


def hostile(trials: int, seed: int, scratch: Path, findings: Findings) -> None:
    """Damaged files in front of every command that reads some; ``trials`` for each command."""
    place = _place(scratch)
    for name, words in _commands(place).items():
        for trial in range(trials):
            draw = random.Random(f"{seed} hostile {name} {trial}")
            copy = scratch / "copy"
            shutil.copytree(place / words.reads, copy / words.reads)
            for other in words.beside:
                shutil.copy(place / other, copy / other)
            files = sorted(path for path in (copy / words.reads).rglob("*") if path.is_file()) or [copy / words.reads]
            file = draw.choice([path for path in files if path.suffix not in UNREAD])
            done = f"{file.relative_to(copy)}: {damage.damaged(file, draw.randrange(2**32))}"
            child = forked(lambda: _inside(copy, list(words.words)), scratch / "out.txt")  # noqa: B023
            code, text = child.wait(60.0), child.text()
            kind = _kind(code, text)
            findings.note(
                f"{name}: {kind}",
                seed=trial,
                failed=kind not in ("refused", "answered", "stopped"),
                damage=done,
                code=code,
                output=text[-1500:],
            )
            shutil.rmtree(copy)


UNREAD = (".png", ".md", ".html", ".svg", ".gif", ".py")


def _kind(code: int | None, text: str) -> str:
    if code is None:
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
        beside: files that stay whole.
    """

    words: tuple[str, ...]
    reads: str
    beside: tuple[str, ...] = ()


def _commands(place: Path) -> dict[str, Words]:
    """One command line for each command that reads files of its own or of the user's."""
    return {
        "train --resume": Words(("train", "--resume", "--out", "begun", "--quiet"), "begun"),
        "train --data": Words(
            ("train", "--data", "table/t.csv", "--epochs", "1", "--max-minutes", "0.001", "--out", "new"), "table"
        ),
        "train --config": Words(
            ("train", "--config", "settings/run.toml", "--max-minutes", "0.001", "--out", "new"), "settings"
        ),
        "evaluate": Words(("evaluate", "done"), "done"),
        "predict": Words(("predict", "done", "x.npy", "--out", "y.csv"), "done", ("x.npy",)),
        "predict, inputs": Words(("predict", str(place / "done"), "inputs/x.npy", "--out", "y.csv"), "inputs"),
        "export": Words(("export", "done", "m.pt2"), "done"),
        "report": Words(("report", "done", "--out", "r.html"), "done"),
        "doctor": Words(("doctor", "--data", "table/t.csv", "--json"), "table"),
        "data": Words(("data", "table/t.csv"), "table"),
        "data, arrays": Words(("data", "arrays/a.npz"), "arrays"),
        "journal": Words(("journal", "kept/queries.sqlite"), "kept"),
        "defend --resume": Words(("defend", "--resume", "--out", "defense", "--max-minutes", "0.001"), "defense"),
        "certify": Words(("certify", "defense"), "defense"),
        "reproduce": Words((*REPRODUCE, "--out", "figure"), "figure"),
    }


def _place(scratch: Path) -> Path:
    """Folders of runs and data for the commands."""
    place = scratch / "place"
    place.mkdir()
    draw = random.Random(0)
    rows = [f"{draw.gauss(k % 2 * 3, 1):.3f},{draw.gauss(0, 1):.3f},{'ab'[k % 2]}" for k in range(80)]
    for folder in ("table", "arrays", "inputs", "kept", "settings"):
        (place / folder).mkdir()
    (place / "table" / "t.csv").write_text("\n".join(["x,y,label", *rows]) + "\n")
    numbers = np.random.default_rng(0)
    np.savez(place / "arrays" / "a.npz", images=numbers.random((60, 8, 8)), labels=np.arange(60) % 3)
    np.save(place / "inputs" / "x.npy", numbers.random((4, 1, 8, 8)).astype(np.float32))
    shutil.copy(place / "inputs" / "x.npy", place / "x.npy")
    (place / "settings" / "run.toml").write_text('recipe = "digits"\n[training]\nepochs = 1\n[data]\nlimit = 100\n')
    _fill(place / "kept" / "queries.sqlite", {f"{n:032x}": n / 7 for n in range(200)}).close()
    small = ["--epochs", "1", "--limit", "100", "--batch-size", "50", "--quiet"]
    for words in (
        ["train", "digits", *small, "--out", "done"],
        ["train", "digits", *small, "--checkpoint-steps", "1", "--max-minutes", "0.02", "--out", "begun"],
        ["defend", "digits", "--max-minutes", "0.02", "--quiet", "--out", "defense"],
        [*REPRODUCE, "--out", "figure"],
    ):
        child = forked(lambda: _inside(place, words), scratch / "made.txt")  # noqa: B023
        code = child.wait(600.0)
        assert code in (0, 75), (words, code, child.text()[-2000:])
    return place


def _inside(folder: Path, words: list[str]) -> int:
    os.chdir(folder)
    return main(words)


PARTS: dict[str, tuple[Callable[[int, int, Path, Findings], None], int]] = {
    "journals": (journals, 400),
    "billed": (billed, 100),
    "folders": (folders, 20),
    "training": (training, 100),
    "hostile": (hostile, 200),
}
"""The parts, and how many trials each has; of ``hostile``, for each command."""


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
        f"| {name} | {part['trials']:,} | {outcome.rpartition(': ')[0]} | {outcome.rpartition(': ')[2]} | {count:,} |"
        for name, part in record["parts"].items()
        for outcome, count in part["outcomes"].items()
    ]
    failed = sum(len(part["failures"]) for part in record["parts"].values())
    minutes = sum(part["seconds"] for part in record["parts"].values()) / 60
    told = (
        f"Recorded by `{record['command']}`, {record['date'][:10]}, in {minutes:.0f} minutes: {failed} trials failed."
    )
    return "\n".join([told, "", "| part | trials | of | outcome | number |", "|---|---:|---|---|---:|", *rows, ""])


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
    record = heading(environment(libraries=("numba", "safetensors"))) | {"seed": options.seed, "parts": {}}
    for name in options.parts:
        part, usual = PARTS[name]
        trials = max(1, round(usual * options.share))
        findings, watch = Findings(), Stopwatch()
        with scratch_folder() as scratch:
            part(trials, options.seed, scratch, findings)
        findings.seconds = watch.seconds()
        record["parts"][name] = findings.record()
        write_record(options.out, record)
        print(f"{name}: {findings.trials} trials in {findings.seconds:.0f} s, {len(findings.failures)} failed")
        for outcome, count in sorted(findings.outcomes.items()):
            print(f"  {count:4d} {outcome}")
        for failure in findings.failures[:5]:
            print(json.dumps(failure, indent=1, default=str)[:1500])
    return int(any(part["failures"] for part in record["parts"].values()))


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, metavar="X", help="of the usual number of trials")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the record")
    parser.add_argument("--page", action="store_true", help="put the record into the page of the documentation")
    return parser.parse_args(words)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(campaign(arguments()))
