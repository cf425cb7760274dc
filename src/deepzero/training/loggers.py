"""Loggers that people know as places for measurements: TensorBoard, Weights & Biases, MLflow.

All of them name a number after the kind of its record, ``step/loss`` or ``epoch/validation_accuracy``, and put it at
the optimizer step. Given the ``folder`` of the run, a resumed run goes on in the same curves and doubles no point. The
packages are optional. Several processes train as one: only one of them may have loggers.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, Literal

from deepzero import validation
from deepzero.errors import InvalidInputError
from deepzero.extras import required_for
from deepzero.files import finite, flat, json_lines, make_folder, read_from, replace_file
from deepzero.training.metrics import Record, Sink
from deepzero.training.run_folder import writing

PROJECT = "deepzero"
"""Name of the project or experiment where none is given."""
FLUSH_SECONDS = 2.0
"""Least time between two calls of MLflow's tracking store, which take long beside a small step, and between two writes
of Weights & Biases' file."""
MLFLOW_BATCH = 1000
"""Most numbers that MLflow takes in one call, by its REST interface."""
MLFLOW_PARAMS = 100
"""Most parameters that MLflow takes in one call."""

log = logging.getLogger("deepzero")


def numbers_of(record: Record) -> dict[str, float]:
    """The numbers of a record under the names that every logger gives them.

    Example:
        >>> numbers_of({"kind": "step", "step": 3, "loss": 0.5, "learning_rate": 0.1, "note": "warm-up"})
        {'step/loss': 0.5, 'step/learning_rate': 0.1}
    """
    numbers = {key: value for key, value in record.items() if key != "step" and isinstance(value, Real)}
    return {f"{record['kind']}/{key}": float(value) for key, value in numbers.items()}


class TensorBoard:
    """Curves for TensorBoard.

    Event files of a run that was killed and is resumed stay; what they hold from the first step on that is written
    again is hidden.

    Args:
        folder: of the event files.
        config: settings of the run, shown as text.

    Raises:
        MissingPackageError: TensorBoard is not installed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sink = TensorBoard(folder, config={"learning_rate": 0.1})
        ...     sink.write({"kind": "step", "step": 1, "queries": 100, "seconds": 0.1, "loss": 2.5})
        ...     sink.close()
        ...     [path.name.split(".")[0] for path in Path(folder).iterdir()]
        ['events']
    """

    def __init__(self, folder: str | Path, *, config: Mapping[str, Any] | None = None) -> None:
        with required_for("the logger tensorboard"):
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - optional
        self._open, self._folder, self._config = SummaryWriter, str(folder), config
        self._writer: Any = None

    def write(self, record: Record) -> None:
        """Add a point to each curve."""
        if self._writer is None:
            self._writer = self._open(self._folder, purge_step=record["step"])
            if self._config is not None:
                listing = json.dumps(finite(self._config), indent=2, default=str)
                self._writer.add_text("config", f"```json\n{listing}\n```", record["step"])
        for name, value in numbers_of(record).items():
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()


