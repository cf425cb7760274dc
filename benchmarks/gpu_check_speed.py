"""How fast difference propagation is on a device beside the best loop of plain forwards, and how right."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deepzero as dz
from deepzero.coordinates import Coordinates
from deepzero.evaluators.propagation import DEFAULT_BUDGET
from deepzero.measure.cases import Problem, problem
from deepzero.measure.peak_memory import peak_so_far, start_of_peak
from deepzero.measure.rounds import Spread
from deepzero.measure.sides import DeepZero
from deepzero.measure.timed_part import in_full_chunks, one_of_each, shuffled, some_of_each
from deepzero.randomness import derive_seed
from deepzero.stopwatch import pace, wait_for_devices

ERROR_SAMPLE = 192
STEP_SIZES = (5e-3, 1e-4)
Note = Callable[[dict[str, Any]], None]
Query = Callable[[str, int], Tensor]


@dataclass(frozen=True)
class Speed:
    """How a case is measured on one kind of device."""

    batch: int
    sparsity: float
    rounds: int
    seconds: float
    budget: int = DEFAULT_BUDGET


SPEED = {
    "cuda": {
        "digits": Speed(512, 0.0, 3, 4.0),
        "cnn": Speed(512, 0.0, 3, 5.0),
        "resnet20": Speed(512, 0.9, 3, 8.0, budget=8 << 30),  # the base forward alone holds 2.1 GiB
    },
    "cpu": {
        "digits": Speed(64, 0.0, 3, 1.0),
        "cnn": Speed(8, 0.9, 3, 1.0),
        "resnet20": Speed(2, 0.99, 3, 1.5),
    },
}


def speed(case: str, device: torch.device, note: Note) -> None:
    """Queries a second against the best plain forwards a second, round by round; memory; error of the gradient."""
    plan = SPEED[device.type][case]
    asked = problem(case, batch=plan.batch, sparsity=plan.sparsity).on(device)
    result: dict[str, Any] = {
        "case": case,
        "model": {"name": asked.case.model, "parameters": sum(p.numel() for p in asked.model.parameters())},
        "batch": list(asked.batch[0].shape),
        "images": asked.case.images,
        "queries": asked.queries,
        "smart_ratio_sparsity": asked.sparsity,
        "precision": {"dtype": "float32", "cudnn_tf32": device.type == "cuda" and torch.backends.cudnn.allow_tf32},
        "settings": asdict(plan),
    }
    note(result)
    result["gradient_error"] = gradient_errors(asked, plan.budget)
    note(result)
    side = DeepZero(asked, budget=plan.budget)
    result["memory"] = memory(asked, side, device)
    note(result)
    loops = plain_loops(asked, device)
    best = max(loops, key=lambda name: forwards_per_second(loops[name], asked, device, plan.seconds / 4, 0))
    rounds: dict[str, list[float]] = {"deepzero": [], "plain": []}
    for turn in range(plan.rounds):
        rounds["deepzero"].append(side.time(plan.seconds, turn).rate)
        rounds["plain"].append(forwards_per_second(loops[best], asked, device, plan.seconds / 2, turn))
        ratios = [fast / slow for fast, slow in zip(rounds["deepzero"], rounds["plain"], strict=True)]
        result["queries_per_second"] = asdict(Spread.of(rounds["deepzero"]))
        result["plain_forwards_per_second"] = {"loop": best, "of": sorted(loops), **asdict(Spread.of(rounds["plain"]))}
        result["effective_ratio"] = asdict(Spread.of(ratios))
        result["n"] = turn + 1
        note(result)


def plain_loops(asked: Problem, device: torch.device) -> dict[str, Query]:
    """Ways to answer one query by a full forward in train mode; none waits for the device."""
    loops: dict[str, Query] = {}
    for layout in ("contiguous", "channels_last"):
        model, (x, y) = copy.deepcopy(asked.model), asked.batch
        if layout == "channels_last":
            model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
        for tuned in (False, True) if device.type == "cuda" else (False,):
            name = f"{layout}, cudnn.benchmark={tuned}"
            forward = eager(model, x, y)
            loops[name] = query_of(model, forward, asked.step_size, tuned=tuned)
            try:
                if tuned:
                    loops[f"{name}, CUDA graph"] = query_of(model, graphed(forward), asked.step_size, tuned=tuned)
            except RuntimeError as error:
                print(f"no CUDA graph of {name}: {error}")
    return loops


def eager(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    """The loss by a forward of the model, without autograd."""

    @torch.no_grad()
    def forward() -> Tensor:
        return F.cross_entropy(model(x), y)

    return forward


def graphed(forward: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The same as a CUDA graph: launching its kernels costs next to nothing."""
    torch.backends.cudnn.benchmark = True
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            forward()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = forward()

    def replay() -> Tensor:
        graph.replay()
        return loss

    return replay


