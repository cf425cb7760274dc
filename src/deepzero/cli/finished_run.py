"""``deepzero predict``, ``deepzero evaluate`` and ``deepzero export``: a finished run in use."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from deepzero.cli.command import Output, score
from deepzero.cli.options import DONE, Folder, Json, Quiet
from deepzero.errors import InvalidInputError, RunFolderError
from deepzero.text import did_you_mean

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
        self._check_out()
        _require_run_first(self.run_folder, self.inputs, "predict")
        _require_there(self.inputs)
        run = _loaded(self.run_folder, self.model)
        _require_kind(run, self.inputs)
        names, inputs = _inputs(self.inputs)
        rows = _rows(run, names, inputs)
        if self.out is not None:
            self._write(rows)
            output.result(f"{len(rows):,} predictions: {self.out}", out=self.out, predictions=len(rows))
            return DONE
        lines = [_line(row) for row in rows[:SHOWN]]
        if len(rows) > SHOWN:
            lines.append(f"... and {len(rows) - SHOWN:,} more; --out FILE.csv or --json gives all")
        output.result("\n".join(lines), predictions=rows)
        return DONE

    def _check_out(self) -> None:
        if self.out is None:
            return
        if self.out.suffix != ".csv":
            raise InvalidInputError(
                f"--out takes a file that ends in .csv, got {self.out}; type --out {_csv(self.out)}"
            )
        if not self.out.absolute().parent.is_dir():
            raise InvalidInputError(f"--out cannot be {self.out}: there is no folder {self.out.parent}; make it first")

    def _write(self, rows: list[dict[str, Any]]) -> None:
        from deepzero.files import replace_file  # noqa: PLC0415 - with PyTorch

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
    used."""
    target: Annotated[str | None, arg(metavar="COLUMN", help_behavior_hint="")] = None
    """With --data: column of a table that holds the classes."""
    data_dir: Folder = None
    """Folder of a named data set (default: $DEEPZERO_DATA/<name>, else data/<name>)."""
    model: Model = None
    """The network, for a run whose network could not be kept."""
    quiet: Quiet = False
    json: Json = False

    def run(self, output: Output) -> int:
        """Evaluate, and print the numbers."""
        from deepzero.tasks.classification import score_run  # noqa: PLC0415 - with PyTorch

        if self.target is not None and self.data is None:
            raise InvalidInputError("--target has no effect without --data; leave it out, or add --data PATH")
        if self.data_dir is not None and self.data is not None and Path(self.data).exists():
            raise InvalidInputError(f"--data-dir has no effect: the data are at {self.data}; leave it out")
        run = _loaded(self.run_folder, self.model)
        found = score_run(run, self.data, target=self.target, data_dir=self.data_dir)
        scores = ", ".join(score(name, value) for name, value in found.scores.items())
        line = f"{scores} on {found.samples:,} samples of {found.title}"
        output.result(line, **found.scores, samples=found.samples, data=found.title)
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
    """File to write: a name that ends in .onnx or .pt2."""
    model: Model = None
    """The network, for a run whose network could not be kept."""
    quiet: Quiet = False
    json: Json = False

    def run(self, output: Output) -> int:
        """Write the file, and say where."""
        _require_run_first(self.run_folder, (self.file,), "export")
        run = _loaded(self.run_folder, self.model)
        path = run.export(self.file)
        output.result(f"{path}: {path.stat().st_size:,} bytes", file=path, bytes=path.stat().st_size)
        return DONE


def _csv(path: Path) -> Path:
    return path.with_suffix(".csv") if path.name.count(".") else Path(f"{path}.csv")


def _require_run_first(folder: Path, others: Sequence[Path], command: str) -> None:
    """Raise if the folder of the run does not come first."""
    run = next((path for path in others if (path / "run.json").is_file()), None)
    if run is not None and not (folder / "run.json").is_file():
        rest = [path for path in (folder, *others) if path != run]
        typed = shlex.join(["deepzero", command, *map(str, (run, *rest))])
        raise InvalidInputError(f"the folder of the run comes first; type {typed}")


