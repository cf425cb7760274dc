"""The estimate against autograd."""

import pytest
import torch

from deepzero.coordinates import Coordinates
from deepzero.doctor.exact_gradients import Exact
from deepzero.doctor.gradient_check import check_gradients


def test_few_of_many_coordinates_stand_for_all_of_them() -> None:
    """A large parameter counts by its size, however few of its entries were looked at."""
    exact = Exact("autograd", {"large": torch.ones(900), "small": 3 * torch.ones(4)})
    estimated = {"large": 1.5 * torch.ones(3), "small": 3 * torch.ones(4)}
    sampled = Coordinates({"large": torch.tensor([5, 70, 800]), "small": torch.arange(4)})
    weighted = check_gradients(estimated, exact, sampled, {"large": 900, "small": 4})
    assert weighted.relative_error == pytest.approx(((900 * 0.25) / (900 + 36)) ** 0.5)
    assert check_gradients(estimated, exact, sampled).relative_error == pytest.approx(((3 * 0.25) / (3 + 36)) ** 0.5)


def test_sampled_entries_are_compared_with_the_exact_ones_of_their_coordinates() -> None:
    exact = Exact("autograd", {"w": torch.arange(6.0).reshape(2, 3)})
    found = check_gradients({"w": torch.tensor([1.0, 5.0])}, exact, Coordinates({"w": torch.tensor([1, 5])}))
    assert (found.cosine, found.relative_error, found.layers[0].samples) == (pytest.approx(1.0), 0.0, 2)
    assert check_gradients({"w": torch.arange(6.0).reshape(2, 3)}, exact).relative_error == 0.0


def test_the_cosine_and_the_relative_error_are_those_of_the_vectors() -> None:
    exact = Exact("autograd", {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([2.0])})
    found = check_gradients({"a": torch.tensor([1.0, 1.0]), "b": torch.tensor([2.0])}, exact)
    assert found.cosine == pytest.approx(5 / (6 * 5) ** 0.5)
    assert found.relative_error == pytest.approx(1 / 5**0.5)
    assert [layer.zeros for layer in found.layers] == [0.0, 0.0]
