"""Speed of difference propagation on a device beside the best loop of plain forwards, and the error of its gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

import deepzero as dz
from deepzero.coordinates import Coordinates
from deepzero.errors import InvalidInputError
from deepzero.measure.block_reuse import BlockReuseLoop
from deepzero.measure.cases import Problem, in_full_chunks, one_of_each, problem, shuffled, some_of_each
from deepzero.measure.naive_loop import Form, NaiveLoop, gpu_forms
from deepzero.measure.peak_memory import peak_during
from deepzero.measure.rounds import Spread, by_side, in_turns, ratio
from deepzero.measure.sides import DeepZero
from deepzero.randomness import derive_seed
from deepzero.stopwatch import throughput

ERROR_SAMPLE = 192
STEP_SIZES = (5e-3, 1e-4)
Note = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Speed:
    """Scale of a case on one kind of device."""

    batch: int | None
    sparsity: float | None
    rounds: int
    seconds: float


SPEED = {
    "cuda": {
        "digits": Speed(512, 0.0, 3, 2.0),
        "cnn": Speed(512, 0.0, 3, 3.0),
        "resnet20": Speed(512, 0.9, 3, 3.0),
        "transformer-block": Speed(None, None, 3, 2.0),
        "lora-gpt": Speed(None, None, 3, 2.0),
    },
    "cpu": {
        "digits": Speed(64, 0.0, 3, 1.0),
        "cnn": Speed(8, 0.9, 3, 1.0),
        "resnet20": Speed(2, 0.99, 3, 1.5),
        "transformer-block": Speed(2, None, 3, 1.0),
        "lora-gpt": Speed(2, None, 3, 1.0),
    },
}

STORAGES = {"float32": None, "float16": torch.float16}
"""Storage of dense differences by its name; on a CPU there is one."""

ASKS = ("Synchronize", "cudaMemcpy")
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel")
"""How calls of CUDA's runtime begin that wait, or may, and that launch a kernel."""


def speed(case: str, device: torch.device, note: Note) -> None:
    """Queries a second against the best plain forwards a second, round by round; memory; error of the gradient.

    Differences are stored in float32 and, on a GPU, in float16; the loop that reuses the blocks before the moved one
    runs beside them where the network can be split.
    """
    plan = SPEED[device.type][case]
    task = problem(case, batch=plan.batch, sparsity=plan.sparsity).on(device)
    result: dict[str, Any] = {
        "case": case,
        "model": {"name": task.case.model, "parameters": sum(p.numel() for p in task.model.parameters())},
        "batch": list(task.batch[0].shape),
        "images": task.case.source.words,
        "queries": task.queries,
        "smart_ratio_sparsity": task.sparsity,
        "precision": {"dtype": "float32", "cudnn_tf32": device.type == "cuda" and torch.backends.cudnn.allow_tf32},
        "settings": asdict(plan),
    }
    note(result)
    storages = STORAGES if device.type == "cuda" else {"float32": None}
    propagated = {name: DeepZero(task, storage=storage) for name, storage in storages.items()}
    loops: dict[str, QueryLoop] = {**plain_loops(task, device)}
    best = max(loops, key=lambda name: forwards_per_second(loops[name], task, plan.seconds / 4, 0))
    sides: dict[str, Callable[[int], float]] = {
        name: partial(_rate_of, side, plan.seconds) for name, side in propagated.items()
    }
    sides["plain"] = partial(forwards_per_second, loops[best], task, plan.seconds / 2)
    reuse = reusing_loop(task)
    if reuse is not None:
        sides["block_reuse"] = partial(forwards_per_second, reuse, task, plan.seconds / 2)
    rounds = []
    for rates in in_turns(sides, plan.rounds):
        rounds.append(rates)
        found = by_side(rounds)
        result["plain_forwards_per_second"] = {"loop": best, "of": sorted(loops), **asdict(Spread.of(found["plain"]))}
        for name in found.keys() - {"plain"}:
            result.setdefault(name, {})["queries_per_second"] = asdict(Spread.of(found[name]))
            result[name]["effective_ratio"] = asdict(ratio(found[name], found["plain"]))
        result["n"] = len(rounds)
        note(result)
    for name, storage in storages.items():
        result[name]["gradient_error"] = gradient_errors(task, storage)
        note(result)
        result[name]["memory"] = memory(task, propagated[name], device)
        result[name]["of_a_chunk"] = calls_of_a_chunk(task, propagated[name])
        note(result)


def _rate_of(side: DeepZero, seconds: float, turn: int) -> float:
    return side.time(seconds, turn).rate


