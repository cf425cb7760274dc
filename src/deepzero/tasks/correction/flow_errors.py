"""How far corrected simulations are from the reference, step by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deepzero.tasks.correction.reference_flows import Reference
from deepzero.tasks.correction.wake import WakeFlow, vorticity

FRAMES_SHOWN = 50
"""Of an animation."""


@dataclass(frozen=True)
class Rollouts:
    """Simulations from the first frame of every test flow, by several correctors side by side.

    Attributes:
        errors: mean absolute error over faces and components, ``[correctors, flows, steps]``; NaN from where on a
            simulation has blown up.
        fields: vorticity of one flow, ``[correctors + 1, frames, X-1, Y-1]``, the reference last.
        times: steps of these frames.
    """

    errors: Float[Tensor, "c r t"]
    fields: Float[Tensor, "c1 f x y"]
    times: Sequence[int]

    def mae(self, corrector: int) -> list[float]:
        """Mean over all steps, of every flow; infinite for one that blew up."""
        found = self.errors[corrector].double().mean(1)
        return [math.inf if math.isnan(value) else value for value in found.tolist()]


def roll_out(
    correctors: Sequence[nn.Module | None],
    flow: WakeFlow,
    reference: Reference,
    *,
    shown: int,
    told: Callable[[int, int], None] | None = None,
) -> Rollouts:
    """Run every test flow to the end of the reference with every corrector.

    .. math:: \\mathrm{MAE} = \\frac{1}{T - 1} \\sum_{t=1}^{T-1} \\operatorname{mean} |s_t - y_t|

    over the faces of the grid of both components, with :math:`s_0 = y_0`.

    Args:
        correctors: networks; None for the solver alone.
        flow: the coarse solver.
        reference: to be compared with.
        shown: the test flow whose fields are kept.
        told: of steps done and steps in all.
    """
    test, reynolds = reference.test, reference.test_reynolds
    flows, frames = test.shape[:2]
    faces = flow.faces.bool()
    velocity = test[:, 0].repeat(len(correctors), 1, 1, 1)
    numbers = reynolds.repeat(len(correctors), 1)
    every = max(1, (frames - 1) // FRAMES_SHOWN)
    errors, fields, times = [], [], []
    with torch.no_grad():
        for step in range(1, frames):
            advanced = flow.step(velocity, numbers)
            parts = [
                part if corrector is None else part + corrector(part, reynolds)
                for corrector, part in zip(correctors, advanced.split(flows), strict=True)
            ]
            velocity = torch.cat(parts)
            error = [(part - test[:, step])[:, faces].abs().mean(1) for part in parts]
            errors.append(torch.stack(error))
            if step % every == 0 or step == frames - 1:
                seen = torch.stack([*(part[shown] for part in parts), test[shown, step]])
                fields.append(vorticity(seen, flow.resolution))
                times.append(step)
            if told is not None:
                told(step, frames - 1)
    return Rollouts(torch.stack(errors, dim=2), torch.stack(fields, dim=1), times)
