"""A finished run in use: its network, predictions, scores, and the network in other formats."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from deepzero.data import Preprocessing
from deepzero.errors import InvalidInputError, RunFolderError
from deepzero.files import read_tensors
from deepzero.losses import named_loss
from deepzero.objective import Loss, NetworkObjective
from deepzero.team import Alone
from deepzero.training import RunFolder, measured, read_metrics, read_record, require_made_by
from deepzero.training.batch_reader import Batches, reader
from deepzero.training.evaluation import Metric, eval_mode
from deepzero.training.model_file import ModelFile, export_onnx, export_program
from deepzero.training.run_folder import MODEL, RESULT

FORMATS = (".onnx", ".pt2")
BATCH = 500
"""Samples that are predicted at a time."""


@dataclass(frozen=True)
class Run:
    """A run and its network. Get one from :func:`load_run`.

    Attributes:
        folder: of the run.
        model: the network with the selected weights, in eval mode, on the CPU.
        config: the settings that the run depended on.
        summary: its result.
        classes: names of the classes; None if the outputs are no classes, or their names are not known.
        preprocessing: from raw inputs to those of the network; None if it takes them as they are.
    """

    folder: Path
    model: nn.Module
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    classes: tuple[str, ...] | None
    preprocessing: Preprocessing | None
    _file: ModelFile

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.model.parameters())
        scores = [f"{name}={value:.4g}" for name, value in self.summary.items() if name.startswith("test_") and value]
        return f"Run({str(self.folder)!r}: {size:,} parameters, {', '.join([*scores, f'{self.steps:,} steps'])})"

    @property
    def steps(self) -> int:
        """Optimizer steps made."""
        return int(self.summary["steps"])

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The records of ``metrics.jsonl``."""
        return read_metrics(self.folder / "metrics.jsonl")

    def inputs(self, x: Any) -> Tensor:
        """Raw inputs as the network takes them, ``[n, ...]``.

        Args:
            x: image files, arrays or rows of a table, as the run's :class:`~deepzero.data.Preprocessing` takes them. A
                run without one takes tensors and arrays of the shape that it was trained on.

        Raises:
            InvalidInputError: they are of another kind or shape; the message says what was expected.
        """
        if self.preprocessing is not None:
            return self.preprocessing(x)
        form = self._file.inputs
        dtype = None if form is None else getattr(torch, form["dtype"])
        try:
            inputs = torch.as_tensor(x, dtype=dtype)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidInputError(f"expected a tensor or an array, got {type(x).__name__} ({error})") from error
        if form is not None and list(inputs.shape[1:]) != list(form["shape"]):
            raise InvalidInputError(
                f"expected inputs of shape [n, {', '.join(map(str, form['shape']))}], as in training, got "
                f"{list(inputs.shape)}{'; add the batch with x[None]' if list(inputs.shape) == form['shape'] else ''}"
            )
        return inputs

    def outputs(self, x: Any) -> Tensor:
        """The outputs of the network for raw inputs, ``[n, ...]``, in eval mode.

        Raises:
            InvalidInputError: the inputs are of another form, or the network gives something else than one tensor.
        """
        with torch.no_grad(), eval_mode(self.model):
            found = [self.model(part) for part in torch.split(self.inputs(x), BATCH)]
        if not all(isinstance(part, Tensor) for part in found):
            raise InvalidInputError(
                f"the network gives a {type(found[0]).__name__}, not one tensor; ask it itself: "
                "run.model(run.inputs(x))"
            )
        return torch.cat(found)

    def predict(self, x: Any) -> list[Any]:
        """The class of each input, by name; for a network that gives no classes: its outputs, as nested lists.

        Args:
            x: raw inputs, as in :meth:`inputs`.
        """
        outputs = self.outputs(x)
        if self.classes is None:
            return list(outputs.tolist())
        return [self.classes[i] for i in outputs.argmax(1).tolist()]

    def predict_proba(self, x: Any) -> Tensor:
        """The probability of each class, ``[n, classes]``: the softmax of the outputs.

        Raises:
            InvalidInputError: the network gives no classes.
        """
        if self.classes is None:
            raise InvalidInputError(f"{self.folder} does not say that its outputs are classes; use run.outputs(x)")
        return self.outputs(x).softmax(1)

    def evaluate(
        self, data: Any, *, loss: Loss | None = None, metrics: Mapping[str, Metric] | None = None
    ) -> dict[str, float]:
        """Loss and metrics on labelled data.

        Args:
            data: ``(x, y)`` with raw inputs and class numbers or targets; or a ``DataLoader`` or another iterable of
                batches that the network takes as they are.
            loss: of ``(outputs, targets)``; by default the one that the run was trained with, if it is a usual one of
                ``torch.nn.functional``, without options.
            metrics: as in :class:`deepzero.Trainer`.

        Raises:
            InvalidInputError: the loss is not known.
        """
        loss = loss or named_loss(self._file.loss)
        if loss is None:
            raise InvalidInputError("the loss of this run has no name; give loss=..., for example F.cross_entropy")
        objective = NetworkObjective(self.model, loss)
        return measured(objective, self._batches(data), metrics)

    def _batches(self, data: Any) -> Iterable[tuple[Any, ...]]:
        if isinstance(data, tuple) and len(data) == 2 and not isinstance(data, Batches):
            x, y = self.inputs(data[0]), torch.as_tensor(data[1])
            if len(x) != len(y):
                raise InvalidInputError(f"there are {len(x)} inputs, but {len(y)} targets")
            data = DataLoader(TensorDataset(x, y), batch_size=BATCH)
        return reader(data, torch.device("cpu"), Alone()).read(0, 0)

    def export(self, path: str | Path) -> Path:
        """Write the network for other programs: ``.onnx``, or ``.pt2`` (a program of ``torch.export``).

        The file takes batches of any size, of what :meth:`inputs` gives: preprocessing is left to its user, and stands
        in ``model.json``.

        Raises:
            InvalidInputError: the ending is another one, or the network cannot be written in that format.
        """
        path = Path(path)
        if path.suffix not in FORMATS:
            raise InvalidInputError(f"{path} must end in {' or '.join(FORMATS)}, which say the format")
        if not path.parent.is_dir():
            raise InvalidInputError(f"there is no folder {path.parent}; make it, or choose another place")
        if self._file.inputs is None:
            raise InvalidInputError(f"{self.folder} does not say what its input is, so it cannot be exported")
        example = torch.zeros(2, *self._file.inputs["shape"], dtype=getattr(torch, self._file.inputs["dtype"]))
        if path.suffix == ".onnx":
            export_onnx(self.model, example, path, names=("input", "output"))
        elif (problem := export_program(self.model, example, path)) is not None:
            raise InvalidInputError(f"the network cannot be written: {problem}")
        return path


