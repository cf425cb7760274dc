from __future__ import annotations

from typing import Any

import pytest
import torch

from deepzero.data import Augmentation, BatchLoader, Dataset
from deepzero.errors import InvalidInputError

COUNT = 11
IMAGES = torch.randint(0, 256, (COUNT, 3, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
DATASET = Dataset(
    inputs=IMAGES,
    labels=torch.arange(COUNT),
    num_classes=COUNT,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2471, 0.2435, 0.2616),
    name="noise",
)
RANDOM: dict[str, Any] = {"batch_size": 4, "shuffle": True, "augmentation": Augmentation(padding=1), "seed": 3}


def same(first: Any, second: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_without_shuffling_the_images_come_normalized_and_in_order() -> None:
    batches = list(BatchLoader(DATASET, batch_size=4).iterate())
    x = torch.cat([x for x, _ in batches])
    mean, std = torch.tensor(DATASET.mean), torch.tensor(DATASET.std)
    expected = (IMAGES / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(x, expected)
    assert torch.cat([y for _, y in batches]).tolist() == list(range(COUNT))
    assert [len(y) for _, y in batches] == [4, 4, 3]


def test_scale_is_the_pixel_value_of_white() -> None:
    dataset = Dataset(
        inputs=torch.tensor([[[[16]]]], dtype=torch.uint8),
        labels=torch.tensor([0]),
        num_classes=1,
        mean=(0.25,),
        std=(0.5,),
        name="white",
        scale=16.0,
    )
    x, _ = BatchLoader(dataset, batch_size=1).batch(0, 0)
    assert x.item() == 1.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_is_that_of_the_result_only(dtype: torch.dtype) -> None:
    x, y = BatchLoader(DATASET, batch_size=COUNT, dtype=dtype).batch(0, 0)
    reference, _ = BatchLoader(DATASET, batch_size=COUNT).batch(0, 0)
    assert (x.dtype, y.dtype) == (dtype, torch.int64)
    torch.testing.assert_close(x, reference.to(dtype))


@pytest.mark.parametrize("drop_last", [False, True])
def test_an_epoch_is_a_permutation_and_differs_from_the_next(drop_last: bool) -> None:
    loader = BatchLoader(DATASET, batch_size=4, shuffle=True, drop_last=drop_last)
    epochs = [torch.cat([y for _, y in loader.iterate(epoch)]).tolist() for epoch in (0, 1)]
    assert len(loader) == (2 if drop_last else 3)
    for order in epochs:
        assert len(set(order)) == len(order) == (8 if drop_last else COUNT)
    assert epochs[0] != epochs[1]


def test_images_stay_with_their_labels() -> None:
    loader = BatchLoader(DATASET, batch_size=4, shuffle=True)
    plain, _ = BatchLoader(DATASET, batch_size=COUNT).batch(0, 0)
    assert all(torch.equal(x, plain[y]) for x, y in loader.iterate(5))


@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_resuming_within_an_epoch_is_bitwise_exact(start: int) -> None:
    whole = list(BatchLoader(DATASET, **RANDOM).iterate(2))
    resumed = list(BatchLoader(DATASET, **RANDOM).iterate(2, start=start))
    assert len(resumed) == 3 - start
    assert all(same(a, b) for a, b in zip(whole[start:], resumed, strict=True))


def test_a_batch_does_not_depend_on_what_was_asked_for_before() -> None:
    loader = BatchLoader(DATASET, **RANDOM)
    batches = list(loader.iterate(1))
    assert all(same(loader.batch(1, i), batches[i]) for i in (2, 0, 1))


def test_seed_epoch_and_position_each_change_the_augmentation() -> None:
    dataset = DATASET.subset(torch.zeros(COUNT, dtype=torch.int64))  # one image throughout: only augmentation differs
    loader = BatchLoader(dataset, **RANDOM)
    other = BatchLoader(dataset, **{**RANDOM, "seed": 4})
    batches = [loader.batch(0, 0), loader.batch(0, 1), loader.batch(1, 0), other.batch(0, 0)]
    assert not any(same(batches[i], batches[j]) for i in range(4) for j in range(i))


@pytest.mark.usefixtures("global_rng_untouched")
def test_the_global_generator_is_not_used() -> None:
    list(BatchLoader(DATASET, **RANDOM).iterate())


@pytest.mark.gpu
def test_gpu_gets_bitwise_the_same_batches() -> None:
    ours, theirs = BatchLoader(DATASET, **RANDOM), BatchLoader(DATASET, **RANDOM, device="cuda")
    for (x, y), (x_gpu, y_gpu) in zip(ours.iterate(), theirs.iterate(), strict=True):
        assert x_gpu.is_cuda
        assert same((x, y), (x_gpu.cpu(), y_gpu.cpu()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 2.0}, "batch_size"),
        ({"batch_size": 12, "drop_last": True}, "too few"),
        ({"batch_size": 2, "dtype": torch.int64}, "floating-point"),
        ({"batch_size": 2, "seed": -1}, "at least 0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        BatchLoader(DATASET, **options)


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="0 samples"):
        BatchLoader(DATASET.subset(torch.tensor([], dtype=torch.int64)), batch_size=2)


def test_positions_outside_the_epoch_are_refused() -> None:
    loader = BatchLoader(DATASET, batch_size=4)
    for call in (lambda: loader.batch(0, 3), lambda: loader.batch(0, -1), lambda: loader.iterate(0, start=4)):
        with pytest.raises(InvalidInputError, match="0 to"):
            call()
    with pytest.raises(InvalidInputError, match="at least 0"):
        loader.iterate(-1)