class WandB:
    """A run of Weights & Biases.

    A run that was resumed offline lies in several folders of one id, to be given to ``wandb sync`` in their order. A
    process that is killed outright loses the points of its last two seconds.

    Args:
        folder: of the run: keeps the run's id, so that a resumed run is the same one there. None: always a new run.
        project: by default ``$WANDB_PROJECT``, or ``deepzero``.
        name: shown for the run; by default the name of ``folder``.
        mode: ``"online"``, ``"offline"`` or ``"disabled"``; by default ``$WANDB_MODE``, or online.
        dir: the files of Weights & Biases go into ``wandb`` in this folder; by default ``folder``.
        config: settings of the run.

    Raises:
        InvalidInputError: ``wandb`` is not installed, or the run cannot be started (nobody is logged in, for one).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sink = WandB(folder, project="digits", mode="offline", config={"learning_rate": 0.1})
        ...     sink.write({"kind": "step", "step": 1, "queries": 100, "seconds": 0.1, "loss": 2.5})
        ...     sink.close()
        ...     len(list(Path(folder, "wandb").glob("offline-run-*")))
        1
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        project: str | None = None,
        name: str | None = None,
        mode: Literal["online", "offline", "disabled"] | None = None,
        dir: str | Path | None = None,  # noqa: A002 - as wandb.init calls it
        config: Mapping[str, Any] | None = None,
    ) -> None:
        with required_for("the logger wandb"):
            import wandb  # noqa: PLC0415 - optional
        if mode is not None:
            validation.choice("mode", mode, ("online", "offline", "disabled"))
        self._kept = Kept(folder, "wandb")
        self._open: list[Record] = []  # of the newest step, which W&B holds back until there is a newer one
        place = dir if dir is not None else folder
        if place is not None:
            with writing(Path(place)):
                make_folder(Path(place))  # or its files would go elsewhere
        try:
            self._run = wandb.init(
                id=self._kept.id or uuid.uuid4().hex[:12],
                resume="allow",
                project=project or os.environ.get("WANDB_PROJECT") or PROJECT,
                name=name or _name_of(folder),
                mode=mode,
                dir=None if place is None else str(place),
                config=None if config is None else dict(config),
                reinit="create_new",
                settings=_wandb_settings(wandb),
            )
        except Exception as error:  # of many kinds: not logged in, no network, another process has the run
            raise InvalidInputError(
                f"Weights & Biases cannot start the run: {error}; try `wandb login`, or mode='offline', which is "
                "WANDB_MODE=offline in the environment"
            ) from error
        self._kept.begin(self._run.id)

    def write(self, record: Record) -> None:
        """Add a point to each curve."""
        if self._kept.has(record):
            return
        if self._open and self._open[0]["step"] < record["step"]:
            self._note()
        self._run.log(numbers_of(record), step=record["step"])
        self._open.append(record)

    def _note(self) -> None:
        for record in self._open:
            self._kept.note(record)
        self._open.clear()

    def close(self) -> None:
        """Finish the run; as failed, if an error is on its way."""
        self._run.finish(exit_code=0 if sys.exc_info()[0] is None else 1)
        self._note()
        self._kept.close()


class MLflow:
    """A run of MLflow.

    Numbers are handed over every two seconds; a process that is killed outright loses those of the last two. If the
    tracking store does not answer, they are kept until it does, and a warning is logged: the training goes on.

    Args:
        folder: of the run: keeps the run's id, so that a resumed run is the same one there. None: always a new run.
        tracking_uri: such as ``"sqlite:///mlflow.db"`` or ``"http://localhost:5000"``; by default MLflow's own
            (``$MLFLOW_TRACKING_URI``).
        experiment: by default ``$MLFLOW_EXPERIMENT_NAME``, or ``deepzero``.
        name: shown for the run; by default the name of ``folder``.
        config: settings of the run; nested ones get dotted names.

    Raises:
        InvalidInputError: ``mlflow`` is not installed, or the run cannot be started.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     memory = "sqlite:///:memory:"
        ...     sink = MLflow(folder, tracking_uri=memory, experiment="digits", config={"learning_rate": 0.1})
        ...     sink.write({"kind": "step", "step": 1, "queries": 100, "seconds": 0.1, "loss": 2.5})
        ...     sink.close()
        ...     sink.client.get_run(sink.run_id).data.metrics["step/loss"]
        2.5
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        tracking_uri: str | None = None,
        experiment: str | None = None,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        with required_for("the logger mlflow"):
            from mlflow import MlflowClient  # noqa: PLC0415 - optional
            from mlflow.exceptions import MlflowException  # noqa: PLC0415
        self._kept = Kept(folder, "mlflow")
        self._failure = MlflowException
        self._waiting: list[tuple[Record, int]] = []
        self._flushed, self._warned = time.monotonic(), False
        try:
            self.client = MlflowClient(tracking_uri=tracking_uri)
            if self._kept.id is not None:
                self.run_id: str = self._kept.id
                self.client.update_run(self.run_id, status="RUNNING")
            else:
                self.run_id = self._new_run(experiment, name or _name_of(folder), config)
        except MlflowException as error:
            raise InvalidInputError(
                f"MLflow cannot start the run: {error}; tracking_uri must name a store that is there, such as "
                "sqlite:///mlflow.db or http://localhost:5000"
            ) from error
        self._kept.begin(self.run_id)

    def _new_run(self, experiment: str | None, name: str | None, config: Mapping[str, Any] | None) -> str:
        from mlflow.entities import Param  # noqa: PLC0415 - optional

        title = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        known = self.client.get_experiment_by_name(title)
        home = known.experiment_id if known is not None else self.client.create_experiment(title)
        run_id: str = self.client.create_run(home, run_name=name).info.run_id
        params = [Param(key, str(value)) for key, value in flat(config or {}).items()]
        for start in range(0, len(params), MLFLOW_PARAMS):
            self.client.log_batch(run_id, params=params[start : start + MLFLOW_PARAMS])
        return run_id

    def write(self, record: Record) -> None:
        """Add a point to each curve, before long."""
        if self._kept.has(record):
            return
        self._waiting.append((record, int(time.time() * 1000)))
        if time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self._flush()

    def _flush(self) -> None:
        """Send the waiting records, as far as the tracking store takes them."""
        from mlflow.entities import Metric  # noqa: PLC0415 - optional

        self._flushed = time.monotonic()
        while self._waiting:
            some = 0
            metrics: list[Metric] = []
            for record, when in self._waiting:
                more = [Metric(key, value, when, record["step"]) for key, value in numbers_of(record).items()]
                if metrics and len(metrics) + len(more) > MLFLOW_BATCH:
                    break
                metrics, some = metrics + more, some + 1
            try:
                self.client.log_batch(self.run_id, metrics=metrics)
            except self._failure as error:
                if not self._warned:
                    log.warning("MLflow does not take measurements now, they are kept and sent later: %s", error)
                self._warned = True
                return
            for record, _ in self._waiting[:some]:
                self._kept.note(record)
            del self._waiting[:some]

    def close(self) -> None:
        """Hand over the rest and end the run: as failed, if an error is on its way."""
        self._flush()
        if self._waiting:
            log.warning(
                "MLflow did not take the last %d records; the metrics file of the run has them", len(self._waiting)
            )
        kind = sys.exc_info()[0]
        status = "FINISHED" if kind is None else "KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED"
        try:
            self.client.set_terminated(self.run_id, status)
        except self._failure as error:
            log.warning("MLflow could not be told that the run has ended: %s", error)
        self._kept.close()


