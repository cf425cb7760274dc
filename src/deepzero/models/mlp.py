"""A multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from deepzero import validation
from deepzero.errors import InvalidInputError

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


class MLP(nn.Module):
    """Hidden layers of linear, optional layer norm and activation; then a linear layer. Inputs are flattened.

    Shapes: ``[N, ...] -> [N, num_classes]`` (logits), where the trailing dimensions hold ``in_features`` values.

    Args:
        in_features: values of one input.
        hidden: widths of the hidden layers; may be empty, which is multinomial logistic regression.
        num_classes: number of logits.
        layer_norm: normalize every hidden layer before its activation.
        activation: ``"relu"``, ``"gelu"``, ``"silu"`` or ``"tanh"``.

    Raises:
        InvalidInputError: a size is not a positive integer, or the activation is unknown.

    >>> mlp = MLP(64, hidden=(32, 32), layer_norm=True, activation="gelu")
    >>> sum(p.numel() for p in mlp.parameters())
    3594
    """

    def __init__(
        self,
        in_features: int,
        *,
        hidden: Sequence[int] = (64, 64),
        num_classes: int = 10,
        layer_norm: bool = False,
        activation: str = "relu",
    ) -> None:
        validation.counts(in_features=in_features, num_classes=num_classes)
        validation.counts(**{f"hidden[{i}]": width for i, width in enumerate(hidden)})
        if activation not in ACTIVATIONS:
            raise InvalidInputError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        super().__init__()
        layers: list[nn.Module] = []
        widths = [in_features, *hidden]
        for fan_in, fan_out in pairwise(widths):
            layers.append(nn.Linear(fan_in, fan_out))
            if layer_norm:
                layers.append(nn.LayerNorm(fan_out))
            layers.append(ACTIVATIONS[activation]())
        self.hidden = nn.Sequential(*layers)
        self.fc = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b classes"]:
        logits: Tensor = self.fc(self.hidden(x.flatten(1)))
        return logits
