"""The base of feedback and alignment: a forward pass that can be cut between layers, and the error at the logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deepzero.baselines.base import Baseline
from deepzero.errors import InvalidInputError
from deepzero.models.wide_cnn import WideCNN, normalized, pooled, rectified
from deepzero.objective import Loss

Link = Callable[[int, nn.Module, Tensor], Tensor]
"""Layer l (from 0), the layer itself and its input -> its output, connected for autograd as a method wants it."""


@dataclass(frozen=True)
class Maps:
    """The maps of a forward pass: outputs of batch norm (flat) and of ReLU of the hidden layers, and the logits."""

    normalized: list[Float[Tensor, "b n"]]
    rectified: list[Float[Tensor, "b c h w"]]
    logits: Float[Tensor, "b k"]


def connected(_: int, layer: nn.Module, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    """As backpropagation needs it."""
    z: Tensor = layer(x)
    return z


def cut(_: int, layer: nn.Module, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    """No gradient leaves the layer downwards."""
    z: Tensor = layer(x.detach())
    return z


def carried_by(network: WideCNN) -> Link:
    """The values are the layer's, but gradients go down through the weights of ``network``."""
    carriers = layers_of(network)

    def link(number: int, layer: nn.Module, x: Tensor) -> Tensor:
        z: Tensor = layer(x.detach())
        if not x.requires_grad:
            return z
        carrier: Tensor = carriers[number](x)
        return z + (carrier - carrier.detach())

    return link


def layers_of(network: WideCNN) -> list[nn.Module]:
    """Its convolutions and, last, its linear layer."""
    return [*network.convs, network.fc]


def forward(network: WideCNN, x: Float[Tensor, "b c h w"], link: Link) -> Maps:
    """A forward pass whose layers are joined by ``link``."""
    *convs, fc = layers_of(network)
    flat, maps = [], []
    for number, conv in enumerate(convs):
        z = link(number, conv, x)
        flat.append(normalized(z))
        x = rectified(flat[-1], z.shape)
        maps.append(x)
    return Maps(flat, maps, link(len(convs), fc, pooled(x)))


class LayerwiseBaseline(Baseline):
    """A baseline that gives each layer of a :class:`~deepzero.models.WideCNN` an error to learn from.

    Raises:
        InvalidInputError: the model is another one, or some of its parameters are frozen.
    """

    def __init__(self, model: nn.Module, *, loss: Loss, seed: int = 0) -> None:
        if not isinstance(model, WideCNN):
            raise InvalidInputError(
                f"{self.name} has to know the layers of the network and takes a WideCNN, got {type(model).__name__}; "
                'build it by deepzero.models.build("wide_cnn", width=32), in a configuration by the model wide_cnn'
            )
        if frozen := [name for name, p in model.named_parameters() if not p.requires_grad]:
            raise InvalidInputError(f"{self.name} trains all layers, but {frozen[0]} is frozen; set requires_grad=True")
        super().__init__(model, loss=loss, seed=seed)
        self.model = model

    def error(self, logits: Float[Tensor, "b k"], y: Tensor) -> tuple[Float[Tensor, ""], Float[Tensor, "b k"]]:
        """The loss, and its gradient at the logits."""
        leaf = logits.detach().requires_grad_()
        loss = self.objective.loss_value(leaf, y)
        (error,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), error

    def parameter_gradients(
        self, outputs: Sequence[Tensor], errors: Sequence[Tensor], of: nn.Module | None = None
    ) -> dict[str, Float[Tensor, " ..."]]:
        """Gradients of the parameters (those of ``of`` in place of the model's) when ``outputs`` receive ``errors``."""
        parameters = dict((of or self.model).named_parameters())
        found = torch.autograd.grad(outputs, list(parameters.values()), errors)
        return dict(zip(parameters, found, strict=True))

    def gradients_carried_by(
        self, network: WideCNN, x: Float[Tensor, "b c h w"], y: Tensor
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, " ..."]]]:
        """The loss, and what backpropagation gives with the weights of ``network`` on the way down."""
        with torch.enable_grad():
            logits = forward(self.model, x, carried_by(network)).logits
            loss, error = self.error(logits, y)
            return loss, self.parameter_gradients([logits], [error])
