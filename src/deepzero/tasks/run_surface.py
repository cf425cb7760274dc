"""The loss around the weights of a run: kept in its folder, and shown by ``deepzero report``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from deepzero import validation
from deepzero.doctor.surface import loss_surface
from deepzero.errors import RunFolderError
from deepzero.files import read_from
from deepzero.losses import LOSSES
from deepzero.objective import Batch, NetworkObjective
from deepzero.report.run_pages import SURFACE
from deepzero.tasks.classification import from_record
from deepzero.tasks.classification.classifier_setup import set_up
from deepzero.tasks.classification.coordinate_selection import Ratios
from deepzero.tasks.task_data import read_data
from deepzero.training import RunFolder, read_record
from deepzero.training.checkpoint_contents import selected
from deepzero.training.run_folder import RATIOS_FILE, SUMMARY, settings_from


@dataclass(frozen=True)
class SurfaceCenter:
    """The weights around which a surface is measured, with the loss and the gradient there.

    Attributes:
        objective: the network at the weights, in train mode, with the run's loss.
        batch: the first batch of the run.
        gradient: the run's own estimate there, by parameter name.
        queries: function values that it took.
        weights: their origin in words.
    """

    objective: NetworkObjective
    batch: tuple[Any, ...]
    gradient: dict[str, Tensor]
    queries: int
    weights: str


def surface(
    path: Path,
    *,
    data_dir: str | Path | None = None,
    device: str = "cpu",
    radius: float | None = None,
    points: int = 21,
    seed: int = 0,
    tell: Callable[[int, int], None] = lambda _done, _all: None,
) -> dict[str, Any]:
    """Measure the loss around the weights of a run, and keep it in its folder as ``surface.json``.

    The weights are the selected ones of a run that has finished, else those of its last checkpoint. The loss is that of
    the run's first batch, in train mode, and the gradient is what the run's own estimator finds there.

    Args:
        path: folder of the run.
        data_dir: where the data set lies, see :func:`deepzero.data.load`.
        device: ``cpu``, ``cuda`` or ``cuda:1``.
        radius: see :func:`deepzero.doctor.surface.loss_surface`, as the next three.
        points: along each axis.
        seed: of the random direction.
        tell: called with the number of queries done, and of all.

    Raises:
        RunFolderError: the folder holds no run of ``deepzero train``, or no weights yet.
        DataNotFoundError: the data set is not there.
        InvalidInputError: an argument is out of its domain.
    """
    record = read_record(path)
    if "data" not in record["config"]:
        raise RunFolderError(
            f"a loss surface can be drawn of runs of recipes and configurations of deepzero train only, and the run in "
            f"{path} is of another kind; leave out --surface"
        )
    center = _center(RunFolder(path, record), data_dir, device)
    found = loss_surface(
        center.objective, center.batch, center.gradient, radius=radius, points=points, seed=seed, tell=tell
    )
    values = {
        **asdict(found),
        "batch": len(center.batch[-1]),
        "gradient_queries": center.queries,
        "seed": seed,
        "weights": center.weights,
    }
    RunFolder(path, record).write(SURFACE, values)
    return values


def _center(folder: RunFolder, data_dir: str | Path | None, device: str) -> SurfaceCenter:
    with settings_from(folder.path):
        config = from_record(folder.record["config"])
    weights, words = _weights(folder)
    splits = read_data(config.data, data_dir)
    ratios = folder.read(RATIOS_FILE)
    known = None if ratios is None else Ratios.from_file(folder.path / RATIOS_FILE, ratios)
    setup = set_up(config, splits.train, validation.device(device), known=known)
    model, source = setup.model, setup.source
    with read_from(folder.path, advice="start the run again with another --out"):
        model.load_state_dict(dict(weights))
    batch = setup.batches.batch(0, 0)
    before = source.queries
    source.backward(*batch)
    gradient = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.load_state_dict(dict(weights))  # buffers as they were
    objective = NetworkObjective(model, LOSSES[config.loss])
    return SurfaceCenter(objective, Batch(batch), gradient, source.queries - before, words)


def _weights(folder: RunFolder) -> tuple[Mapping[str, Tensor], str]:
    if (summary := folder.read_summary()) is not None:
        with read_from(folder.path / SUMMARY, advice=folder.written_again):
            return folder.read_weights(), f"the selected weights, of epoch {summary['selected_epoch'] + 1}"
    store = folder.checkpoints()
    if not store.paths():
        raise RunFolderError(f"{folder.path} holds no weights yet: wait for its first checkpoint")
    checkpoint = store.load().checkpoint
    return selected("model", checkpoint.tensors), f"the weights of step {checkpoint.step}"
