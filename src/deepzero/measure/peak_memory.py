"""Peak of memory: of a call, and of one estimate in a process in which nothing else has been measured."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from deepzero.coordinates import Coordinates
from deepzero.errors import BudgetError, DeepZeroError, InvalidInputError
from deepzero.estimator import CGE
from deepzero.evaluators import PropagationEvaluator
from deepzero.measure import cases
from deepzero.measure.cases import Problem, one_of_each, some_of_each
from deepzero.orphans import end_with_parent
from deepzero.stopwatch import wait_for_devices

with suppress(ImportError):  # Windows has none, and cannot be measured
    import resource

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Memory:
    """Memory of one estimate, in bytes.

    Attributes:
        budget: the memory budget of the evaluator.
        peak: largest resident set of the process during the estimate, interpreter and libraries included.
        before: resident set before it, with libraries, model and batch.
        growth: peak minus before: the memory of the estimate itself.
        queries: queries of the estimate.
        fraction: part of the case's coordinates that it queried.
    """

    budget: int
    peak: int
    before: int
    growth: int
    queries: int
    fraction: float


def measure_memory(counts: Mapping[str, int], *, threads: int, budget: int | None, **settings: Any) -> Memory:
    """Make one estimate in a new process, the first there but for one on two images that loads the libraries.

    Args:
        counts: number of coordinates to query, by parameter.
        threads: of torch, and so workers.
        budget: memory budget in bytes; None for the default.
        **settings: arguments of :func:`deepzero.measure.cases.problem`.

    Raises:
        BudgetError: the budget is too small for one query.
    """
    if sys.platform == "win32":
        raise InvalidInputError("the peak of memory cannot be measured on Windows; try --no-memory")
    request = json.dumps({"counts": dict(counts), "threads": threads, "budget": budget, "settings": settings})
    program = "import sys; from deepzero.measure.peak_memory import main; main(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", program, request], capture_output=True, text=True, check=False)
    if done.returncode:
        last_words = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise DeepZeroError(f"the process that measures memory ended with code {done.returncode}: {last_words}")
    answer = json.loads(done.stdout.splitlines()[-1])
    if "over_budget" in answer:
        raise BudgetError(answer["over_budget"])
    return Memory(**answer)


def main(request: str) -> None:
    """Answer a request of :func:`measure_memory` on standard output."""
    end_with_parent()
    options = json.loads(request)
    torch.set_num_threads(options["threads"])
    try:
        answer = asdict(_measured(options["settings"], options["counts"], options["budget"]))
    except BudgetError as error:
        answer = {"over_budget": str(error)}
    sys.stdout.write(json.dumps(answer) + "\n")


def _measured(settings: dict[str, Any], counts: dict[str, int], budget: int | None) -> Memory:
    small = cases.problem(**{**settings, "batch": 2})
    _estimate(small, PropagationEvaluator(), one_of_each(small.coordinates, len(counts), small.seed))
    problem = cases.problem(**settings)
    evaluator = PropagationEvaluator() if budget is None else PropagationEvaluator(memory_budget=budget)
    part = some_of_each(problem.coordinates, counts, problem.seed)
    gc.collect()
    peak = peak_during(partial(_estimate, problem, evaluator, part), problem.batch[0].device)
    fraction = part.count / problem.coordinates.count
    return Memory(evaluator.memory_budget, peak.most, peak.before, peak.growth, 1 + part.count, fraction)


def _estimate(problem: Problem, evaluator: PropagationEvaluator, part: Coordinates) -> None:
    CGE(problem.model, loss=F.cross_entropy, step_size=problem.step_size, sparsity=part, evaluator=evaluator).estimate(
        *problem.batch
    )


@dataclass(frozen=True)
class Peak:
    """Memory during a call, in bytes.

    Attributes:
        before: bytes when it began.
        most: bytes at its peak.
        kind: the kind of memory, in words.
    """

    before: int
    most: int
    kind: str

    @property
    def growth(self) -> int:
        """Bytes that the call took."""
        return self.most - self.before


def peak_during(function: Callable[[], object], device: torch.device) -> Peak:
    """Memory during a call: allocated on a GPU, or else the resident set of the process."""
    if device.type != "cuda":
        before = _start_of_peak()
        function()
        return Peak(before, _peak_so_far(), "resident set of the process")
    wait_for_devices()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    function()
    wait_for_devices()
    return Peak(before, torch.cuda.max_memory_allocated(device), "allocated on the GPU")


def _start_of_peak() -> int:
    """The resident set now. Linux lets a process reset its own high-water mark; elsewhere the mark so far stands."""
    if not STATUS.exists():
        return _peak_so_far()
    RESET.write_text("5")
    return _status("VmRSS")


def _peak_so_far() -> int:
    """The high-water mark of the resident set.

    Linux keeps it by address space in VmHWM; ru_maxrss, which a child inherits from the process that started it, would
    report the parent's there.
    """
    if STATUS.exists():
        return _status("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(key: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024
