"""Corrections: data, objective, methods, runs that are interrupted, and what is left of blow-ups and crashes."""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

pytest.importorskip("phi", reason="PhiFlow is not installed: pip install 'deepzero[physics]'")

from deepzero.errors import InvalidInputError, RowError, RunFolderError
from deepzero.models import FlowCorrector
from deepzero.opaque import Opaque
from deepzero.recipes.correction_recipes import RECIPES
from deepzero.report import documents, page
from deepzero.tasks.correction import METHODS, CorrectionConfig, FlowConfig, correct, load_network
from deepzero.tasks.correction.correction_config import (
    EMULATOR,
    FO_SOL,
    NON,
    OPAQUE,
    QUERYING,
    SRC,
    ZO_GRASP,
    ZO_SOL,
    from_record,
)
from deepzero.tasks.correction.correction_methods import FlowBatches, UnrolledError, make_network, surroundings
from deepzero.tasks.correction.correction_time import correction_seconds
from deepzero.tasks.correction.flow_errors import roll_out
from deepzero.tasks.correction.reference_flows import FRAMES, STATE, Reference, folder_of, reference
from deepzero.tasks.correction.wake import Flows, WakeFlow
from deepzero.tasks.staged_run import StagedRun
from deepzero.training import StoppedError, StopRequest

TINY = RECIPES.find("wake-tiny").config()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the reference simulations of this file are kept."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[CorrectionConfig], StagedRun]:
    """Whole runs, each made once, which nobody changes."""
    return functools.cache(lambda config: correct(config, out=tmp_path_factory.mktemp("whole") / "run", data_dir=data))


@pytest.fixture(scope="module")
def flows(data: Path) -> Reference:
    return reference(TINY.flow, data_dir=data, stop=StopRequest())


@pytest.fixture(scope="module")
def flow() -> WakeFlow:
    return WakeFlow(TINY.flow.resolution)


# Reference ------------------------------------------------------------------------------------------------------------


def test_frames_follow_each_other_on_the_coarse_grid(flows: Reference) -> None:
    assert flows.training.shape == (2, 12, 2, 9, 17)
    assert flows.test_reynolds.flatten().tolist() == [146.5, 293.0]
    assert flows.probe.shape == (32, 4)
    one_step = (flows.training[:, 1:] - flows.training[:, :-1]).abs().mean()
    assert 0 < float(one_step) < 0.05
    v_x = flows.training.abs()[:, :, 0, :, :-1].double()
    assert flows.scales[0] == pytest.approx(float((v_x.square().mean() - v_x.mean() ** 2).sqrt()))


def test_an_interrupted_reference_goes_on_bit_for_bit(flows: Reference, data: Path, tmp_path: Path) -> None:
    class After(StopRequest):
        """Asked for after so many looks."""

        left = 25

        @property
        def reason(self) -> str | None:
            self.left -= 1
            return "test" if self.left < 0 else None

    told: list[tuple[int, int]] = []
    with pytest.raises(StoppedError):
        reference(TINY.flow, data_dir=tmp_path, stop=After(), progress=lambda done, total: told.append((done, total)))
    folder = folder_of(TINY.flow, tmp_path)
    assert told[-1][0] < told[-1][1] == 32
    assert (folder / STATE).exists()
    assert not (folder / FRAMES).exists()
    again = reference(TINY.flow, data_dir=tmp_path, stop=StopRequest())
    assert torch.equal(again.training, flows.training)
    assert torch.equal(again.probe, flows.probe)
    assert not (folder / STATE).exists()
    assert folder_of(replace(TINY.flow, warmup=21), tmp_path) != folder


def test_what_is_on_disk_is_not_made_again(flows: Reference, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WakeFlow, "step", None)
    again = reference(TINY.flow, data_dir=data, stop=StopRequest())
    assert torch.equal(again.test, flows.test)


# Network, objective, batches ------------------------------------------------------------------------------------------


def test_the_network_is_the_paper_s() -> None:
    network = FlowCorrector()
    assert [p.numel() for p in network.parameters()] == [2400, 32, 51200, 64, 3200, 2]
    limit = math.sqrt(6 / (25 * 3 + 25 * 32))
    assert 0.95 * limit < float(network.layers[0].weight.detach().abs().max()) <= limit
    assert not network.layers[0].bias.any()
    state = torch.randn(2, 2, 9, 17, generator=torch.Generator().manual_seed(0)), torch.ones(2, 1)
    increment = network(*state)
    assert not increment[:, :, -1].any()
    assert not increment[..., -1].any()
    assert increment[:, :, :-1, :-1].any()


