"""For people to see: the text in the terminal and the picture."""

import io

import numpy as np
import pytest
from patients import LOSS, Unruled, batch, cube, healthy, seeded
from PIL import Image
from rich.console import Console

import deepzero as dz
from deepzero.doctor import LoopCosts, diagnose, plot_sweep
from deepzero.doctor.diagnosis import Diagnosis
from deepzero.errors import InvalidInputError


def shown(diagnosis: Diagnosis) -> str:
    console = Console(width=160, file=io.StringIO())
    console.print(diagnosis)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def found() -> Diagnosis:
    loop = LoopCosts(steps_per_epoch=10, epochs=2, startup=1.0)
    return diagnose(seeded(Unruled(at_the_end=False)), *batch(), loss=LOSS, step_size=1e-4, seconds=0.5, loop=loop)


def test_every_part_is_shown(found: Diagnosis) -> None:
    text = " ".join(shown(found).split())
    for part in (
        "deterministic: evaluations with the same seed agree bitwise",
        "fall back: logcumsumexp.default x1",
    ):
        assert part in text
    assert f"recommended: {found.step.step_size:.1e} (propagation, forward)" in text
    assert f"cosine {found.gradients.cosine:.4f}" in text
    assert "84 queries and" in text
    assert "an epoch of 10 steps" in text
    assert "first.weight: 48 coordinates" in text
    assert "warning: aten.logcumsumexp.default: no difference rule" in text


def test_advice_comes_last_and_the_worst_of_it_first(found: Diagnosis) -> None:
    model = healthy()
    lines = shown(diagnose(model, *batch(), loss=LOSS, step_size=1.0, learning_rate=1e-2, seconds=0.1)).splitlines()
    levels = [line.split(":")[0].strip() for line in lines[lines.index("Advice") + 1 :] if line.startswith("  ")]
    assert levels == sorted(levels, key=("error", "warning", "note", "good").index)
    assert levels[0] == "warning"


def test_a_black_box_has_no_operations_and_no_autograd() -> None:
    text = " ".join(shown(diagnose(cube())).split())
    assert "Operations" not in text
    assert "no autograd to compare with" in text


def test_a_loss_that_is_not_finite_is_still_shown() -> None:
    text = shown(diagnose(dz.BlackBox(lambda p: float("nan"), {"w": np.zeros(1)})))
    assert "loss not finite" in text
    assert "error: the loss is not finite at the current parameters" in text


def test_the_plot_is_a_picture(found: Diagnosis) -> None:
    picture = plot_sweep(found, title="unruled")
    image = Image.open(io.BytesIO(picture))
    assert image.format == "PNG"
    assert min(image.size) > 400
    assert len(set(np.asarray(image.convert("RGB")).reshape(-1, 3)[::97].sum(1).tolist())) > 10


def test_without_a_sweep_there_is_nothing_to_plot() -> None:
    with pytest.raises(InvalidInputError, match="no sweep to plot"):
        plot_sweep(diagnose(dz.BlackBox(lambda p: float("nan"), {"w": np.zeros(1)})))
