"""The forms in which a plain loop can be written, and a short trial that finds the fastest on this machine.

A loop that keeps the default memory format can be more than twice as slow as the same loop in channels-last, so a
comparison with one form that was fixed beforehand says little. The trial is made at the start of a run, by the clock
that times the sides later.
"""

from __future__ import annotations

import copy
import itertools
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from deepzero.measure.rounds import Timing

ROUNDS = 3
"""Most rounds of a trial; each form takes a turn in each."""
SECONDS = 0.02
"""Length of a turn; one that cannot make a query in it makes one."""
DROP = 1.5
"""A form this many times slower than the fastest of a round takes no further turn."""
LEFT_OUT = (
    "torch.compile is left out: compiling takes a minute or more for each network and batch shape, and gives the "
    "loop another program than the one whose function values are asked for"
)

ONEDNN: Any = torch.backends.mkldnn
"""A module of which PyTorch makes attributes that switch the library on and off."""


@dataclass(frozen=True)
class Form:
    """How a loop runs its forwards; the numbers are the same up to rounding.

    Attributes:
        channels_last: weights and images of four dimensions lie in memory channel by channel within a pixel.
        inference_mode: under ``torch.inference_mode`` instead of ``torch.no_grad``.
        onednn: convolutions may run in oneDNN (on a CPU, PyTorch's default).

    Example:
        >>> Form(channels_last=True).name, Form(inference_mode=True, onednn=False).name
        ('channels_last, no_grad', 'contiguous, inference_mode, without oneDNN')
    """

    channels_last: bool = False
    inference_mode: bool = False
    onednn: bool = True

    @property
    def name(self) -> str:
        """What reports call it."""
        parts = [
            "channels_last" if self.channels_last else "contiguous",
            "inference_mode" if self.inference_mode else "no_grad",
        ]
        return ", ".join(parts if self.onednn else [*parts, "without oneDNN"])

    def copy(self, model: nn.Module) -> nn.Module:
        """A copy of the model, in this form's memory format."""
        copied = copy.deepcopy(model)
        return copied.to(memory_format=torch.channels_last) if self.channels_last else copied  # type: ignore[call-overload]

    def images(self, x: Tensor) -> Tensor:
        """The images, in this form's memory format."""
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last and x.dim() == 4 else x

    @contextmanager
    def active(self) -> Iterator[None]:
        """The modes of a forward."""
        no_graph = torch.inference_mode() if self.inference_mode else torch.no_grad()
        with no_graph, nullcontext() if self.onednn else _without_onednn():
            yield


@contextmanager
def _without_onednn() -> Iterator[None]:
    before = ONEDNN.enabled
    ONEDNN.enabled = False
    try:
        yield
    finally:
        ONEDNN.enabled = before


def forms(device: torch.device) -> list[Form]:
    """All forms that differ on a device: oneDNN is a matter of CPUs."""
    onednn = (True, False) if device.type == "cpu" and ONEDNN.enabled else (True,)
    return [Form(*choice) for choice in itertools.product((False, True), (False, True), onednn)]


class Timed(Protocol):
    """What a trial compares."""

    def time(self, seconds: float, turn: int) -> Timing:
        """A turn of about ``seconds``."""
        ...


@dataclass(frozen=True)
class Trial:
    """How fast each form was.

    Attributes:
        fastest: the form with the most queries a second.
        queries_per_second: median of a form's turns, by the form's name, the fastest first.
    """

    fastest: Form
    queries_per_second: dict[str, float]


def trial(make: Callable[[Form], Timed], candidates: list[Form]) -> Trial:
    """Let the forms take turns, and drop those that are far behind.

    Args:
        make: makes the loop in a given form.
        candidates: the forms.
    """
    running = {form: make(form) for form in candidates}
    rates: dict[Form, list[float]] = {form: [] for form in candidates}
    for turn in range(ROUNDS):
        for form, loop in running.items():
            rates[form].append(loop.time(SECONDS, turn).rate)
        best = max(rates[form][-1] for form in running)
        running = {form: loop for form, loop in running.items() if rates[form][-1] * DROP >= best}
    medians = {form: statistics.median(found) for form, found in rates.items()}
    order = sorted(medians, key=lambda form: -medians[form])
    return Trial(max(running, key=lambda form: medians[form]), {form.name: medians[form] for form in order})
