"""The same gradient by the tools that others offer: torchzero, SciPy, torch.func.vmap; and polystep's candidates.

    pip install torchzero polystep scipy    # what is not there is left out, and the record says so
    python benchmarks/peers.py --out benchmarks/records/peers.json

The dense gradient of the digits network by forward differences, at the same batch, coordinates and step; all sides take
turns on one thread. polystep yields no gradient and queries no single coordinate: it is asked how many candidates it
scores a second, with the network in its evaluation mode, and a candidate is a whole set of weights that differ.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, vmap

import deepzero as dz
from deepzero.measure.cases import Problem, problem, some_of_each
from deepzero.measure.measurement_record import environment, heading, write_record
from deepzero.measure.naive_loop import Form
from deepzero.measure.rounds import Spread, by_side, in_turns, ratio
from deepzero.measure.sides import Naive
from deepzero.measure.slope_errors import relative
from deepzero.stopwatch import throughput

TOGETHER = 64
"""Perturbed networks that vmap evaluates at a time."""
SAMPLE = 8
"""Coordinates of each parameter on which gradients are compared with differences in float64."""


class Peer(ABC):
    """One way to the gradient.

    Attributes:
        name: in the record.
        package: the distribution whose version is recorded, and without which there is no such side.
        how: it is used, in words.
        task: network, batch, coordinates and step.
    """

    name: str
    package: str
    how: str

    def __init__(self, task: Problem) -> None:
        self.task = task
        self.model = copy.deepcopy(task.model)
        self.prepare()

    @abstractmethod
    def prepare(self) -> None:
        """Whatever is done once, before anything is timed."""

    @abstractmethod
    def step(self) -> tuple[int, dict[str, Tensor] | None]:
        """All queries of a step; their number, and the gradient by parameter, if there is one."""

    def loss(self) -> Tensor:
        """A plain forward of this side's own network."""
        x, y = self.task.batch
        return F.cross_entropy(self.model(x), y)


class DifferencePropagation(Peer):
    """This library."""

    name, package, how = "deepzero", "deepzero", "dz.CGE(...).estimate(x, y)"

    def prepare(self) -> None:
        """Export and check the program."""
        evaluator = dz.PropagationEvaluator(workers=1)
        self.zo = dz.CGE(self.model, loss=F.cross_entropy, step_size=self.task.step_size, evaluator=evaluator)
        self.step()

    def step(self) -> tuple[int, dict[str, Tensor] | None]:
        """One estimate."""
        found = self.zo.estimate(*self.task.batch)
        return found.queries, found.gradients


class TorchZero(Peer):
    """torchzero's finite differences, coordinate by coordinate, in a closure of one forward."""

    name, package, how = "torchzero FDM", "torchzero", "tz.m.FDM(h, formula='forward') in tz.Optimizer"

    def prepare(self) -> None:
        """The optimizer moves by the gradient itself, so that it can be read off the parameters."""
        import torchzero as tz  # noqa: PLC0415 - optional

        self.parameters = dict(self.model.named_parameters())
        self.before = {name: p.detach().clone() for name, p in self.parameters.items()}
        fdm = tz.m.FDM(h=self.task.step_size, formula="forward")
        self.optimizer = tz.Optimizer(list(self.parameters.values()), fdm)

    def step(self) -> tuple[int, dict[str, Tensor] | None]:
        """One step, which is taken back."""
        calls = 0

        @torch.no_grad()
        def closure(backward: bool = True) -> float:  # noqa: ARG001 - torchzero gives it
            nonlocal calls
            calls += 1
            return self.loss().item()

        self.optimizer.step(closure)
        gradients = {}
        with torch.no_grad():
            for name, p in self.parameters.items():
                gradients[name] = self.before[name] - p
                p.copy_(self.before[name])
        return calls, gradients


class ScipyDifferences(Peer):
    """SciPy's differences of a function of one flat vector."""

    name, package, how = "scipy approx_fprime", "scipy", "scipy.optimize.approx_fprime(flat parameters, loss, h)"

    def prepare(self) -> None:
        """The parameters as one vector."""
        self.start = torch.nn.utils.parameters_to_vector(self.model.parameters()).detach()

    def step(self) -> tuple[int, dict[str, Tensor] | None]:
        """One gradient."""
        from scipy.optimize import approx_fprime  # noqa: PLC0415 - optional

        calls = 0

        @torch.no_grad()
        def function(flat: Any) -> float:
            nonlocal calls
            calls += 1
            torch.nn.utils.vector_to_parameters(torch.from_numpy(flat).float(), self.model.parameters())
            return self.loss().item()

        found = torch.from_numpy(approx_fprime(self.start.double().numpy(), function, self.task.step_size))
        torch.nn.utils.vector_to_parameters(self.start, self.model.parameters())
        shapes = {name: p.shape for name, p in self.model.named_parameters()}
        pieces = torch.split(found, [shape.numel() for shape in shapes.values()])
        return calls, {name: piece.reshape(shapes[name]) for name, piece in zip(shapes, pieces, strict=True)}


