"""The trial by which a plain loop takes its fastest form."""

import pytest
import torch

from deepzero.measure import forms as tried
from deepzero.measure.cases import problem
from deepzero.measure.forms import Form, forms, trial
from deepzero.measure.rounds import Timing
from deepzero.measure.sides import BlockReuse, Naive


class Known:
    """A loop whose speed is known, and which counts its turns."""

    def __init__(self, *rates):
        self.rates, self.turns = rates, 0

    def time(self, seconds, turn):
        self.turns += 1
        rate = self.rates[min(turn, len(self.rates) - 1)]
        return Timing(100, 100 / rate, 1, 1 / rate)


def test_the_fastest_form_is_taken_and_all_are_reported():
    candidates = forms(torch.device("cpu"))
    loops = {form: Known(10.0 + number) for number, form in enumerate(candidates)}
    found = trial(loops.__getitem__, candidates)
    assert found.fastest == candidates[-1]
    assert list(found.queries_per_second) == [form.name for form in reversed(candidates)]
    assert list(found.queries_per_second.values()) == pytest.approx([10.0 + k for k in reversed(range(8))])


def test_the_median_of_the_turns_counts_not_the_best_of_them():
    steady, lucky = Form(), Form(channels_last=True)
    loops = {steady: Known(10.0), lucky: Known(14.0, 9.0, 9.0)}
    found = trial(loops.__getitem__, list(loops))
    assert found.fastest == steady
    assert found.queries_per_second == pytest.approx({steady.name: 10.0, lucky.name: 9.0})


def test_a_form_that_is_far_behind_takes_one_turn():
    slow, fast = Form(onednn=False), Form()
    loops = {slow: Known(1.0), fast: Known(tried.DROP * 1.01)}
    assert trial(loops.__getitem__, list(loops)).fastest == fast
    assert (loops[slow].turns, loops[fast].turns) == (1, tried.ROUNDS)


def test_forms_differ_and_only_cpus_have_onednn():
    names = [form.name for form in forms(torch.device("cpu"))]
    assert len(set(names)) == 8
    assert {form.onednn for form in forms(torch.device("meta"))} == {True}


def test_a_form_is_active_within_its_block_only():
    before = torch.backends.mkldnn.enabled
    with Form(inference_mode=True, onednn=False).active():
        assert torch.is_inference_mode_enabled()
        assert not torch.backends.mkldnn.enabled
    assert (torch.is_inference_mode_enabled(), torch.backends.mkldnn.enabled) == (False, before)


@pytest.mark.parametrize("side", [Naive, BlockReuse])
def test_a_side_runs_in_the_form_that_its_trial_found(side, monkeypatch):
    asked = problem("digits", batch=4)
    wanted = Form(channels_last=True, onednn=False)
    genuine = side.time

    def slowed(self, seconds, turn):
        """All forms but one take ten times as long."""
        timing = genuine(self, 0.0, turn)
        return timing if self.loop.form == wanted else Timing(timing.queries, 10 * timing.seconds, 1, 1.0)

    monkeypatch.setattr(side, "time", slowed)
    found = side(asked)
    assert found.loop.form == found.trial.fastest == wanted
    assert next(iter(found.trial.queries_per_second)) == wanted.name
    assert side(asked, Form()).trial is None
