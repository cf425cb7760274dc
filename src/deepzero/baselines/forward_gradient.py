"""Forward gradients: the derivative along a random direction, times that direction; and the law of many of them.

A. Baydin, B. Pearlmutter, D. Syme, F. Wood, P. Torr, "Gradients without Backpropagation", 2022 (weights); M. Ren,
S. Kornblith, R. Liao, G. Hinton, "Scaling Forward Gradient with Local Losses", ICLR 2023 (activities, local losses).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad

from deepzero import validation
from deepzero.baselines.base import Baseline
from deepzero.errors import InvalidInputError
from deepzero.models.local_mixer import LocalMixer, MixerBlock, TokenMixing
from deepzero.objective import Loss, parameters_of
from deepzero.training.gradient_sources import exact_gradients

Directions = dict[str, Tensor]


class _ForwardGradient(Baseline):
    """The mean of ``passes`` estimates, each along noise of its own by one pass of forward-mode differentiation."""

    def __init__(self, model: nn.Module, *, loss: Loss, seed: int = 0, passes: int = 1) -> None:
        super().__init__(model, loss=loss, seed=seed)
        self.passes = validation.count("passes", passes)

    @abstractmethod
    def draw(self, x: Float[Tensor, "b ..."]) -> Any:
        """Standard normal noise for :meth:`along`."""

    @abstractmethod
    def along(self, x: Float[Tensor, "b ..."], y: Tensor, noise: Any) -> tuple[Float[Tensor, ""], Directions]:
        """The loss, and the estimate that the noise gives."""

    def directions(self, x: Float[Tensor, "b ..."], y: Tensor) -> tuple[Float[Tensor, ""], Directions, int]:
        """The mean loss, the mean estimate, and one forward pass for each of the passes."""
        loss, total = self.along(x, y, self.draw(x))
        for _ in range(self.passes - 1):
            value, found = self.along(x, y, self.draw(x))
            loss = loss + value
            total = {name: direction + found[name] for name, direction in total.items()}
        return loss / self.passes, {name: direction / self.passes for name, direction in total.items()}, self.passes

    def _error(self, output: Float[Tensor, "b ..."], y: Tensor) -> tuple[Float[Tensor, ""], Float[Tensor, "b ..."]]:
        """The loss of an output, and its gradient with respect to the output alone."""
        leaf = output.detach().requires_grad_()
        with torch.enable_grad():
            loss = self.objective.loss_value(leaf, y)
            (gradient,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), gradient


class WeightForwardGradient(_ForwardGradient):
    """FG-W, weight perturbation: :math:`\\hat g = (\\nabla \\ell(\\theta) \\cdot u)\\, u`, :math:`u \\sim N(0, I)`.

    The directional derivative comes from one pass of forward-mode differentiation, so nothing is propagated backwards.
    The estimate is unbiased, and its variance grows with the number of weights. For any network whose operations have a
    forward-mode derivative in PyTorch. A weight that the loss does not depend on gets noise times a number.

    Ren et al. do not perturb the last linear layer: it gets its exact gradient, its input taken as given, with a tenth
    of the learning rate. ``readout`` names that layer ("head" of a :class:`~deepzero.models.LocalMixer`, "fc" of a
    ResNet) for doing as they do.

    Args:
        model: any network.
        loss: ``loss(output, target)``.
        seed: of the noise, and of dropout masks.
        passes: estimates that are averaged, a forward pass each.
        readout: the name of the module that makes the network's output; None if all weights are perturbed.
        readout_ratio: learning rate of the readout, relative to that of the others; a factor on its gradient, which is
            the same with plain SGD.

    Raises:
        InvalidInputError: ``readout`` is not the module that makes the output, or an option is out of range.
        NotImplementedError: an operation of the network has no forward-mode derivative (raised by :meth:`backward`).

    Example:
        >>> import torch, torch.nn.functional as F
        >>> model = torch.nn.Linear(3, 2)
        >>> source = WeightForwardGradient(model, loss=F.cross_entropy)
        >>> _ = source.backward(torch.randn(8, 3), torch.randint(0, 2, (8,)))
        >>> model.weight.grad.shape, source.queries
        (torch.Size([2, 3]), 1)
    """

    name = "fg-w"

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: Loss,
        seed: int = 0,
        passes: int = 1,
        readout: str | None = None,
        readout_ratio: float = 0.1,
    ) -> None:
        super().__init__(model, loss=loss, seed=seed, passes=passes)
        if readout is not None and readout not in (names := [name for name, _ in model.named_modules() if name]):
            raise InvalidInputError(f"readout={readout!r} is not a module of the network; it has {', '.join(names)}")
        self.readout = readout
        self.readout_ratio = validation.positive("readout_ratio", readout_ratio, hint="0.1")

    def draw(self, x: Float[Tensor, "b ..."]) -> Directions:
        """Noise for every trainable weight outside the readout, by name."""
        own = () if self.readout is None else (f"{self.readout}.",)
        parameters = parameters_of(self.objective)
        return {name: torch.randn_like(p) for name, p in parameters.items() if not name.startswith(own)}

    def along(self, x: Float[Tensor, "b ..."], y: Tensor, noise: Directions) -> tuple[Float[Tensor, ""], Directions]:
        """The loss, its derivative along the noise times the noise, and the gradient of the readout."""
        values = parameters_of(self.objective)
        with torch.no_grad(), forward_ad.dual_level(), self._watched() as calls:
            values.update({name: _dual(values[name], u) for name, u in noise.items()})
            output = self.objective.call(values, x)
            loss, slope = _parts(self.objective.loss_value(output, y))
            directions = {name: slope * u for name, u in noise.items()}
            exact = {} if self.readout is None else self._readout_gradients(calls, output, y)
        return loss, directions | exact

    @contextmanager
    def _watched(self) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Input and output of the readout at each call."""
        calls: list[tuple[Tensor, Tensor]] = []
        if self.readout is None:
            yield calls
            return
        module = self.objective.model.get_submodule(self.readout)
        handle = module.register_forward_hook(lambda _, inputs, output: calls.append((inputs[0], output)))
        try:
            yield calls
        finally:
            handle.remove()

    def _readout_gradients(self, calls: list[tuple[Tensor, Tensor]], output: Tensor, y: Tensor) -> Directions:
        if len(calls) != 1 or calls[0][1] is not output:
            raise InvalidInputError(f"readout={self.readout!r} does not make the output; name the last module, or None")
        inputs, logits = (_parts(tensor)[0] for tensor in calls[0])
        _, error = self._error(logits, y)
        found = _gradients(self.objective.model.get_submodule(str(self.readout)), inputs, error)
        return {f"{self.readout}.{name}": self.readout_ratio * gradient for name, gradient in found.items()}


