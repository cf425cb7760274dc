"""``deepzero predict``, ``deepzero evaluate`` and ``deepzero export``: a finished run in use."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from deepzero.cli.options import DONE, Folder, Json, Quiet
from deepzero.cli.output import Output
from deepzero.errors import InvalidInputError, RunFolderError

if TYPE_CHECKING:
    from deepzero.run import Run

RunFolder = Positional[Annotated[Path, arg(metavar="RUN", help_behavior_hint="")]]
Model = Annotated[str | None, arg(metavar="FILE.py:Net", help_behavior_hint="(default: what the folder holds)")]
SHOWN = 50
"""Predictions that are printed; a file takes all."""


@dataclass(frozen=True)
class Predict:
    """Predict by the network of a finished run: a class and its probability for each input.

    Inputs are what the run was trained on: image files or folders of them, a CSV or Parquet table, an .npy or .npz file
    of arrays. They go through the preprocessing that the folder of the run keeps.
    """

    run_folder: RunFolder
    """Folder of the run."""
    inputs: Positional[Annotated[tuple[Path, ...], arg(metavar="INPUT [INPUT ...]", help_behavior_hint="")]]
    """Image files, a folder of images, a table, or an array."""
    out: Annotated[Path | None, arg(metavar="FILE.csv", help_behavior_hint="(default: print them)")] = None
    """Write all predictions to a table, with the probability of every class."""
    model: Model = None
    """The network, for a run whose network could not be kept."""
    quiet: Quiet = False
    json: Json = False

    def run(self, output: Output) -> int:
        """Predict, and print or write."""
        if not self.inputs:
            raise InvalidInputError("expected something to predict: deepzero predict RUN photo.png, or a table, ...")
        if self.out is not None and (self.out.suffix != ".csv" or not self.out.absolute().parent.is_dir()):
            raise InvalidInputError(f"--out takes a .csv file in a folder that is there, got {self.out}")
        run = _loaded(self.run_folder, self.model)
        names, given = _inputs(self.inputs)
        rows = _rows(run, names, given)
        if self.out is not None:
            self._write(rows)
            output.result(f"{len(rows):,} predictions: {self.out}", out=self.out, predictions=len(rows))
            return DONE
        lines = [_line(row) for row in rows[:SHOWN]]
        if len(rows) > SHOWN:
            lines.append(f"... and {len(rows) - SHOWN:,} more; --out FILE.csv or --json gives all")
        output.result("\n".join(lines), predictions=rows)
        return DONE

    def _write(self, rows: list[dict[str, Any]]) -> None:
        from deepzero.training.files import replace_file  # noqa: PLC0415 - with PyTorch

        assert self.out is not None
        text = io.StringIO()
        flat = [{**row, **row.get("probabilities", {})} for row in rows]
        for row in flat:
            row.pop("probabilities", None)
        writer = csv.DictWriter(text, list(flat[0]) if flat else ["input"])
        writer.writeheader()
        writer.writerows(flat)
        try:
            replace_file(self.out, text.getvalue().encode())
        except OSError as error:
            raise RunFolderError(f"{self.out} could not be written ({error}); choose another --out") from error


@dataclass(frozen=True)
class Evaluate:
    """Loss and accuracy of a finished run's network on labelled data.

    Without --data: on the test set of the run's own data.
    """

    run_folder: RunFolder
    """Folder of the run."""
    data: Annotated[str | None, arg(metavar="PATH", help_behavior_hint="(default: the run's own test set)")] = None
    """Folder or file with labelled data (`deepzero data PATH` says what is there), or the name of a set. All of it is
    looked at."""
    target: Annotated[str | None, arg(metavar="COLUMN", help_behavior_hint="")] = None
    """With --data: column of a table that holds the classes."""
    data_dir: Folder = None
    """Where a named data set lies (default: $DEEPZERO_DATA/<name>, else data/<name>)."""
    model: Model = None
    """The network, for a run whose network could not be kept."""
    quiet: Quiet = False
    json: Json = False

    def run(self, output: Output) -> int:
        """Evaluate, and print the numbers."""
        from deepzero.tasks.scoring import score_run  # noqa: PLC0415 - with PyTorch

        run = _loaded(self.run_folder, self.model)
        found = score_run(run, self.data, target=self.target, data_dir=self.data_dir)
        told = ", ".join(_score(name, value) for name, value in found.scores.items())
        line = f"{told} on {found.samples:,} samples of {found.what}"
        output.result(line, **found.scores, samples=found.samples, data=found.what)
        return DONE


@dataclass(frozen=True)
class Export:
    """Write the network of a finished run for other programs: .onnx, or .pt2 (torch.export).

    The file takes what the network takes, after preprocessing, in batches of any size; model.json in the folder of the
    run says what the preprocessing is.
    """

    run_folder: RunFolder
    """Folder of the run."""
    file: Positional[Annotated[Path, arg(metavar="FILE", help_behavior_hint="")]]
    """Where to write: a name that ends in .onnx or .pt2."""
    model: Model = None
    """The network, for a run whose network could not be kept."""
    quiet: Quiet = False
    json: Json = False

    def run(self, output: Output) -> int:
        """Write the file, and say where."""
        run = _loaded(self.run_folder, self.model)
        path = run.export(self.file)
        output.result(f"{path}: {path.stat().st_size:,} bytes", file=path, bytes=path.stat().st_size)
        return DONE


def _loaded(folder: Path, model: str | None) -> Run:
    from deepzero import models  # noqa: PLC0415 - with PyTorch
    from deepzero.run import load_run  # noqa: PLC0415

    return load_run(folder, model=None if model is None else models.build(model))


def _inputs(paths: tuple[Path, ...]) -> tuple[list[str] | None, Any]:
    """Names of the inputs, where they have some, and what the run is given."""
    import numpy as np  # noqa: PLC0415

    from deepzero.data import image_files, is_image  # noqa: PLC0415 - with PyTorch

    for path in paths:
        if not path.exists():
            raise InvalidInputError(f"there is no {path}; expected image files, a folder of images, a table, an array")
    if len(paths) > 1:
        return [str(path) for path in paths], list(paths)
    path = paths[0]
    if path.is_dir():
        files = image_files(path)
        return [str(file) for file in files], files
    if path.suffix == ".npy":
        return None, np.load(path, allow_pickle=False)
    if path.suffix == ".npz":
        return None, _only_array(path)
    return [str(path)] if is_image(path) else None, path


def _only_array(path: Path) -> Any:
    import numpy as np  # noqa: PLC0415

    with np.load(path, allow_pickle=False) as arrays:
        names = [name for name in ("x_test", "x", "images", "features", "data", "inputs") if name in arrays]
        if not names:
            raise InvalidInputError(f"{path} holds {', '.join(arrays)}; the array to predict on must be called x")
        return arrays[names[0]]


def _rows(run: Run, names: list[str] | None, given: Any) -> list[dict[str, Any]]:
    """One record an input."""
    outputs = run.outputs(given)
    names = names or [str(k) for k in range(len(outputs))]
    if run.classes is None:
        return [{"input": name, "output": row} for name, row in zip(names, outputs.tolist(), strict=True)]
    classes = run.classes
    return [
        {
            "input": name,
            "class": classes[int(row.argmax())],
            "probability": float(row.max()),
            "probabilities": dict(zip(classes, row.tolist(), strict=True)),
        }
        for name, row in zip(names, outputs.softmax(1), strict=True)
    ]


def _score(name: str, value: float) -> str:
    return f"{name} {value:.2%}" if name == "accuracy" else f"{name} {value:.4g}"


def _line(row: dict[str, Any]) -> str:
    if "class" in row:
        return f"{row['input']}: {row['class']} ({row['probability']:.1%})"
    return f"{row['input']}: {row['output']}"