def load_run(folder: str | Path, *, model: nn.Module | None = None) -> Run:
    """A finished run: its network with the selected weights, and everything to use it.

    The network is made again from ``model.json`` in the folder: from the registry, from the user's own file (of which
    the folder has a copy), or from the exported network. Load only folders that you trust: the user's file is executed,
    and an exported network is in PyTorch's own format, of which parts may be pickles.

    Args:
        folder: of the run.
        model: the network to load the weights into, for a run whose network could not be exported, or to train on.

    Raises:
        RunFolderError: the folder holds no finished run, or its network cannot be made again; the message says what to
            do.

    Example:
        >>> import tempfile, torch, torch.nn.functional as F, deepzero as dz
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> batch = torch.randn(8, 3), torch.randint(0, 2, (8,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = dz.Trainer(model, dz.CGE(model, loss=F.cross_entropy), optimizer, [batch], out=folder).fit(epochs=2)
        ...     run = dz.load_run(folder)
        >>> torch.equal(run.outputs(batch[0]), model(batch[0])), run.steps
        (True, 2)
    """
    path = Path(folder)
    record = read_record(path)
    require_made_by(path, record, "train")
    run = RunFolder(path, record)
    summary = run.read_summary()
    if summary is None:
        raise RunFolderError(
            f"the run in {path} has not finished; to finish it, type deepzero train --resume --out "
            f"{shlex.quote(str(path))} (in Python: fit(resume=True))"
        )
    weights = read_tensors(run.weights, advice=run.written_again)
    if model is None:
        file = ModelFile.read(path)
        model = file.build(path)
    else:
        file = ModelFile.read(path) if (path / MODEL).exists() else ModelFile()
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise RunFolderError(_misfit(path, model, weights)) from error
    run.require_as_written(*RESULT)  # last: what does not fit has a message of its own
    preprocessing = None if file.preprocessing is None else Preprocessing.from_json(file.preprocessing)
    return Run(path, model.eval(), record["config"], summary, file.classes, preprocessing, file)


def _misfit(path: Path, model: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """The message that the weights of a run do not fit a network: the tensors that differ."""
    there, own = ({n: list(t.shape) for n, t in tensors.items()} for tensors in (weights, model.state_dict()))
    odd = [
        f"{name} is {there.get(name, 'missing')} there, {own.get(name, 'missing')} in the network"
        for name in {**own, **there}
        if there.get(name) != own.get(name)
    ]
    more = f", and {len(odd) - 2} more" if len(odd) > 2 else ""
    return (
        f"the weights of {path} do not fit {type(model).__name__} ({'; '.join(odd[:2])}{more}); name the network that "
        "was trained: --model FILE.py:Net (in Python: load_run(folder, model=Net()))"
    )
