"""``deepzero doctor``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from deepzero.cli.options import RECIPES_OWN, Folder, Json, Quiet, Real, Whole
from deepzero.cli.output import Output
from deepzero.errors import RunFolderError

UNHEALTHY = 1
"""Exit code if a finding is an error: the run cannot work as it is."""


@dataclass(frozen=True)
class Doctor:
    """Examine what a run of a recipe would do, before it is run.

    Is the objective deterministic? Which operations have difference rules? Which step size? How close is the estimate
    to autograd? How long, how much memory, and what dominates? Exits with code 1 if a run could not work.
    """

    recipe: Positional[Annotated[str | None, arg(metavar="RECIPE", help_behavior_hint="(default: digits)")]] = None
    """Name of a recipe."""
    estimator: Annotated[Literal["cge", "rge"] | None, arg(metavar="{cge,rge}", help_behavior_hint=RECIPES_OWN)] = None
    """Coordinate-wise (cge) or random (rge) finite differences."""
    sparsity: Real = None
    """Part of the weights that is not queried at a step, in [0, 1)."""
    step_size: Real = None
    """Step of the finite difference."""
    queries: Whole = None
    """Random directions a step, for rge."""
    learning_rate: Real = None
    """Peak learning rate."""
    epochs: Whole = None
    """Passes over the training images."""
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
    """Folder for the report and the plot (default: runs/<recipe>-doctor); an earlier diagnosis there is replaced."""
    device: str = "cpu"
    """Where to compute: cpu, cuda or cuda:<number>."""
    seconds: float = 20.0
    """About how long each part of the examination may take; large networks are sampled more thinly."""
    quiet: Quiet = False
    json: Json = False

    def run(self, output: Output) -> int:
        """Examine, print the diagnosis, and write it."""
        from deepzero.recipes import SETTINGS, started  # noqa: PLC0415 - with PyTorch
        from deepzero.recipes.runs import ROOT  # noqa: PLC0415
        from deepzero.tasks import diagnosis  # noqa: PLC0415

        settings: dict[str, Any] = {name: getattr(self, name) for name in SETTINGS if hasattr(self, name)}
        start = started(self.recipe, settings, self.out)
        config = start.config
        folder = self.out or ROOT / f"{start.recipe}-doctor"
        if folder.exists() and not folder.is_dir():
            raise RunFolderError(f"--out must be a folder, but {folder} is a file; choose another --out")
        found = diagnosis.diagnose(config, data_dir=self.data_dir, device=self.device, seconds=self.seconds)
        diagnosis.write(found, folder, config)
        output.result(found, folder=folder, healthy=found.healthy)
        output.console.print(f"report and plot: {folder}", soft_wrap=True)
        return 0 if found.healthy else UNHEALTHY
