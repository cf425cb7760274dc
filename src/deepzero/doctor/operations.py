"""Which operations have difference rules, which fall back, or why the model cannot be exported."""

from __future__ import annotations

from collections import Counter
from typing import Any

from deepzero.doctor.records import Operations
from deepzero.errors import GraphError
from deepzero.evaluators import PropagationEvaluator
from deepzero.graph.capture import is_getitem
from deepzero.graph.program import Program
from deepzero.graph.rules import fallback
from deepzero.objective import NetworkObjective


def check_operations(
    evaluator: PropagationEvaluator, objective: NetworkObjective, batch: tuple[Any, ...]
) -> Operations:
    """Export the model and look at every operation between a parameter and the loss."""
    try:
        program = evaluator.program(objective, batch)
    except GraphError as error:
        return Operations({}, {}, problem=str(error))
    sizes = {name: p.numel() for name, p in objective.parameters().items()}
    behind = sum(sizes[name] for name, cone in program.cones.items() if any(s.rule is fallback for s in cone.steps))
    ruled, fallen = _counted(program)
    return Operations(ruled, fallen, behind_fallbacks=behind / sum(sizes.values()))


def _counted(program: Program) -> tuple[dict[str, int], dict[str, int]]:
    """Operations with and without a rule, each with its number in the graph."""
    steps = {step.node: step for cone in program.cones.values() for step in cone.steps if step.rule is not None}
    ruled: Counter[str] = Counter()
    fallen: Counter[str] = Counter()
    for step in steps.values():
        if step.rule is fallback:
            fallen[str(step.node.target)] += 1
        else:
            ruled.update(str(part.target) for part in step.parts if not is_getitem(part))
    return dict(sorted(ruled.items())), dict(sorted(fallen.items()))
