"""What the tests of the core share: the sequential oracle beside the fast path, and models without chance."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import deepzero as dz
from deepzero.coordinates import Coordinates
from deepzero.graph import library
from deepzero.graph.capture import Graph

STEP = 1e-2
TOLERANCE = 1e-9


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def initialize(model: nn.Module, seed: int = 1, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Every floating-point parameter and buffer drawn anew, so that no test depends on the global generator."""
    model.to(dtype)
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = max(1, parameter[0].numel() if parameter.dim() > 1 else 1)
            draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(draw / math.sqrt(fan_in) if parameter.dim() > 1 else 0.6 + 0.3 * draw)
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point() and name.endswith(("running_mean", "running_var")):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator, dtype=torch.float64))
    return model


def ramp_loss(output: Tensor, target: Any) -> Tensor:
    """A linear functional with a different weight on every entry: a misplaced entry shows."""
    weights = torch.cos(1.7 * torch.arange(output.numel(), dtype=torch.float64, device=output.device) + 0.3)
    return (output.to(torch.float64).reshape(-1) * weights).sum()


def some_coordinates(model: nn.Module, most: int = 40, seed: int = 5) -> Coordinates:
    """At most ``most`` coordinates of each trainable parameter."""
    generator = seeded(seed)
    return Coordinates(
        {
            name: torch.randperm(p.numel(), generator=generator)[:most]
            for name, p in model.named_parameters()
            if p.requires_grad
        }
    )


def estimate(
    model: nn.Module,
    loss: Callable[..., Tensor],
    x: Any,
    y: Any,
    evaluator: Any,
    *,
    step_size: float = STEP,
    **options: Any,
) -> dz.Estimate:
    return dz.CGE(model, loss=loss, step_size=step_size, evaluator=evaluator, **options).estimate(x, y)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = TOLERANCE) -> None:
    """Gradients agree to ``tolerance`` times the largest entry of all."""
    assert found.keys() == expected.keys()
    largest = max((float(g.abs().max()) for g in expected.values() if g.numel()), default=0.0)
    for name, value in expected.items():
        error = float((found[name] - value).abs().max())
        assert error <= tolerance * max(largest, 1e-3), f"{name}: off by {error:.3e}, largest entry {largest:.3e}"


def assert_agrees(
    model: nn.Module,
    loss: Callable[..., Tensor],
    x: Any,
    y: Any = None,
    *,
    tolerance: float = TOLERANCE,
    nonzero: bool = True,
    **options: Any,
) -> dz.Estimate:
    """Difference propagation gives what one full forward a query gives; returns the propagated estimate."""
    expected = estimate(model, loss, x, y, dz.SequentialEvaluator(), **options)
    found = estimate(model, loss, x, y, dz.PropagationEvaluator(verify=False), **options)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=1e-12)
    assert_close(found.gradients, expected.gradients, tolerance)
    assert found.queries == expected.queries
    if nonzero:
        assert any(bool(g.abs().max() > 1e-6) for g in expected.gradients.values()), "the case tests nothing"
    return found


@contextmanager
def exported_once(graphs: list[Graph] | None = None) -> Iterator[None]:
    """A block in which one program, which stays as it is, is run by several evaluators: exporting is what takes the time.

    Blocks that are given the same list have its graph in common.
    """
    known = [] if graphs is None else graphs
    export = library.capture

    def capture(*args: Any) -> Graph:
        known[:] = known or [export(*args)]
        return known[0]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(library, "capture", capture)
        yield


def before_and_after(
    change: Callable[[], None], model: nn.Module, loss: Callable[..., Tensor], x: Any, y: Any, **options: Any
) -> list[dz.Estimate]:
    """Two estimates by propagation, with one graph and one chunk plan, between which something else was changed."""
    evaluators = [dz.PropagationEvaluator(verify=False) for _ in range(2)]
    first, second = [dz.CGE(model, loss=loss, evaluator=evaluator, **options) for evaluator in evaluators]
    with exported_once():
        before = first.estimate(x, y)
        change()
        evaluators[1].load_state_dict(evaluators[0].state_dict())
        return [before, second.estimate(x, y)]


@contextmanager
def nothing_changes(*models: nn.Module) -> Iterator[None]:
    """Fail unless parameters, buffers, gradients, modes and the global generators are bitwise as before."""
    before = [_state(model) for model in models]
    draws = _generators()
    yield
    assert [_state(model) for model in models] == before, "a model was changed"
    assert _generators() == draws, "a global generator was moved"


def _state(model: nn.Module) -> list[object]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return [
        [(name, type(t), t.requires_grad, t.dtype, t.stride(), t.data_ptr(), _bytes(t)) for name, t in tensors.items()],
        [(name, p.grad is None or _bytes(p.grad)) for name, p in model.named_parameters()],
        [(name, type(module), module.training) for name, module in model.named_modules()],
    ]


def _bytes(tensor: Tensor) -> bytes:
    return (
        tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        if tensor.dim()
        else repr(tensor.item()).encode()
    )


def _generators() -> tuple[object, ...]:
    torch_states = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else ())]
    others = random.getstate(), np.random.get_state()[1].tobytes()  # noqa: NPY002
    return (*(state.numpy().tobytes() for state in torch_states), *others)
