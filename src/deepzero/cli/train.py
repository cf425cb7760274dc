"""``deepzero train``."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from deepzero.cli.options import DONE, RECIPES_OWN, Flag, Folder, Json, Quiet, Real, Whole
from deepzero.cli.output import Output, tell_stopped

if TYPE_CHECKING:
    from deepzero.training import Result


@dataclass(frozen=True)
class Train:
    """Train a network from function values, by a recipe (see `deepzero recipes`).

    Ctrl-C or SIGTERM finishes the step, saves and exits with code 75; `deepzero train --resume` continues the run bit
    for bit. `torchrun --nproc-per-node N -m deepzero train ...` divides the queries among N processes, with the same
    result to the last bit.
    """

    recipe: Positional[Annotated[str | None, arg(metavar="RECIPE", help_behavior_hint="(default: digits)")]] = None
    """Name of a recipe."""
    epochs: Whole = None
    """Passes over the training images."""
    estimator: Annotated[
        Literal["cge", "rge", "fo"] | None, arg(metavar="{cge,rge,fo}", help_behavior_hint=RECIPES_OWN)
    ] = None
    """Coordinate-wise (cge) or random (rge) finite differences, or autograd for comparison (fo)."""
    sparsity: Real = None
    """Part of the weights that is not queried at a step, in [0, 1)."""
    step_size: Real = None
    """Step of the finite difference."""
    queries: Whole = None
    """Random directions a step, for rge."""
    learning_rate: Real = None
    """Peak learning rate."""
    batch_size: Whole = None
    """Images of a batch."""
    depth: Whole = None
    """Depth of the network, for recipes whose network has one."""
    limit: Whole = None
    """Use only so many training images."""
    seed: Whole = None
    """Seed of everything that is drawn."""
    data_dir: Folder = None
    """Where the data set lies (default: $DEEPZERO_DATA/<name>, else data/<name>)."""
    out: Folder = None
    """Folder of the run (default: a new one in runs/; with --resume, the latest unfinished one there)."""
    resume: Flag = False
    """Continue the run in --out; settings need not be repeated."""
    device: str = "cpu"
    """Where to compute: cpu, cuda or cuda:<number>."""
    max_minutes: Annotated[float | None, arg(metavar="X", help_behavior_hint="(default: no limit)")] = None
    """Save and exit with code 75 after so many minutes."""
    checkpoint_steps: Whole = None
    """Steps between two checkpoints, besides those by the clock."""
    checkpoint_minutes: Real = None
    """Minutes between two checkpoints."""
    rank_timeout: Annotated[float, arg(metavar="X")] = 10.0
    """Minutes to wait for another process of torchrun before giving up."""
    tensorboard: Flag = False
    """Write event files for TensorBoard too."""
    quiet: Quiet = False
    json: Json = False

    def run(self, output: Output) -> int:
        """Train, and say how it went."""
        from deepzero.recipes import SETTINGS, start_of_team  # noqa: PLC0415 - with PyTorch
        from deepzero.tasks import classification  # noqa: PLC0415
        from deepzero.team import joined  # noqa: PLC0415

        settings: dict[str, Any] = {name: getattr(self, name) for name in SETTINGS if hasattr(self, name)}
        with joined(self.device, timeout=60 * self.rank_timeout) as team:
            if not team.leads:
                logging.getLogger("deepzero").setLevel(logging.ERROR)
            start = start_of_team(self.recipe, settings, self.out, resume=self.resume, team=team)
            result = classification.train(
                start.config,
                out=start.out,
                resume=start.resume,
                data_dir=self.data_dir,
                device=self.device,
                max_seconds=None if self.max_minutes is None else 60 * self.max_minutes,
                tensorboard=self.tensorboard,
                console=output.console if team.leads else None,
                notes=start.notes,
                team=team,
            )
            return _report(result, output) if team.leads else DONE


def _report(result: Result, output: Output) -> int:
    from deepzero.team import launch_name  # noqa: PLC0415

    if result.summary is None:
        code = tell_stopped(output, "train", result.folder, result.stopped)
        return code if launch_name() is None else DONE
    summary = result.summary
    output.result(
        f"test accuracy {summary['test_accuracy']:.2%} with the weights of epoch {summary['selected_epoch'] + 1}; "
        f"{summary['queries']:,} queries in {summary['seconds']:,.0f} s; see {result.folder}",
        folder=result.folder,
        stopped=None,
        summary=summary,
    )
    return DONE
