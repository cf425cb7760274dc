"""The zoo as a table: networks that others wrote, their objectives, and what is expected of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pretrained_kinds as pretrained
import research_kinds as research
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import deepzero as dz
from deepzero.graph.capture import Graph

WIDER = {torch.float64: torch.complex128, torch.float32: torch.complex64}


@dataclass(frozen=True)
class Batch:
    """What ``zo.backward`` and ``zo.estimate`` are given."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def cast(self, dtype: torch.dtype) -> Batch:
        """Floating-point tensors in ``dtype``."""
        return Batch(*pytree.tree_map(functools.partial(cast_tensor, dtype=dtype), (self.args, self.kwargs)))


@dataclass(frozen=True)
class Member:
    """One network of the zoo.

    Attributes:
        name: shown by pytest.
        make: the network in the mode that it is trained in, float32, drawn from torch's global generator.
        batch: floating-point tensors in float32.
        loss: ``loss(output, target)``, or None.
        closure: ``closure(model, *args, **kwargs)``, if there is no loss.
        rounds: it computes in float32 somewhere, whatever the dtype of its parameters.
        smooth: autograd gives the derivative of its function values.
        fallbacks: operations that need no rule of their own; all others must have one.
        whole: it cannot be turned into a graph: every query is a forward of its own, and a warning says so.
    """

    name: str
    make: Callable[[], nn.Module]
    batch: Callable[[], Batch]
    loss: Callable[..., Tensor] | None = None
    closure: Callable[..., Tensor] | None = None
    rounds: bool = False
    smooth: bool = True
    fallbacks: frozenset[str] = frozenset()
    whole: bool = False

    def model(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The network with every parameter moved off its initial value; the same weights in every dtype."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            model = self.make()
            for parameter in model.parameters():
                spread = 0.2 if parameter.dim() < 2 else 0.5 / parameter[0].numel() ** 0.5
                parameter.add_(spread * torch.randn_like(parameter))
        return cast(model, dtype)

    def arguments(self, dtype: torch.dtype = torch.float32) -> Batch:
        """The batch, with floating-point tensors in ``dtype``."""
        return self.batch().cast(dtype)

    def value(self, model: nn.Module, batch: Batch) -> Tensor:
        """The objective, as one would write it for autograd."""
        if self.closure is not None:
            return self.closure(model, *batch.args, **batch.kwargs)
        x, y = batch.args
        return self.loss(model(x), y).mean()

    def estimator(self, kind: Callable[..., dz.Estimator], model: nn.Module, **options: Any) -> dz.Estimator:
        """``dz.CGE`` or ``dz.RGE`` on this objective."""
        objective = {"loss": self.loss} if self.closure is None else {"closure": self.closure}
        return kind(model, **objective, **options)


@functools.cache
def graphs(member: str, dtype: torch.dtype) -> list[Graph]:
    """Where the tests of a member keep its graph (``oracle.exported_once``), which is the same in all of them."""
    return []


def cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Real parameters and buffers in ``dtype``, complex ones in the complex dtype of its precision."""
    return model._apply(functools.partial(cast_tensor, dtype=dtype))


def cast_tensor(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor) and value.is_complex():
        return value.to(WIDER[dtype])
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def normal(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def output_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The loss that a model of transformers computes itself."""
    return model(**batch).loss


def keyword_loss(model: nn.Module, **batch: Tensor) -> Tensor:
    return model(**batch).loss


def allowed(*operations: str) -> frozenset[str]:
    return frozenset(f"aten.{operation}" for operation in operations)


LABELS = torch.tensor([0, 2, 1])
EDGES = torch.tensor([[0, 1, 2, 3, 0, 4, 2], [1, 2, 0, 1, 4, 3, 3]])


def classified(*shape: int) -> Callable[[], Batch]:
    """Real inputs and class labels."""
    return lambda: Batch((normal(3, *shape), LABELS))


def regressed(inputs: tuple[int, ...], targets: tuple[int, ...]) -> Callable[[], Batch]:
    return lambda: Batch((normal(*inputs), normal(*targets, seed=4)))


def language_model(name: str, make: Callable[[], nn.Module]) -> Member:
    return Member(name, make, lambda: Batch((pretrained.language_batch(),)), closure=output_loss, rounds=True)


def translation() -> Batch:
    source, target = torch.tensor([[3, 4, 5, 0], [6, 7, 8, 9]]), torch.tensor([[1, 2, 3], [4, 5, 6]])
    return Batch(((source, target), torch.tensor([[2, 3, 10], [5, 6, 11]])))


def recurrent(name: str, kind: type[nn.RNNBase]) -> Member:
    return Member(
        name,
        lambda: research.Recurrent(kind),
        classified(4, 3),
        loss=F.cross_entropy,
        fallbacks=allowed(f"{name}.input"),
    )


MEMBERS = (
    Member("bert", pretrained.bert, lambda: Batch((pretrained.bert_batch(),)), closure=output_loss),
    language_model("gpt2", pretrained.gpt2),
    language_model("lora", pretrained.adapted_gpt2),
    language_model("llama", pretrained.llama),
    language_model("mamba", pretrained.mamba),
    Member("t5", pretrained.t5, lambda: Batch(kwargs=pretrained.t5_batch()), closure=keyword_loss, rounds=True),
    Member("vit", pretrained.vit, lambda: Batch((pretrained.pictures(8)(),)), closure=output_loss),
    Member("swin", pretrained.swin, lambda: Batch((pretrained.pictures(16)(),)), closure=output_loss),
    Member("transformer", lambda: research.Translator(hint=True), translation, loss=F.cross_entropy),
    Member(
        "transformer_unhinted",
        lambda: research.Translator(hint=None),
        translation,
        loss=F.cross_entropy,
        whole=True,
    ),
    recurrent("lstm", nn.LSTM),
    recurrent("gru", nn.GRU),
    recurrent("rnn_tanh", nn.RNN),
    Member("unet", research.UNet, regressed((2, 1, 8, 8), (2, 2, 8, 8)), loss=F.mse_loss),
    Member(
        "fourier",
        research.FourierOperator,
        regressed((2, 1, 6, 6), (2, 1, 6, 6)),
        loss=F.mse_loss,
        fallbacks=allowed(
            "fft_rfft2.default", "fft_irfft2.default", "_fft_r2c.default", "_fft_c2r.default", "_fft_c2c.default"
        ),
    ),
    Member(
        "spiking", research.Spiking, classified(4), loss=F.cross_entropy, smooth=False, fallbacks=allowed("gt.Scalar")
    ),
    Member(
        "physics",
        lambda: nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)),
        lambda: Batch((torch.rand(4, 2, generator=torch.Generator().manual_seed(5)),)),
        closure=research.heat_residual,
        whole=True,
    ),
    Member(
        "graph",
        research.GraphNetwork,
        lambda: Batch(((normal(5, 3), EDGES), torch.tensor([0, 1, 1, 0, 1]))),
        loss=F.cross_entropy,
        fallbacks=allowed("scatter_add.default", "index_add.default", "index.Tensor"),
    ),
    Member("mobile", research.mobile_network, classified(3, 8, 8), loss=F.cross_entropy),
    Member(
        "variational",
        research.VariationalAutoencoder,
        lambda: Batch((normal(3, 6),)),
        closure=research.evidence_bound,
        fallbacks=allowed("binary_cross_entropy_with_logits.default"),
    ),
    Member("autoencoder", research.autoencoder, regressed((2, 1, 8, 8), (2, 1, 8, 8)), loss=F.mse_loss),
    Member(
        "siamese",
        research.Siamese,
        lambda: Batch((normal(4, 5), normal(4, 5, seed=4), torch.tensor([1.0, 0.0, 0.0, 1.0]))),
        closure=research.contrastive_loss,
        fallbacks=allowed("pairwise_distance.default"),
    ),
)

SMALL = (
    Member("perceptron", research.perceptron, classified(5), loss=F.cross_entropy),
    Member("small_cnn", research.small_cnn, classified(3, 6, 6), loss=F.cross_entropy),
    Member("attention", research.Attention, classified(4, 4), loss=F.cross_entropy),
)
"""Networks that are also run in half types."""
