"""``deepzero train``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from deepzero.cli.collector import no_collection
from deepzero.cli.options import (
    RECIPES_OWN,
    Flag,
    Folder,
    ImageSize,
    Json,
    OwnConfig,
    OwnData,
    OwnModel,
    Quiet,
    Real,
    Settings,
    Target,
    TestPart,
    Whole,
)
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
    """Name of a recipe; or file.py, file.py:function or module:function of your own, which returns a dz.Trainer or a
    configuration (the function is called recipe by default)."""
    config: OwnConfig = None
    data: OwnData = None
    target: Target = None
    image_size: ImageSize = None
    test: TestPart = None
    model: OwnModel = None
    set: Settings = ()
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
    logger: Annotated[tuple[Literal["tensorboard", "wandb", "mlflow"], ...], arg(help_behavior_hint="")] = ()
    """Write to TensorBoard, Weights & Biases or MLflow too."""
    quiet: Quiet = False
    json: Json = False

    def run(self, output: Output) -> int:
        """Train, and say how it went."""
        with no_collection():
            from deepzero.cli.training import run_training  # noqa: PLC0415 - with PyTorch

            return run_training(self, output)
