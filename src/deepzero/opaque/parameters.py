"""Gradients of the parameters of a black box that is a part of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from deepzero.estimator import CGE, Estimator
from deepzero.objective import Evaluation, Objective, Parameters
from deepzero.opaque.locality import PerChannel
from deepzero.opaque.products import usual_step
from deepzero.stencils import Stencil

Call = Callable[[Sequence[Tensor]], Tensor]
"""Parameters to the output for the inputs at hand."""


class Contracted:
    """:math:`\\theta \\mapsto \\langle v, f(z, \\theta) - f(z, \\theta_0) \\rangle`, as an objective.

    Args:
        call: the function at the inputs at hand.
        parameters: by name.
        output: the function at these.
        cotangent: v.
    """

    def __init__(self, call: Call, parameters: Mapping[str, Tensor], output: Tensor, cotangent: Tensor) -> None:
        self._call, self._cotangent = call, cotangent.double()
        self._output, self._parameters = output.double(), {name: p.detach() for name, p in parameters.items()}

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """The black box's parameters; no ``.grad`` of these is filled: the estimate goes on through autograd."""
        yield from self._parameters.items()

    def evaluate(self, parameters: Parameters, batch: tuple[Any, ...], *, seed: int) -> Evaluation:
        """One call; the base query is answered already."""
        if all(parameters[name] is p for name, p in self._parameters.items()):
            return Evaluation(torch.zeros((), dtype=torch.float64))
        change = self._call(list(parameters.values())).double() - self._output
        return Evaluation((change * self._cotangent).sum())

    def commit(self, buffers: Mapping[str, Tensor]) -> None:
        """It keeps no buffers."""


def by_estimator(make: Callable[[Objective], Estimator], objective: Contracted, step: int) -> dict[str, Tensor]:
    """The product with respect to the parameters, by an estimator of one's choice."""
    estimator = make(objective)
    estimator.step = step  # directions of its own for every product
    return dict(estimator.estimate().gradients)


@dataclass(frozen=True)
class EveryCoordinate:
    """Makes the estimator that is used where none is given."""

    stencil: Stencil
    step_size: float | None

    def __call__(self, objective: Objective) -> Estimator:
        """Of every coordinate."""
        return CGE(objective, stencil=self.stencil, step_size=self.step_size, evaluator="sequential")


def by_channel(
    call: Call,
    values: Sequence[Tensor],
    index: int,
    locality: PerChannel,
    output: Float[Tensor, "b ..."],
    cotangent: Float[Tensor, "b ..."],
    stencil: Stencil,
    step_size: float | None,
) -> Tensor:
    """The product with respect to one parameter, all channels at once: what all coordinates give."""
    parameter = values[index].detach()
    entries, channel = locality.colours(parameter.shape, output.shape[1:])
    entries, channel = entries.to(parameter.device), channel.to(parameter.device)
    step = float(usual_step(parameter.reshape(1, -1), stencil)) if step_size is None else step_size
    flat = parameter.reshape(-1)
    change = torch.zeros(flat.numel(), dtype=torch.float64, device=flat.device)
    length = torch.zeros_like(change)
    wide, base = cotangent.double().flatten(1), output.double().flatten(1)
    for together in entries:
        for node, weight in zip(stencil.nodes, stencil.weights, strict=True):
            moved = flat.clone()
            moved[together] += node * step
            there = [moved.reshape(parameter.shape) if k == index else value for k, value in enumerate(values)]
            contracted = ((call(there).double().flatten(1) - base) * wide).sum(0)  # of each output entry
            change[together] += weight * contracted.new_zeros(len(together)).index_add_(0, channel, contracted)
            length[together] += weight * (moved[together].double() - flat[together].double())
    return (change / length).reshape(parameter.shape).to(parameter.dtype)