def query_of(model: nn.Module, forward: Callable[[], Tensor], step: float, *, tuned: bool) -> Query:
    """A forward with one entry of a parameter (in memory order) moved; the entry is put back by copying."""
    entries = {name: p.detach().as_strided((p.numel(),), (1,)) for name, p in model.named_parameters()}

    def query(name: str, index: int) -> Tensor:
        torch.backends.cudnn.benchmark = tuned
        entry = entries[name][index]
        saved = entry.clone()
        entry.add_(step)
        loss = forward()
        entry.copy_(saved)
        torch.backends.cudnn.benchmark = False
        return loss

    return query


def forwards_per_second(query: Query, asked: Problem, device: torch.device, seconds: float, turn: int) -> float:
    """Queries a second of a plain loop, in groups between which the device is waited for."""
    chosen = shuffled(asked.coordinates, derive_seed(asked.seed, "plain", turn))
    for _ in range(3):  # wakes the device up, and has cuDNN choose its kernels
        query(*next(chosen))

    def queries() -> int:
        count = 16 if device.type == "cuda" else 1
        for _ in range(count):
            query(*next(chosen))
        return count

    return pace(queries, seconds).rate


def memory(asked: Problem, side: DeepZero, device: torch.device) -> dict[str, Any]:
    """Peak of memory of an estimate beyond what model and batch take, of full chunks of every parameter."""
    part = in_full_chunks(asked.coordinates, side.chunks, 0.01, asked.seed)
    part = some_of_each(part, {name: min(len(i), 2 * side.chunks[name]) for name, i in part.items()}, asked.seed)
    side.estimate(one_of_each(part, 4, asked.seed))
    if device.type == "cuda":
        wait_for_devices()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        side.estimate(part)
        wait_for_devices()
        top, what = torch.cuda.max_memory_allocated(device), "allocated on the GPU"
    else:
        before = start_of_peak()
        side.estimate(part)
        top, what = peak_so_far(), "resident set of the process"
    budget = side.evaluator.memory_budget
    return {
        "what": what,
        "before": before,
        "peak": top,
        "growth": top - before,
        "budget": budget,
        "queries": part.count,
    }


def gradient_errors(asked: Problem, budget: int) -> dict[str, Any]:
    """Relative error of an estimate on sampled coordinates, against autograd in float64 on the same device."""
    names = asked.coordinates.names
    part = some_of_each(asked.coordinates, dict.fromkeys(names, max(1, ERROR_SAMPLE // len(names))), asked.seed)
    twin, (x, y) = copy.deepcopy(asked.model).double(), asked.batch
    F.cross_entropy(twin(x.double()), y).backward()
    exact = picked({name: p.grad for name, p in twin.named_parameters() if p.grad is not None}, part)
    errors = {}
    for step in STEP_SIZES:
        evaluator = dz.PropagationEvaluator(memory_budget=budget)
        zo = dz.CGE(asked.model, loss=F.cross_entropy, step_size=step, sparsity=part, evaluator=evaluator)
        found = zo.estimate(*asked.batch)
        errors[f"{step:g}"] = float((picked(found.gradients, part) - exact).norm() / exact.norm())
    return {"coordinates": part.count, "relative_to": "autograd in float64", "by_step_size": errors}


def picked(gradients: dict[str, Tensor], part: Coordinates) -> Tensor:
    """The entries of some coordinates, in float64."""
    return torch.cat(
        [gradients[name].reshape(-1)[index.to(gradients[name].device)].double() for name, index in part.items()]
    )
