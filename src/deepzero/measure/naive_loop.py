"""The loop that people write without this library: one full forward per query.

It works on a copy of the model, so that its running statistics, which such a loop moves at every query, stay here.
It can be written in several forms (memory format, grad mode, libraries, CUDA graph), of which some are twice as fast
as others: see :class:`Form`.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepzero.measure.cases import Problem

StageWatch = Callable[[str], AbstractContextManager[None]]
"""Takes the time of a block by the name of its stage: a :class:`~deepzero.stopwatch.StageStopwatch`, or nothing."""

ONEDNN: Any = torch.backends.mkldnn
"""A module of which PyTorch makes attributes that switch the library on and off."""

_UNWATCHED = nullcontext()


def unwatched(_: str) -> AbstractContextManager[None]:
    """Take no time, at no cost: some forwards last 50 microseconds."""
    return _UNWATCHED


@dataclass(frozen=True)
class Form:
    """One way to run the forwards of a loop; the numbers are the same up to rounding.

    Attributes:
        channels_last: weights and images of four dimensions lie in memory channel by channel within a pixel.
        inference_mode: under ``torch.inference_mode`` instead of ``torch.no_grad``.
        onednn: convolutions may run in oneDNN (on a CPU, PyTorch's default).
        cudnn_benchmark: cuDNN tries its kernels and takes the fastest (on a GPU).
        cuda_graph: the forward is recorded once and replayed: launching its kernels costs next to nothing.
        double: in float64, whose differences of losses are not rounding noise at a small step.

    Example:
        >>> Form(channels_last=True).name, Form(inference_mode=True, onednn=False).name
        ('channels_last, no_grad', 'contiguous, inference_mode, without oneDNN')
    """

    channels_last: bool = False
    inference_mode: bool = False
    onednn: bool = True
    cudnn_benchmark: bool = False
    cuda_graph: bool = False
    double: bool = False

    @property
    def name(self) -> str:
        """Its name in reports."""
        parts = [
            "channels_last" if self.channels_last else "contiguous",
            "inference_mode" if self.inference_mode else "no_grad",
        ]
        parts += [] if self.onednn else ["without oneDNN"]
        parts += ["cudnn.benchmark"] if self.cudnn_benchmark else []
        parts += ["CUDA graph"] if self.cuda_graph else []
        parts += ["float64"] if self.double else []
        return ", ".join(parts)

    def copy(self, model: nn.Module) -> nn.Module:
        """A copy of the model, in this form's precision and memory format."""
        copied = copy.deepcopy(model)
        copied = copied.double() if self.double else copied
        return copied.to(memory_format=torch.channels_last) if self.channels_last else copied  # type: ignore[call-overload]

    def inputs(self, x: Tensor) -> Tensor:
        """The inputs, in this form's precision and memory format; symbols stay as they are."""
        x = x.double() if self.double and x.is_floating_point() else x
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last and x.dim() == 4 else x

    @contextmanager
    def active(self) -> Iterator[None]:
        """The modes of a forward."""
        with ExitStack() as modes:
            modes.enter_context(torch.inference_mode() if self.inference_mode else torch.no_grad())
            if not self.onednn:
                modes.enter_context(_switched(ONEDNN, "enabled", False))
            if self.cudnn_benchmark:
                modes.enter_context(_switched(torch.backends.cudnn, "benchmark", True))
            yield


def eager_forms(device: torch.device, model: nn.Module | None = None) -> list[Form]:
    """All forms of eager float32 forwards that differ.

    Args:
        device: of the forwards; oneDNN is a matter of CPUs.
        model: leave out what makes no difference to it: memory formats are a matter of weights of four dimensions.
    """
    onednn = (True, False) if device.type == "cpu" and ONEDNN.enabled else (True,)
    layouts = (False, True) if model is None or any(p.dim() == 4 for p in model.parameters()) else (False,)
    return [Form(*choice) for choice in itertools.product(layouts, (False, True), onednn)]


def gpu_forms() -> list[Form]:
    """Forms under ``torch.no_grad`` on a GPU; a graph is recorded of the kernels that cuDNN found fastest."""
    tuned = ((False, False), (True, False), (True, True))
    return [
        Form(channels_last=layout, cudnn_benchmark=benchmark, cuda_graph=graph)
        for layout in (False, True)
        for benchmark, graph in tuned
    ]


@contextmanager
def _switched(module: Any, name: str, value: bool) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


PLAIN = Form()


class NaiveLoop:
    """A full forward in train mode for every query.

    Args:
        problem: network, batch and step size.
        form: of the forwards.
        watch: takes the time of the stages ``perturbation`` and ``inference``.

    Attributes:
        model: the copy that is moved.
        parameters: its parameters by name.
        base: the loss at the parameters, in the precision of the forward.
    """

    def __init__(self, problem: Problem, form: Form = PLAIN, *, watch: StageWatch = unwatched) -> None:
        self.model = form.copy(problem.model)
        self.parameters = dict(self.model.named_parameters())
        self.step_size = problem.step_size
        self._form, self._watch = form, watch
        self._x, self._y = form.inputs(problem.batch[0]), problem.batch[1]
        self._forward = self._recorded() if form.cuda_graph else self._eager
        self.base = self.loss().item()

    def loss(self) -> Tensor:
        """One forward; a GPU may still be at work on it."""
        with self._form.active():
            return self._forward()

    def query(self, name: str, index: int) -> Tensor:
        """The loss with the entry of a flat index moved by the step."""
        with self._watch("perturbation"):
            move = EntryMove.by(self.step_size, entry_of(self.parameters[name], index))
        return move.loss(self.loss, watch=self._watch)

    def difference(self, name: str, index: int) -> float:
        """One query, minus the base loss."""
        return self.query(name, index).item() - self.base

    @torch.no_grad()
    def query_along(self, direction: list[Tensor]) -> Tensor:
        """The loss with all parameters moved along a direction, which has their order."""
        parameters: list[Tensor] = list(self.parameters.values())
        saved = self._saved
        with self._watch("perturbation"):
            torch._foreach_add_(parameters, direction, alpha=self.step_size)
        with self._watch("inference"):
            loss = self.loss()
        with self._watch("perturbation"):
            torch._foreach_copy_(parameters, saved)
        return loss

    @cached_property
    def _saved(self) -> list[Tensor]:
        """The parameters, which are the same between queries."""
        return [p.detach().clone() for p in self.parameters.values()]

    def _eager(self) -> Tensor:
        return F.cross_entropy(self.model(self._x), self._y)

    def _recorded(self) -> Callable[[], Tensor]:
        """The forward as a CUDA graph, which reads the parameters where they lie."""
        with self._form.active():
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):  # cuDNN chooses its kernels
                    self._eager()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                loss = self._eager()

        def replay() -> Tensor:
            graph.replay()
            return loss

        return replay


