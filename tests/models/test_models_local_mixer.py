from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepzero.errors import InvalidInputError
from deepzero.models import LocalMixer, build

MNIST = {"blocks": 1, "patches": 1, "in_channels": 1, "image_size": 28}
TINY = {"patches": 2, "channels": 6, "groups": 3, "in_channels": 1, "num_classes": 5, "image_size": 8}


def tiny(seed: int = 0, **options: int) -> LocalMixer:
    """A small mixer in float64 with every parameter away from 0."""
    model = LocalMixer(**{**TINY, **options}).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def images(number: int = 3, channels: int = 1, seed: int = 7) -> Tensor:
    return torch.randn(number, channels, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({**MNIST, "channels": 256, "groups": 1}, 271_892),
        ({**MNIST, "channels": 512, "groups": 16}, 429_076),
        ({}, 918_770),
        ({"channels": 2048, "groups": 64}, 13_074_674),
    ],
    ids=["S/1/1", "M/1/16", "M/8/16", "L/8/64"],
)
def test_parameter_counts_are_the_papers(options: dict[str, int], parameters: int) -> None:
    with torch.device("meta"):
        model = LocalMixer(**options)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("patches", [1, 2, 4, 8])
def test_small_images_give_logits(patches: int) -> None:
    model = build("local_mixer", image_size=8, in_channels=1, num_classes=7, patches=patches, channels=8, groups=4)
    assert model(torch.ones(3, 1, 8, 8)).shape == (3, 7)
    assert [logits.shape for logits in model.local_logits(torch.ones(3, 1, 8, 8))] == [(3, 7)] * 5


def test_the_first_logits_are_zero_and_the_weights_are_drawn_as_documented() -> None:
    model = build("local_mixer")
    assert not model(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))).any()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or name == "head.weight":
            assert not parameter.any()
        else:
            grouped = parameter.dim() == 3
            scale = min(2 / parameter.shape[1] ** 0.5, 0.1)
            assert grouped or parameter.shape[1] in (48, 64, 512)
            assert parameter.std().item() == pytest.approx(scale, rel=0.05)


def normalize(row: Tensor) -> Tensor:
    return (row - row.mean()) / (row.var(unbiased=False) + 1e-5).sqrt()


def by_definition(model: LocalMixer, image: Tensor) -> Tensor:
    """The logits of one image, token by token and group by group, from the class's description."""
    size = model.patch_size
    corners = [(i, j) for i in range(0, image.shape[1], size) for j in range(0, image.shape[2], size)]
    tokens = [image[:, i : i + size, j : j + size].reshape(-1) for i, j in corners]
    for number, block in enumerate(model.blocks):
        *token_mixing, channel_mixing, group_mixing = block.layers
        hidden = tokens
        if token_mixing:
            weight, bias = token_mixing[0].fc.weight, token_mixing[0].fc.bias
            mixed = [
                sum(w * t for w, t in zip(row, tokens, strict=True)) + b for row, b in zip(weight, bias, strict=True)
            ]
            hidden = [normalize(t).relu() for t in mixed]
        hidden = [normalize(channel_mixing.fc.weight @ t + channel_mixing.fc.bias).relu() for t in hidden]
        pieces = [zip(t.chunk(model.groups), group_mixing.weight, group_mixing.bias, strict=True) for t in hidden]
        output = [torch.cat([normalize(part @ w + b) for part, w, b in piece]) for piece in pieces]
        tokens = [(o + t if number else o).relu() for o, t in zip(output, tokens, strict=True)]
    return model.head.weight @ (sum(tokens) / len(tokens)) + model.head.bias


@pytest.mark.parametrize("options", [{}, {"blocks": 3, "in_channels": 2}, {"blocks": 2, "patches": 1, "groups": 1}])
def test_it_computes_what_its_description_says(options: dict[str, int]) -> None:
    model, x = tiny(**options), images(channels=options.get("in_channels", 1))
    expected = torch.stack([by_definition(model, image) for image in x])
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


def test_the_last_local_logits_are_those_of_forward_and_the_others_those_of_the_blocks() -> None:
    model, x = tiny(blocks=3), images()
    *local, final = model.local_logits(x)
    assert torch.equal(final, model(x))
    tokens = model.patchify(x)
    for block, head, logits in zip(model.blocks, model.heads, local, strict=True):
        tokens = block(tokens)
        assert torch.equal(logits, head(tokens.mean(1)))


def reached(model: nn.Module, output: Tensor) -> set[str]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(F.cross_entropy(output, torch.tensor([0, 1, 2])), parameters, allow_unused=True)
    return {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None}


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_local_loss_reaches_its_own_block_and_head_only(index: int) -> None:
    model = tiny(blocks=3)
    found = reached(model, model.local_logits(images())[index])
    assert found == {n for n, _ in model.named_parameters() if n.startswith((f"blocks.{index}.", f"heads.{index}."))}


def test_the_final_local_loss_reaches_the_final_head_only_and_forward_reaches_all_blocks() -> None:
    model = tiny(blocks=3)
    assert reached(model, model.local_logits(images())[-1]) == {"head.weight", "head.bias"}
    assert reached(model, model(images())) == {n for n, _ in model.named_parameters() if not n.startswith("heads.")}


def test_noise_is_added_before_the_relu_of_its_layer() -> None:
    block, tokens = tiny(blocks=2).blocks[1], torch.ones(2, 4, 6, dtype=torch.float64)
    plain = block.states(tokens)
    shapes = [state.shape for state in plain[1:]]
    silent = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
    assert all(torch.equal(a, b) for a, b in zip(plain, block.states(tokens, silent), strict=True))
    noise = [*silent[:-1], torch.full(shapes[-1], 100.0, dtype=torch.float64)]
    *same, last = block.states(tokens, noise)
    assert all(torch.equal(a, b) for a, b in zip(plain, same, strict=False))
    before_relu = block.layers[2](plain[2]) + tokens
    torch.testing.assert_close(last, before_relu + 100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": 0}, "blocks"),
        ({"patches": True}, "patches"),
        ({"num_classes": -1}, "num_classes"),
        ({"patches": 3}, "patches=3"),
        ({"groups": 4}, "groups=4"),
        ({"groups": 6}, "at least 2 channels"),
    ],
)
def test_bad_sizes_are_refused_by_name(options: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        LocalMixer(**{**TINY, **options})