class Vmap(Peer):
    """Batches of perturbed networks through ``torch.func.vmap``."""

    name, package, how = "torch.func.vmap", "torch", f"vmap of functional_call over {TOGETHER} perturbed networks"

    def prepare(self) -> None:
        """Parameters and buffers, of which every network of a batch has its own."""
        self.parameters = {name: p.detach() for name, p in self.model.named_parameters()}
        self.buffers = {name: b.detach() for name, b in self.model.named_buffers()}

    @torch.no_grad()
    def step(self) -> tuple[int, dict[str, Tensor] | None]:
        """All coordinates of one parameter after the other."""
        base, calls, gradients = self.loss().item(), 1, {}
        for name, p in self.parameters.items():
            found = [self._losses(name, chunk) for chunk in torch.split(torch.arange(p.numel()), TOGETHER)]
            slopes = (torch.cat(found).double() - base) / self.task.step_size
            calls += p.numel()
            gradients[name] = slopes.reshape(p.shape)
        return calls, gradients

    def _losses(self, name: str, indices: Tensor) -> Tensor:
        count, (x, y) = len(indices), self.task.batch
        moved = {n: p.expand(count, *p.shape) for n, p in self.parameters.items()}
        own = moved[name].reshape(count, -1).clone()
        own[torch.arange(count), indices] += self.task.step_size
        moved[name] = own.reshape(count, *self.parameters[name].shape)
        buffers = {n: b.expand(count, *b.shape).clone() for n, b in self.buffers.items()}

        def one(parameters: dict[str, Tensor], states: dict[str, Tensor]) -> Tensor:
            return F.cross_entropy(functional_call(self.model, {**parameters, **states}, (x,)), y)

        losses: Tensor = vmap(one)(moved, buffers)
        return losses


class PolyStep(Peer):
    """polystep's search of a random subspace."""

    name, package = "polystep candidates", "polystep"
    how = "PolyStepOptimizer.step_batch, HybridSubspace of rank 4 and at most 512 dimensions; no gradient, eval mode"

    def prepare(self) -> None:
        """The optimizer, and one step that fills its caches."""
        from polystep import HybridSubspace, ParamLayout, PolyStepOptimizer  # noqa: PLC0415 - optional

        layout = ParamLayout.from_module(self.model)
        subspace = HybridSubspace.from_layout(layout, rank=4, max_subspace_dim=512)
        self.optimizer = PolyStepOptimizer(self.model, subspace=subspace, solver="softmax")
        self.function = F.cross_entropy
        self.step()

    def step(self) -> tuple[int, dict[str, Tensor] | None]:
        """One step; it counts its candidates itself."""
        before = self.optimizer.candidate_evals
        self.optimizer.step_batch(*self.task.batch, loss_fn=self.function)
        return self.optimizer.candidate_evals - before, None


PEERS: tuple[type[Peer], ...] = (DifferencePropagation, TorchZero, ScipyDifferences, Vmap, PolyStep)


def measured(task: Problem, peers: list[Peer], rounds: int, seconds: float) -> dict[str, Any]:
    """Queries per second of all sides in turn, and the errors of the gradients."""
    plain = Naive(task)
    sides: dict[str, Callable[[int], float]] = {peer.name: partial(_rate, peer, seconds) for peer in peers}
    sides["best plain loop"] = lambda turn: plain.time(seconds, turn).rate
    rates = by_side(in_turns(sides, rounds))
    ours = rates[DifferencePropagation.name]
    chosen = some_of_each(task.coordinates, dict.fromkeys(task.coordinates.names, SAMPLE), task.seed)
    right = Naive(task, Form(double=True)).answers(chosen) / task.step_size
    errors: dict[str, float | None] = {"best plain loop": relative(plain.answers(chosen) / task.step_size, right)}
    for peer in peers:
        gradients = peer.step()[1]
        if gradients is not None:
            found = torch.cat([gradients[name].reshape(-1)[index].double() for name, index in chosen.items()])
            errors[peer.name] = relative(found, right)
    about = {peer.name: {"package": peer.package, "version": version(peer.package), "how": peer.how} for peer in peers}
    about["best plain loop"] = {"package": "torch", "version": version("torch"), "how": plain.form.name}
    return {
        name: {
            **about[name],
            "queries_per_second": asdict(Spread.of(found)),
            "deepzero_over_it": asdict(ratio(ours, found)),
            "error": errors.get(name),
        }
        for name, found in rates.items()
    }


def _rate(peer: Peer, seconds: float, _: int) -> float:
    return throughput(lambda: peer.step()[0], seconds).rate


def installed(package: str) -> bool:
    """True if a distribution is there, in a form that can be imported."""
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return find_spec(package) is not None


def main() -> None:
    """Measure what is installed, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn, at least; a step is always finished")
    parser.add_argument("--batch", type=int, default=None, help="default: the case's")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    circumstances = environment()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="polystep")
    task = problem("digits", batch=options.batch)
    found = [peer for peer in PEERS if installed(peer.package)]
    sides = measured(task, [peer(task) for peer in found], options.rounds, options.seconds)
    for name, side in sides.items():
        error = "no gradient" if side["error"] is None else f"error {side['error']:.0e}"
        over = side["deepzero_over_it"]["median"]
        print(f"{name:20s} {side['queries_per_second']['median']:10,.0f} queries/s, deepzero {over:6.1f}x, {error}")
    record = {
        **heading({**circumstances, "threads": 1}),
        "case": task.case.name,
        "batch": list(task.batch[0].shape),
        "coordinates": task.coordinates.count,
        "step_size": task.step_size,
        "rounds": options.rounds,
        "not_installed": [peer.package for peer in PEERS if peer not in found],
        "sides": sides,
    }
    write_record(options.out, record)


if __name__ == "__main__":
    main()
