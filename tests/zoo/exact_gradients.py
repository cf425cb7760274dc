"""The gradient by autograd, with the numbers that an estimate draws, and how far an estimate is from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from draws import draws_of_step
from members import Member, cast
from torch import Tensor, nn

from deepzero.coordinates import Coordinates


@dataclass(frozen=True)
class Accuracy:
    """How an estimate is made, and how close it then has to be.

    Attributes:
        step: the step size.
        relative: largest error of a parameter's slopes, relative to the largest of them.
        floor: what is allowed to rounding beside it, relative to the largest slope of all parameters: of some
            parameters every slope is 0 by a symmetry.
    """

    step: float
    relative: float
    floor: float


DENSE = 400
"""Networks with no more parameters are estimated whole."""


def trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def drawn_value(member: Member, model: nn.Module, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """The objective of a model in float64 with the random numbers of an estimator's first step in ``dtype``."""
    with draws_of_step(0, dtype, seed=seed):
        return member.value(model, member.arguments(dtype).cast(torch.float64))


def gradient(member: Member, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    """By autograd in float64, at weights of ``dtype`` and with the random numbers of an estimator's first step."""
    model = cast(member.model(dtype), torch.float64)
    parameters, value = trained(model), drawn_value(member, model, dtype, seed)
    parts = torch.autograd.grad(value, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(parameters, parts, strict=True))


def sampled(exact: dict[str, Tensor], most: int = 3) -> Coordinates | None:
    """In every parameter its coordinate of largest slope and a few others; None, for all, in a small network."""
    if sum(g.numel() for g in exact.values()) <= DENSE:
        return None
    generator = torch.Generator().manual_seed(6)
    chosen = {}
    for name, part in exact.items():
        others = torch.randperm(part.numel(), generator=generator)[: most - 1]
        chosen[name] = torch.cat([part.abs().reshape(-1).argmax().reshape(1), others])
    return Coordinates(chosen)


def chosen_only(gradients: dict[str, Tensor], coordinates: Coordinates | None) -> dict[str, Tensor]:
    """The entries that were estimated, by parameter."""
    if coordinates is None:
        return {name: g.reshape(-1) for name, g in gradients.items()}
    return {name: g.reshape(-1)[coordinates[name]] for name, g in gradients.items()}


def assert_gradient(
    found: dict[str, Tensor],
    exact: dict[str, Tensor],
    coordinates: Coordinates | None,
    accepted: Accuracy,
) -> None:
    """Each parameter is right relative to its own largest slope."""
    assert found.keys() == exact.keys()
    largest = max(float(g.abs().max()) for g in exact.values())
    assert largest > 1e-3, "the case tests nothing"
    left, right = chosen_only(found, coordinates), chosen_only(exact, coordinates)
    errors = {name: float((left[name].to(right[name].dtype) - right[name]).abs().max()) for name in exact}
    allowed = {name: accepted.relative * float(right[name].abs().max()) + accepted.floor * largest for name in exact}
    wrong = [f"{n}: off by {e:.2e}, allowed {allowed[n]:.2e}" for n, e in errors.items() if not e <= allowed[n]]
    assert not wrong, "\n".join(wrong)


def assert_one_direction(found: dict[str, Tensor], exact: dict[str, Tensor], relative: float) -> None:
    """An estimate ``s u`` from one direction with entries 1 and -1 has ``s = <g, u>``: then ``<g, s u> = |s u|^2 / d``.

    The padding rows of embeddings have no gradient, and do not count.
    """
    estimate, slopes = flat(found), flat(exact)
    moved = estimate[estimate != 0].abs()
    product, square = float(slopes @ estimate), float(estimate @ estimate) / len(moved)
    assert square > 1e-8, "the slope along this direction tests nothing"
    assert len(moved) > 0.9 * len(estimate)
    assert float(moved.std()) <= 1e-6 * float(moved.mean())
    assert abs(product - square) <= relative * square, f"<g, s u> = {product}, s^2 = {square}"


def flat(parts: dict[str, Tensor]) -> Tensor:
    """All entries in float64; a complex one counts as its real and its imaginary part."""
    real = [torch.view_as_real(p) if p.is_complex() else p for p in parts.values()]
    return torch.cat([p.detach().double().reshape(-1) for p in real])
