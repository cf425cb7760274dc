"""The working tree against another commit of this repository: queries per second of whole optimizer steps, in turns.

    python benchmarks/against_commit.py --commit a39285b --case digits --rounds 5 --out against.json

The commit is checked out into a temporary folder. Two child processes, one for each tree, build the same estimator by
the public interface from the same weights, batch and coordinates (``whole_steps.py``) and make their first steps, which
export, verify and compile. Then they take turns: while one makes whole steps (``zero_grad``, ``backward``, ``step``),
the other waits. Before anything is timed, both must find the same loss and gradients.

A turn is at least a step and at least ``--turn`` seconds; a round is as many turns of each side as fill ``--seconds``,
and who goes first alternates. A round gives queries per second of wall time, the mean over its turns; the ratio is the
median over the rounds, given with its extremes. Beside it stands the same ratio by CPU time, which other processes that
take the core away distort less. ``--pairs`` repeats all of it with new processes: where memory happens to lie can make
one process a few per cent faster than another for as long as it lives.

``digits`` and ``cnn`` query every coordinate. ``resnet20`` queries a stretch of each parameter's coordinates, the same
in both trees, so what a step does once (base forward, checks) weighs more there than in a step of all coordinates.
Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from deepzero.measure import problem
from deepzero.measure.measurement_record import environment, heading, write_record
from deepzero.measure.rounds import Spread, by_side, in_turns

ROOT = Path(__file__).resolve().parents[1]
SIDES = ("here", "commit")
AGREEMENT = 1e-3
"""Largest relative difference of loss and gradients at the first step: far above rounding, far below a fault."""


@dataclass(frozen=True)
class Options:
    """The command line."""

    commit: str
    case: str = "digits"
    rounds: int = 5
    pairs: int = 3
    seconds: float = 10.0
    turn: float = 0.5
    batch: int = 128
    threads: int = 1
    warm_up: int = 1
    stretch: int = 4
    evaluator: str = "propagation"
    at_least: float | None = None
    out: Path | None = None


class Child:
    """A process that computes with the package of one tree: it answers a line with a line of JSON.

    Args:
        tree: where the package lies, in ``src``.
        folder: where the process runs, and its only argument.
        threads: of torch.
        script: of this folder, whatever the tree; its first line says which package it imported.
    """

    def __init__(self, tree: Path, folder: Path, threads: int, *, script: str = "whole_steps.py") -> None:
        environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, str(Path(__file__).with_name(script)), str(folder)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder
        )
        found = Path(self._answer()["package"])
        if found.resolve() != (tree / "src" / "deepzero").resolve():
            self.close()
            raise SystemExit(f"the child of {tree} imported {found}: another deepzero comes before PYTHONPATH")

    def steps(self, count: int) -> dict[str, Any]:
        """Let it make ``count`` steps, and wait."""
        return self.ask(str(count))

    def ask(self, line: str) -> dict[str, Any]:
        """Its answer to a line of input."""
        print(line, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise SystemExit(f"a child ended with code {self._process.wait()}; its error is above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End it."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def git(*words: str) -> str:
    """The output of a git command in this repository."""
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"git {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextlib.contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """The commit in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git("worktree", "add", "--detach", str(tree), commit)
        try:
            yield tree
        finally:
            git("worktree", "remove", "--force", str(tree))


def write_problem(options: Options, folder: Path) -> int:
    """Weights, batch and coordinates for both children; returns the number of coordinates."""
    task = problem(options.case, batch=options.batch)
    most = None if task.sparsity == 0 else options.stretch
    chosen = {name: indices[:most].tolist() for name, indices in task.coordinates.items()}
    tensors = {**task.model.state_dict(), "batch.x": task.batch[0], "batch.y": task.batch[1]}
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / "problem.safetensors")
    request = {
        "model": task.case.model,
        "options": dict(task.case.options),
        "coordinates": chosen,
        "step_size": task.step_size,
        "learning_rate": 1e-3,
        "threads": options.threads,
        "evaluator": options.evaluator,
    }
    (folder / "problem.json").write_text(json.dumps(request))
    return sum(map(len, chosen.values()))


def deviation(here: dict[str, Any], there: dict[str, Any]) -> float:
    """Largest relative difference of loss and norms of gradients; a norm that is 0 up to rounding counts as 0.

    Raises:
        SystemExit: the sides do not compute the same numbers.
    """
    if (here["queries"], here["norms"].keys()) != (there["queries"], there["norms"].keys()):
        raise SystemExit(f"the trees made {here['queries']} and {there['queries']} queries; they are not comparable")
    floor = AGREEMENT * max(there["norms"].values())
    pairs = [(here["loss"], there["loss"]), *((here["norms"][name], norm) for name, norm in there["norms"].items())]
    found: list[float] = [abs(a - b) / max(abs(b), floor) for a, b in pairs]
    if not all(one <= AGREEMENT for one in found):  # a NaN is no agreement either
        raise SystemExit(f"loss or gradients of the trees differ by {max(found):.3g}; their speeds are not comparable")
    return max(found)