class LocalForwardGradient(_ForwardGradient):
    """LG-FG-A, activity perturbation with local greedy losses, for a :class:`~deepzero.models.LocalMixer`.

    Every block has a loss of its own, that of its head's logits. Each sample's normalized activities :math:`z` of each
    layer, before the ReLU, are perturbed by their own :math:`u \\sim N(0, I)`, and one pass of forward-mode
    differentiation gives the derivative of the block's loss along the change of each patch and each group of channels,
    :math:`d_{n,p,g}`. It does not go on to the next block. The estimate of :math:`\\partial \\ell / \\partial z` is
    :math:`d_{n,p,g}\\, u` where the ReLU is open and 0 elsewhere (:math:`\\sum_g d_{n,p,g}\\, u` for a layer over the
    tokens, on which all groups depend). It is taken through the normalization of that one layer to its weights and no
    further. Its mean is the gradient of the block's loss.

    Heads get the exact gradients of their losses, which need their input and their output only. The final head's loss
    is that of the network, which is what :meth:`backward` returns.

    Args:
        model: a LocalMixer.
        loss: ``loss(logits, target)``, for every head.
        seed: of the noise.
        passes: estimates that are averaged, a forward pass each.
        final_head_ratio: learning rate of the final head, relative to that of the layers; a factor on its gradient,
            which is the same with plain SGD.
        local_head_ratio: the same for the heads of the blocks.

    Raises:
        InvalidInputError: the model is not a LocalMixer, or an option is out of range.

    Example:
        >>> import torch, torch.nn.functional as F
        >>> model = LocalMixer(patches=2, channels=8, groups=2, in_channels=1, image_size=8)
        >>> source = LocalForwardGradient(model, loss=F.cross_entropy)
        >>> loss = source.backward(torch.randn(4, 1, 8, 8), torch.randint(0, 10, (4,)))
        >>> round(float(loss), 3), source.queries
        (2.303, 1)
    """

    name = "lg-fg-a"

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: Loss,
        seed: int = 0,
        passes: int = 1,
        final_head_ratio: float = 0.1,
        local_head_ratio: float = 1.0,
    ) -> None:
        if not isinstance(model, LocalMixer):
            raise InvalidInputError(
                f"lg-fg-a needs a deepzero.models.LocalMixer, got {type(model).__name__}; for others use fg-w"
            )
        super().__init__(model, loss=loss, seed=seed, passes=passes)
        self.mixer = model
        self.final_head_ratio = validation.positive("final_head_ratio", final_head_ratio, hint="0.1")
        self.local_head_ratio = validation.positive("local_head_ratio", local_head_ratio, hint="1.0")

    def draw(self, x: Float[Tensor, "b c h w"]) -> list[list[Tensor]]:
        """Noise for the output of every layer of every block, [samples, tokens, channels] each."""
        weight = self.mixer.head.weight
        shape = (len(x), (x.shape[-1] // self.mixer.patch_size) ** 2, weight.shape[1])
        return [[weight.new_empty(shape).normal_() for _ in block.layers] for block, _ in _stages(self.mixer)]

    def along(
        self, x: Float[Tensor, "b c h w"], y: Tensor, noise: list[list[Tensor]]
    ) -> tuple[Float[Tensor, ""], Directions]:
        """The loss of the final head, and the estimate that the noise gives."""
        mixer = self.mixer
        tokens = mixer.patchify(x)
        found: dict[str, Directions] = {}
        for index, (block, head) in enumerate(_stages(mixer)):
            states, change = _perturbed(block, tokens, noise[index])
            tokens = states[-1]
            _, error, found[f"heads.{index}"] = self._head(head, tokens, y, self.local_head_ratio)
            slopes = _slopes(change, error, head.weight, mixer.groups)
            found[f"blocks.{index}"] = _block_gradients(block, states, noise[index], slopes)
        loss, _, found["head"] = self._head(mixer.head, tokens, y, self.final_head_ratio)
        return loss, {f"{place}.{name}": value for place, part in found.items() for name, value in part.items()}

    @torch.no_grad()
    def _head(
        self, head: nn.Linear, tokens: Float[Tensor, "b t c"], y: Tensor, ratio: float
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "b classes"], Directions]:
        """A head's loss, its gradient with respect to the logits, and ``ratio`` times that of the head's weights."""
        mean_token = tokens.mean(1)
        loss, error = self._error(head(mean_token), y)
        return loss, error, {name: ratio * value for name, value in _gradients(head, mean_token, error).items()}


class RandomizedLimit(Baseline):
    """RGE with gaussian directions as :math:`\\mu \\to 0` (equation (1) left of Chen et al., 2024), without queries.

    .. math:: \\hat g = \\frac{1}{q} \\sum_{k=1}^q (u_k^T g) u_k, \\qquad u_k \\sim N(0, I_d)

    With :math:`e = g / |g|`, :math:`s \\sim \\chi^2_q` and :math:`n \\sim N(0, I_d)` this has the same law as

    .. math:: |g| \\Bigl( \\frac{s}{q} e + \\frac{\\sqrt s}{q} \\bigl(n - (e^T n) e\\bigr) \\Bigr),

    because :math:`u_k^T e` and the part of :math:`u_k` across :math:`e` are independent. Its mean is :math:`g` and
    :math:`E|\\hat g - g|^2 = |g|^2 (d + 1) / q`. So a training run by RGE can be forecast at the price of one by
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
        loss, gradients = exact_gradients(self.objective, self.parameters(), x, y)
        drawn = self._draw(torch.cat([g.reshape(-1) for g in gradients.values()]))
        parts = torch.split(drawn, [g.numel() for g in gradients.values()])
        shaped = {name: part.reshape(g.shape) for (name, g), part in zip(gradients.items(), parts, strict=True)}
        return loss, shaped, 1 + self.count

    def _draw(self, gradient: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        norm = torch.linalg.vector_norm(gradient)
        along = gradient / norm.clamp_min(torch.finfo(gradient.dtype).tiny)
        square = torch.randn(self.count, dtype=gradient.dtype, device=gradient.device).square().sum()
        noise = torch.randn_like(gradient)
        across = noise - (along @ noise) * along
        drawn: Tensor = norm * (square * along + square.sqrt() * across) / self.count
        return drawn


def _stages(mixer: LocalMixer) -> Iterator[tuple[MixerBlock, nn.Linear]]:
    blocks, heads = cast("Iterable[MixerBlock]", mixer.blocks), cast("Iterable[nn.Linear]", mixer.heads)
    return zip(blocks, heads, strict=True)


@torch.no_grad()
def _perturbed(
    block: MixerBlock, tokens: Float[Tensor, "b t c_in"], noise: list[Tensor]
) -> tuple[list[Tensor], Float[Tensor, "b t c"]]:
    """The block's states without noise, and the derivative of its output along the noise."""
    with forward_ad.dual_level():
        duals = [_dual(torch.zeros_like(u), u) for u in noise]
        parts = [_parts(state) for state in block.states(tokens, duals)]
    return [value for value, _ in parts], parts[-1][1]


@torch.no_grad()
def _slopes(
    change: Float[Tensor, "b t c"],
    error: Float[Tensor, "b classes"],
    weight: Float[Tensor, "classes c"],
    groups: int,
) -> Float[Tensor, "b t g"]:
    """The derivative of the loss along the change of each group of channels of each token of each sample."""
    by_token = (error @ weight).unsqueeze(1) / change.shape[1]
    return torch.unflatten(change * by_token, -1, (groups, -1)).sum(-1)


def _block_gradients(
    block: MixerBlock, states: list[Tensor], noise: list[Tensor], slopes: Float[Tensor, "b t g"]
) -> Directions:
    """The estimate for the weights of every layer, each through that layer alone."""
    found: Directions = {}
    for index, (layer, u) in enumerate(zip(block.layers, noise, strict=True)):
        factors = slopes.sum(-1, keepdim=True) if isinstance(layer, TokenMixing) else slopes
        estimate = (factors.unsqueeze(-1) * torch.unflatten(u, -1, (factors.shape[-1], -1))).flatten(2)
        gradients = _gradients(layer, states[index], estimate * (states[index + 1] > 0))
        found.update({f"layers.{index}.{name}": gradient for name, gradient in gradients.items()})
    return found


def _gradients(module: nn.Module, inputs: Tensor, cotangent: Tensor) -> Directions:
    """The cotangent of a module's output taken to its trainable weights, the inputs being constant."""
    weights = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not weights:
        return {}
    with torch.enable_grad():
        output = module(inputs.detach())
    return dict(zip(weights, torch.autograd.grad(output, list(weights.values()), cotangent), strict=True))


def _dual(value: Tensor, tangent: Tensor) -> Tensor:
    dual: Tensor = forward_ad.make_dual(value, tangent)  # type: ignore[no-untyped-call]
    return dual


def _parts(dual: Tensor) -> tuple[Tensor, Tensor]:
    """A tensor's value and its derivative, which is 0 where nothing perturbed it."""
    value, tangent = forward_ad.unpack_dual(dual)  # type: ignore[no-untyped-call]
    return value, torch.zeros_like(value) if tangent is None else tangent
