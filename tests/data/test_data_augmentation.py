from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deepzero.data import Augmentation
from deepzero.errors import InvalidInputError


def views(image: Tensor, *, padding: int, flip: bool) -> list[Tensor]:
    """Every crop of the padded image, pixel by pixel; then, if asked for, every crop mirrored."""
    channels, height, width = image.shape
    padded = image.new_zeros(channels, height + 2 * padding, width + 2 * padding)
    padded[:, padding : padding + height, padding : padding + width] = image
    offsets = range(2 * padding + 1)
    crops = [padded[:, top : top + height, left : left + width] for top in offsets for left in offsets]
    mirrored = [torch.stack([crop[..., width - 1 - i] for i in range(width)], dim=-1) for crop in crops]
    return crops + mirrored if flip else crops


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("padding", "flip"), [(0, True), (1, False), (2, True)])
def test_every_image_is_one_of_its_views_and_every_view_occurs(padding: int, flip: bool, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    image = torch.randint(1, 255, (2, 4, 5), generator=draw).to(dtype)
    candidates = views(image, padding=padding, flip=flip)
    out = Augmentation(padding=padding, flip=flip)(image.expand(1000, 2, 4, 5), draw)
    counts = torch.stack([(out == candidate).flatten(1).all(1) for candidate in candidates]).sum(1)
    assert out.dtype == dtype
    assert int(counts.sum()) == 1000
    assert int(counts.min()) > 0


def test_equals_a_loop_over_images_with_the_same_draws() -> None:
    padding = 2
    images = torch.randint(0, 255, (16, 3, 6, 5), generator=torch.Generator().manual_seed(0))
    out = Augmentation(padding=padding)(images, torch.Generator().manual_seed(7))
    draw = torch.Generator().manual_seed(7)
    tops, lefts = torch.randint(2 * padding + 1, (2, 16), generator=draw)
    flips = torch.randint(2, (16,), generator=draw)
    for i, image in enumerate(images):
        index = int(tops[i]) * (2 * padding + 1) + int(lefts[i]) + int(flips[i]) * (2 * padding + 1) ** 2
        assert torch.equal(out[i], views(image, padding=padding, flip=True)[index])


def test_nothing_to_do_is_the_identity() -> None:
    images = torch.arange(24.0).reshape(2, 1, 3, 4)
    assert torch.equal(Augmentation(padding=0, flip=False)(images, torch.Generator()), images)


@pytest.mark.parametrize("padding", [-1, 1.5])
def test_bad_padding_is_refused(padding: int) -> None:
    with pytest.raises(InvalidInputError, match="padding"):
        Augmentation(padding=padding)
