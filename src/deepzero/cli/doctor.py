"""``deepzero doctor``."""

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
    OwnConfig,
    OwnData,
    OwnModel,
    Queries,
    Quiet,
    Seed,
    Settings,
    Sparsity,
    StepSize,
    Target,
    TestPart,
)


@dataclass(frozen=True)
class Doctor:
    """Examine what a run would do, before it is run: of a recipe, or of a black box or trainer of one's own.

    Is the objective deterministic? Which operations have difference rules? Which step size? How close is the estimate
    to autograd? How long, how much memory, what price? The verdict is the first line; the exit code is 1 if it is "not
    fit".
    """

    recipe: Positional[Annotated[str | None, arg(metavar="RECIPE", help_behavior_hint="(default: digits)")]] = None
    """Name of a recipe; or file.py:function or module:function, which returns what to examine."""
    config: OwnConfig = None
    data: OwnData = None
    target: Target = None
    image_size: ImageSize = None
    test: TestPart = None
    model: OwnModel = None
    set: Settings = ()
    estimator: Annotated[Literal["cge", "rge"] | None, arg(metavar="{cge,rge}", help_behavior_hint=RECIPES_OWN)] = None
    """Coordinate-wise (cge) or random (rge) finite differences."""
    sparsity: Sparsity = None
    step_size: StepSize = None
    queries: Queries = None
    learning_rate: LearningRate = None
    epochs: Epochs = None
    batch_size: BatchSize = None
    depth: Depth = None
    limit: Limit = None
    seed: Seed = None
    data_dir: DataDir = None
    max_queries: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 128)")] = None
    """Queries of a black box that the examination may make."""
    run_steps: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 100)")] = None
    """Steps of a run of a black box, to forecast its time and price."""
    budget: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Queries that a run of a black box may take, in place of --run-steps."""
    price_per_query: Annotated[float | None, arg(metavar="X", help_behavior_hint="")] = None
    """Price of a query of a black box."""
    out: Folder = None
    """Folder for the report and the plot (default: runs/<recipe>-doctor); an earlier diagnosis there is replaced."""
    device: Device = "cpu"
    seconds: float = 20.0
    """About how long each part of the examination may take; large networks are sampled more thinly."""
    quiet: Quiet = False
    json: Json = False

    def run(self, output: Output) -> int:
        """Examine, print the diagnosis, and write it."""
        from deepzero.cli.doctor_execution import run_doctor  # noqa: PLC0415 - with PyTorch

        return run_doctor(self, output)