def test_scales_cancel() -> None:
    """Values, Reynolds numbers and scales in other units give the increment in these units."""
    torch.manual_seed(0)
    one, other = FlowCorrector(widths=(4,)), FlowCorrector(widths=(4,), scales=(2.0, 3.0, 5.0))
    weights = {name: p for name, p in one.state_dict().items() if name != "scales"}
    other.load_state_dict({**weights, "scales": other.scales})
    velocity, reynolds = torch.randn(1, 2, 5, 9), torch.ones(1, 1)
    units = torch.tensor([2.0, 3.0])[:, None, None]
    assert torch.allclose(other(units * velocity, 5 * reynolds), units * one(velocity, reynolds), atol=1e-6)


def test_bad_sizes_of_a_network_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="width"):
        FlowCorrector(widths=(8, 0))
    with pytest.raises(InvalidInputError, match="scales must be three positive numbers"):
        FlowCorrector(scales=(1.0, 1.0))


def test_the_objective_is_a_mean_over_steps_and_a_sum_over_the_rest() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 3, 4, 2, 5, 9, generator=generator).unbind(0)
    scales = (0.5, 2.0, 1.0)
    expected = sum(
        0.5 * float(((one[b, i, c] - other[b, i, c]) / scales[c]).square().sum())
        for b in range(3)
        for i in range(4)
        for c in range(2)
    )
    assert float(UnrolledError(scales)(one, other)) == pytest.approx(expected / 4, rel=1e-5)


def test_batches_visit_every_pair_once_and_are_followed_by_their_future() -> None:
    frames = torch.arange(2 * 7, dtype=torch.float32).reshape(2, 7, 1, 1, 1).expand(-1, -1, 2, 2, 2)
    batches = FlowBatches(frames, torch.tensor([[1.0], [2.0]]), unroll=3, size=2, steps=4, seed=0)
    seen = []
    for index in range(4):  # 2 * (7 - 3) pairs
        (velocity, reynolds), following = batches.batch(0, index)
        seen += velocity[:, 0, 0, 0].tolist()
        assert torch.equal(reynolds.flatten(), 1 + velocity[:, 0, 0, 0] // 7)
        assert torch.equal(following[:, :, 0, 0, 0], velocity[:, :1, 0, 0] + torch.tensor([[1.0, 2.0, 3.0]]))
    assert sorted(seen) == [0.0, 1.0, 2.0, 3.0, 7.0, 8.0, 9.0, 10.0]
    assert torch.equal(batches.batch(1, 0)[1], batches.batch(1, 0)[1])
    assert not torch.equal(batches.batch(1, 0)[1], batches.batch(0, 0)[1])


# Methods --------------------------------------------------------------------------------------------------------------


def gradient(config: CorrectionConfig, flows: Reference, flow: WakeFlow, **ratios: float) -> tuple[torch.Tensor, Any]:
    torch.manual_seed(0)
    network = make_network(config.widths, "glorot", flows.scales)
    work = surroundings(config, network, flow, flows, ratios)
    frames = Flows(flows.training[:, 3], flows.training_reynolds), flows.training[:, 4 : 4 + config.unroll]
    work.source.backward(*frames)
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]), work


def test_all_methods_estimate_the_gradient_through_the_solver(flows: Reference, flow: WakeFlow) -> None:
    """Every coordinate, or enough directions: the gradient of the differentiable solver, but for its tolerance."""
    config = replace(TINY, unroll=3, budget=None)
    exact, work = gradient(replace(config, method=FO_SOL), flows, flow)
    assert work.source.queries == work.calls == 2 * 3
    coordinates, work = gradient(
        replace(config, method=ZO_SOL), flows, flow, **{f"layers.{k}.weight": 1.0 for k in (0, 2)}
    )
    assert float((coordinates - exact).norm() / exact.norm()) < 2e-2
    for name in (OPAQUE, EMULATOR):
        directed, work = gradient(replace(config, method=name, directions=306), flows, flow)  # as many as entries
        assert float((directed - exact).norm() / exact.norm()) < 2e-2, name
        assert work.calls == 2 * 3 + 306 * 2 * 2


