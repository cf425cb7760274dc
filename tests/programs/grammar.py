"""Programs as data: a few pieces, a loss, a dtype, layouts; the same description always gives the same program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from pieces import CHANNELS, PIECES, Piece
from program_losses import CLASSES, TARGETS, Target
from torch import Tensor, nn

LAYOUTS = ("contiguous", "channels_last", "sliced", "expanded")


@dataclass(frozen=True)
class Spec:
    """A program.

    Attributes:
        pieces: names of what its network is made of, in order.
        target: name of its loss.
        dtype: of parameters and inputs.
        layout: of the memory of inputs, and of the weights where that is channels_last.
        resized: whether the second batch has another size than the first.
    """

    pieces: tuple[str, ...] = ()
    target: str = "cross_entropy"
    dtype: torch.dtype = torch.float64
    layout: str = "contiguous"
    resized: bool = False


class Network(nn.Module):
    """Pieces between an input and a linear head."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.pieces = nn.ModuleList(PIECES[name]() for name in names)
        self.head = nn.Linear(CHANNELS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for piece in self.pieces:
            x = piece(x)
        return self.head(x.mean((2, 3)))

    def change(self) -> None:
        for piece in self.pieces:
            assert isinstance(piece, Piece)
            piece.change()


class Program:
    """A network and its loss, as one training script holds them."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(11)
            self.model = Network(spec.pieces).to(spec.dtype)
            if spec.layout == "channels_last":
                self.model.to(memory_format=torch.channels_last)
            self.target: Target = TARGETS[spec.target](self.model)
            if self.target.criterion is not None:
                self.target.criterion.to(spec.dtype)

    def estimator(self, kind: Callable[..., Any], **options: Any) -> Any:
        """``dz.CGE`` or ``dz.RGE`` on this program."""
        return kind(self.model, **self.target.options, **options)

    def named(self, kind: str) -> dict[str, Tensor]:
        """``parameters`` or ``buffers`` of the network, and under ``criterion.`` those of the loss."""
        found = dict(getattr(self.model, f"named_{kind}")())
        if self.target.criterion is not None:
            found.update(getattr(self.target.criterion, f"named_{kind}")(prefix="criterion"))
        return found

    def trainable(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.named("parameters").items() if p.requires_grad}

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of a step."""
        count = 2 if self.spec.resized and step == 1 else 3
        generator = torch.Generator().manual_seed(20 + step)
        y = torch.tensor([0, 2, 1])[:count]
        return laid_out(torch.randn(count, CHANNELS, 4, 4, generator=generator), self.spec.layout).to(
            self.spec.dtype
        ), y

    def change(self) -> None:
        """What the script does between two steps."""
        self.model.change()
        self.target.change()

    def value(self, step: int) -> float:
        """The loss of the step's batch, as a training loop would compute it; what a forward changes is changed."""
        loss = self.target.value(self.model, *self.batch(step))
        return float(loss.detach().double().mean()) if isinstance(loss, Tensor) else float(loss)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values in another layout of memory."""
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        return torch.stack([x, -x], -1).reshape(*x.shape[:-1], -1)[..., ::2]
    if layout == "expanded":
        return x[:, :1].expand(x.shape)
    return x


PROGRAMS = st.builds(
    Spec,
    pieces=st.lists(st.sampled_from(sorted(PIECES)), min_size=1, max_size=3).map(tuple),
    target=st.sampled_from(sorted(TARGETS)),
    dtype=st.sampled_from([torch.float64, torch.float64, torch.float32]),
    layout=st.sampled_from(LAYOUTS),
    resized=st.booleans(),
)
