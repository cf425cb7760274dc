"""``deepzero train``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from deepzero.cli.options import RECIPES_OWN, Flag, Folder, Json, Quiet, Real, Whole
from deepzero.cli.output import Output

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Train:
    """Train a network from function values, by a recipe (see `deepzero recipes`).

    Ctrl-C or SIGTERM finishes the step, saves and exits with code 75; `deepzero train --resume` continues the run bit
    for bit. `torchrun --nproc-per-node N -m deepzero train ...` divides the queries among N processes, with the same
    result to the last bit.
    """

    recipe: Positional[Annotated[str | None, arg(metavar="RECIPE", help_behavior_hint="(default: digits)")]] = None
    """Name of a recipe; or file.py, file.py:function or module:function of your own, which returns a configuration or a
    dz.Trainer (function: recipe, by default)."""
    config: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Take the settings from a run's run.json, or from a .json or .toml file of your own, in place of a recipe."""
    data: Annotated[str | None, arg(metavar="PATH", help_behavior_hint=RECIPES_OWN)] = None
    """Data of your own (`deepzero data PATH` says what is there), or the name of a set."""
    target: Annotated[str | None, arg(metavar="COLUMN", help_behavior_hint="")] = None
    """With --data: column of a table that holds the classes."""
    image_size: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """With --data: height and width to bring images to."""
    test: Annotated[float | None, arg(metavar="X", help_behavior_hint="")] = None
    """With --data: part of each class to hold out as the test set, where there is none."""
    model: Annotated[str | None, arg(metavar="NAME", help_behavior_hint=RECIPES_OWN)] = None
    """Name of a network, or file.py:Net of your own, which is called with num_classes, input_shape, ..."""
    set: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE", help_behavior_hint="")] = ()
    """Arguments of your own recipe's function."""
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
        from deepzero.cli.training import run_training  # noqa: PLC0415 - with PyTorch

        return run_training(self, output)