def test_non_never_meets_the_solver(flows: Reference, flow: WakeFlow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Opaque, "forward", None)
    network = make_network(TINY.widths, TINY.start, flows.scales)
    work = surroundings(replace(TINY, method=NON), network, flow, flows, {})
    batches = FlowBatches(flows.training, flows.training_reynolds, 1, 2, 1, 0, advanced=flows.training[:, :-1])
    work.source.backward(*batches.batch(0, 0))
    assert work.corrected is None
    assert work.source.queries == 2 * 11  # the pairs


# Evaluation -----------------------------------------------------------------------------------------------------------


def test_a_network_of_zeros_is_the_solver_alone(flows: Reference, flow: WakeFlow) -> None:
    silent = make_network(TINY.widths, TINY.start, flows.scales)
    found = roll_out([silent, None], flow, flows, shown=0)
    assert found.mae(0) == pytest.approx(found.mae(1), rel=1e-3)
    velocity = flow.step(flows.test[:, 0], flows.test_reynolds)
    first = (velocity - flows.test[:, 1])[:, flow.faces.bool()].abs().mean(1)
    assert torch.allclose(found.errors[1, :, 0], first, rtol=1e-3)
    assert found.fields.shape == (3, 11, 7, 15)
    assert list(found.times) == list(range(1, 12))


def test_a_corrector_that_explodes_has_no_error_and_spares_the_others(flows: Reference, flow: WakeFlow) -> None:
    wild = make_network(TINY.widths, TINY.start, flows.scales)
    with torch.no_grad():
        wild.layers[-1].bias.fill_(1e5)
    found = roll_out([wild, None], flow, flows, shown=0)
    assert found.mae(0) == [math.inf, math.inf]
    assert all(map(math.isfinite, found.mae(1)))


# Runs -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_to_its_end_and_is_shown(
    name: str, finished: Callable[[CorrectionConfig], StagedRun]
) -> None:
    done = finished(replace(TINY, method=name))
    summary = done.summary
    assert summary is not None
    assert (
        summary["mae"] == pytest.approx(summary["source_mae"])
        if name == SRC
        else summary["mae"] != summary["source_mae"]
    )
    if name in QUERYING:
        assert 0 < summary["solver_calls"] <= 500
    assert len(summary["curve"]) == (0 if name == SRC else 4)
    if name != SRC:
        assert summary["curve"][-1]["mae"] == pytest.approx(summary["mae"])
    text = page(documents([done.folder]), title="run")
    assert "data:image/png;base64," in text
    assert "data:image/gif;base64," in text
    assert (done.folder / "vorticity.svg").read_text(encoding="utf-8").count("<image") >= 3
    if name != SRC:
        assert sum(p.numel() for p in load_network(done.folder).parameters()) == summary["parameters"]


