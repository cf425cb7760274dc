"""A correction from its reference simulations to test flows: data, training inside of the solver, evaluation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from rich.console import Console
from torch import Tensor, nn

from deepzero.errors import InvalidInputError, RunFolderError
from deepzero.files import json_object, read_from, replace_file, tensor_bytes, tensors_in, to_json
from deepzero.models import FlowCorrector
from deepzero.randomness import derive_seed, seeded_scope
from deepzero.tasks.correction import correction_config as names
from deepzero.tasks.correction.correction_config import CorrectionConfig, from_record
from deepzero.tasks.correction.correction_methods import (
    FlowBatches,
    Method,
    layer_shares,
    make_network,
    surroundings,
)
from deepzero.tasks.correction.flow_errors import mean_error, roll_out
from deepzero.tasks.correction.reference_flows import Reference, reference
from deepzero.tasks.correction.wake import Flows, WakeFlow
from deepzero.tasks.staged_run import Stage, StagedRun, concluded, existing_run, new_run, stop_request
from deepzero.tasks.task_config import StageConfig
from deepzero.training import RunFolder, StopRequest, read_record, require_made_by
from deepzero.training.checkpoint_contents import snapshot
from deepzero.training.progress import counting
from deepzero.training.run_folder import CHECKSUMS, RATIOS_FILE, SUMMARY, checksum, resumed_by, settings_from, writing

TRAINING = "training"
SNAPSHOTS = "snapshots"
AGAIN = "put it back as it was, or start the run again with another --out"
"""Advice for a file of the training that cannot be read."""
POINT = ("step", "queries", "seconds", "skipped")
"""Numbers in the record of a snapshot."""
CHECKSUM = "weights_sha256"
"""Key of a snapshot's checksum in its record."""
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
        data_dir: folder of the reference simulations; by default ``$DEEPZERO_DATA/wake-flow``, else
            ``data/wake-flow``.
        max_seconds: stop after about that time, with everything saved.
        console: for progress; None to be silent.

    Raises:
        InvalidInputError: PhiFlow is not installed, or the budget is below one step.
        RunFolderError: the folder holds another run.
    """
    path = Path(out)
    record = {"correction": asdict(config)}
    flow = WakeFlow(config.flow.resolution, tolerance=config.flow.tolerance)
    run = existing_run(path, config=record, resume=resume) or new_run(path, config=record)
    stop = stop_request(max_seconds)
    with run:
        if (summary := run.read_summary()) is not None:
            return StagedRun(path, summary)

        def work() -> dict[str, Any]:
            with counting(console, "reference simulations, step") as progress:
                frames = reference(config.flow, data_dir=data_dir, stop=stop, progress=progress)
            run.keep_input("the reference simulations", frames.to_bytes())
            return _Correction(config, flow, frames, run, stop, console).result()

        return concluded(run, stop, work)


def settings_of(folder: Path) -> CorrectionConfig:
    """The configuration of a run.

    Raises:
        RunFolderError: the folder holds no correction.
    """
    record = read_record(folder)
    require_made_by(folder, record, "correct")
    with settings_from(folder):
        return from_record(record["config"]["correction"])


def load_network(folder: Path) -> FlowCorrector:
    """The network of a run that has finished.

    Raises:
        RunFolderError: the folder holds no correction that has finished, or one that trained nothing.
    """
    config = settings_of(folder)
    run = RunFolder.reopen(folder, config={"correction": asdict(config)})
    if run.read_summary() is None or config.method == names.SRC:
        raise RunFolderError(
            f"{folder} holds no trained network; make one with `deepzero correct`, or go on with `{resumed_by(run)}`"
        )
    with read_from(run.weights, advice="put it back as it was, or train again"):
        return _network_of(config, run.read_weights())


def _network_of(config: CorrectionConfig, weights: Mapping[str, Tensor]) -> FlowCorrector:
    """A network with stored weights; the global generator stays where it is."""
    with seeded_scope(config.seed, torch.device("cpu")):
        network = FlowCorrector(widths=config.widths)
    network.load_state_dict(dict(weights))
    return network.eval()


@dataclass(frozen=True)
class _Correction:
    """The training and the evaluation of a run."""

    config: CorrectionConfig
    flow: WakeFlow
    reference: Reference
    run: RunFolder
    stop: StopRequest
    console: Console | None

    @property
    def snapshots(self) -> Path:
        """Folder of the networks at the ends of the parts of the training."""
        return self.run.path / SNAPSHOTS

    def result(self) -> dict[str, Any]:
        """Train, evaluate, and return their part of the summary."""
        started = time.perf_counter()
        config, network = self.config, None
        if config.method != names.SRC:
            with seeded_scope(derive_seed(config.seed, "weights"), torch.device("cpu")):
                network = make_network(config.widths, config.start, self.reference.scales)
            self.train(network)
            self.run.write_weights(snapshot(network))
        curve, errors = self.evaluate(network)
        mae = errors["mae"]
        return {
            "method": config.method,
            "mae": mean_error(mae),
            "spread": statistics.stdev(mae) if len(mae) > 1 and None not in mae else None,
            "source_mae": mean_error(errors["source_mae"]),
            "parameters": 0 if network is None else sum(p.numel() for p in network.parameters()),
            "solver_calls": curve[-1]["solver_calls"] if curve else 0,
            "skipped": curve[-1]["skipped"] if curve else 0,
            "curve": curve,
            "training_seconds": curve[-1]["seconds"] if curve else 0.0,
            "seconds": round(time.perf_counter() - started, 3),
            "seed": config.seed,
        }

    # Training ---------------------------------------------------------------------------------------------------------

    def train(self, network: FlowCorrector) -> None:
        """Train the network in its surroundings."""
        config = self.config
        ratios, ranking = self.ratios(network)
        method = surroundings(config, network, self.flow, self.reference, ratios)
        steps = self.steps(method, ranking)
        parts = min(PARTS, steps)
        kept = _Snapshots(self.snapshots, network, method)
        Stage(
            folder=self.run.path / TRAINING,
            run=self.run,
            settings={"config": asdict(config)},
            config=StageConfig(
                learning_rate=config.learning_rate,
                batch_size=config.batch_size,
                steps=steps // parts * parts,
                schedule=config.schedule,
            ),
            model=method.model,
            kept=network,
            source=method.source,
            batches=self.batches(method, steps // parts),
            epochs=parts,
            loggers=[kept],
        ).train(self.stop, self.console)
        self.run.keep_input("the trained network", safetensors.torch.save(snapshot(network)))
        path = self.run.path / TRAINING / SUMMARY
        ended = json_object(path, advice=AGAIN)
        if type(ended.get("steps")) is not int:
            raise RunFolderError(f"{path} is damaged: it has no number of steps; {AGAIN}")
        if ended["steps"] not in [point["step"] for point in self.points()]:  # the budget was spent before
            ended.pop(CHECKSUMS, None)
            kept.write({"kind": "epoch", "step": ended["steps"], **ended})

    def steps(self, method: Method, ranking: int) -> int:
        """Steps of the training, within the budget if there is one.

        Args:
            method: gives the solver calls of a step.
            ranking: solver calls that were spent before.
        """
        config = self.config
        if config.budget is None or config.method not in names.QUERYING:
            return config.steps
        checks = CHECKS * config.batch_size * config.unroll
        steps = max(0, config.budget - ranking - checks) // method.calls
        if steps < 1:
            raise InvalidInputError(
                f"a step of {config.method} takes {method.calls:,} solver calls, and its checks some more, which a "
                f"budget of {config.budget:,} does not allow; give a larger budget, a shorter unroll, or a higher "
                "sparsity"
            )
        return steps

    def batches(self, method: Method, steps: int) -> FlowBatches:
        """Batches of the method."""
        config, frames = self.config, self.reference
        advanced = None
        if config.method == names.NON:
            count, total = frames.training.shape[:2]
            before = frames.training[:, :-1].flatten(0, 1)
            numbers = frames.training_reynolds.repeat_interleave(total - 1, 0)
            advanced = self.flow.step(before, numbers).unflatten(0, (count, total - 1))
        return FlowBatches(
            frames=frames.training,
            reynolds=frames.training_reynolds,
            unroll=method.unroll,
            size=config.batch_size,
            steps=steps,
            seed=derive_seed(config.seed, "batches"),
            advanced=advanced,
        )

    def ratios(self, network: FlowCorrector) -> tuple[dict[str, float], int]:
        """Part of each weight that a step of ``zo-sol`` takes, and the solver calls to find it; made once, kept."""
        if self.config.method not in names.WEIGHTS:
            return {}, 0
        kept = self.run.read(RATIOS_FILE)
        if kept is None:
            starts = Flows(self.reference.training[:, 0], self.reference.training_reynolds)
            following = self.reference.training[:, 1 : 1 + self.config.unroll]
            keep, calls = layer_shares(self.config, network, self.flow, self.reference.scales, (starts, following))
            kept = {"keep": keep, "solver_calls": calls}
            self.run.write(RATIOS_FILE, kept)
        with read_from(self.run.path / RATIOS_FILE, advice=AGAIN):
            shares = {name: float(share) for name, share in kept["keep"].items()}, int(kept["solver_calls"])
        self.run.keep_input(RATIOS_FILE, kept)
        return shares

    # Evaluation -------------------------------------------------------------------------------------------------------

    def evaluate(self, network: FlowCorrector | None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Test flows with the network, with those of earlier points, and without any: curve, and errors at its end."""
        points = [] if network is None else self.points()
        networks = [self.network_at(point) for point in points]
        shown = len(self.config.flow.test) // 2
        with counting(self.console, "test flows, step") as progress:
            rollouts = roll_out([*networks, None], self.flow, self.reference, shown=shown, progress=progress)
        errors = rollouts.keep(self.run.path, self.config.flow.test)
        curve = [
            {
                "step": point["step"],
                "solver_calls": point["queries"],
                "seconds": point["seconds"],
                "skipped": point["skipped"],
                "training_loss": point.get("training_loss"),
                "mae": mean_error(rollouts.mae(k)),
            }
            for k, point in enumerate(points)
        ]
        return curve, errors

    def points(self) -> list[dict[str, Any]]:
        """Records of the snapshots, in the order of their steps."""
        found = {path: json_object(path, advice=AGAIN) for path in sorted(self.snapshots.glob("*.json"))}
        for path, record in found.items():
            if odd := [name for name in POINT if type(record.get(name)) not in (int, float)]:
                raise RunFolderError(f"{path} is damaged: it has no number of {odd[0]}; {AGAIN}")
        return list(found.values())

    def network_at(self, point: Mapping[str, Any]) -> FlowCorrector:
        """The network as it was at an earlier step, by the record of its snapshot."""
        path = _snapshot_path(self.snapshots, point["step"])
        with read_from(path, advice=AGAIN):
            weights = tensor_bytes(path)
            if point.get(CHECKSUM, checksum(weights)) != checksum(weights):
                raise RunFolderError(f"{path} has changed since it was written; start the run again with another --out")
            return _network_of(self.config, tensors_in(weights))


@dataclass(frozen=True)
class _Snapshots:
    """Keeps the network at the end of every part of the training, with its record."""

    folder: Path
    network: nn.Module
    method: Method

    def write(self, record: Mapping[str, Any]) -> None:
        """Keep the network if the record is of the end of an epoch."""
        if record["kind"] != "epoch":
            return
        with writing(self.folder):
            self.folder.mkdir(exist_ok=True)
            weights = safetensors.torch.save(snapshot(self.network))
            replace_file(_snapshot_path(self.folder, record["step"]), weights)
            point = {**record, "skipped": self.method.skipped, CHECKSUM: checksum(weights)}
            replace_file(self.folder / f"{record['step']:08d}.json", to_json(point))

    def close(self) -> None:
        """Nothing is open."""


def _snapshot_path(folder: Path, step: int) -> Path:
    return folder / f"{step:08d}.safetensors"
