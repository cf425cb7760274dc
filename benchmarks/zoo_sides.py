"""Queries on networks of the zoo, on request, by an estimator and by a plain loop: a child process of ``zoo.py``.

It says which package it imported, and then answers every line of its standard input, a JSON object with a ``task``, by
a line of JSON. It uses what several versions of the package have in common: where ``dz.CGE`` takes no ``closure=...``,
the objective is wrapped into a module whose output is the loss. So it has a stopwatch of its own for the estimator. The
loop always runs beside the estimator of the working tree, and uses what that has for measuring.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import itertools
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path[:0] = [str(TESTS / "zoo"), str(TESTS)]

# ruff: noqa: E402 - the zoo is imported from the folder of the tests
import torch
from members import MEMBERS, SMALL, Member
from torch import Tensor, nn

import deepzero as dz
from deepzero import objective
from deepzero.coordinates import Coordinates

if TYPE_CHECKING:
    from deepzero.measure.naive_loop import EntryMove

ZOO = {member.name: member for member in (*SMALL, *MEMBERS)}
STEP_SIZE = 5e-3
FORMS: dict[str, Callable[[], Any]] = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
}
MOST = 4096
WRAPPED = "model."


class AsModule(nn.Module):
    """A closure as a module: its output is the loss, its input the arguments."""

    def __init__(self, closure: Callable[..., Tensor], model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._closure = closure

    def forward(self, x: tuple[tuple[Any, ...], dict[str, Any]]) -> Tensor:
        """The loss."""
        args, keywords = x
        return self._closure(self.model, *args, **keywords)


def output_alone(output: Tensor, _: Tensor) -> Tensor:
    """The loss of a module that returns it."""
    return output


class Loop:
    """One full forward a query, of any program."""

    def __init__(self, member: Member) -> None:
        from deepzero.measure.naive_loop import EntryMove  # noqa: PLC0415 - of the working tree
        from deepzero.randomness import step_seed  # noqa: PLC0415

        self._move = partial(EntryMove.by, STEP_SIZE)
        self._seed = step_seed(0, 0)
        self._member, self._model, self._batch = member, member.model(), member.arguments()
        self._flat = {name: flat(p) for name, p in self._model.named_parameters() if p.requires_grad}
        self._draws = False
        self._next: Iterator[EntryMove] = iter(())
        self.form = self._runnable_form()
        with FORMS[self.form]():
            before = torch.get_rng_state()
            self.value()
            self._draws = not torch.equal(before, torch.get_rng_state())

    def _runnable_form(self) -> str:
        """The first form in which the program runs: inference mode costs least, but allows no derivatives."""
        for name, mode in FORMS.items():
            with contextlib.suppress(RuntimeError), mode():
                self.value()
                return name
        raise SystemExit(f"the forward of {self._member.name} does not run")

    def value(self) -> Tensor:
        """The loss; a model that draws does so at every query as an estimator with seed 0 does at its first step."""
        if self._draws:
            torch.manual_seed(self._seed)
        loss: Tensor = self._member.value(self._model, self._batch)
        return loss

    def query(self, move: EntryMove) -> float:
        """The loss with an entry moved."""
        return move.loss(self.value).item()

    def choose(self, budget: float) -> dict[str, Any]:
        """Coordinates that the loop answers in ``budget`` seconds, and their slopes."""
        sizes = {name: one.numel() for name, one in self._flat.items()}
        self._next = itertools.cycle(self._moves({name: [0] for name in sizes}))
        once = statistics.median(self.run(0.0)["seconds"] for _ in range(9))
        per_tensor = most_of_each(sizes.values(), budget / once)
        chosen = {name: spaced(size, per_tensor) for name, size in sizes.items()}
        moves = self._moves(chosen)
        with FORMS[self.form]():
            base = self.value().item()
            slopes = iter([(self.query(move) - base) / STEP_SIZE for move in moves])
        self._next = itertools.cycle(moves)
        return {
            "form": self.form,
            "seeded_at_every_query": self._draws,
            "parameters": sum(sizes.values()),
            "tensors": len(sizes),
            "per_tensor": per_tensor,
            "coordinates": chosen,
            "loss": base,
            "slopes": {name: [next(slopes) for _ in indices] for name, indices in chosen.items()},
        }

    def _moves(self, chosen: Mapping[str, list[int]]) -> list[EntryMove]:
        """The moves of all queries."""
        return [self._move(self._flat[name][index]) for name, indices in chosen.items() for index in indices]

    def run(self, seconds: float) -> dict[str, Any]:
        """Queries for some time, in turn; at least one."""
        count, start = 0, time.perf_counter()
        with FORMS[self.form]():
            while count == 0 or time.perf_counter() - start < seconds:
                self.query(next(self._next))
                count += 1
        return {"queries": count, "seconds": time.perf_counter() - start}


class Side:
    """The default estimator on a member."""

    def __init__(self, member: Member, chosen: Mapping[str, list[int]]) -> None:
        model = member.model()
        batch = member.arguments()
        closure = None if takes_closures() else member.closure
        native = closure is None
        self._prefix = "" if native else WRAPPED
        self.arguments = batch.args if native else ((batch.args, batch.kwargs), torch.zeros(1))
        self.keywords = batch.kwargs if native else {}
        self._chosen = {
            name: [index for index in indices if index < model.get_parameter(name).numel() * parts(model, name)]
            for name, indices in chosen.items()
        }
        sparsity = Coordinates({self._prefix + name: torch.tensor(one) for name, one in self._chosen.items()})
        options: dict[str, Any] = {"sparsity": sparsity, "step_size": STEP_SIZE}
        start = time.perf_counter()
        if closure is None:
            self.zo = member.estimator(dz.CGE, model, **options)
        else:
            self.zo = dz.CGE(AsModule(closure, model), loss=output_alone, **options)
        found = self.estimate()
        self.first_use = time.perf_counter() - start
        self.loss = float(found.loss)
        self.slopes = {name: self._at(found.gradients, name).tolist() for name in self._chosen}

    def _at(self, gradients: Mapping[str, Tensor], name: str) -> Tensor:
        return flat(gradients[self._prefix + name])[self._chosen[name]]

    def estimate(self) -> Any:
        """One estimate, by the public interface."""
        return self.zo.estimate(*self.arguments, **self.keywords)

    def run(self, seconds: float) -> dict[str, Any]:
        """Estimates for some time, at least one."""
        queries, start = 0, time.perf_counter()
        while queries == 0 or time.perf_counter() - start < seconds:
            queries += self.estimate().queries
        return {"queries": queries, "seconds": time.perf_counter() - start}

    def plan(self) -> dict[str, Any]:
        """Operations that fell back, tensors that are run again, and the estimator's own words."""
        kind = getattr(objective, "Batch", None)
        batch = self.arguments if kind is None else kind(self.arguments, self.keywords)
        explained = self.zo.explain().splitlines() if hasattr(self.zo, "explain") else []
        evaluator: Any = self.zo.evaluator
        try:
            program = evaluator.program(self.zo.objective, batch)
        except dz.errors.DeepZeroError as error:
            return {"not_propagated": first_line(error), "told": explained}
        again = dict(getattr(program, "recomputed", {}))
        return {
            "fallbacks": list(program.fallbacks),
            "recomputed": {name: first_line(why) for name, why in again.items()},
            "told": explained,
        }