@pytest.mark.parametrize("name", [ZO_SOL, EMULATOR])
def test_an_interrupted_run_ends_with_the_same_bits(
    name: str,
    finished: Callable[[CorrectionConfig], StagedRun],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = replace(TINY, method=name)
    whole = finished(config)
    steps = {"left": 2}
    backward = FlowBatches.batch

    def counted(self: FlowBatches, epoch: int, index: int) -> Any:
        steps["left"] -= 1
        if steps["left"] < 0:
            raise KeyboardInterrupt
        return backward(self, epoch, index)

    monkeypatch.setattr(FlowBatches, "batch", counted)
    with pytest.raises(KeyboardInterrupt):
        correct(config, out=tmp_path / "parts", data_dir=data)
    monkeypatch.undo()
    parts = correct(config, out=tmp_path / "parts", resume=True, data_dir=data)
    assert whole.summary is not None
    assert parts.summary is not None
    assert whole.summary["mae"] == parts.summary["mae"]
    weights = [(folder / "model.safetensors").read_bytes() for folder in (whole.folder, tmp_path / "parts")]
    assert weights[0] == weights[1]


def by_coordinates(flows: Reference, flow: WakeFlow) -> tuple[FlowCorrector, Any, tuple[Flows, torch.Tensor]]:
    """A network inside of the solver, whose slopes are those of a few weights; and a batch."""
    network = make_network(TINY.widths, "glorot", flows.scales)
    work = surroundings(replace(TINY, method=ZO_SOL, budget=None), network, flow, flows, {"layers.2.weight": 0.02})
    return network, work, (Flows(flows.training[:, 3], flows.training_reynolds), flows.training[:, 4:6])


def test_a_solver_that_crashes_is_run_once_more_then_reported_with_its_parameters(
    flows: Reference, flow: WakeFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, work, batch = by_coordinates(flows, flow)
    whole = WakeFlow.step
    crashes = {"once": 1}

    def once(self: WakeFlow, values: Any, reynolds: Any) -> Any:
        if len(values) > 2 and crashes["once"]:
            crashes["once"] -= 1
            raise OSError("the solver died")
        return whole(self, values, reynolds)

    monkeypatch.setattr(WakeFlow, "step", once)
    work.source.backward(*batch)
    assert crashes["once"] == 0

    base = {"left": 2}

    def perturbed(self: WakeFlow, values: Any, reynolds: Any) -> Any:
        if base["left"]:
            base["left"] -= 1
            return whole(self, values, reynolds)
        raise OSError("the solver died")

    monkeypatch.setattr(WakeFlow, "step", perturbed)
    with pytest.raises(
        RowError, match=r"row 0, after 2 tries.*the solver died.*asked for network.layers.0.weight.* moved by 0.001"
    ) as caught:
        work.source.backward(*batch)
    assert caught.value.inputs[0].shape == (1, 2, 9, 17)


def test_a_blow_up_costs_a_query_and_stops_nothing(
    flows: Reference, flow: WakeFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, work, batch = by_coordinates(flows, flow)
    whole = WakeFlow.step
    worked = []

    def blown(self: WakeFlow, values: Any, reynolds: Any) -> Any:
        found = whole(self, values, reynolds)
        if len(values) > 4 and not worked:
            worked.append(True)
            found[0] = torch.nan
        return found

    work.source.backward(*batch)
    before = work.source.queries
    monkeypatch.setattr(WakeFlow, "step", blown)
    network.zero_grad()
    work.source.backward(*batch)
    assert worked
    assert work.skipped == 1
    assert work.source.queries > before
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize("phase", ["the ranking", "the test flows"])
def test_the_first_signal_ends_a_phase_that_is_no_training(
    phase: str,
    finished: Callable[[CorrectionConfig], StagedRun],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The solver does not run once more, and the run goes on to the same errors."""
    config = replace(TINY, method=ZO_SOL, ratios=ZO_GRASP, budget=None, steps=4, sparsity=0.9)
    whole = finished(config)
    step, calls, run = WakeFlow.step, [], tmp_path / "parts"

    def interrupted(self: WakeFlow, velocity: torch.Tensor, reynolds: torch.Tensor) -> torch.Tensor:
        trained = (run / "training" / "summary.json").exists()
        calls.append(trained)
        if len(calls) == 3 if phase == "the ranking" else trained:
            os.kill(os.getpid(), signal.SIGTERM)
            calls.append("after")
        return step(self, velocity, reynolds)

    with monkeypatch.context() as patch:
        patch.setattr(WakeFlow, "step", interrupted)
        first = correct(config, out=run, data_dir=data)
    assert (first.summary, first.stopped) == (None, "SIGTERM")
    assert "after" not in calls
    assert (run / "ratios.json").exists() == (phase == "the test flows")
    second = correct(config, out=run, data_dir=data, resume=True)
    assert second.summary is not None
    assert whole.summary is not None
    assert second.summary["mae"] == whole.summary["mae"]


@pytest.mark.parametrize("name", ["summary.json", "model.safetensors", "run.json"])
def test_advice_for_a_damaged_training_is_of_the_correction_and_true(name: str, data: Path, tmp_path: Path) -> None:
    config, run = replace(TINY, method=NON), tmp_path / "run"
    whole = correct(config, out=run, data_dir=data)
    weights = (run / "model.safetensors").read_bytes()
    (run / "summary.json").unlink()
    stage = run / "training"
    (stage / name).write_bytes((stage / name).read_bytes()[:-7])
    with pytest.raises(RunFolderError) as refused:
        correct(config, out=run, data_dir=data, resume=True)
    deleted = stage if name == "run.json" else stage / "summary.json"
    assert str(refused.value).endswith(f"delete {deleted} and type deepzero correct --resume --out {run}")
    shutil.rmtree(deleted) if deleted.is_dir() else deleted.unlink()
    again = correct(config, out=run, data_dir=data, resume=True)
    assert whole.summary is not None
    assert again.summary is not None
    assert again.summary["mae"] == whole.summary["mae"]
    assert (run / "model.safetensors").read_bytes() == weights


def test_ratios_of_zo_grasp_are_asked_for_once(data: Path, tmp_path: Path) -> None:
    config = replace(TINY, method=ZO_SOL, ratios=ZO_GRASP, budget=None, steps=4, sparsity=0.9)
    done = correct(config, out=tmp_path / "run", data_dir=data)
    kept = json.loads((tmp_path / "run" / "ratios.json").read_bytes())
    assert kept["solver_calls"] > 192
    assert set(kept["keep"]) == {"layers.0.weight", "layers.2.weight"}
    assert done.summary is not None
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "run" / "ratios.json").write_text(json.dumps({**kept, "keep": {"layers.0.weight": 1.0}}))
    with pytest.raises(RunFolderError, match=r"ratios\.json of the run in .* is not what it was when the run began"):
        correct(config, out=tmp_path / "run", resume=True, data_dir=data)


def test_what_a_run_began_with_is_what_it_goes_on_with(data: Path, tmp_path: Path) -> None:
    """The reference simulations, the trained network, and those of earlier points of the training."""
    config, folder = replace(TINY, method=NON), tmp_path / "run"
    correct(config, out=folder, data_dir=data)
    (folder / "summary.json").unlink()

    def changed(path: Path, message: str, data_dir: Path = data) -> None:
        kept = path.read_bytes()
        tensors = safetensors.torch.load(kept)
        safetensors.torch.save_file({name: value * 1.5 for name, value in tensors.items()}, path)
        with pytest.raises(RunFolderError, match=message):
            correct(config, out=folder, resume=True, data_dir=data_dir)
        path.write_bytes(kept)

    mine = shutil.copytree(data, tmp_path / "data")
    frames = folder_of(config.flow, mine) / FRAMES
    changed(frames, "the reference simulations of the run in .* is not what it was", mine)
    changed(folder / "training" / "model.safetensors", r"model\.safetensors is not what the run wrote")
    changed(next((folder / "snapshots").glob("*.safetensors")), "has changed since it was written")
    assert correct(config, out=folder, resume=True, data_dir=data).summary is not None


# What is refused ------------------------------------------------------------------------------------------------------


def test_bad_settings_are_refused_before_any_work(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="method"):
        CorrectionConfig(method="sol")
    with pytest.raises(InvalidInputError, match="unroll=12 steps need as many frames"):
        replace(TINY, unroll=12)
    with pytest.raises(InvalidInputError, match="needs at least one Reynolds number"):
        FlowConfig(test=())
    with pytest.raises(InvalidInputError, match="which a budget of 5 does not allow; give a larger budget"):
        correct(replace(TINY, budget=5, method=OPAQUE), out=tmp_path / "poor", data_dir=data)
    correct(replace(TINY, method=SRC), out=tmp_path / "run", data_dir=data)
    with pytest.raises(RunFolderError):
        correct(replace(TINY, method=NON), out=tmp_path / "run", data_dir=data)
    with pytest.raises(RunFolderError, match="holds no trained network"):
        load_network(tmp_path / "run")


def test_recipes_are_known_by_name_and_come_back_from_json() -> None:
    for recipe in RECIPES.values():
        config = recipe.config()
        assert from_record(json.loads(json.dumps(json.loads(json.dumps(config, default=vars))))) == config
    with pytest.raises(InvalidInputError, match="did you mean wake-small"):
        RECIPES.find("wake-smal")


def test_the_forecast_counts_what_a_run_does(data: Path, flows: Reference) -> None:
    short = correction_seconds(replace(TINY, method=FO_SOL, steps=100), data)
    long = correction_seconds(replace(TINY, method=FO_SOL, steps=10_000), data)
    assert long / short > 5
    unmade = correction_seconds(replace(TINY, flow=replace(TINY.flow, warmup=20_000), method=SRC), data)
    assert unmade > 20 * correction_seconds(replace(TINY, method=SRC), data)