class EntryMove(NamedTuple):
    """The move of one entry of a parameter, and its way back: as it was, not by subtracting the step.

    Attributes:
        entry: a view of 0 dimensions into the parameter, detached from it.
        base: its value.
        moved: its value plus the step.
    """

    entry: Tensor
    base: Tensor
    moved: Tensor

    @classmethod
    def by(cls, step: float, entry: Tensor) -> EntryMove:
        """Move an entry by a step."""
        base = entry.clone()
        return cls(entry, base, base + step)

    def loss(self, loss: Callable[[], Tensor], *, watch: StageWatch = unwatched) -> Tensor:
        """The loss with the entry moved.

        Args:
            loss: evaluates the program at the parameters as they are.
            watch: takes the time of the stages.
        """
        with watch("perturbation"):
            self.entry.copy_(self.moved)
        with watch("inference"):
            value = loss()
        with watch("perturbation"):
            self.entry.copy_(self.base)
        return value


def entry_of(parameter: Tensor, index: int) -> Tensor:
    """The entry with a flat index, as a detached view of 0 dimensions, in whatever memory format the parameter lies."""
    offset = parameter.storage_offset()
    for size, stride in zip(reversed(parameter.shape), reversed(parameter.stride()), strict=True):
        index, place = divmod(index, size)
        offset += place * stride
    return parameter.detach().as_strided((), (), offset)