def one_round(children: dict[str, Child], count: int, turns: int) -> dict[str, Any]:
    """``turns`` turns of ``count`` steps for each side, A B B A A B ...: queries per second, and their ratios."""
    sides = {side: partial(steps_of, children[side], count) for side in SIDES}
    found = by_side(in_turns(sides, turns, swap=True))
    wall = {side: sum(turn["seconds"] for turn in found[side]) for side in SIDES}
    cpu = {side: sum(turn["cpu"] for turn in found[side]) for side in SIDES}
    speeds = {side: sum(turn["queries"] for turn in found[side]) / wall[side] for side in SIDES}
    return {**speeds, "ratio": wall["commit"] / wall["here"], "cpu_ratio": cpu["commit"] / cpu["here"]}


def steps_of(child: Child, count: int, _: int) -> dict[str, Any]:
    """A turn of a child."""
    return child.steps(count)


@contextlib.contextmanager
def pair(trees: dict[str, Path], folder: Path, threads: int) -> Iterator[dict[str, Child]]:
    """A child for each tree."""
    with contextlib.ExitStack() as ends:
        children: dict[str, Child] = {}
        for side, tree in trees.items():
            children[side] = Child(tree, folder, threads)
            ends.callback(children[side].close)
        yield children


def measure(children: dict[str, Child], options: Options) -> dict[str, Any]:
    """All rounds of a pair of children, after they are warm and checked."""
    first = {side: children[side].steps(1) for side in SIDES}
    worst = deviation(first["here"], first["commit"])
    warm_up = max(1, options.warm_up)
    once = max(children[side].steps(warm_up)["seconds"] for side in SIDES) / warm_up
    count = max(1, round(options.turn / once))
    turns = max(2, 2 * round(options.seconds / (count * once) / 2))  # even: each side goes first equally often
    rounds = []
    for number in range(options.rounds):
        rounds.append(one_round(children, count, turns))
        shown = ", ".join(f"{name} {value:,.3f}" for name, value in rounds[-1].items())
        print(f"round {number + 1} of {options.rounds}: {shown}", flush=True)
    return {"deviation_at_the_first_step": worst, "steps_per_turn": count, "turns_per_round": turns, "rounds": rounds}


def run(options: Options) -> dict[str, Any]:
    """The whole comparison, as a record."""
    circumstances = environment()
    pairs = []
    with worktree(options.commit) as tree, tempfile.TemporaryDirectory() as name:
        coordinates = write_problem(options, Path(name))
        for _ in range(options.pairs):
            with pair(dict(zip(SIDES, (ROOT, tree), strict=True)), Path(name), options.threads) as children:
                pairs.append(measure(children, options))
    rounds = [found for measured in pairs for found in measured["rounds"]]
    return {
        **heading(circumstances),
        "tree": {"commit": git("rev-parse", "HEAD"), "changed_files": git("status", "--porcelain").splitlines()},
        "against": git("rev-parse", f"{options.commit}^{{commit}}"),
        "settings": {name: value for name, value in asdict(options).items() if name != "out"},
        "coordinates": coordinates,
        "pairs": pairs,
        **{name: asdict(Spread.of([found[name] for found in rounds])) for name in rounds[0]},
    }


def main() -> None:
    """Measure, print, and write the record."""
    options = parsed()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the temporary checkout is removed
    record = run(options)
    for name, words in (("ratio", "by wall time"), ("cpu_ratio", "by CPU time")):
        spread = record[name]
        print(
            f"{options.case}, {record['coordinates']:,} coordinates, queries per second here over {options.commit}, "
            f"{words}: {spread['median']:.3f} (median of {len(spread['rounds'])} rounds, {spread['min']:.3f} to "
            f"{spread['max']:.3f})"
        )
    write_record(options.out, record)
    if options.at_least is not None and record["ratio"]["median"] < options.at_least:
        raise SystemExit(f"the median ratio {record['ratio']['median']:.3f} is below --at-least {options.at_least}")


def parsed() -> Options:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--commit", required=True, help="what to compare with")
    add("--case", choices=("digits", "cnn", "cnn-1", "resnet20", "mlp"), default=Options.case)
    add("--rounds", type=int, default=Options.rounds)
    add("--pairs", type=int, default=Options.pairs, help="pairs of processes, one after another, each for all rounds")
    add("--seconds", type=float, default=Options.seconds, help="of each side in a round, about")
    add("--turn", type=float, default=Options.turn, help="seconds of a turn, about; at least one step")
    add("--batch", type=int, default=Options.batch)
    add("--threads", type=int, default=Options.threads, help="of each child; only one child works at a time")
    add("--warm-up", type=int, default=Options.warm_up, help="steps after the first, before anything is timed")
    add("--stretch", type=int, default=Options.stretch, help="coordinates of each parameter of resnet20")
    add("--evaluator", choices=("propagation", "default"), default=Options.evaluator, help="default: CGE chooses")
    add("--at-least", type=float, help="fail if the median ratio by wall time is below this")
    add("--out", type=Path)
    return Options(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
