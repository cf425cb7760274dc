"""``deepzero doctor``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.console import Console
from tyro.conf import FlagCreatePairsOff, Positional, arg

from deepzero import doctor
from deepzero.cli.train import RECIPES_OWN, Folder, Real, Whole
from deepzero.doctor import Diagnosis
from deepzero.errors import InvalidInputError, RunFolderError
from deepzero.estimator import CGE, RGE, Estimator
from deepzero.objective import BlackBox
from deepzero.own import called, imported, is_own, settings_of
from deepzero.recipes import SETTINGS, customize, started
from deepzero.recipes.runs import ROOT
from deepzero.tasks import diagnosis
from deepzero.tasks.config import ClassificationConfig
from deepzero.training import Trainer

UNHEALTHY = 1
"""Exit code if a finding is an error: the run cannot work as it is."""
CHOICES = ("estimator", "step_size", "queries", "seed", "learning_rate")
"""Options that a black box has in common with a recipe."""
OF_BLACK_BOXES = ("max_queries", "run_steps", "budget", "price_per_query")
WANTED = (
    "a dz.BlackBox, a function with the array it starts from (return fn, x0), an estimator (alone, or with its batch: "
    "return zo, x, y), a dz.Trainer, or a ClassificationConfig"
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
    set: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE", help_behavior_hint="")] = ()
    """Arguments of a function of one's own."""
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
    device: str = "cpu"
    """Where to compute: cpu, cuda or cuda:<number>."""
    seconds: float = 20.0
    """About how long each part of the examination may take; large networks are sampled more thinly."""
    json: FlagCreatePairsOff[bool] = False
    """Print the report as one JSON object on standard output, and nothing else there."""

    def run(self, console: Console) -> int:
        """Examine, print the diagnosis, and write it."""
        if self.json:
            console.stderr = True  # messages, too
        name = "digits" if self.recipe is None else self.recipe
        folder = self.out or ROOT / f"{_stem(name)}-doctor"
        if folder.exists() and not folder.is_dir():
            raise RunFolderError(f"--out must be a folder, but {folder} is a file; choose another --out")
        if is_own(name):
            found, config, title = self._own(name)
        else:
            self._require_no_effectless("a recipe", ("set", *OF_BLACK_BOXES))
            found, config, title = self._configured(started(self.recipe, self._settings(), self.out).config)
        if self.json:
            sys.stdout.write(json.dumps(diagnosis.record_of(found, config), allow_nan=False) + "\n")
        else:
            console.print(found)
        diagnosis.write(found, folder, config, title=title)
        console.print(f"report and plot: {folder}", soft_wrap=True)
        return 0 if found.healthy else UNHEALTHY

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in SETTINGS if hasattr(self, name)}

    def _configured(self, config: ClassificationConfig) -> tuple[Diagnosis, dict[str, Any], str]:
        found = diagnosis.diagnose(config, data_dir=self.data_dir, device=self.device, seconds=self.seconds)
        return found, asdict(config), f"{config.model.name} on {config.data.name}"

    def _own(self, word: str) -> tuple[Diagnosis, dict[str, Any], str]:
        """Examine what a function of the user's own returns."""
        settings = settings_of(self.set)
        made = called(imported(word), settings)
        if isinstance(made, ClassificationConfig):
            self._require_no_effectless("a recipe", OF_BLACK_BOXES)
            return self._configured(customize(made, **self._settings()))
        config = {"own": word, "set": settings, **{n: getattr(self, n) for n in (*CHOICES, *OF_BLACK_BOXES)}}
        if isinstance(made, Trainer):
            self._require_no_effectless("a trainer, which has its own", self._all_but("seconds"))
            return diagnosis.diagnose_trainer(made, seconds=self.seconds), config, word
        zo, batch = self._estimator(made, word)
        found = doctor.examine(
            zo,
            *batch,
            learning_rate=self.learning_rate,
            seconds=self.seconds,
            max_queries=self.max_queries,
            run_steps=self.run_steps,
            budget=self.budget,
            price_per_query=self.price_per_query,
        )
        return found, config, word

    def _estimator(self, made: Any, word: str) -> tuple[Estimator, tuple[Any, ...]]:
        """The estimator of what a function returned, and its batch."""
        first, *rest = made if isinstance(made, tuple) and made else (made,)
        if isinstance(first, Estimator):
            self._require_no_effectless(
                "an estimator, which has its own", self._all_but("seconds", "learning_rate", *OF_BLACK_BOXES)
            )
            return first, tuple(rest)
        if callable(first) and not isinstance(first, BlackBox) and rest:
            first, *rest = BlackBox(first, rest[0]), *rest[1:]
        if not isinstance(first, BlackBox):
            raise InvalidInputError(f"{word} must return {WANTED}; it returns a {type(first).__name__}")
        self._require_no_effectless("a black box", self._all_but("seconds", *CHOICES, *OF_BLACK_BOXES))
        if self.estimator != "rge" and self.queries is not None:
            raise InvalidInputError("--queries has no effect without --estimator rge; leave it out, or add that")
        options: dict[str, Any] = {"step_size": self.step_size, "seed": self.seed or 0}
        if self.estimator == "rge":
            options |= {} if self.queries is None else {"queries": self.queries}
            return RGE(first, **options), tuple(rest)
        return CGE(first, **options), tuple(rest)

    def _all_but(self, *kept: str) -> tuple[str, ...]:
        """Options that shape what is examined, but for those kept."""
        names = (*SETTINGS, "data_dir", "device", *OF_BLACK_BOXES)
        return tuple(name for name in names if hasattr(self, name) and name not in kept)

    def _require_no_effectless(self, examined: str, names: tuple[str, ...]) -> None:
        """Raise if an option is given that changes nothing."""
        defaults = type(self)()
        given = [f"--{n.replace('_', '-')}" for n in names if getattr(self, n) != getattr(defaults, n)]
        if given:
            raise InvalidInputError(f"{', '.join(given)} has no effect on {examined}; leave it out")


def _stem(name: str) -> str:
    """A name for the folder of a report."""
    return Path(name.partition(":")[0]).stem if ".py" in name else name.replace(":", "-")