class QueryLoop(Protocol):
    """A loop that makes a forward, or the rest of one, for a query."""

    def query(self, name: str, index: int) -> Tensor:
        """The loss with the entry of a flat index moved by the step."""
        ...


def reusing_loop(task: Problem) -> BlockReuseLoop | None:
    """The loop with block reuse, in channels-last memory; None for a network that it cannot split."""
    try:
        return BlockReuseLoop(task, Form(channels_last=True, cudnn_benchmark=task.batch[0].is_cuda))
    except InvalidInputError:
        return None


def calls_of_a_chunk(task: Problem, side: DeepZero) -> dict[str, Any] | None:
    """Kernels launched, and calls that may wait, in an estimate of one full chunk, beside those of a single query.

    The difference of the two is what a chunk costs beyond the base forward and the comparison with the program.
    """
    if not task.batch[0].is_cuda:
        return None
    name = task.coordinates.names[0]
    counts = {}
    for key, count in (("one_query", 1), ("chunk", side.chunks[name])):
        part = some_of_each(task.coordinates, {name: count}, task.seed)
        side.estimate(part)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            side.estimate(part)
        calls = {event.key: event.count for event in profile.key_averages()}
        counts[key] = {
            "queries": part.count,
            "launches": sum(n for call, n in calls.items() if call.startswith(LAUNCHES)),
            "may_wait": {call: n for call, n in calls.items() if any(word in call for word in ASKS)},
        }
    return {"parameter": name, **counts}


def plain_loops(task: Problem, device: torch.device) -> dict[str, NaiveLoop]:
    """Loops of full forwards in train mode, by the name of their form; none waits for the device."""
    forms = gpu_forms() if device.type == "cuda" else [Form(), Form(channels_last=True)]
    loops = {}
    for form in forms:
        try:
            loops[form.name] = NaiveLoop(task, form)
        except RuntimeError as error:
            print(f"no loop in the form {form.name}: {error}")
    return loops


def forwards_per_second(loop: QueryLoop, task: Problem, seconds: float, turn: int) -> float:
    """Queries a second of a plain loop, in groups between which the device is waited for."""
    chosen = shuffled(task.coordinates, derive_seed(task.seed, "plain", turn))
    group = 16 if task.batch[0].is_cuda else 1

    def queries(count: int = group) -> int:
        for _ in range(count):
            loop.query(*next(chosen))
        return count

    queries(3)  # wakes the device up, and has cuDNN choose its kernels
    return throughput(queries, seconds).rate


def memory(task: Problem, side: DeepZero, device: torch.device) -> dict[str, Any]:
    """Peak of memory of an estimate beyond what model and batch take, of full chunks of every parameter."""
    part = in_full_chunks(task.coordinates, side.chunks, 0.01, task.seed)
    part = some_of_each(part, {name: min(len(i), 2 * side.chunks[name]) for name, i in part.items()}, task.seed)
    side.estimate(one_of_each(part, 4, task.seed))
    peak = peak_during(partial(side.estimate, part), device)
    return {
        "what": peak.kind,
        "before": peak.before,
        "peak": peak.most,
        "growth": peak.growth,
        "budget": side.evaluator.memory_budget,
        "queries": part.count,
    }


def gradient_errors(task: Problem, storage: torch.dtype | None) -> dict[str, Any]:
    """Relative error of an estimate on sampled coordinates, against autograd in float64 on the same device."""
    names = task.coordinates.names
    part = some_of_each(task.coordinates, dict.fromkeys(names, max(1, ERROR_SAMPLE // len(names))), task.seed)
    twin, (x, y) = copy.deepcopy(task.model).double(), task.batch
    torch.autograd.backward(F.cross_entropy(twin(x.double() if x.is_floating_point() else x), y))
    exact = picked({name: p.grad for name, p in twin.named_parameters() if p.grad is not None}, part)
    errors = {}
    for step in STEP_SIZES:
        evaluator = dz.PropagationEvaluator(storage=storage, verify=False)
        zo = dz.CGE(task.model, loss=F.cross_entropy, step_size=step, sparsity=part, evaluator=evaluator)
        found = zo.estimate(*task.batch)
        errors[f"{step:g}"] = float((picked(found.gradients, part) - exact).norm() / exact.norm())
    return {"coordinates": part.count, "relative_to": "autograd in float64", "by_step_size": errors}


def picked(gradients: dict[str, Tensor], part: Coordinates) -> Tensor:
    """The entries of some coordinates, in float64."""
    return torch.cat(
        [gradients[name].reshape(-1)[index.to(gradients[name].device)].double() for name, index in part.items()]
    )
