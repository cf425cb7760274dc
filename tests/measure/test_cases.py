"""Samples of the coordinates of a problem, and the problems themselves."""

import itertools
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from deepzero.coordinates import Coordinates
from deepzero.errors import InvalidInputError
from deepzero.measure.cases import CASES, cnn_case, in_full_chunks, one_of_each, problem, shuffled

WHOLE = Coordinates({"a": torch.arange(0, 200, 2), "b": torch.arange(3)})
CHUNKS = {"a": 8, "b": 8}


def test_a_stretch_of_all_coordinates_holds_each_once() -> None:
    stream = list(itertools.islice(shuffled(WHOLE, seed=1), 206))
    assert stream[:103] == stream[103:]
    assert Counter(name for name, _ in stream[:103]) == {"a": 100, "b": 3}
    assert {index for name, index in stream if name == "a"} == set(range(0, 200, 2))
    assert stream[:103] != list(itertools.islice(shuffled(WHOLE, seed=2), 103))


def test_a_part_is_made_of_chunks_of_the_whole() -> None:
    part = in_full_chunks(WHOLE, CHUNKS, 0.4, seed=3)
    chunks = {tuple(WHOLE["a"][start : start + 8].tolist()) for start in range(0, 100, 8)}
    drawn = part["a"].tolist()
    assert len(drawn) == 5 * 8 or len(drawn) == 4 * 8 + 4
    assert all(tuple(drawn[start : start + 8]) in chunks for start in range(0, len(drawn), 8))
    assert part["b"].tolist() == [0, 1, 2]
    assert drawn != in_full_chunks(WHOLE, CHUNKS, 0.4, seed=4)["a"].tolist()


@pytest.mark.parametrize(("fraction", "least", "count"), [(1.0, 1, 100), (1e-9, 1, 8), (1e-9, 2, 16), (1e-9, 99, 100)])
def test_sizes_of_a_part(fraction: float, least: int, count: int) -> None:
    part = in_full_chunks(WHOLE, {"a": 10 if count == 100 else 8, "b": 1}, fraction, seed=0, least=least)
    assert part["a"].numel() in (count, count - 4)


def test_one_of_each_is_spread_over_the_network() -> None:
    many = Coordinates({f"p{i}": torch.arange(5) for i in range(10)})
    assert one_of_each(many, 100, seed=0).count == 10
    assert one_of_each(many, 5, seed=0).names == ["p0", "p2", "p4", "p6", "p8"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vgg", {}, "case must be one of cnn, cnn-1, digits, lora-gpt, mlp, resnet20, transformer-block; got 'vgg'"),
        ("digits", {"batch": 1}, "batch must be an integer of at least 2, got 1"),
        ("digits", {"batch": 10_000}, "too few for batch=10000"),
        ("cnn", {"sparsity": 1.0}, "sparsity must lie in [0, 1), got 1.0"),
        ("cnn", {"step_size": float("nan")}, "step_size must be a finite number above 0, got nan"),
    ],
)
def test_problems_are_checked(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        problem(name, **options)
    assert message in str(caught.value)


def test_resnet20_is_thinned_by_smart_ratio() -> None:
    asked = problem("resnet20", batch=2)
    assert asked.coordinates.count == 28_217
    assert problem("resnet20", batch=2, sparsity=0.0).coordinates.count == 269_722


@pytest.mark.parametrize(
    ("name", "shape", "outputs", "coordinates"),
    [
        ("mlp", (128, 1, 28, 28), (128, 10), 784 * 800 + 800 + 800 * 400 + 400 + 400 * 10 + 10),
        ("cnn-1", (128, 3, 32, 32), (128, 10), None),
        ("transformer-block", (16, 32), (512, 100), 228_224),
        ("lora-gpt", (8, 32), (256, 100), 4 * 2 * 2 * 4 * 256),
    ],
)
def test_cases_at_their_own_size(
    name: str, shape: tuple[int, ...], outputs: tuple[int, int], coordinates: int | None
) -> None:
    found = problem(name)
    x, y = found.batch
    assert x.shape == shape
    assert found.model.training
    assert found.model(x).shape == outputs
    assert y.shape == outputs[:1]
    if coordinates is not None:
        assert found.coordinates.count == coordinates


def test_only_what_is_trained_is_queried() -> None:
    """Of an adapted GPT, both factors of every update, and both have a gradient."""
    found = problem("lora-gpt", batch=2)
    names = {name for name, p in found.model.named_parameters() if p.requires_grad}
    assert set(found.coordinates) == names
    assert {name.rsplit(".", 1)[1] for name in names} == {"down", "up"}
    F.cross_entropy(found.model(found.batch[0]), found.batch[1]).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in found.model.parameters() if p.requires_grad)


@pytest.mark.usefixtures("global_rng_untouched")
def test_a_case_is_made_of_its_seed_alone() -> None:
    for case in CASES.values():
        first, again, other = (list(case.build(seed).parameters()) for seed in (3, 3, 4))
        assert all(map(torch.equal, first, again))
        assert not all(map(torch.equal, first, other))


def test_a_problem_on_another_device_leaves_the_first_where_it_is() -> None:
    first = problem("digits", batch=4)
    moved = first.on("meta")
    assert {p.device.type for p in moved.model.parameters()} == {x.device.type for x in moved.batch} == {"meta"}
    assert {p.device.type for p in first.model.parameters()} == {x.device.type for x in first.batch} == {"cpu"}
    assert moved.coordinates is first.coordinates


@pytest.mark.parametrize(("data_name", "shape"), [("digits", (2, 1, 8, 8)), ("cifar10", (2, 3, 32, 32))])
def test_the_simple_cnn_fits_the_images(data_name: str, shape: tuple[int, int, int, int]) -> None:
    found = problem(cnn_case(2, data_name), batch=2)
    assert found.batch[0].shape == shape
    assert found.model(found.batch[0]).shape == (2, 10)
    assert found.sparsity == 0


def test_the_batches_of_a_case_follow_from_the_seed() -> None:
    for case in CASES.values():
        (x, y), (again, _), (other, _) = case.batch(3, 0), case.batch(3, 0), case.batch(3, 1)
        assert torch.equal(x, again)
        assert not torch.equal(x, other)
        assert len(x) == 3
        assert len(y) in (3, 3 * 32)
