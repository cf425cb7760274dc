"""Scales, the options that change them, and experiments by name."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from deepzero.errors import InvalidInputError
from deepzero.reproduce import EXPERIMENTS, find, names
from deepzero.reproduce.experiment import AtMostImages, Epochs, Scale, TrainingScale
from deepzero.tasks.classification import DataConfig


@dataclass(frozen=True, kw_only=True)
class TwoMethods(TrainingScale):
    """Another method has epochs and images of its own."""

    other_epochs: Epochs = 40
    other_images: AtMostImages = 500
    width: int = 3


DIGITS = DataConfig(name="digits", limit=64)
SCALE = TwoMethods(caption="Digits.", data=DIGITS, epochs=2, seeds=3)


def test_a_scale_with_other_numbers_says_so() -> None:
    other = SCALE.changed(epochs=1000, limit=2000)
    assert other.caption == "Digits. Changed here: epochs 1,000, limit 2,000."
    assert (other.epochs, other.seeds, other.data.limit, other.width) == (1000, 3, 2000, 3)
    assert SCALE.changed(seeds=1).caption == "Digits. Changed here: seeds 1."
    assert SCALE.changed(seeds=1).data == SCALE.data
    assert (SCALE.epochs, SCALE.data.limit) == (2, 64)


def test_a_scale_with_its_own_numbers_is_the_same() -> None:
    plain = TrainingScale(caption="Digits.", data=DIGITS, epochs=2, seeds=3)
    assert plain.changed() is plain.changed(epochs=2, seeds=3, limit=64) is plain
    assert SCALE.changed(seeds=3, limit=500).caption == "Digits. Changed here: limit 500."


def test_changes_reach_all_fields_of_their_kind() -> None:
    other = SCALE.changed(epochs=4, limit=300)
    assert (other.epochs, other.other_epochs, other.data.limit, other.other_images) == (4, 4, 300, 300)
    assert SCALE.changed(limit=900).other_images == 500
    assert SCALE.changed(seeds=9).other_epochs == 40


def test_options_are_those_with_a_field() -> None:
    assert TwoMethods.options() == {"epochs", "seeds", "limit"}
    assert Scale.options() == set()
    without = {name for name, e in EXPERIMENTS.items() if not any(scale.options() for scale in e.scales.values())}
    assert without == {"fig3", "tabA1", "figA6"}
    assert find("fig6").scale("small").options() == find("tab2").scale("small").options() == {"seeds"}


def test_experiments_are_found_by_every_name() -> None:
    assert find("fig2") is EXPERIMENTS["fig2"]
    assert find("figA4") is EXPERIMENTS["fig4"]
    assert find("figA2") is EXPERIMENTS["tabA1"]
    every = [name for e in EXPERIMENTS.values() for name in (e.name, *e.also)]
    assert names() == every
    assert len(set(every)) == len(every)


@pytest.mark.parametrize(("name", "near"), [("fig22", "fig2"), ("tabA11", "tabA1"), ("schedule", "schedules")])
def test_an_unknown_experiment_names_the_nearest(name: str, near: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"unknown experiment '{name}' \(did you mean {near}\?\); there are: "):
        find(name)
    with pytest.raises(InvalidInputError, match=r"unknown experiment 'zzz'; there are: fig1d, "):
        find("zzz")


def test_an_unknown_scale_names_those_there_are() -> None:
    with pytest.raises(InvalidInputError, match="fig2 has the scales smoke, small, paper, got 'huge'"):
        find("fig2").scale("huge")
