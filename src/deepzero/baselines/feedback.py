"""Feedback alignment and direct feedback alignment: errors go back through fixed random weights."""

from __future__ import annotations

import copy
import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deepzero.baselines.layerwise import LayerwiseBaseline, cut, forward
from deepzero.objective import Loss
from deepzero.randomness import derive_seed


class FeedbackAlignment(LayerwiseBaseline):
    """Backpropagation with fixed random weights in place of the transposed ones (Lillicrap et al., 2014).

    With inputs :math:`a_{l-1}`, layers :math:`z_l = W_l a_{l-1} + b_l` and :math:`a_l = \\phi(z_l)` (batch norm and
    ReLU, which pass gradients as they are), layer :math:`l` learns from

    .. math:: \\delta_l = \\phi'(z_l)\\, B_{l+1}^\\top \\delta_{l+1}, \\qquad
       \\Delta W_l = \\delta_l\\, a_{l-1}^\\top,

    where :math:`B_l` has the shape, the scale and the initial distribution of :math:`W_l`, and :math:`\\delta` at the
    logits is the gradient of the loss. T. P. Lillicrap, D. Cownden, D. B. Tweed, C. J. Akerman, "Random feedback
    weights support learning in deep neural networks", arXiv:1411.0247, 2014.

    Args:
        model: a :class:`~deepzero.models.WideCNN`.
        loss: ``loss(logits, labels)``.
        seed: of the feedback weights.

    Raises:
        InvalidInputError: the model is another one, or some of its parameters are frozen.

    Attributes:
        feedback: a network whose weights are the :math:`B_l`, drawn from the seed alone and so never saved.

    Example:
        >>> import torch
        >>> from deepzero.losses import centered_squared_error
        >>> from deepzero.models import WideCNN
        >>> model = WideCNN(width=2, in_channels=1)
        >>> method = FeedbackAlignment(model, loss=centered_squared_error)
        >>> _ = method.backward(torch.rand(4, 1, 8, 8), torch.arange(4))
        >>> model.fc.weight.grad.shape, method.queries
        (torch.Size([10, 2]), 1)
    """

    name = "fa"

    def __init__(self, model: nn.Module, *, loss: Loss, seed: int = 0) -> None:
        super().__init__(model, loss=loss, seed=seed)
        self.feedback = copy.deepcopy(self.model).requires_grad_(False)
        for name, weight in self.feedback.named_parameters():
            if name.endswith("weight"):
                weight.copy_(_normal(weight.shape, derive_seed(seed, self.name, name)))

    def directions(
        self, x: Float[Tensor, "b c h w"], y: Tensor
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, " ..."]], int]:
        """One forward pass, one backward through the feedback weights."""
        return *self.gradients_carried_by(self.feedback, x, y), 1


class DirectFeedbackAlignment(LayerwiseBaseline):
    """Every hidden layer receives the error of the logits through a random matrix of its own (Nøkland, 2016).

    With the notation of :class:`FeedbackAlignment` and :math:`e` the gradient of the loss at the logits,

    .. math:: \\delta_l = \\phi'(z_l)\\, B_l^\\top e, \\qquad \\Delta W_l = \\delta_l\\, a_{l-1}^\\top.

    :math:`B_l` has an entry for every logit and every entry of the map :math:`a_l`, of :math:`n_l` entries, drawn from
    :math:`\\mathcal N(0, 1/n_l)`. The last layer has its own gradient. A. Nøkland, "Direct Feedback Alignment Provides
    Learning in Deep Neural Networks", NeurIPS 2016.

    Args:
        model: a :class:`~deepzero.models.WideCNN`.
        loss: ``loss(logits, labels)``.
        seed: of the feedback matrices.

    Raises:
        InvalidInputError: the model is another one, or some of its parameters are frozen.

    Example:
        >>> import torch
        >>> from deepzero.losses import centered_squared_error
        >>> from deepzero.models import WideCNN
        >>> method = DirectFeedbackAlignment(WideCNN(width=2, in_channels=1), loss=centered_squared_error)
        >>> _ = method.backward(torch.rand(4, 1, 8, 8), torch.arange(4))
        >>> method.matrix(6, torch.zeros(4, 10), torch.zeros(4, 2, 2, 2)).shape
        torch.Size([10, 8])
    """

    name = "dfa"

    def __init__(self, model: nn.Module, *, loss: Loss, seed: int = 0) -> None:
        super().__init__(model, loss=loss, seed=seed)
        self._matrices: dict[tuple[int, int, int], Tensor] = {}

    def directions(
        self, x: Float[Tensor, "b c h w"], y: Tensor
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, " ..."]], int]:
        """One forward pass; each layer's gradient stays in the layer."""
        with torch.enable_grad():
            maps = forward(self.model, x, cut)
            loss, error = self.error(maps.logits, y)
            sent = [(error @ self.matrix(number, error, a)).view(a.shape) for number, a in enumerate(maps.rectified)]
            return loss, self.parameter_gradients([*maps.rectified, maps.logits], [*sent, error]), 1

    def matrix(
        self, layer: int, error: Float[Tensor, "b k"], maps: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "k c*h*w"]:
        """The feedback matrix of a hidden layer (from 0): a function of the seed and these shapes, kept for reuse."""
        logits, entries = error.shape[1], maps[0].numel()
        key = (layer, logits, entries)
        if key not in self._matrices:
            drawn = _normal(torch.Size((logits, entries)), derive_seed(self.seed, self.name, layer))
            self._matrices[key] = drawn.to(error) / math.sqrt(entries)
        return self._matrices[key]


def _normal(shape: torch.Size, seed: int) -> Float[Tensor, "*shape"]:
    """Standard normal numbers, the same on every device and for every precision of the network."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
