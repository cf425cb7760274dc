"""A differentiable guess of a black box, learned from the answers that were paid for anyway."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from deepzero import validation
from deepzero.errors import InvalidInputError
from deepzero.randomness import derive_seed


class Learned:
    """A module that learns what a black box answers, while it is asked.

    Every product's rows and answers go into a memory; then a few steps of Adam minimize the mean squared error on rows
    drawn from it. What it is used for, a control variate, stays unbiased however badly it has learned.

    Args:
        module: inputs of the black box to its output, differentiable. Its weights are no parameters of the network that
            holds the black box.
        lr: of Adam.
        steps: of Adam after each product; more cost time, not queries.
        batch: rows of a step.
        capacity: rows of the memory; older ones are overwritten.
        seed: of the rows that are drawn.

    Example:
        >>> from torch import nn
        >>> guess = Learned(nn.Linear(3, 2), steps=100, lr=0.1)
        >>> rows = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
        >>> first = guess.learn([rows], rows[:, :2])
        >>> guess.learn([rows], rows[:, :2]) < 0.01 * first
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
        self.module = module
        self.steps, self.batch = validation.count("steps", steps), validation.count("batch", batch)
        self.capacity, self.seed = validation.count("capacity", capacity), validation.integer("seed", seed)
        self._optimizer = torch.optim.Adam(module.parameters(), lr=validation.positive("lr", lr, hint="1e-3"))
        self._inputs: list[Tensor] = []
        self._answers = torch.empty(0)
        self._filled = self._next = self._learned = 0

    def learn(self, inputs: Sequence[Float[Tensor, "n ..."]], answers: Float[Tensor, "n ..."]) -> float:
        """Remember rows with their answers, and learn; returns the last step's loss, before the step."""
        self._remember(inputs, answers)
        loss = float("nan")
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "surrogate", self._learned))
        self._learned += 1
        with torch.enable_grad():
            for _ in range(self.steps):
                chosen = torch.randint(self._filled, (min(self.batch, self._filled),), generator=generator)
                given = [value[chosen] for value in self._inputs]
                error = F.mse_loss(self.module(*given), self._answers[chosen])
                self._optimizer.zero_grad()
                error.backward()
                self._optimizer.step()
                loss = float(error)
        return loss

    def _remember(self, inputs: Sequence[Tensor], answers: Tensor) -> None:
        finite = answers.reshape(len(answers), -1).isfinite().all(1)
        inputs, answers = [value[finite].detach() for value in inputs], answers[finite].detach()
        if not self._inputs:
            self._inputs = [value.new_empty(self.capacity, *value.shape[1:]) for value in inputs]
            self._answers = answers.new_empty(self.capacity, *answers.shape[1:])
        fresh = min(len(answers), self.capacity)
        places = (torch.arange(fresh) + self._next) % self.capacity
        for memory, value in zip((*self._inputs, self._answers), (*inputs, answers), strict=True):
            memory[places] = value[len(value) - fresh :].to(memory)
        self._next = (self._next + fresh) % self.capacity
        self._filled = min(self.capacity, self._filled + fresh)

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizer and memory."""
        return {
            "module": self.module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "memory": [*self._inputs, self._answers],
            "places": [self._filled, self._next, self._learned],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.module.load_state_dict(state["module"])
        self._optimizer.load_state_dict(state["optimizer"])
        *self._inputs, self._answers = state["memory"]
        self._filled, self._next, self._learned = state["places"]


def pulled_back(
    surrogate: nn.Module | Learned, inputs: Sequence[Tensor], cotangent: Tensor, wanted: Sequence[bool]
) -> list[Tensor]:
    """The guess of the product: autograd through the surrogate, for the inputs that are wanted."""
    module = surrogate.module if isinstance(surrogate, Learned) else surrogate
    with torch.enable_grad():
        given = [v.detach().requires_grad_(asked) for v, asked in zip(inputs, wanted, strict=True)]
        output = module(*given)
        if output.shape != cotangent.shape:
            raise InvalidInputError(
                f"surrogate=... returns {tuple(output.shape)}, where the black box returns {tuple(cotangent.shape)}"
            )
        moving = [v for v, asked in zip(given, wanted, strict=True) if asked]
        found = torch.autograd.grad(output, moving, cotangent.to(output.dtype), allow_unused=True)
    return [torch.zeros_like(v) if g is None else g for v, g in zip(moving, found, strict=True)]
