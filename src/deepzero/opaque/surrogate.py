"""A differentiable guess of a black box, learned from its answers as they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepzero import validation
from deepzero.errors import InvalidInputError
from deepzero.randomness import derive_seed


class Learned:
    """A module that learns to imitate a black box from its answers.

    A product tells values :math:`f(z)`, and slopes :math:`J u` of the whole output along the directions that it asked
    along. Both go into a memory, and then a few steps of Adam minimize, on entries drawn from it,

    .. math:: \\frac{\\|s(z) - f(z)\\|^2}{\\|f(z)\\|^2} + \\frac{\\|J_s(z) u - J u\\|^2}{\\|J u\\|^2}.

    It is used as a control variate, so the estimate stays unbiased however badly it has learned.

    Args:
        module: inputs of the black box to its output, differentiable. Its weights are no parameters of the network that
            holds the black box.
        lr: of Adam.
        steps: of Adam after each product; more cost time, not queries.
        batch: entries of a step.
        capacity: of the memory; older entries are overwritten.
        seed: of the entries that are drawn.

    Example:
        >>> from torch import nn
        >>> guess = Learned(nn.Linear(3, 2), steps=100, lr=0.1)
        >>> rows, along = torch.randn(2, 64, 3, generator=torch.Generator().manual_seed(0))
        >>> first = guess.learn([rows], [along], rows[:, :2], along[:, :2])
        >>> guess.learn([rows], [along], rows[:, :2], along[:, :2]) < 0.01 * first
        True
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        lr: float = 1e-3,
        steps: int = 4,
        batch: int = 128,
        capacity: int = 8192,
        seed: int = 0,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise InvalidInputError(f"Learned takes an nn.Module to learn with, got {type(module).__name__}")
        if any(isinstance(one, nn.modules.batchnorm._BatchNorm) for one in module.modules()):
            raise InvalidInputError(
                "Learned takes a module that treats each row by itself; in place of batch norm use nn.GroupNorm or "
                "nn.LayerNorm"
            )
        self.module = module
        self.steps, self.batch = validation.count("steps", steps), validation.count("batch", batch)
        self.capacity, self.seed = validation.count("capacity", capacity), validation.integer("seed", seed)
        self.optimizer = torch.optim.Adam(module.parameters(), lr=validation.positive("lr", lr, hint="1e-3"))
        self._memory: list[Tensor] = []
        self._filled = self._next = self._learned = 0

    def learn(self, inputs: Sequence[Tensor], directions: Sequence[Tensor], values: Tensor, slopes: Tensor) -> float:
        """Remember values and slopes along directions, and learn; returns the first step's loss.

        Args:
            inputs: ``[n, ...]`` each.
            directions: of the same shapes.
            values: ``[n, *output]``.
            slopes: ``[n, *output]``; entries that are not finite (skipped rows) are left out.
        """
        self._remember([*inputs, *directions, values, slopes])
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "surrogate", self._learned))
        self._learned += 1
        losses = [self._step(generator) for _ in range(self.steps)]
        return losses[0]

    def _step(self, generator: torch.Generator) -> float:
        chosen = torch.randint(self._filled, (min(self.batch, self._filled),), generator=generator)
        *points, values, slopes = [value[chosen] for value in self._memory]
        cut = len(points) // 2
        moving = [k for k in range(cut) if points[k].is_floating_point()]
        weights = dict(self.module.named_parameters())
        buffers = {name: value.clone() for name, value in self.module.named_buffers()}

        def guessed(*floats: Tensor) -> Tensor:
            there = list(points[:cut])
            for k, value in zip(moving, floats, strict=True):
                there[k] = value
            found: Tensor = torch.func.functional_call(self.module, {**weights, **buffers}, tuple(there))
            return found

        with torch.enable_grad():
            at, along = tuple(points[k] for k in moving), tuple(points[cut + k] for k in moving)
            found, slope, *_ = torch.func.jvp(guessed, at, along)
            loss = _relative(found, values) + _relative(slope, slopes)
            torch.autograd.backward(loss, inputs=list(weights.values()))
            self.optimizer.step()
            self.optimizer.zero_grad()
        return float(loss.detach())

    def _remember(self, fresh: Sequence[Tensor]) -> None:
        finite = fresh[-1].reshape(len(fresh[-1]), -1).isfinite().all(1)
        like = next(self.module.parameters())
        kept = [value[finite].detach() for value in fresh]
        kept = [value.to(like) if value.is_floating_point() else value.to(like.device) for value in kept]
        if not self._memory:
            self._memory = [value.new_empty(self.capacity, *value.shape[1:]) for value in kept]
        count = min(len(kept[0]), self.capacity)
        places = (torch.arange(count) + self._next) % self.capacity
        for memory, value in zip(self._memory, kept, strict=True):
            memory[places] = value[len(value) - count :]
        self._next = (self._next + count) % self.capacity
        self._filled = min(self.capacity, self._filled + count)

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizer and what is filled of the memory."""
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "memory": [value[: self._filled] for value in self._memory],
            "places": [self._filled, self._next, self._learned],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._filled, self._next, self._learned = state["places"]
        self._memory = [value.new_empty(self.capacity, *value.shape[1:]) for value in state["memory"]]
        for memory, value in zip(self._memory, state["memory"], strict=True):
            memory[: self._filled] = value


def _relative(found: Tensor, expected: Tensor) -> Tensor:
    """Mean squared error in units of the mean square."""
    return F.mse_loss(found, expected) / expected.square().mean().clamp_min(1e-12)


def pulled_back(
    surrogate: nn.Module | Learned, inputs: Sequence[Tensor], cotangent: Tensor, needs: Sequence[bool]
) -> list[Tensor]:
    """The guess of the product: autograd through the surrogate, for the inputs that ``needs`` marks."""
    module = surrogate.module if isinstance(surrogate, Learned) else surrogate
    with torch.enable_grad():
        leaves = [v.detach().requires_grad_(needed) for v, needed in zip(inputs, needs, strict=True)]
        output = module(*leaves)
        if output.shape != cotangent.shape:
            raise InvalidInputError(
                f"surrogate=... returns {tuple(output.shape)}, where the black box returns {tuple(cotangent.shape)}"
            )
        moving = [v for v, needed in zip(leaves, needs, strict=True) if needed]
        found = torch.autograd.grad(output, moving, cotangent.to(output.dtype), allow_unused=True)
    return [torch.zeros_like(v) if g is None else g for v, g in zip(moving, found, strict=True)]
