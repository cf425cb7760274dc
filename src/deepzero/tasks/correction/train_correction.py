"""A correction from its reference simulations to test flows: data, training inside of the solver, evaluation."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from rich.console import Console
from torch import Tensor, nn

from deepzero.errors import InvalidInputError, RunFolderError
from deepzero.files import finite, json_object, replace_file, to_json
from deepzero.models import FlowCorrector
from deepzero.randomness import derive_seed, seeded_scope
from deepzero.report.correction_pages import ERRORS, FIELDS
from deepzero.tasks.correction import correction_config as names
from deepzero.tasks.correction.correction_config import CorrectionConfig, from_record
from deepzero.tasks.correction.correction_methods import FlowBatches, Method, make_network, ratios_of, surroundings
from deepzero.tasks.correction.flow_errors import Rollouts, roll_out
from deepzero.tasks.correction.reference_flows import Reference, reference
from deepzero.tasks.correction.wake import Flows, WakeFlow
from deepzero.tasks.training_stage import StageConfig, StagedRun, StoppedError, opened, trained
from deepzero.training import RunFolder, StopRequest, hardware, read_record, require_made_by, versions
from deepzero.training.checkpoint_contents import snapshot
from deepzero.training.progress import counting
from deepzero.training.run_folder import writing

TRAINING = "training"
SNAPSHOTS, RATIOS = "snapshots", "ratios.json"
CHECKS = 8
"""Batches that the checks of a first step may take."""
PARTS = 4
"""Equal parts of the training, after each of which the network is kept for the curve of the error."""


def correct(
    config: CorrectionConfig,
    *,
    out: str | Path,
    resume: bool = False,
    data_dir: str | Path | None = None,
    max_seconds: float | None = None,
    console: Console | None = None,
) -> StagedRun:
    """Train a network that corrects a coarse solver, by one of :data:`~deepzero.tasks.correction.METHODS`.

    Reference simulations are made first, if they are not on disk. At the end the test flows are simulated with the
    network, with the networks of three earlier points of the training, and without any.

    Args:
        config: all that the result depends on.
        out: a folder that is empty or not there; with ``resume``, that of a run with the same ``config``.
        resume: go on with an interrupted run.
        data_dir: where reference simulations are kept; by default ``$DEEPZERO_DATA/wake-flow``, else
            ``data/wake-flow``.
        max_seconds: stop after about so long, with everything saved.
        console: where to show progress.

    Raises:
        InvalidInputError: PhiFlow is not installed, or the budget is below one step.
        RunFolderError: the folder holds another run.
    """
    path = Path(out)
    record = {"correction": asdict(config)}
    flow = WakeFlow(config.flow.resolution, tolerance=config.flow.tolerance)
    run = opened(path, config=record, notes={}, resume=resume)
    if run.summary is not None:
        return StagedRun(path, run.summary)
    with StopRequest(max_seconds=max_seconds) as stop:
        try:
            with counting(console, "reference simulations, step") as tell:
                frames = reference(config.flow, data_dir=data_dir, stop=stop, progress=tell)
            work = _Work(config, flow, frames, path, stop, console)
            summary = work.summary(run)
        except StoppedError as stopped:
            return StagedRun(path, None, str(stopped))
    run.write("summary.json", finite(summary))
    return StagedRun(path, finite(summary))


def settings_of(folder: Path) -> CorrectionConfig:
    """The configuration of a run.

    Raises:
        RunFolderError: the folder holds no correction.
    """
    record = read_record(folder)
    require_made_by(folder, record, "correct")
    return from_record(record["config"]["correction"])


def load_network(folder: Path) -> FlowCorrector:
    """The network of a run that has finished.

    Raises:
        RunFolderError: the folder holds no correction that has finished, or one that trained nothing.
    """
    config = settings_of(folder)
    run = RunFolder.reopen(folder, config={"correction": asdict(config)})
    if run.summary is None or config.method == names.SRC:
        raise RunFolderError(
            f"{folder} holds no trained network; make one with `deepzero correct`, or go on with "
            f"`deepzero correct --resume --out {folder}`"
        )
    network = _unfilled(config)
    network.load_state_dict(run.read_weights())
    return network.eval()


def _unfilled(config: CorrectionConfig) -> FlowCorrector:
    """A network whose weights are about to be loaded; the global generator stays where it is."""
    with seeded_scope(config.seed, torch.device("cpu")):
        return FlowCorrector(widths=config.widths)


@dataclass(frozen=True)
class _Work:
    """A run while it goes on."""

    config: CorrectionConfig
    flow: WakeFlow
    reference: Reference
    folder: Path
    stop: StopRequest
    console: Console | None

    def summary(self, run: RunFolder) -> dict[str, Any]:
        """All stages, one after the other."""
        started = time.perf_counter()
        config, network = self.config, None
        if config.method != names.SRC:
            with seeded_scope(derive_seed(config.seed, "weights"), torch.device("cpu")):
                network = make_network(config, self.reference.scales)
            self.train(network)
            run.write_weights(snapshot(network))
        curve, errors = self.evaluate(network)
        mae = errors["mae"]
        return {
            "method": config.method,
            "mae": _mean(mae),
            "spread": statistics.stdev(mae) if len(mae) > 1 and None not in mae else None,
            "source_mae": _mean(errors["source_mae"]),
            "parameters": 0 if network is None else sum(p.numel() for p in network.parameters()),
            "solver_calls": curve[-1]["solver_calls"] if curve else 0,
            "skipped": curve[-1]["skipped"] if curve else 0,
            "curve": curve,
            "training_seconds": curve[-1]["seconds"] if curve else 0.0,
            "seconds": round(time.perf_counter() - started, 3),
            "seed": config.seed,
            "versions": versions(),
            "hardware": hardware(torch.device("cpu")),
            "config": run.record["config"],
        }

    # Training ---------------------------------------------------------------------------------------------------------

    def train(self, network: FlowCorrector) -> None:
        """Train the network in its surroundings."""
        config = self.config
        ratios, ranking = self.ratios(network)
        work = surroundings(config, network, self.flow, self.reference, ratios)
        steps = config.steps
        if config.budget is not None and config.method in names.QUERYING:
            steps = max(0, config.budget - ranking - CHECKS * config.batch_size * config.unroll) // work.calls
            if steps < 1:
                raise InvalidInputError(
                    f"a step of {config.method} takes {work.calls:,} solver calls, and its checks some more, which a "
                    f"budget of {config.budget:,} does not allow; give a larger budget, a shorter unroll, or a higher "
                    "sparsity"
                )
        parts = min(PARTS, steps)
        stage = StageConfig(
            learning_rate=config.learning_rate,
            batch_size=config.batch_size,
            steps=steps // parts * parts,
            schedule=config.schedule,
        )
        reason = trained(
            self.folder / TRAINING,
            {"config": asdict(config)},
            model=work.model,
            kept=network,
            source=work.source,
            batches=self.batches(work, steps // parts),
            stage=stage,
            stop=self.stop,
            console=self.console,
            epochs=parts,
            more=[_Snapshots(self.folder / SNAPSHOTS, network, work)],
        )
        if reason is not None:
            raise StoppedError(reason)
        ended = json_object(self.folder / TRAINING / "summary.json")
        if ended["steps"] not in [point["step"] for point in _points(self.folder)]:  # the budget was spent before
            _Snapshots(self.folder / SNAPSHOTS, network, work).write({"kind": "epoch", "step": ended["steps"], **ended})

    def batches(self, work: Method, steps: int) -> FlowBatches:
        """Those of the method."""
        config, frames = self.config, self.reference
        advanced = None
        if config.method == names.NON:
            count, total = frames.training.shape[:2]
            given = frames.training[:, :-1].flatten(0, 1)
            numbers = frames.training_reynolds.repeat_interleave(total - 1, 0)
            advanced = self.flow.step(given, numbers).unflatten(0, (count, total - 1))
        return FlowBatches(
            frames=frames.training,
            reynolds=frames.training_reynolds,
            unroll=work.unroll,
            size=config.batch_size,
            steps=steps,
            seed=derive_seed(config.seed, "batches"),
            advanced=advanced,
        )

    def ratios(self, network: FlowCorrector) -> tuple[dict[str, float], int]:
        """Which part of each weight a step of ``zo-sol`` takes; found once, and kept."""
        path = self.folder / RATIOS
        if self.config.method not in (names.ZO_SOL, names.ZO_SOL_RGE):
            return {}, 0
        if not path.exists():
            starts = Flows(self.reference.training[:, 0], self.reference.training_reynolds)
            following = self.reference.training[:, 1 : 1 + self.config.unroll]
            found, calls = ratios_of(self.config, network, self.flow, self.reference, (starts, following))
            replace_file(path, to_json({"keep": found, "solver_calls": calls}))
        kept = json_object(path)
        return kept["keep"], kept["solver_calls"]

    # Evaluation -------------------------------------------------------------------------------------------------------

    def evaluate(self, network: FlowCorrector | None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Test flows with the network, with those of earlier points, and without any: curve, and errors at its end."""
        points = [] if network is None else _points(self.folder)
        correctors: list[nn.Module | None] = [self.network_at(point["step"]) for point in points]
        shown = len(self.config.flow.test) // 2
        with counting(self.console, "test flows, step") as tell:
            found = roll_out([*correctors, None], self.flow, self.reference, shown=shown, told=tell)
        last, source = max(0, len(correctors) - 1), len(correctors)
        maes = [found.mae(k) for k in range(len(correctors) + 1)]
        errors: dict[str, Any] = {
            "reynolds": list(self.config.flow.test),
            "mae": maes[last],
            "source_mae": maes[source],
            "by_step": found.errors[last].double().mean(0).tolist(),
            "source_by_step": found.errors[source].double().mean(0).tolist(),
        }
        errors = finite(errors)
        replace_file(self.folder / ERRORS, to_json(errors))
        self.keep_fields(found, last, source)
        curve = [
            {
                "step": point["step"],
                "solver_calls": point["queries"],
                "seconds": point["seconds"],
                "skipped": point["skipped"],
                "training_loss": point.get("training_loss"),
                "mae": _mean(mae),
            }
            for point, mae in zip(points, maes, strict=False)
        ]
        return curve, errors

    def network_at(self, step: int) -> FlowCorrector:
        """The network as it was at an earlier step."""
        network = _unfilled(self.config)
        network.load_state_dict(safetensors.torch.load_file(_snapshot_path(self.folder / SNAPSHOTS, step)))
        return network.eval()

    def keep_fields(self, found: Rollouts, last: int, source: int) -> None:
        """Vorticity of one flow, for pictures."""
        tensors: dict[str, Tensor] = {
            "source": found.fields[source].clone(),
            "corrected": found.fields[last].clone(),
            "reference": found.fields[-1].clone(),
            "times": torch.tensor(found.times),
        }
        with writing(self.folder):
            replace_file(self.folder / FIELDS, safetensors.torch.save(tensors))


def _mean(values: Sequence[float | None]) -> float | None:
    """None where a simulation has blown up."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return statistics.fmean(known) if len(known) == len(values) else None


@dataclass(frozen=True)
class _Snapshots:
    """Keeps the network at the end of every part of the training, with where it was."""

    folder: Path
    network: nn.Module
    work: Method

    def write(self, record: Mapping[str, Any]) -> None:
        """Look out for the end of an epoch."""
        if record["kind"] != "epoch":
            return
        with writing(self.folder):
            self.folder.mkdir(exist_ok=True)
            replace_file(_snapshot_path(self.folder, record["step"]), safetensors.torch.save(snapshot(self.network)))
            replace_file(self.folder / f"{record['step']:08d}.json", to_json({**record, "skipped": self.work.skipped}))

    def close(self) -> None:
        """Nothing is open."""


def _snapshot_path(folder: Path, step: int) -> Path:
    return folder / f"{step:08d}.safetensors"


def _points(folder: Path) -> list[dict[str, Any]]:
    return [json_object(path) for path in sorted((folder / SNAPSHOTS).glob("*.json"))]
