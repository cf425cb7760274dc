"""The floor: operations and bytes by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deepzero.coordinates import Coordinates
from deepzero.measure.cases import Case, Problem, Source, problem
from deepzero.measure.drawn_batches import noise_batch
from deepzero.measure.floor import Ceilings, ceilings, query_work
from deepzero.measure.sides import DeepZero

SLOW_PRODUCTS = Ceilings(threads=1, product=1.0, convolution=1.0, copy=1e30)
SLOW_COPIES = Ceilings(threads=1, product=1e30, convolution=1e30, copy=1.0)
BATCH, CLASSES = 3, 10


def of(model: nn.Module, parameter: str, *, channels: int, side: int, batch: int = BATCH) -> DeepZero:
    """A side that queries the first entry of a parameter, on images."""
    source = Source("noise", lambda size, seed: noise_batch(size, channels, side, seed=seed))
    case = Case("one", "one", lambda _: model, source)
    task: Problem = problem(case, batch=batch)
    return DeepZero(Problem(case, task.model, task.batch, Coordinates({parameter: torch.arange(1)}), 0.0, 1e-3, 0))


def test_a_convolution_of_a_channel_takes_its_own_weights_alone() -> None:
    """First weight: 2 a pixel; behind it, 5 channels of 9 products a pixel; the linear layer sees all that differ."""
    model = nn.Sequential(
        nn.Conv2d(2, 4, 1, bias=False), nn.Conv2d(4, 5, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(80, CLASSES)
    )
    side = of(model, "0.weight", channels=2, side=4)
    pixels, found = BATCH * 16, query_work(side.problem, side, SLOW_PRODUCTS)
    assert found.operations == pytest.approx(2 * pixels + 2 * pixels * 5 * 9 + 2 * BATCH * CLASSES * 80)
    assert found.seconds == pytest.approx(found.operations)


@pytest.mark.parametrize(("options", "saved"), [({"padding": 1}, 4), ({"padding": 2, "dilation": 2}, 1)])
def test_a_plain_convolution_of_all_channels_takes_a_quarter_of_its_products(
    options: dict[str, int], saved: int
) -> None:
    """Its input differs everywhere, behind a linear map of all pixels: 4 channels of 9 products a pixel and channel."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 1, bias=False),
        nn.Conv2d(4, 5, 1, bias=False),
        nn.Conv2d(5, 4, 3, bias=False, **options),  # type: ignore[arg-type]
        nn.Flatten(),
        nn.Linear(64, CLASSES),
    )
    side = of(model, "0.weight", channels=1, side=4)
    pixels, found = BATCH * 16, query_work(side.problem, side, SLOW_PRODUCTS)
    before = 2 * pixels + 2 * pixels * 5
    assert found.operations == pytest.approx(before + 2 * pixels * 4 * 5 * 9 / saved + 2 * BATCH * CLASSES * 64)


def test_what_is_pooled_behind_a_convolution_had_to_be_convolved() -> None:
    """A weight's product at each pixel, although a kernel gives means alone (with an index of 8 bytes, counted too)."""
    tail = (nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES))
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False), *tail)
    side = of(model, "0.weight", channels=1, side=4, batch=64)
    found, head = query_work(side.problem, side, SLOW_PRODUCTS), 2 * 64 * CLASSES
    assert found.operations == pytest.approx(2 * 64 * 16 + head, rel=0.05)


def test_bytes_are_those_of_the_differences() -> None:
    """A weight of the head: an entry is read, a column of logits written and read again, a loss written."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.Linear(6, CLASSES))
    side = of(model, "2.weight", channels=1, side=2)
    found = query_work(side.problem, side, SLOW_COPIES)
    entry, column = 8 + 4, 4 * BATCH
    assert entry + 2 * column < found.bytes <= entry + 2 * column + 8
    assert found.seconds == pytest.approx(found.bytes)


def test_a_query_costs_the_mean_over_coordinates() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, CLASSES))
    first, last = (of(model, name, channels=1, side=2) for name in ("1.weight", "3.weight"))
    both = Coordinates({"1.weight": torch.arange(3), "3.weight": torch.arange(1)})
    whole = DeepZero(Problem(first.problem.case, model, first.problem.batch, both, 0.0, 1e-3, 0))
    one, other, found = (query_work(side.problem, side, SLOW_PRODUCTS) for side in (first, last, whole))
    assert found.operations == pytest.approx((3 * one.operations + other.operations) / 4)


def test_ceilings_are_of_this_machine() -> None:
    found = ceilings()
    assert found.threads == torch.get_num_threads()
    assert min(found.product, found.convolution) > 1e9
    assert found.copy > 1e8


def test_counting_changes_no_estimate() -> None:
    task = problem("digits", batch=4)
    side = DeepZero(task)
    before = side.estimate(task.coordinates).gradients
    query_work(task, side, SLOW_COPIES)
    after = side.estimate(task.coordinates).gradients
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert F.cross_entropy(task.model(task.batch[0]), task.batch[1]).isfinite()