LOGGERS: dict[str, Callable[..., Sink]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}
"""Loggers by the names that a command line has for them."""


def open_logger(name: str, folder: str | Path, *, config: Mapping[str, Any] | None = None) -> Sink:
    """The logger of a run by its name, with its usual settings.

    Call it at the start of a run and again when it is resumed; it finds by itself where it was.

    Args:
        name: ``"tensorboard"`` (event files in ``folder/tensorboard``), ``"wandb"`` or ``"mlflow"``. Project, mode,
            tracking store and experiment are taken from the variables of the environment that these packages know.
        folder: of the run.
        config: settings of the run.

    Raises:
        InvalidInputError: there is no such logger, it is not installed, or it cannot start the run.

    Example:
        >>> open_logger("tensorbord", "run")
        Traceback (most recent call last):
        ...
        deepzero.errors.InvalidInputError: logger must be one of ...; got 'tensorbord' (did you mean tensorboard?)
    """
    validation.choice("logger", name, LOGGERS)
    return LOGGERS[name](Path(folder) / name if name == "tensorboard" else folder, config=config)


class Kept:
    """The memory of a logger in the folder of a run: the run's id, and the last step sent of each kind of record.

    A file of JSON lines, the id first; a line is added after its record was sent.

    Args:
        folder: of the run; None keeps nothing.
        name: of the logger; the file is ``<name>.jsonl``.
    """

    def __init__(self, folder: str | Path | None, name: str) -> None:
        self._path = None if folder is None else Path(folder) / f"{name}.jsonl"
        self._last: dict[str, int] = {}
        self._file: Any = None
        self.id: str | None = None
        if self._path is not None and self._path.exists():
            again = "delete it, and a new run begins there"
            with read_from(self._path, advice=again):
                first, *sent = json_lines(self._path)  # whole lines
                self.id = str(first["id"])
                self._last = {str(line["kind"]): int(line["step"]) for line in sent}

    def begin(self, run: str) -> None:
        """Write the known lines, and leave the file open for more."""
        if self._path is None:
            return
        lines = [{"id": run}, *({"kind": kind, "step": step} for kind, step in self._last.items())]
        with writing(self._path):
            make_folder(self._path.parent)
            replace_file(self._path, b"".join(json.dumps(line).encode() + b"\n" for line in lines))
            self._file = self._path.open("ab", buffering=0)

    def has(self, record: Record) -> bool:
        """True if it was sent before, by a process that was killed after its last checkpoint."""
        return bool(record["step"] <= self._last.get(record["kind"], -1))

    def note(self, record: Record) -> None:
        """Note that it has been sent."""
        self._last[record["kind"]] = record["step"]
        if self._file is not None:
            with writing(self._path):  # type: ignore[arg-type]
                self._file.write(json.dumps({"kind": record["kind"], "step": record["step"]}).encode() + b"\n")

    def close(self) -> None:
        """No more will come."""
        if self._file is not None:
            self._file.close()


def _wandb_settings(wandb: Any) -> Any:
    """Settings that leave the console to progress bars, and write its file often, where there is such a setting."""
    often = "x_transaction_log_flush_interval"
    known = often in wandb.Settings.model_fields
    return wandb.Settings(console="off", **({often: FLUSH_SECONDS} if known else {}))


def _name_of(folder: str | Path | None) -> str | None:
    return None if folder is None else Path(folder).resolve().name
