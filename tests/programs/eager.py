"""The oracle: finite differences of a program that is built again for every query, and run as a training loop would."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from draws import draws_of_step
from grammar import Program, Spec
from torch import Tensor

Values = dict[str, Tensor]


@dataclass
class Replay:
    """What a training script has done so far: the parameters before each of its steps.

    Attributes:
        spec: the program.
        history: parameters before step 0, 1, ...; the last entry is of the step that is being queried.
    """

    spec: Spec
    history: list[Values] = field(default_factory=list)
    _base: float | None = None

    @property
    def step(self) -> int:
        """The step that is being queried."""
        return len(self.history) - 1

    def begin(self, program: Program) -> None:
        """A step begins: note the parameters."""
        self._base = None
        self.history.append({name: p.detach().clone() for name, p in program.named("parameters").items()})

    def query(self, moved: Mapping[str, Tensor] | None = None) -> tuple[float, Program]:
        """The loss with ``moved`` in place of some parameters, and the program as its forward leaves it."""
        program = Program(self.spec)
        for step, values in enumerate(self.history):
            if step:
                program.change()
            last = step == self.step
            with torch.no_grad():
                for name, parameter in program.named("parameters").items():
                    parameter.copy_((moved or {}).get(name, values[name]) if last else values[name])
            with draws_of_step(step, self.spec.dtype), torch.no_grad():
                loss = program.value(step)
        return loss, program

    def slope(self, moved: Mapping[str, Tensor], step_size: float) -> float:
        """Difference of the losses at ``moved`` and where the step stands, divided by the step size."""
        if self._base is None:
            self._base, _ = self.query()
        return (self.query(moved)[0] - self._base) / step_size

    def coordinate(self, name: str, index: int, step_size: float) -> float:
        """``(l(theta + mu e_i) - l(theta)) / mu``, with the step that was really taken."""
        before = self.history[-1][name]
        moved = before.clone(memory_format=torch.contiguous_format)
        moved.view(-1)[index] += step_size
        taken = float(moved.view(-1)[index].double() - before.reshape(-1)[index].double())
        return self.slope({name: moved}, taken)

    def direction(self, direction: Mapping[str, Tensor], step_size: float) -> float:
        """``(l(theta + mu u) - l(theta)) / mu``."""
        moved = {name: self.history[-1][name] + step_size * u for name, u in direction.items()}
        return self.slope(moved, step_size)
