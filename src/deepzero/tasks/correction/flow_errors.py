"""Errors of corrected simulations against the reference, step by step."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor, nn

from deepzero.files import finite, replace_file, to_json
from deepzero.report.correction_pages import ERRORS, FIELDS
from deepzero.tasks.correction.reference_flows import Reference
from deepzero.tasks.correction.wake import WakeFlow, vorticity
from deepzero.training.run_folder import writing

FRAMES_SHOWN = 50
"""Of an animation."""


@dataclass(frozen=True)
class Rollouts:
    """Simulations from the first frame of every test flow, by several correctors side by side, the solver alone last.

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

    def keep(self, folder: Path, reynolds: Sequence[float]) -> dict[str, Any]:
        """Keep the errors of the last corrector and of the solver alone, and the vorticity of one flow for pictures.

        Args:
            folder: of the run.
            reynolds: numbers of the test flows.

        Returns:
            The errors, as the file holds them.
        """
        source = len(self.errors) - 1
        last = max(0, source - 1)
        errors: dict[str, Any] = finite(
            {
                "reynolds": list(reynolds),
                "mae": self.mae(last),
                "source_mae": self.mae(source),
                "by_step": self.errors[last].double().mean(0).tolist(),
                "source_by_step": self.errors[source].double().mean(0).tolist(),
            }
        )
        fields: dict[str, Tensor] = {
            "source": self.fields[source].clone(),
            "corrected": self.fields[last].clone(),
            "reference": self.fields[-1].clone(),
            "times": torch.tensor(self.times),
        }
        with writing(folder):
            replace_file(folder / ERRORS, to_json(errors))
            replace_file(folder / FIELDS, safetensors.torch.save(fields))
        return errors


def mean_error(values: Sequence[float | None]) -> float | None:
    """Mean over flows; None where one has blown up.

    >>> mean_error([0.5, 1.5]), mean_error([0.5, math.inf]), mean_error([0.5, None])
    (1.0, None, None)
    """
    known = [value for value in values if value is not None and math.isfinite(value)]
    return statistics.fmean(known) if len(known) == len(values) else None


def roll_out(
    correctors: Sequence[nn.Module | None],
    flow: WakeFlow,
    reference: Reference,
    *,
    shown: int,
    progress: Callable[[int, int], None] | None = None,
) -> Rollouts:
    """Run every test flow to the end of the reference with every corrector.

    .. math:: \\mathrm{MAE} = \\frac{1}{T - 1} \\sum_{t=1}^{T-1} \\operatorname{mean} |s_t - y_t|

    over the faces of the grid of both components, with :math:`s_0 = y_0`.

    Args:
        correctors: networks; None for the solver alone.
        flow: the coarse solver.
        reference: simulations on the fine grid.
        shown: number of the test flow whose fields are kept.
        progress: called with steps done and steps in all.
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
            if progress is not None:
                progress(step, frames - 1)
    return Rollouts(torch.stack(errors, dim=2), torch.stack(fields, dim=1), times)
