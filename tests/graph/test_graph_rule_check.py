"""The check of a program's rules ends walks early, overlooks nothing for that, and grows with the depth alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import initialize, normal
from test_graph_footprint import attentive, convolutional
from torch import Tensor, nn

import deepzero as dz
from deepzero.errors import VerificationError
from deepzero.graph import program, rule_check
from deepzero.graph.differences import Channel, Dense, OneHot
from deepzero.graph.forward import Dealer
from deepzero.graph.program import Program, Step, frontier
from deepzero.graph.propagate import advance
from deepzero.graph.verify import Check, verify
from deepzero.objective import NetworkObjective, parameters_of
from deepzero.randomness import Draws
from deepzero.step_sizes import FromDtype

Network = tuple[nn.Module, tuple[Tensor, Tensor]]


class Downsampling(nn.Module):
    """A residual block with a convolution and a batch norm on its shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.way = nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        )  # fmt: skip
        self.shortcut = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.way(x) + self.shortcut(x))


class AcrossAll(nn.Module):
    """Layers with a way around all of them, as in a U-Net."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.layers = nn.Sequential(*(part for _ in range(depth) for part in (nn.Linear(8, 8), nn.Tanh())))

    def forward(self, x: Tensor) -> Tensor:
        before = self.first(x)
        return self.layers(before) + before.sigmoid()


def images(classes: int = 3) -> tuple[Tensor, Tensor]:
    return normal(5, 1, 8, 8).float(), torch.arange(5) % classes


def rows() -> tuple[Tensor, Tensor]:
    return normal(5, 6).float(), torch.arange(5) % 3


def downsampling(depth: int) -> Network:
    blocks = [Downsampling() for _ in range(depth)]
    return initialize(nn.Sequential(nn.Conv2d(1, 4, 3), *blocks, nn.Flatten(), nn.Linear(144, 3))).float(), images()


def biased(depth: int) -> Network:
    """Biases in front of batch norm, which takes them out again: exactly, or up to rounding behind another layer."""
    layers = [part for _ in range(depth) for part in (nn.Linear(8, 8), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh())]
    return initialize(nn.Sequential(nn.Linear(6, 8), *layers, nn.Linear(8, 3))).float(), rows()


def rectified(depth: int) -> Network:
    layers = [part for _ in range(depth) for part in (nn.Linear(16, 16), nn.ReLU())]
    return initialize(nn.Sequential(nn.Linear(6, 16), *layers, nn.Linear(16, 3))).float(), rows()


def across_all(depth: int) -> Network:
    return initialize(nn.Sequential(AcrossAll(depth), nn.Linear(8, 3))).float(), rows()


@dataclass(frozen=True)
class Checked:
    """All that a check takes."""

    program: Program
    objective: NetworkObjective
    batch: tuple[Tensor, Tensor]
    draws: Draws

    @classmethod
    def of(cls, network: Network) -> Checked:
        """Of a network that is exported and compiled, and not checked yet."""
        model, batch = network
        zo = dz.CGE(model, loss=F.cross_entropy, evaluator=dz.PropagationEvaluator(verify=False))
        assert isinstance(zo.objective, NetworkObjective)
        assert isinstance(zo.evaluator, dz.PropagationEvaluator)
        program = zo.evaluator.program(zo.objective, batch)
        _, draws = zo.objective.base(parameters_of(zo.objective), batch, seed=0)
        return cls(program, zo.objective, batch, draws)

    def check(self, **options: Any) -> Check:
        sizes = FromDtype().of(parameters_of(self.objective))
        return verify(self.program, self.objective, self.batch, sizes, 0, self.draws, **options)


def kinds(step: Step, live: dict[Any, Any]) -> tuple[str, ...]:
    return tuple(type(live[node]).__name__ for node in step.inputs if node in live)


Faulty = Callable[[Step, dict[Any, Any]], bool]


def break_rules(monkeypatch: pytest.MonkeyPatch, faulty: Faulty, change: Callable[[Any], Any]) -> None:
    """Some applications of rules have another outcome: None is no difference."""

    def wrong(step: Step, values: Any, live: dict[Any, Any], **options: Any) -> None:
        chosen = any(node in live for node in step.inputs) and faulty(step, live)
        advance(step, values, live, **options)
        if chosen and step.node in live:
            outcome = change(live.pop(step.node))
            if outcome is not None:
                live[step.node] = outcome

    monkeypatch.setattr(rule_check, "advance", wrong)


def larger(outcome: Any) -> Any:
    """By a thousandth, at one entry."""
    if isinstance(outcome, tuple):
        return tuple(None if one is None else larger(one) for one in outcome)
    if isinstance(outcome, Channel):
        return outcome.with_delta(1.001 * outcome.delta)
    if isinstance(outcome, OneHot):
        return replace(outcome, values=1.001 * outcome.values)
    return Dense(1.001 * outcome.dense())


def dropped(outcome: Any) -> None:
    """Nothing."""


AT_MOST = 10
"""Places of a network at which a rule is broken, evenly spread."""

NETWORKS = {"downsampling": downsampling, "attentive": attentive, "across all": across_all, "rectified": rectified}


def applications(checked: Checked, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[str, ...]]]:
    """The operations whose rules the check applies, and to what kinds of difference."""
    seen: dict[tuple[str, tuple[str, ...]], None] = {}

    def note(step: Step, live: dict[Any, Any]) -> bool:
        seen[step.node.name, kinds(step, live)] = None
        return False

    with monkeypatch.context() as patched:
        break_rules(patched, note, larger)
        checked.check()
    return list(seen)


@pytest.mark.parametrize("change", [larger, dropped])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_fault_is_found_wherever_it_is(name: str, change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one operation and one kind of difference: in front of meeting places and behind them, on shortcuts, at the loss."""
    checked = Checked.of(NETWORKS[name](2))
    places = applications(checked, monkeypatch)
    assert len(places) > AT_MOST
    for place in places[:: 1 + len(places) // AT_MOST]:
        with monkeypatch.context() as patched:
            break_rules(patched, lambda step, live: (step.node.name, kinds(step, live)) == place, change)  # noqa: B023
            try:
                checked.check()
            except VerificationError:
                continue
            pytest.fail(f"the rule of {place[0]} is wrong for {place[1]}, and nothing noticed")


def test_a_use_that_the_steps_overlook_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes around all layers differs, too, although no step carries it: the operations tell."""

    every = program._fused
    checked = Checked.of(across_all(6))
    checked.check()
    monkeypatch.setattr(program, "_fused", lambda graph: [s for s in every(graph) if "sigmoid" not in s.node.name])
    with pytest.raises(VerificationError, match=r"first\.\w+\[\d+\] at sigmoid: propagated 0\.0+e\+00, plain run"):
        checked.check()


def test_the_message_names_the_node_and_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the place where the walk ended, the worst entry."""
    checked = Checked.of(downsampling(3))
    first = checked.program.cones["0.weight"].steps[0].node.name
    break_rules(monkeypatch, lambda step, _: step.node.name == first, larger)
    with pytest.raises(VerificationError, match=r"0\.\w+\[\d+\] at relu\w*: propagated \S+, plain run \S+") as caught:
        checked.check()
    assert "0.weight" in str(caught.value) or "0.bias" in str(caught.value)


def test_differences_that_are_noise_are_followed_to_the_loss_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that stumbles over them alone gives no number, and is found."""
    checked = Checked.of(biased(6))
    assert set(checked.check().silent) == {"0.bias", *(f"{n + 4 * k}.bias" for k in range(6) for n in (1, 2))}

    def tiny(step: Step, live: dict[Any, Any]) -> bool:
        last = "tanh_5" in step.node.name
        return last and all(float(live[n].dense().abs().max()) < 1e-12 for n in step.inputs if n in live)

    break_rules(monkeypatch, tiny, lambda outcome: Dense(outcome.dense() * float("nan")))
    with pytest.raises(VerificationError, match=r"\.bias\[\d+\].*propagated nan"):
        checked.check()


def test_with_room_for_a_single_coordinate(monkeypatch: pytest.MonkeyPatch) -> None:
    """One is propagated at a time, two of each parameter are compared, and a fault is found."""
    checked = Checked.of(downsampling(3))
    counts: set[int] = set()

    def note(step: Step, live: dict[Any, Any]) -> bool:
        counts.update(live[node].count for node in step.inputs if not isinstance(live.get(node), tuple | None))
        return False

    break_rules(monkeypatch, note, larger)
    assert checked.check(room=1).coordinates >= 2 * len(checked.program.cones)
    assert counts == {1}
    break_rules(monkeypatch, lambda step, _: "relu" in step.node.name, larger)
    with pytest.raises(VerificationError):
        checked.check(room=1)


@pytest.mark.parametrize("network", [convolutional, downsampling, attentive, biased, rectified])
def test_the_check_grows_with_the_depth_and_not_with_its_square(
    network: Callable[[int], Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In rules that are applied, and in operations that plain runs take: with the square, both were four times as many."""
    rules: list[int] = []
    operations: list[int] = []
    call = Dealer.call

    def counted(self: Dealer, *arguments: Any) -> Any:
        operations[-1] += 1
        return call(self, *arguments)

    monkeypatch.setattr(Dealer, "call", counted)

    def note(*_: Any) -> bool:
        rules[-1] += 1
        return False

    break_rules(monkeypatch, note, larger)
    for depth in (5, 10):
        operations.append(0)
        checked = Checked.of(network(depth))
        rules.append(0)
        operations[-1] = 0
        checked.check()
    assert rules[1] < 2.4 * rules[0]
    assert operations[1] < 2.8 * operations[0]


def test_the_frontier_is_what_the_rest_reads() -> None:
    """In the middle of the layers: what the next layer takes, and what goes around."""
    checked = Checked.of(across_all(3))
    cone = checked.program.cones["0.first.weight"]
    names = [step.node.name for step in cone.steps]
    middle = names.index("tanh_1")
    read = {node.name for node in frontier(checked.program.graph, cone, middle)}
    assert read == {"linear_2", "linear" if names.index("sigmoid") >= middle else "sigmoid"}
    assert frontier(checked.program.graph, cone, len(cone.steps)) == {checked.program.graph.output}


def constant() -> Network:
    """Channels that are one number in front of batch norm, of which the last digit is left, and made large behind it."""
    model = initialize(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)))
    with torch.no_grad():
        for parameter, factor in zip(model.parameters(), (0, 15, 1, 0, 1e3, 1), strict=True):
            parameter.mul_(factor)
    return model, (rows()[0].double(), rows()[1])


def test_noise_is_measured_by_last_digits_that_do_change() -> None:
    """A step of 10^-16 in the parameters is one, and what plain runs make of it is no fault of a rule."""
    check = Checked.of(constant()).check()
    assert "0.bias" in check.silent
    assert check.floor > 1e-11
