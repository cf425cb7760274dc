"""Random gradient estimation as the step tends to 0, drawn from its law: what RGE does, at the price of autograd."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deepzero import validation
from deepzero.baselines.base import Baseline
from deepzero.objective import Loss


class RandomizedLimit(Baseline):
    """RGE with gaussian directions as :math:`\\mu \\to 0` (equation (1) left of Chen et al., 2024), without queries.

    .. math:: \\hat g = \\frac{1}{q} \\sum_{k=1}^q (u_k^T g) u_k, \\qquad u_k \\sim N(0, I_d)

    With :math:`e = g / |g|`, :math:`s \\sim \\chi^2_q` and :math:`n \\sim N(0, I_d)` this has the same law as

    .. math:: |g| \\Bigl( \\frac{s}{q} e + \\frac{\\sqrt s}{q} \\bigl(n - (e^T n) e\\bigr) \\Bigr),

    because :math:`u_k^T e` and the part of :math:`u_k` across :math:`e` are independent. Its mean is :math:`g` and
    :math:`E|\\hat g - g|^2 = |g|^2 (d + 1) / q`. So a training run by RGE can be foretold at the price of one by
    autograd, where its :math:`q` forwards a step cannot be afforded: **for comparison only**, since it needs the exact
    gradient.

    Args:
        model: any network, in its mode.
        loss: ``loss(output, target)``.
        queries: :math:`q`.
        seed: of the draws.
    """

    name = "rge-limit"

    def __init__(self, model: nn.Module, *, loss: Loss, seed: int = 0, queries: int = 192) -> None:
        super().__init__(model, loss=loss, seed=seed)
        self.count = validation.count("queries", queries)

    def directions(
        self, x: Float[Tensor, "b ..."], y: Tensor
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, " ..."]], int]:
        """The loss and a draw; it stands for ``1 + queries`` function values, which are counted."""
        parameters = {name: p for name, p in self.objective.model.named_parameters() if p.requires_grad}
        with torch.enable_grad():
            loss = self.objective.loss_value(self.objective.model(x), y)
            gradients = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
        drawn = self._draw(torch.cat([g.reshape(-1) for g in gradients]))
        parts = torch.split(drawn, [p.numel() for p in parameters.values()])
        shaped = {name: part.reshape(p.shape) for (name, p), part in zip(parameters.items(), parts, strict=True)}
        return loss.detach(), shaped, 1 + self.count

    def _draw(self, gradient: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        norm = torch.linalg.vector_norm(gradient)
        along = gradient / norm.clamp_min(torch.finfo(gradient.dtype).tiny)
        square = torch.randn(self.count, dtype=gradient.dtype, device=gradient.device).square().sum()
        noise = torch.randn_like(gradient)
        across = noise - (along @ noise) * along
        drawn: Tensor = norm * (square * along + square.sqrt() * across) / self.count
        return drawn