class Answers:
    """The tasks of ``zoo.py``, by name."""

    def __init__(self) -> None:
        self._loop: Loop | None = None
        self._side: Side | None = None

    def choose(self, member: str, budget: float) -> dict[str, Any]:
        """Make the loop of a member, and choose coordinates that it answers in ``budget`` seconds."""
        self._loop = Loop(ZOO[member])
        return self._loop.choose(budget)

    def first(self, member: str, coordinates: dict[str, list[int]]) -> dict[str, Any]:
        """Make the estimator of a member, and its first estimate; says why it refuses, if it does."""
        self._side = None
        gc.collect()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                self._side = Side(ZOO[member], coordinates)
                plan = self._side.plan()
            except Exception as error:  # whatever an earlier version has to say
                self._side = None
                return {"refused": first_line(error)}
        side = self._side
        lasting = [one for one in caught if not issubclass(one.category, DeprecationWarning | FutureWarning)]
        lines = list(dict.fromkeys(first_line(str(one.message)) for one in lasting))
        return {"first_use_seconds": side.first_use, "loss": side.loss, "slopes": side.slopes, **plan, "warned": lines}

    def loop(self, seconds: float) -> dict[str, Any]:
        """Queries of the loop."""
        assert self._loop is not None, "choose comes first"
        return self._loop.run(seconds)

    def steps(self, seconds: float) -> dict[str, Any]:
        """Estimates of the estimator."""
        assert self._side is not None, "a side that refused makes no steps"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self._side.run(seconds)


def takes_closures() -> bool:
    """True if this version of the package has ``dz.CGE(..., closure=...)``."""
    return "closure" in inspect.signature(dz.CGE).parameters


def flat(value: Tensor) -> Tensor:
    """The entries in row-major order, in the same memory; a complex one counts as its real and its imaginary part."""
    value = value.detach()
    return (torch.view_as_real(value) if value.is_complex() else value).view(-1)


def parts(model: nn.Module, name: str) -> int:
    """Real numbers in an entry, as this version of the package counts."""
    return 2 if model.get_parameter(name).is_complex() and hasattr(objective, "as_real") else 1


def most_of_each(sizes: Iterable[int], queries: float) -> int:
    """The largest power of 2 such that this number of coordinates of each tensor are at most ``queries``; at least 1.

    Example:
        >>> most_of_each([10, 3], 9.0)
        4
    """
    sizes, most = list(sizes), 1
    while most < min(MOST, max(sizes)) and sum(min(2 * most, size) for size in sizes) <= queries:
        most *= 2
    return most


def spaced(size: int, most: int) -> list[int]:
    """Up to ``most`` indices below ``size``, evenly spaced.

    Example:
        >>> spaced(10, 4), spaced(2, 4)
        ([0, 2, 5, 7], [0, 1])
    """
    count = min(size, most)
    return [k * size // count for k in range(count)]


def first_line(error: BaseException | str) -> str:
    """The first line of a message, with the error's type; with the second if the first announces it."""
    lines = str(error).splitlines() or [""]
    text = " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])
    return text if isinstance(error, str) else f"{type(error).__name__}: {text}"


def warm_up() -> None:
    """Make the first estimate of the process, which loads libraries."""
    zo = dz.CGE(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), loss=nn.functional.cross_entropy)
    zo.estimate(torch.ones(2, 2), torch.tensor([0, 1]))


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    print(json.dumps({"package": str(Path(dz.__file__).parent)}), file=answers, flush=True)
    warm_up()
    known = Answers()
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(known, request.pop("task"))(**request)), file=answers, flush=True)


if __name__ == "__main__":
    main()
