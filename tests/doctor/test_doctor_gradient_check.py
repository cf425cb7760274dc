"""The estimate against autograd."""

import pytest
import torch

from deepzero.doctor.exact_gradients import Exact
from deepzero.doctor.gradient_check import check_gradients


def test_few_of_many_coordinates_stand_for_all_of_them():
    """A large parameter counts by its size, however few of its entries were looked at."""
    true = {"large": torch.ones(900), "small": 3 * torch.ones(4)}
    pairs = {
        "large": (1.5 * torch.ones(3).double(), torch.ones(3).double()),
        "small": (3 * torch.ones(4).double(), 3 * torch.ones(4).double()),
    }
    exact = Exact("autograd", true)
    weighted = check_gradients(pairs, exact, {"large": 900, "small": 4})
    assert weighted.relative_error == pytest.approx(((900 * 0.25) / (900 + 36)) ** 0.5)
    assert check_gradients(pairs, exact).relative_error == pytest.approx(((3 * 0.25) / (3 + 36)) ** 0.5)
