"""The start-up check can see: a rule that is wrong by half is caught in every network that uses its operation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from exact_gradients import gradient, sampled
from members import MEMBERS, SMALL, Member, graphs
from oracle import exported_once

import deepzero as dz
from deepzero import objective
from deepzero.errors import VerificationError
from deepzero.graph.differences import Blocks, Channel, Dense, LowRank, OneHot, Pending, RankOne, Segment, SomeSamples
from deepzero.graph.rules import RULES

OPERATIONS = 2
"""Mutations of each member."""

PROPAGATED = [member for member in (*MEMBERS, *SMALL) if member.smooth and not member.whole]
"""Where spikes jump, what comes before them has slope 0, and half as much again of it is still 0."""


def by_half_too_large(rule: Callable[..., Any]) -> Callable[..., Any]:
    """The same rule, with the difference that it returns multiplied by 1.5."""

    def wrong(*args: Any, **kwargs: Any) -> Any:
        return scaled(rule(*args, **kwargs))

    return wrong


def scaled(outcome: Any) -> Any:
    if outcome is None or isinstance(outcome, tuple):
        return None if outcome is None else tuple(map(scaled, outcome))
    if isinstance(outcome, RankOne | Segment | LowRank):
        return outcome.map(lambda d: 1.5 * d)
    if isinstance(outcome, SomeSamples):
        return dataclasses.replace(outcome, channel=scaled(outcome.channel))
    if isinstance(outcome, Pending):
        outcome = outcome.settled()
    held = {OneHot: "values", Channel: "delta", Dense: "delta", Blocks: "blocks"}[type(outcome)]
    return dataclasses.replace(outcome, **{held: 1.5 * getattr(outcome, held)})


def real_rules(program: Any) -> list[Any]:
    """Operations on the way of some parameter whose own rule is applied, in their order."""
    steps = [step for cone in program.cones.values() for step in cone.steps]
    return list(
        dict.fromkeys(s.node.target for s in steps if s.rule is not None and s.rule is RULES.get(s.node.target))
    )


def spread(items: list[Any], count: int, start: int) -> list[Any]:
    """``count`` of the items, evenly spread, beginning with another one for each member."""
    return [items[(start + k * len(items) // count) % len(items)] for k in range(min(count, len(items)))]


@pytest.mark.parametrize("member", PROPAGATED, ids=lambda member: member.name)
def test_a_wrong_rule_is_caught(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = member.model(torch.float64), member.arguments(torch.float64)
    some = sampled(gradient(member, torch.float64), most=1)

    def estimator() -> dz.Estimator:
        evaluator = dz.PropagationEvaluator()
        return member.estimator(dz.CGE, model, step_size=1e-4, evaluator=evaluator, sparsity=some)

    with exported_once(graphs(member.name, torch.float64)):  # a wrong rule does not change the graph
        zo = estimator()
        program = zo.evaluator.program(zo.objective, objective.Batch(batch.args, batch.kwargs))
        chosen = spread(real_rules(program), OPERATIONS, start=PROPAGATED.index(member))
        assert chosen
        for operation in chosen:
            with monkeypatch.context() as patched:
                patched.setitem(RULES, operation, by_half_too_large(RULES[operation]))
                try:
                    estimator().estimate(*batch.args, **batch.kwargs)
                except VerificationError:
                    continue
                pytest.fail(f"{operation} is wrong by half in {member.name}, and nothing noticed")