def _require_there(paths: Sequence[Path]) -> None:
    """Raise unless all inputs are there."""
    for path, after in zip(paths, (*paths[1:], None), strict=True):
        if path.exists():
            continue
        if after is not None and Path(f"{path} {after}").exists():
            raise InvalidInputError(f"there is no {path}; put a name with a space in quotes: '{path} {after}'")
        if set("*?[") & set(path.name):
            raise InvalidInputError(f"there is no {path}; a pattern in quotes is not expanded: type it without quotes")
        guess = did_you_mean(path.name, [p.name for p in path.parent.glob("*")], shown=path.parent.joinpath)
        raise InvalidInputError(
            f"there is no {path}{guess}; expected image files, a folder of images, a table, an array"
        )


def _require_kind(run: Run, paths: Sequence[Path]) -> None:
    """Raise if files are of another kind than those that a run was trained on, as far as their names tell."""
    from deepzero.data.columns import CSV_ENDINGS, PARQUET_ENDINGS  # noqa: PLC0415 - with PyTorch
    from deepzero.data.image_files import ENDINGS  # noqa: PLC0415

    kinds = {".npy": "array", ".npz": "array"}
    kinds |= dict.fromkeys((*CSV_ENDINGS, *PARQUET_ENDINGS), "table") | dict.fromkeys(ENDINGS, "image")
    expected = "array" if run.preprocessing is None else run.preprocessing.kind.removesuffix("s")
    advice = {
        "array": "its trainer was given tensors, so name an .npy or .npz file of arrays as the network takes them",
        "image": "name image files, a folder of them, or an .npy or .npz file of arrays",
        "table": "name a CSV or Parquet table, or an .npy or .npz file of arrays",
    }[expected]
    for path in paths:
        kind = "image" if path.is_dir() else kinds.get(path.suffix.lower())
        if kind not in (expected, "array", None) or (kind is None and expected == "array"):
            what = "a folder" if path.is_dir() else f"of the kind {kind or path.suffix or 'unknown'}"
            trained = "arrays" if expected == "array" else f"{expected}s"
            raise InvalidInputError(f"{path} is {what}, but the run in {run.folder} was trained on {trained}; {advice}")


def _loaded(folder: Path, model: str | None) -> Run:
    from deepzero import models  # noqa: PLC0415 - with PyTorch
    from deepzero.run import load_run  # noqa: PLC0415
    from deepzero.training import ModelFile, read_record, require_made_by  # noqa: PLC0415
    from deepzero.training.run_folder import MODEL  # noqa: PLC0415

    require_made_by(folder, read_record(folder), "train")
    if model is None:
        return load_run(folder)
    known = ModelFile.read(folder).arguments if (folder / MODEL).is_file() else None
    return load_run(folder, model=models.build(model, **(known or {})))


def _inputs(paths: tuple[Path, ...]) -> tuple[list[str] | None, Any]:
    """Names of the inputs, if they have some, and the inputs as a run takes them."""
    from deepzero.data import image_files, is_image  # noqa: PLC0415 - with PyTorch
    from deepzero.data.npz import read_inputs  # noqa: PLC0415

    if len(paths) > 1:
        return [str(path) for path in paths], list(paths)
    path = paths[0]
    if path.is_dir():
        files = image_files(path)
        if not files:
            raise InvalidInputError(f"{path} holds no image files; name a folder that does, or the files themselves")
        return [str(file) for file in files], files
    if path.suffix in (".npy", ".npz"):
        return None, read_inputs(path)
    return [str(path)] if is_image(path) else None, path


def _rows(run: Run, names: list[str] | None, inputs: Any) -> list[dict[str, Any]]:
    """One record an input."""
    outputs = run.outputs(inputs)
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


def _line(row: dict[str, Any]) -> str:
    if "class" in row:
        return f"{row['input']}: {row['class']} ({row['probability']:.1%})"
    return f"{row['input']}: {row['output']}"
