"""``deepzero train``."""

from __future__ import annotations

import logging
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.console import Console
from tyro.conf import FlagCreatePairsOff, Positional, arg

from deepzero.recipes import SETTINGS, start_of_team
from deepzero.tasks import classification
from deepzero.team import joined, launch_name
from deepzero.training import Result

DONE = 0

STOPPED = 75
"""Exit code of a run that was stopped early with everything saved (EX_TEMPFAIL of sysexits.h: try again). Under
torchrun, which would take it for a failure and start the processes again, the exit code is 0."""

RECIPES_OWN = "(default: the recipe's)"
Whole = Annotated[int | None, arg(metavar="N", help_behavior_hint=RECIPES_OWN)]
Real = Annotated[float | None, arg(metavar="X", help_behavior_hint=RECIPES_OWN)]
Folder = Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")]
Flag = FlagCreatePairsOff[bool]


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

    def run(self, console: Console) -> int:
        """Train, and say how it went."""
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
                console=console if team.leads else None,
                notes=start.notes,
                team=team,
            )
            return _report(result, console) if team.leads else DONE


def _report(result: Result, console: Console) -> int:
    if result.summary is None:
        console.print(f"stopped by {result.stopped}; everything is saved in {result.folder}. To continue:")
        console.print(f"  deepzero train --resume --out {shlex.quote(str(result.folder))}", soft_wrap=True)
        return STOPPED if launch_name() is None else DONE
    summary = result.summary
    console.print(
        f"test accuracy {summary['test_accuracy']:.2%} with the weights of epoch {summary['selected_epoch'] + 1}; "
        f"{summary['queries']:,} queries in {summary['seconds']:,.0f} s; see {result.folder}",
        soft_wrap=True,
    )
    return DONE
