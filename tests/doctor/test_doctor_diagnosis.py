"""A diagnosis as a whole: its verdict, its text, and both steps judged on the same coordinates."""

import dataclasses
from typing import Any

import pytest
from patients import LOSS, batch, cube, healthy, seeded
from torch import nn

import deepzero as dz
from deepzero.doctor import Determinism, Diagnosis, Finding, Forecast, LoopCosts, StepChoice
from deepzero.errors import InvalidInputError

STEADY = Determinism(1.0, "train", True, 0.0, False)
CHOICE = StepChoice("propagation", "forward", 1e-5, 1e-6, 1e-4, 1e-6, 5e-3, 0.05, True, "", as_good=True)


def made(**parts: Any) -> Diagnosis:
    return Diagnosis(**{"determinism": STEADY, "step": CHOICE, **parts})


def test_what_is_fit_is_said_with_figures() -> None:
    loop = LoopCosts(steps_per_epoch=10, epochs=20, startup=6.0)
    forecast = Forecast(100, 0.5, "timed", 0.1, (), loop=loop, seconds_per_epoch=5.7)
    assert made(forecast=forecast).verdict == (
        "fit to train: deterministic, slope error 5.0e-02 at the step 5.0e-03, about 2.0 min for 20 epochs"
    )


def test_warnings_come_in_few_words_and_only_those_that_decide() -> None:
    findings = (
        Finding("warning", "long", "the step is too small"),
        Finding("warning", "slow"),
        Finding("note", "", "no"),
    )
    assert made(findings=findings).verdict.startswith("fit, but the step is too small: deterministic, ")
    assert made(findings=findings[1:]).verdict.startswith("fit to train: ")


def test_errors_are_the_verdict() -> None:
    findings = (Finding("error", "a long story", "short"), Finding("error", "another"), Finding("warning", "x", "x"))
    assert made(findings=findings).verdict == "not fit: short (and 1 more)"
    assert made(findings=findings[1:2]).verdict == "not fit: another"


def test_noise_is_a_fact() -> None:
    noisy = dataclasses.replace(STEADY, repeatable=False, noise=2e-3)
    assert "noisy (sd 2.0e-03)" in made(determinism=noisy).verdict


def test_both_steps_are_measured_on_the_same_coordinates() -> None:
    found = dz.diagnose(healthy(), *batch(), loss=LOSS, step_size=0.3, seconds=1.0)
    assert found.step.samples == sum(layer.samples for layer in found.gradients.layers)
    assert found.step.configured_error == found.gradients.relative_error
    assert found.step.error < 1e-3 < found.step.configured_error


def test_the_recommendation_is_for_the_evaluator_that_is_used() -> None:
    found = dz.diagnose(healthy(), *batch(), loss=LOSS, seconds=1.0)
    assert found.step.evaluator == "propagation"
    assert found.step.plain_error > 10 * found.step.error
    plain = dz.diagnose(healthy(), *batch(), loss=LOSS, seconds=1.0, evaluator=dz.SequentialEvaluator())
    assert plain.step.plain_error is None
    assert plain.step.step_size > found.step.step_size


def test_the_verdict_comes_first_and_a_diagnosis_prints() -> None:
    found = dz.diagnose(seeded(nn.Linear(6, 3)), *batch(), loss=LOSS, seconds=0.1)
    text = str(found)
    assert text.splitlines()[0].startswith("verdict: fit to train: deterministic, gradient error ")
    assert "Advice" in text
    assert max(map(len, text.splitlines())) <= 100
    assert "\x1b" not in text
    assert repr(found) == f"Diagnosis({found.verdict})"
    assert found.as_dict()["verdict"] == found.verdict


def test_an_estimator_has_its_own_choices() -> None:
    zo = dz.CGE(healthy(), loss=LOSS, step_size=1e-4)
    assert dz.diagnose(zo, *batch(), seconds=0.1).step.configured == 1e-4
    with pytest.raises(InvalidInputError, match="an estimator has a loss, a step size"):
        dz.diagnose(zo, *batch(), step_size=1e-3)


def test_a_loss_may_stand_in_front_of_the_batch() -> None:
    in_front = dz.diagnose(healthy(), LOSS, *batch(), seconds=0.1)
    assert in_front.determinism.loss == dz.diagnose(healthy(), *batch(), loss=LOSS, seconds=0.1).determinism.loss


@pytest.mark.parametrize("name", ["max_queries", "run_steps", "budget", "price_per_query"])
def test_what_is_for_black_boxes_is_refused_for_networks(name: str) -> None:
    with pytest.raises(InvalidInputError, match=f"{name} is for black boxes; leave it out for a network"):
        dz.diagnose(healthy(), *batch(), loss=LOSS, **{name: 100})


def test_a_black_box_is_fit_too() -> None:
    assert dz.diagnose(cube()).verdict.startswith("fit to train: deterministic, gradient error ")
