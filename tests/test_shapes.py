"""The shapes in signatures hold: the test session checks them, and users pay nothing for it."""

from __future__ import annotations

import importlib.util
import random
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import shapes
import torch
from jaxtyping import Float
from shapes import CHECKED_MODULES
from torch import Tensor

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


def doubled(x: Float[Tensor, " n m"], rows: int, *, more: Float[Tensor, " n"] | None = None) -> Float[Tensor, " n m"]:
    return 2 * x[:rows]


def counted(x: Float[Tensor, " {count}"], count: int) -> None: ...


@pytest.fixture
def checked() -> Callable[[types.FunctionType], Callable[..., Any]]:
    """Puts the checks above a function, as the import hook does."""
    return lambda function: shapes.checking(function, shapes.checked)


def test_what_passed_once_does_not_let_other_arrays_through(
    checked: Callable[[types.FunctionType], Callable[..., Any]],
) -> None:
    """After a call that is right: another rank, another size, another type, a result of another shape, and a keyword."""
    call = checked(doubled)
    x, rows = torch.ones(3, 2), torch.ones(3)
    for _ in range(2):
        assert torch.equal(call(x, 3, more=rows), 2 * x)
        assert call(torch.ones(4, 2), 4).shape == (4, 2)
        for wrong in (lambda: call(rows, 3), lambda: call(x.long(), 3), lambda: call(x, 3, more=torch.ones(4))):
            with pytest.raises(jaxtyping.TypeCheckError, match="parameters"):
                wrong()
        with pytest.raises(jaxtyping.TypeCheckError, match="return value"):
            call(x, 2)
        with pytest.raises(jaxtyping.TypeCheckError, match="return value"):
            call(x, 2, more=rows)


def test_a_size_that_is_an_argument_is_checked_every_time(
    checked: Callable[[types.FunctionType], Callable[..., Any]],
) -> None:
    call = checked(counted)
    call(torch.ones(2), 2)
    with pytest.raises(jaxtyping.TypeCheckError):
        call(torch.ones(2), 3)


def test_functions_of_one_text_share_their_checks_and_nothing_else(
    checked: Callable[[types.FunctionType], Callable[..., Any]],
) -> None:
    def scaled(factor: float) -> Callable[..., Tensor]:
        def scale(x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
            return factor * x

        return checked(scale)

    two, three, x = scaled(2), scaled(3), torch.ones(2)
    assert [float(call(x)[0]) for call in (two, three, two, three)] == [2, 3, 2, 3]
    with pytest.raises(jaxtyping.TypeCheckError):
        three(torch.ones(2, 2))


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
