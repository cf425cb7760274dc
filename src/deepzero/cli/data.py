"""``deepzero data``."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tyro.conf import Positional, arg

from deepzero.cli.command import Output
from deepzero.cli.options import DONE, Json, Quiet
from deepzero.errors import InvalidInputError

if TYPE_CHECKING:
    from deepzero.data import Splits

MOST_CLASSES = 30
"""Rows of the table of classes; --json has all."""


@dataclass(frozen=True)
class Data:
    """List the named data sets, or say what one of them, or a file or folder of your own, holds.

    Without PATH: every named data set, where its files are looked for, whether they are there, and how to get them.
    With PATH: its kind, samples, shapes and classes, and what training on it would do, or why it cannot be read.
    """

    path: Positional[Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="(default: the named sets)")]] = None
    """Folder of images (a folder for each class), .npz, CSV or Parquet file, folder of IDX files, or CIFAR-10's;
    or the name of a named set."""
    target: Annotated[
        str | None, arg(metavar="COLUMN", help_behavior_hint="(default: label, target, class or y, else the last)")
    ] = None
    """Column of a table that holds the classes."""
    image_size: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: their own)")] = None
    """Height and width to bring images to."""
    test: Annotated[float | None, arg(metavar="X", help_behavior_hint="(default: 0.2, if there is no test set)")] = None
    """Part of each class to hold out as the test set."""
    data_dir: Annotated[
        Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: $DEEPZERO_DATA, else data)")
    ] = None
    """Folder of the files of named sets."""
    quiet: Quiet = False
    json: Json = False

    def run(self, output: Output) -> int:
        """Print the named sets, or the contents of one."""
        if self.data_dir is not None and not self.data_dir.is_dir():
            what = "is a file" if self.data_dir.exists() else "is not there"
            raise InvalidInputError(f"--data-dir takes a folder, but {self.data_dir} {what}; name one, or leave it out")
        if self.path is None:
            return self._named(output)
        contents = self._contents(self.path)
        if output.as_json:
            output.result("", **contents)
        else:
            _show(contents, Console(highlight=False))
        return DONE

    def _named(self, output: Output) -> int:
        from deepzero.data.description import named_sets  # noqa: PLC0415 - with PyTorch

        for option in ("target", "image_size", "test"):
            if getattr(self, option) is not None:
                name = f"--{option.replace('_', '-')}"
                raise InvalidInputError(f"{name} is for a PATH: deepzero data PATH {name} {getattr(self, option)}")
        sets = named_sets(self.data_dir)
        if output.as_json:
            output.result("", sets=sets)
            return DONE
        console = Console(highlight=False)
        table = Table("name", "what it is", "here?", title="named data sets")
        for one in sets:
            table.add_row(one["name"], one["summary"], escape(one["folder"] or "yes") if one["found"] else "no")
        console.print(table)
        for one in sets:
            if not one["found"]:
                console.print(f"{one['name']}: {one['advice']}", markup=False)
        console.print("Data of your own: deepzero data PATH says what is there.", markup=False)
        return DONE

    def _contents(self, path: Path) -> dict[str, Any]:
        """All that is known about the data at a path, or about a named set."""
        from deepzero import data  # noqa: PLC0415 - with PyTorch
        from deepzero.data.description import description  # noqa: PLC0415

        named = str(path) in data.names() and not path.exists()
        if named and self.data_dir is not None and data.NAMED[str(path)].find is None:
            raise InvalidInputError(f"{path} needs no files, so --data-dir has no effect; leave it out")
        kind = str(path) if named else data.detect(path)
        splits = data.load(
            kind,
            path=None if named else path,
            data_dir=self.data_dir,
            target=self.target,
            image_size=self.image_size,
            test=self.test,
        )
        contents = {"path": None if named else str(path), "kind": kind, **description(splits)}
        networks = _networks(tuple(contents["shape"]), len(contents["classes"]))
        return {**contents, "networks": networks, "training": self._training(path, splits)}

    def _training(self, path: Path, splits: Splits) -> dict[str, Any]:
        """Settings of a training on these data without further options, and its command."""
        from deepzero.recipes.configurations import data_config, own_config, suggested_model  # noqa: PLC0415 - with PyTorch

        images = data_config(str(path), target=self.target, image_size=self.image_size, test=self.test)
        config = own_config(images, suggested_model(splits.train))
        few = len(splits.train) < config.data.batch_size
        options = {
            "--data": path,
            "--target": self.target,
            "--image-size": self.image_size,
            "--test": self.test,
            "--data-dir": self.data_dir,
            "--batch-size": len(splits.train) if few else None,
        }
        words = [word for name, value in options.items() if value is not None for word in (name, str(value))]
        return {
            "command": shlex.join(["deepzero", "train", *words]),
            "network": config.model.name,
            "options": dict(config.model.options),
            "epochs": config.training.epochs,
            "batch_size": len(splits.train) if few else config.data.batch_size,
            "sparsity": config.sparsity.sparsity,
        }


def _networks(shape: tuple[int, ...], classes: int) -> list[str]:
    """Names of the networks that take such inputs without further options."""
    import torch  # noqa: PLC0415

    from deepzero import models  # noqa: PLC0415

    fitting = []
    for name in models.names():
        try:
            with torch.device("meta"):  # shapes are checked, weights are not made
                models.build(name, input_shape=shape, num_classes=classes)
        except InvalidInputError:
            continue
        fitting.append(name)
    return fitting


def _show(contents: dict[str, Any], console: Console) -> None:
    samples = contents["samples"]
    where = f"{contents['path']}: {contents['kind']}" if contents["path"] else contents["kind"]
    console.print(f"{where}, {_form(contents)}, {len(contents['classes'])} classes", markup=False)
    for note in contents["notes"]:
        console.print(note, markup=False)
    table = Table("class", "train", "validation", "test")
    for one in contents["classes"][:MOST_CLASSES]:
        table.add_row(escape(one["name"]), *(f"{one[part]:,}" for part in samples))
    if len(contents["classes"]) > MOST_CLASSES:
        table.add_row(f"... and {len(contents['classes']) - MOST_CLASSES} more (--json has all)", "", "", "")
    table.add_section()
    table.add_row("all", *(f"{count:,}" for count in samples.values()))
    console.print(table)
    for line in (_balance(contents["balance"]), f"networks that take these inputs: {', '.join(contents['networks'])}"):
        console.print(line, markup=False)
    training = contents["training"]
    console.print(f"to train: {training['command']}", markup=False, soft_wrap=True)
    console.print(f"  {_plan(training, samples, contents['inputs'])}", markup=False)


def _plan(training: dict[str, Any], samples: dict[str, int], inputs: str) -> str:
    """One sentence that says what the command does."""
    options = ", ".join(f"{name} {value}" for name, value in training["options"].items())
    sparsity = training["sparsity"]
    queried = f"{1 - sparsity:.0%} of its weights queried at a step" if sparsity else "all its weights queried"
    selects = f"selects the weights by {samples['validation']:,}" if samples["validation"] else "keeps the last weights"
    return (
        f"trains {training['network']}{f' ({options})' if options else ''}, {queried}, for {training['epochs']} epochs "
        f"of {samples['train']:,} samples in batches of {training['batch_size']}, each "
        f"{'column' if inputs == 'table' else 'channel'} less its mean and over its standard deviation; {selects}; "
        f"looks at the {samples['test']:,} of the test set once, at the end"
    )


def _balance(balance: dict[str, Any]) -> str:
    always = f"always answering {balance['largest']!r} is right for {balance['baseline']:.1%} of the test set"
    if balance["ratio"] == 1:
        return f"balance: all classes have the same number of samples; {always}"
    times = "holds no sample" if balance["ratio"] is None else f"is 1/{balance['ratio']:.3g} of it"
    return f"balance: {balance['largest']!r} is the largest class, {balance['smallest']!r} {times}; {always}"


def _form(contents: dict[str, Any]) -> str:
    """Number and form of the samples: images of their size, or rows of columns."""
    count = sum(contents["samples"].values())
    if contents["inputs"] == "table":
        names = contents["columns"]
        listed = f" ({', '.join(names[:8])}{', ...' if len(names) > 8 else ''})" if names else ""
        target = f" and the target {contents['target']!r}" if contents["target"] else ""
        return f"{count:,} rows of {contents['shape'][0]} numbers{listed}{target}"
    channels, height, width = contents["shape"]
    colors = {1: "gray", 3: "color"}.get(channels, f"{channels} channels")
    return f"{count:,} images of {height}x{width} pixels, {colors}"
