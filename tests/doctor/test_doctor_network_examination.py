import copy
import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from patients import (
    CUBE_SLOPE,
    LOSS,
    Branching,
    Custom,
    Fluttering,
    Jumping,
    Scaled,
    Unruled,
    batch,
    cube,
    healthy,
    seeded,
)
from torch import Tensor, nn

import deepzero as dz
from deepzero.doctor import diagnose, examine
from deepzero.doctor.diagnosis import Diagnosis
from deepzero.errors import InvalidInputError
from deepzero.evaluators.base import Measurement, StepQueries
from deepzero.objective import NetworkObjective


def examined(model: Any, **options: Any) -> Diagnosis | None:
    return diagnose(model, *batch(), loss=LOSS, **{"step_size": 1e-4, "seconds": 1.0, **options})


def texts(diagnosis: Diagnosis, level: str) -> str:
    return " | ".join(finding.text for finding in diagnosis.findings if finding.level == level)


@pytest.fixture(scope="module")
def good() -> Diagnosis:
    return examined(healthy(), learning_rate=0.01)


def test_a_healthy_network(good: Diagnosis) -> None:
    assert good.healthy
    assert {finding.level for finding in good.findings} == {"good"}
    assert good.sweep.reference == "float64 autograd"
    assert good.step.evaluator == "propagation"
    assert good.operations.fallbacks == {}
    assert good.trial.after < good.trial.before


def test_the_estimate_is_the_gradient(good: Diagnosis) -> None:
    assert good.gradients.cosine == pytest.approx(1, abs=1e-6)
    assert good.gradients.relative_error < 1e-3
    assert [layer.name for layer in good.gradients.layers] == [name for name, _ in healthy().named_parameters()]
    for layer in good.gradients.layers:
        assert layer.cosine == pytest.approx(1, abs=1e-5)


def test_a_bias_in_front_of_a_norm_has_no_gradient() -> None:
    model = seeded(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)))
    found = examined(model)
    bias = found.gradients.layers[1]
    assert (bias.name, bias.cosine, bias.relative_error) == ("0.bias", None, None)


def test_a_diagnosis_is_ready_for_json(good: Diagnosis) -> None:
    assert json.loads(json.dumps(good.as_dict(), allow_nan=False))["gradients"]["reference"] == "float64 autograd"
    with pytest.raises(dataclasses.FrozenInstanceError):
        good.trial = None


