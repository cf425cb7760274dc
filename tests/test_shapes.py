"""The shapes in signatures hold: the test session checks them, and users pay nothing for it."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path

import jaxtyping
import pytest
import torch
from shapes import CHECKED_MODULES

import deepzero
from deepzero.graph.differences import Channel, OneHot
from deepzero.stencils import FORWARD

FLAT = torch.ones(1)  # one node, but no dimension of directions


def test_an_argument_of_another_shape_is_refused() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match=r"(?s)slopes.*differences.*nodes k"):
        FORWARD.slopes(FLAT, 0.5)


def test_dimensions_of_one_name_agree() -> None:
    shape = torch.Size((5, 3))
    Channel(1, torch.tensor([0, 2]), torch.ones(2, 5), shape)
    with pytest.raises(jaxtyping.TypeCheckError, match="delta"):
        Channel(1, torch.tensor([0, 2]), torch.ones(4, 5), shape)


@pytest.mark.usefixtures("shapes_unchecked")
def test_the_checks_can_be_turned_off() -> None:
    assert FORWARD.slopes(FLAT, 0.5).shape == ()


def sources() -> dict[str, str]:
    """Module -> its text."""
    root = Path(deepzero.__file__).parent
    return {
        ".".join(path.relative_to(root.parent).with_suffix("").parts): path.read_text() for path in root.rglob("*.py")
    }


def test_every_module_with_shapes_is_checked() -> None:
    annotated = [name for name, text in sources().items() if "from jaxtyping import" in text]
    unchecked = [n for n in annotated if not any(f"{n}.".startswith(f"{checked}.") for checked in CHECKED_MODULES)]
    assert annotated
    assert not unchecked, "add these to tests/shapes.py"


def test_users_pay_nothing() -> None:
    """The package itself does not name the checker, which only the extra ``test`` installs."""
    assert not [name for name, text in sources().items() if "beartype" in text]


@pytest.mark.parametrize("name", CHECKED_MODULES)
def test_every_checked_module_exists(name: str) -> None:
    assert importlib.util.find_spec(name) is not None


def test_the_checks_draw_nothing() -> None:
    """A sequence would be checked at a random item: the session would move Python's global generator."""
    before = random.getstate()
    OneHot(torch.tensor([0, 5]), torch.ones(2), torch.Size((2, 3))).positions()
    assert random.getstate() == before
