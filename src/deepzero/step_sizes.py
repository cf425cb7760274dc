"""Step sizes: a number, numbers by name, a share of the parameters' size, or from rounding and noise."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepzero import validation
from deepzero.errors import InvalidInputError

StepSizeLike = float | Mapping[str, float] | str | None
FORMS = (
    'a number such as 5e-3, a mapping from parameter names to numbers, {"relative": 1e-3}, "auto", or None (fits the '
    "dtype)"
)
NOISE_POINTS = 7


class StepSize(ABC):
    """A rule that gives every parameter its step size."""

    @abstractmethod
    def of(self, parameters: Mapping[str, Tensor]) -> dict[str, float]:
        """Step size by name, at the parameters' present values."""

    @abstractmethod
    def describe(self) -> Any:
        """The rule as a JSON-able value, for checkpoints and messages."""


@dataclass(frozen=True)
class Absolute(StepSize):
    """The same number for all."""

    value: float

    def of(self, parameters: Mapping[str, Tensor]) -> dict[str, float]:
        """The number."""
        return dict.fromkeys(parameters, self.value)

    def describe(self) -> float:
        """The number."""
        return self.value


@dataclass(frozen=True)
class ByName(StepSize):
    """A number of its own for every parameter."""

    values: Mapping[str, float]

    def of(self, parameters: Mapping[str, Tensor]) -> dict[str, float]:
        """The numbers, all of them there."""
        missing = sorted(set(parameters) - set(self.values))
        if missing:
            raise InvalidInputError(
                f"step_size names no step for {', '.join(missing[:5])}; give one for every trainable parameter"
            )
        validation.known_names("step_size", self.values, parameters)
        return {name: self.values[name] for name in parameters}

    def describe(self) -> dict[str, float]:
        """The numbers."""
        return dict(self.values)


@dataclass(frozen=True)
class Relative(StepSize):
    """A share of the root mean square of each parameter; of 1 where it is zero."""

    share: float
    floor: float = 0.0

    def of(self, parameters: Mapping[str, Tensor]) -> dict[str, float]:
        """``share * max(floor, rms)``."""
        return {name: self.share * (max(self.floor, size_of(p)) or 1.0) for name, p in parameters.items()}

    def describe(self) -> dict[str, float]:
        """The share."""
        return {"relative": self.share}


@dataclass(frozen=True)
class FromDtype(StepSize):
    """The default: the cube root of the dtype's rounding unit, 4.9e-3 for float32 and 6.1e-6 for float64.

    Half types count as float32, in which their differences are held. A parameter whose root mean square is above 1 gets
    a step as much larger.
    """

    def of(self, parameters: Mapping[str, Tensor]) -> dict[str, float]:
        """``eps^(1/3) * max(1, rms)``."""
        return {n: rounding_unit(p) ** (1 / 3) * max(1.0, size_of(p)) for n, p in parameters.items()}

    def describe(self) -> None:
        """Nothing was asked for."""


@dataclass
class FromNoise(StepSize):
    """``"auto"``: a root of the loss's relative noise, of the stencil's order plus one, in units of the parameter.

    Attributes:
        order: the stencil's.
        noise: relative noise of a loss difference; measured before the first step, and part of a checkpoint.
    """

    order: int
    noise: float | None = None

    def of(self, parameters: Mapping[str, Tensor]) -> dict[str, float]:
        """``max(noise, eps)^(1/(order+1)) * rms``."""
        sizes = {}
        for name, p in parameters.items():
            noise = max(self.noise or 0.0, rounding_unit(p))
            sizes[name] = min(noise, 0.1) ** (1 / (self.order + 1)) * (size_of(p) or 1.0)
        return sizes

    def describe(self) -> str:
        """``"auto"``."""
        return "auto"


def as_step_size(step_size: StepSizeLike, *, order: int) -> StepSize:
    """A rule from whatever a user may pass as ``step_size``."""
    if step_size is None:
        return FromDtype()
    if isinstance(step_size, str):
        if step_size != "auto":
            raise InvalidInputError(f"step_size must be {FORMS}; got {step_size!r}")
        return FromNoise(order)
    if isinstance(step_size, Mapping):
        if set(step_size) == {"relative"}:
            return Relative(validation.positive('step_size["relative"]', step_size["relative"], hint="1e-3"))
        return ByName(
            {name: validation.positive(f"step_size of {name}", v, hint="5e-3") for name, v in step_size.items()}
        )
    return Absolute(validation.positive("step_size", step_size, hint="5e-3"))


def require_representable(sizes: Mapping[str, float], parameters: Mapping[str, Tensor]) -> None:
    """Raise unless differences of these sizes, and their products, are ordinary numbers in the parameters' dtypes.

    Differences of half types are held in float32.
    """
    for name, size in sizes.items():
        info = torch.finfo(torch.float64 if parameters[name].dtype == torch.float64 else torch.float32)
        low, high = math.sqrt(info.tiny), math.sqrt(info.max)
        if not low <= size <= high:
            raise InvalidInputError(
                f"step_size={size:g} for {name} ({parameters[name].dtype}) is out of what {info.dtype} differences can "
                f"hold, {low:.1g} to {high:.1g}; try step_size={rounding_unit(parameters[name]) ** (1 / 3):.1g}"
            )


def rounding_unit(parameter: Tensor) -> float:
    """``eps`` of the dtype that differences are held in."""
    return float(torch.finfo(torch.float64 if parameter.dtype == torch.float64 else torch.float32).eps)


def size_of(parameter: Tensor) -> float:
    """Root mean square of the entries, of complex ones of their real and imaginary parts; 0 of none."""
    if not parameter.numel():
        return 0.0
    real = torch.view_as_real(parameter.detach()) if parameter.is_complex() else parameter.detach()
    size = float(real.double().square().mean().sqrt())
    if math.isfinite(size):
        return size
    largest = real.double().abs().max()  # squares overflow; or entries are no numbers, as the base query will say
    return float(largest * (real.double() / largest).square().mean().sqrt()) if largest.isfinite() else 1.0


def relative_noise(loss: Callable[[dict[str, Tensor]], float], parameters: Mapping[str, Tensor], seed: int) -> float:
    """Noise of a function, relative to its value, from a table of differences along a random line.

    After Moré & Wild, Estimating computational noise, SIAM J. Sci. Comput. 33, 2011.

    A smooth function's k-th differences at close points shrink; those of noise of standard deviation s grow to
    :math:`s \\sqrt{(2k)!}/k!`. So the level at which the scaled differences agree is the noise. It takes 7 queries.
    """
    generator = torch.Generator().manual_seed(seed)
    line = {
        n: (torch.randint(0, 2, p.shape, generator=generator) * 2 - 1).to(p.device, torch.float64) * (size_of(p) or 1.0)
        for n, p in parameters.items()
    }
    spacing = 4 * max(rounding_unit(p) for p in parameters.values())
    losses = [
        loss({n: (p.double() + i * spacing * line[n]).to(p.dtype) for n, p in parameters.items()})
        for i in range(NOISE_POINTS)
    ]
    scale = max(abs(value) for value in losses)
    if scale == 0 or not all(math.isfinite(value) for value in losses):
        return 0.0
    table = torch.tensor(losses, dtype=torch.float64)
    levels = []
    for k in range(1, NOISE_POINTS - 1):
        table = table.diff()
        gamma = math.factorial(k) ** 2 / math.factorial(2 * k)
        levels.append(math.sqrt(gamma * float(table.square().mean())))
    return min(levels[1:]) / scale
