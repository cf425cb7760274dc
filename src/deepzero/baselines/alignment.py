"""Input-weight alignment: errors go back through the network as it was at the start of training.

A. Boopathy, I. Fiete, "How to Train Your Wide Neural Network Without Backprop: An Input-Weight Alignment Perspective",
ICML 2022. There the names are Align-zero, Align-prop and Align-ada; all three are the gradient at initialisation and
tend to it for all of training as the network gets wider.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deepzero.baselines.layerwise import LayerwiseBaseline, connected, cut, forward
from deepzero.errors import CheckpointError
from deepzero.objective import Loss


class Alignment(LayerwiseBaseline):
    """A method that keeps the network at its initial weights beside the one in training.

    The weights at construction are taken for the initial ones: build the method before the first step and, to resume,
    on a model at its initial weights, before the checkpoint is restored into it. Of the initial weights a checkpoint
    holds a digest only, by which a method built at other weights is refused.

    Attributes:
        initial: the network at its initial weights.
    """

    def __init__(self, model: nn.Module, *, loss: Loss, seed: int = 0) -> None:
        super().__init__(model, loss=loss, seed=seed)
        self.initial = copy.deepcopy(self.model)
        self.memory = {"initial_weights": _digest(self.initial)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of a method with the same initial weights.

        Raises:
            CheckpointError: it is the state of another method, or the initial weights were others.
        """
        if state.get("source") == self.name and state["memory"] != self.memory:
            raise CheckpointError(
                f"{self.name} was built on a model at other weights than the initial ones of this checkpoint; build "
                f"the model from the same seed, then {self.name}, and only then restore the checkpoint into the model"
            )
        super().load_state_dict(state)


class AlignAda(Alignment):
    """The error goes back through the initial network; the layer that learns is the current one (Align-ada).

    With :math:`a_l = \\mathrm{relu}(y_l)` and :math:`y_l = \\mathrm{bn}(W_l a_{l-1} + b_l)`, values of the initial
    network on the same images marked by 0, and :math:`e` the gradient of the loss at the current logits,

    .. math:: \\delta_l = \\Bigl(\\frac{\\partial z^0}{\\partial y_l^0}\\Bigr)^{\\!\\top} e, \\qquad
       \\Delta W_l = \\Bigl(\\frac{\\partial y_l}{\\partial W_l}\\Bigr)^{\\!\\top} \\delta_l,

    where :math:`z^0` are the initial network's logits. The second factor is local: it holds the current inputs
    :math:`a_{l-1}` and the current batch norm of the layer, as in the authors' program. For the last layer
    :math:`\\Delta W` is its own gradient.

    Args:
        model: a :class:`~deepzero.models.WideCNN` at its initial weights, of which a copy is kept; to resume, build the
            method before the checkpoint is restored into the model.
        loss: ``loss(logits, labels)``.
        seed: nothing is drawn from it.

    Raises:
        InvalidInputError: the model is another one, or some of its parameters are frozen.

    Example:
        >>> import torch
        >>> from deepzero.losses import centered_squared_error
        >>> from deepzero.models import WideCNN
        >>> method = AlignAda(WideCNN(width=2, in_channels=1), loss=centered_squared_error)
        >>> _ = method.backward(torch.rand(4, 1, 8, 8), torch.arange(4))
        >>> method.queries
        2
    """

    name = "align-ada"

    def directions(
        self, x: Float[Tensor, "b c h w"], y: Tensor
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, " ..."]], int]:
        """A forward pass of either network, a backward pass of the initial one to its maps."""
        with torch.enable_grad():
            maps, initial = forward(self.model, x, cut), forward(self.initial, x, connected)
            loss, error = self.error(maps.logits, y)
            errors = torch.autograd.grad(initial.logits, initial.normalized, error)
            return loss, self.parameter_gradients([*maps.normalized, maps.logits], [*errors, error]), 2


class AlignZero(Alignment):
    """Everything is the initial network's, except for the error (Align-zero).

    .. math:: \\Delta W_l = \\Bigl(\\frac{\\partial z^0}{\\partial W_l^0}\\Bigr)^{\\!\\top} e

    with :math:`z^0` the logits of the initial network on the same images and :math:`e` the gradient of the loss at the
    current logits: training with the tangent kernel of the initial network.

    Args:
        model: a :class:`~deepzero.models.WideCNN` at its initial weights, of which a copy is kept; to resume, build the
            method before the checkpoint is restored into the model.
        loss: ``loss(logits, labels)``.
        seed: nothing is drawn from it.

    Raises:
        InvalidInputError: the model is another one, or some of its parameters are frozen.

    Example:
        >>> import torch
        >>> from deepzero.losses import centered_squared_error
        >>> from deepzero.models import WideCNN
        >>> method = AlignZero(WideCNN(width=2, in_channels=1), loss=centered_squared_error)
        >>> _ = method.backward(torch.rand(4, 1, 8, 8), torch.arange(4))
        >>> sorted(method.state_dict()["memory"])
        ['initial_weights']
    """

    name = "align-zero"

    def directions(
        self, x: Float[Tensor, "b c h w"], y: Tensor
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, " ..."]], int]:
        """A forward pass of either network, a backward pass of the initial one to its weights."""
        with torch.no_grad():
            logits = self.model(x)
        with torch.enable_grad():
            loss, error = self.error(logits, y)
            initial = forward(self.initial, x, connected).logits
            return loss, self.parameter_gradients([initial], [error], of=self.initial), 2


class AlignProp(Alignment):
    """Backpropagation with the initial weights on the way down, everything else being current (Align-prop).

    It is :class:`~deepzero.baselines.FeedbackAlignment` whose feedback weights are the initial forward weights.

    Args:
        model: a :class:`~deepzero.models.WideCNN` at its initial weights, of which a copy is kept; to resume, build the
            method before the checkpoint is restored into the model.
        loss: ``loss(logits, labels)``.
        seed: nothing is drawn from it.

    Raises:
        InvalidInputError: the model is another one, or some of its parameters are frozen.

    Example:
        >>> import torch
        >>> from deepzero.losses import centered_squared_error
        >>> from deepzero.models import WideCNN
        >>> method = AlignProp(WideCNN(width=2, in_channels=1), loss=centered_squared_error)
        >>> _ = method.backward(torch.rand(4, 1, 8, 8), torch.arange(4))
        >>> method.queries
        1
    """

    name = "align-prop"

    def directions(
        self, x: Float[Tensor, "b c h w"], y: Tensor
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, " ..."]], int]:
        """One forward pass, one backward through the initial weights."""
        return *self.gradients_carried_by(self.initial, x, y), 1


def _digest(network: nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for p in network.parameters():
        digest.update(p.detach().cpu().numpy().tobytes())
    return digest.hexdigest()
