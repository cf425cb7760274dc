"""``deepzero train``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from deepzero.cli.command import Output
from deepzero.cli.options import (
    RECIPES_OWN,
    BatchSize,
    DataDir,
    Depth,
    Device,
    Epochs,
    Folder,
    ImageSize,
    Json,
    LearningRate,
    Limit,
    MaxMinutes,
    OwnConfig,
    OwnData,
    OwnModel,
    Queries,
    Quiet,
    Real,
    Resume,
    Seed,
    Settings,
    Sparsity,
    StepSize,
    Target,
    TestPart,
    Whole,
)
from deepzero.process_memory import no_collection


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
    epochs: Epochs = None
    estimator: Annotated[
        Literal["cge", "rge", "fo"] | None, arg(metavar="{cge,rge,fo}", help_behavior_hint=RECIPES_OWN)
    ] = None
    """Coordinate-wise (cge) or random (rge) finite differences, or autograd for comparison (fo)."""
    sparsity: Sparsity = None
    step_size: StepSize = None
    queries: Queries = None
    learning_rate: LearningRate = None
    batch_size: BatchSize = None
    depth: Depth = None
    limit: Limit = None
    seed: Seed = None
    data_dir: DataDir = None
    out: Folder = None
    """Folder of the run (default: a new one in runs/; with --resume, the latest unfinished one there)."""
    resume: Resume = False
    device: Device = "cpu"
    storage: Annotated[
        Literal["float32", "float16"] | None, arg(metavar="{float32,float16}", help_behavior_hint=RECIPES_OWN)
    ] = None
    """How a GPU keeps the differences of cge; float16 takes half the memory traffic, for a gradient within 1e-2."""
    max_minutes: MaxMinutes = None
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
            from deepzero.cli.train_execution import run_training  # noqa: PLC0415 - with PyTorch

            return run_training(self, output)