def test_nothing_is_changed() -> None:
    model = healthy()
    before, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    zo = dz.CGE(model, loss=LOSS)
    examine(zo, *batch(), learning_rate=1.0, seconds=0.1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert (zo.step, zo.queries, model.training) == (0, 0, True)
    assert isinstance(zo.evaluator, dz.AutomaticEvaluator)
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize(("scale", "level"), [(1e-1, "warning"), (1e-9, "note")])
def test_a_nondeterministic_objective_is_reported_with_what_it_does(scale: float, level: str) -> None:
    model = seeded(Fluttering(scale)).double()
    x, y = batch()
    found = diagnose(model, x.double(), y, loss=LOSS, step_size=1e-3, seconds=0.1, evaluator=dz.SequentialEvaluator())
    assert not found.determinism.repeatable
    assert "not deterministic" in texts(found, level)
    assert (found.determinism.relative_slope_noise > 0.1) == (level == "warning")


def test_propagation_through_a_nondeterministic_model_is_refused_and_the_rest_examined() -> None:
    found = examined(seeded(Fluttering(1e-1)))
    assert "not deterministic" in texts(found, "warning")
    assert found.forecast is not None


def test_operations_that_fall_back_are_advised_about() -> None:
    found = examined(seeded(Unruled(at_the_end=True)))
    assert "aten.logcumsumexp.default: no difference rule" in texts(found, "warning")
    assert "100% of the coordinates" in texts(found, "warning")
    assert found.healthy


def test_a_model_that_cannot_be_exported_is_answered_by_full_forwards() -> None:
    found = examined(seeded(Branching()))
    assert found.healthy
    assert "queries are answered by full forwards (sequential)" in texts(found, "warning")
    assert "cannot be exported" in texts(found, "warning")
    assert any("one full forward a query" in line for line in found.plan)
    assert {curve.evaluator for curve in found.sweep.curves} == {"sequential"}
    assert found.gradients.cosine > 0.99
    assert found.forecast.method == "timed"


def test_parameters_whose_operations_are_run_again_are_advised_about() -> None:
    """A Python number made of perturbed values, on which nothing branches: behind it nothing can be propagated."""
    found = examined(seeded(Scaled()))
    assert set(found.operations.run_again) == {"first.weight", "first.bias"}
    assert found.operations.behind_run_again == pytest.approx(56 / 83)
    assert "first.weight, first.bias (67% of the coordinates) run everything behind the parameter again" in texts(
        found, "warning"
    )
    assert found.healthy
    assert {layer.name for layer in found.gradients.layers if layer.cosine > 0.999} == {
        "last.weight",
        "last.bias",
    }  # autograd sees no item()


def test_the_plan_and_the_sharpness_of_the_check_are_told(good: Diagnosis) -> None:
    assert any("5 of 5 parameters" in line for line in good.plan)
    assert any(line.startswith("checked: ") and "worst relative error" in line for line in good.plan)


def test_a_closure_and_a_batch_of_any_form() -> None:
    x, y = batch()
    model = healthy()
    found = diagnose(model, {"x": x, "y": y}, closure=lambda m, b: LOSS(m(b["x"]), b["y"]), step_size=1e-4, seconds=0.5)
    assert found.healthy
    assert found.sweep.reference == "float64 autograd"
    assert found.gradients.cosine == pytest.approx(1, abs=1e-6)
    found = examine(
        dz.CGE(model, closure=lambda m: sum(p.square().sum() for p in m.parameters()), step_size=1e-4), seconds=0.1
    )
    assert found.gradients.cosine == pytest.approx(1, abs=1e-6)


def test_a_step_that_vanishes_is_an_error_of_its_own() -> None:
    model = seeded(nn.Linear(6, 3))
    with torch.no_grad():
        model.weight[0, 0] = 100.0
    found = examined(model, step_size=1e-6, evaluator=dz.SequentialEvaluator())
    assert "the step size 1.0e-06 vanishes when it is added to a parameter" in texts(found, "error")
    assert "losses are not finite" not in texts(found, "error")


@pytest.mark.parametrize("step_size", [{"relative": 1e-4}, "auto", None])
def test_every_form_of_step_size(step_size: dict[str, float] | str | None) -> None:
    found = examined(healthy(), step_size=step_size)
    assert found.healthy
    assert found.gradients.cosine > 0.999


def test_a_model_that_cannot_be_exported_is_no_case_for_propagation_alone() -> None:
    found = examined(seeded(Branching()), evaluator=dz.PropagationEvaluator())
    assert not found.healthy
    assert "cannot be exported" in texts(found, "error")
    assert "SequentialEvaluator" in texts(found, "error")
    assert {curve.evaluator for curve in found.sweep.curves} == {"sequential"}
    assert found.gradients.cosine > 0.99
    assert found.forecast.method == "timed"


def test_steps_too_large_and_too_small() -> None:
    found = examined(healthy(), step_size=1.0)
    assert "step size 1.0e+00 is too large" in texts(found, "warning")
    found = examined(healthy(), step_size=1e-7, evaluator=dz.SequentialEvaluator())
    assert "step size 1.0e-07 is too small" in texts(found, "warning")
    assert "rounded away" in texts(found, "warning")


def test_a_learning_rate_that_is_too_large() -> None:
    found = examined(healthy(), learning_rate=1e3)
    assert "learning rate is too large" in texts(found, "warning")
    found = examined(seeded(nn.Linear(6, 3)), learning_rate=1e39)
    assert found.trial.after is None
    assert "not finite" in texts(found, "warning")


def test_jumps_leave_autograd_and_small_steps_with_nothing() -> None:
    found = examined(seeded(Jumping()), step_size=0.5)
    assert found.step is None
    assert 1e-2 < found.sweep.flat_below <= 0.5
    assert "the loss has flat pieces and jumps" in texts(found, "warning")


def test_noise_leaves_no_step_to_recommend() -> None:
    draws = np.random.default_rng(0)
    found = diagnose(dz.BlackBox(lambda p: float(p["w"].sum() + draws.normal()), {"w": np.zeros(3)}))
    assert found.step is None
    assert "no step that was tried makes slopes rise above that" in texts(found, "error")
    assert found.verdict.startswith("not fit: the loss is noisy (sd ")


def test_a_backward_of_its_own_is_found_out() -> None:
    found = examined(seeded(Custom()), evaluator=dz.SequentialEvaluator())
    assert found.sweep.autograd_disagrees
    assert found.sweep.reference == "neighbouring steps"
    assert "at no step size do function values agree with it" in texts(found, "warning")
    assert found.step is not None


def test_dead_coordinates_are_named() -> None:
    model = seeded(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    found = examined(model)
    assert "0.weight (100%), 0.bias (100%), 2.weight (100%)" in texts(found, "note")
    assert found.healthy


def test_a_loss_that_nothing_changes() -> None:
    box = dz.BlackBox(lambda p: 1.0, {"w": np.zeros(3)})
    found = diagnose(box)
    assert "no coordinate that was tried changes the loss" in texts(found, "error")
    assert not found.healthy


def test_a_loss_that_is_nan_names_the_culprit() -> None:
    model = healthy()
    with torch.no_grad():
        model[3].bias[1] = math.nan
    found = examined(model)
    assert not found.healthy
    assert "not finite already: parameter 3.bias" in texts(found, "error")
    assert found.sweep is found.forecast is None
    x, y = batch()
    found = diagnose(healthy(), x / 0, y, loss=LOSS)
    assert "batch tensor 0" in texts(found, "error")
    found = diagnose(seeded(nn.Linear(6, 3)), x, y, loss=lambda output, _: (output.mean() * 0).log() * 0)
    assert "the model or the loss overflows" in texts(found, "error")


def test_perturbed_losses_that_are_not_finite() -> None:
    box = dz.BlackBox(lambda p: float(p["w"][0]) if p["w"][0] < 0.5 else math.inf, {"w": np.zeros(1)})
    found = diagnose(box, step_size=1.0)
    assert "no estimate can be made at the step size 1.0e+00: 1 of 1 perturbed losses are not" in texts(found, "error")
    assert "losses are not finite at the step size 1.0e+00; use" in texts(found, "error")
    json.dumps(found.as_dict(), allow_nan=False)


def test_half_precision_is_advised_against() -> None:
    x, y = batch()
    model = seeded(nn.Linear(6, 3)).bfloat16()
    found = diagnose(model, x.bfloat16(), y, loss=LOSS, evaluator=dz.SequentialEvaluator())
    assert "parameters are torch.bfloat16" in texts(found, "warning")


def test_norms_in_eval_mode_are_noted() -> None:
    found = examined(healthy().eval())
    assert "BatchNorm1d in eval mode" in texts(found, "note")


def test_a_black_box() -> None:
    found = diagnose(cube(), step_size=1e-3, stencil=dz.CENTRAL, learning_rate=1e-3)
    assert found.healthy
    assert found.operations is None
    assert found.gradients.cosine is None
    assert found.gradients.layers[0].norm == pytest.approx(np.linalg.norm(CUBE_SLOPE), rel=1e-6)
    assert found.forecast.queries == 5
    assert found.step.low <= 1e-5 <= found.step.high


def test_arguments_of_a_black_box_are_passed_on() -> None:
    box = dz.BlackBox(lambda p, scale: float(scale * p["w"].sum()), {"w": np.ones(2)})
    found = diagnose(box, 3.0)
    assert found.determinism.loss == 6.0


def test_random_directions_reach_the_cosine_they_can() -> None:
    zo = dz.RGE(healthy(), loss=LOSS, step_size=1e-4, queries=20)
    found = examine(zo, *batch(), seconds=0.5)
    dimension = sum(p.numel() for p in healthy().parameters())
    assert found.gradients.expected_cosine == pytest.approx(math.sqrt(20 / (dimension + 21)))
    assert found.gradients.cosine == pytest.approx(found.gradients.expected_cosine, abs=0.25)
    assert "is what so few random directions reach" in texts(found, "warning")
    assert found.step.evaluator == "batched"


def test_sparse_coordinates_are_the_ones_examined() -> None:
    chosen = {"3.weight": torch.eye(3, 8, dtype=torch.bool)}
    found = examined(healthy(), sparsity=chosen)
    assert found.forecast.queries == 4
    assert [(layer.name, layer.samples) for layer in found.gradients.layers] == [("3.weight", 3)]


def test_few_seconds_mean_few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepzero.doctor.network_examination.median_seconds", lambda function, repeats: 10.0)
    found = examined(healthy(), seconds=20.0)
    assert found.sweep.samples == 4
    assert len(found.sweep.curves[0].points) <= 8
    assert sum(layer.samples for layer in found.gradients.layers) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_size": 0.0}, "step_size must be a finite number above 0"),
        ({"step_size": math.nan}, "step_size"),
        ({"steps": [1e-3]}, "steps must be at least two step sizes"),
        ({"steps": [1e-3, -1.0]}, "steps must be a finite number above 0"),
        ({"seconds": 0}, "seconds must be a finite number above 0"),
        ({"learning_rate": -0.1}, "learning_rate must be a finite number above 0"),
        ({"sparsity": {}}, "at least one coordinate"),
        ({"sparsity": {"nothing": torch.ones(1, dtype=torch.bool)}}, "not a trainable parameter"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        examined(healthy(), **options)


def test_bad_batches_and_models() -> None:
    x, y = batch()
    with pytest.raises(
        InvalidInputError, match="cannot be evaluated on this batch: IndexError: Target 3 is out of bounds"
    ):
        diagnose(healthy(), x, y + 3, loss=LOSS)
    with pytest.raises(InvalidInputError, match="a network needs either loss="):
        diagnose(healthy())
    with pytest.raises(InvalidInputError, match="two arguments"):
        diagnose(healthy(), x, loss=LOSS)


class Loop:
    """An evaluator of one's own: one full forward a query, with an explanation."""

    def __init__(self) -> None:
        self.inner = dz.SequentialEvaluator()

    def measure(self, queries: StepQueries) -> Measurement:
        return self.inner.measure(queries)

    def explain(self, objective: NetworkObjective, batch: tuple[Tensor, Tensor]) -> str:
        return "a loop\nof forwards"

    def state_dict(self) -> Any:
        return {}

    def load_state_dict(self, state: Any) -> None:
        pass


def test_an_evaluator_of_ones_own_is_examined_under_the_name_of_its_class() -> None:
    found = examined(healthy(), evaluator=Loop(), seconds=100.0)
    plain = examined(healthy(), evaluator=dz.SequentialEvaluator(), seconds=100.0)
    assert found.plan == ("a loop", "of forwards")
    assert found.operations is None
    assert found.step.evaluator == "Loop"
    assert {curve.evaluator for curve in found.sweep.curves} == {"Loop", "sequential"}
    assert found.sweep.curve("Loop", "forward").points == plain.sweep.curve("sequential", "forward").points
    assert found.gradients == plain.gradients
