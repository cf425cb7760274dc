"""The network of a run as files: ``model.json``, by which it is made again, its exported program, and ONNX."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from deepzero import models
from deepzero.errors import DeepZeroError, InvalidInputError, RunFolderError
from deepzero.extras import required_for
from deepzero.files import json_value, read_from, replace_file
from deepzero.own import is_own, parted
from deepzero.text import one_line
from deepzero.training.evaluation import eval_mode
from deepzero.training.run_folder import MODEL, PROGRAM, RunFolder, read_record, writing

FORMAT = "deepzero model 1"
CODE = "code"
GIVE_IT = "name the network yourself: --model FILE.py:Net (in Python: load_run(folder, model=Net()))"


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """The recipe by which a network is made again, and the meaning of its inputs and outputs.

    Attributes:
        target: the network: a name of :func:`deepzero.models.names`, or ``file.py:Net`` or ``module:Net``, which is
            called with ``arguments``; None: the network itself is exported at the end of the run, by ``torch.export``.
        arguments: keywords of the network, JSON-able.
        preprocessing: of raw inputs, in the form of :meth:`deepzero.data.Preprocessing.to_json`; None if the
            network takes them as they are.
        classes: names of the classes in the order of the outputs; None if the outputs are no classes.
        loss: name of the loss (:func:`deepzero.losses.loss_name`); by default of the one that is trained with.
        inputs: shape (without the batch) and dtype of the input; filled in by the run.
        problem: why the network could not be exported; filled in by the run.
    """

    target: str | None = None
    arguments: Mapping[str, Any] | None = None
    preprocessing: Mapping[str, Any] | None = None
    classes: tuple[str, ...] | None = None
    loss: str | None = None
    inputs: Mapping[str, Any] | None = None
    problem: str | None = None

    def write(self, folder: RunFolder, model: nn.Module, inputs: Mapping[str, Any] | None) -> ModelFile:
        """Write ``model.json`` and what it needs beside the weights: the user's code, or the exported network.

        Args:
            folder: of the run.
            model: with the weights that are the result.
            inputs: shape and dtype of its input, if it takes one tensor.
        """
        kept = replace(self, inputs=self.inputs or inputs)
        if self.target is not None and is_own(self.target):
            _keep_code(folder, self.target)
        elif self.target is None:
            kept = replace(kept, problem=_export(folder, model, kept.inputs))
        origin = f"{type(model).__module__}:{type(model).__qualname__}"
        folder.write(MODEL, {"format": FORMAT, **asdict(kept), "class": origin})
        return kept

    @classmethod
    def read(cls, path: Path) -> ModelFile:
        """The file of a run's folder.

        Raises:
            RunFolderError: there is none, or it is of another version.
        """
        again = f"{RunFolder(path, read_record(path)).written_again} (in Python: load_run(folder, model=Net()))"
        try:
            value = json_value(path / MODEL)
        except (OSError, ValueError) as error:
            raise RunFolderError(
                f"{path / MODEL}, which says how the network is made, cannot be read ({error}); {again}"
            ) from error
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise RunFolderError(
                f"{path / MODEL} is not of this version of deepzero (expected format {FORMAT!r}); {again}"
            )
        known = {key: value[key] for key in cls.__dataclass_fields__ if key in value}
        with read_from(path / MODEL, advice=again):
            file = cls(**{**known, "classes": None if known.get("classes") is None else tuple(known["classes"])})
            file.require_kinds()
        return file

    def require_kinds(self) -> None:
        """Raise :class:`TypeError` unless every part is of its kind."""
        texts = (self.target, self.loss, self.problem, *(self.classes or ()))
        if not all(text is None or isinstance(text, str) for text in texts):
            raise TypeError("target, loss, problem and the names of the classes must be texts")
        if not all(part is None or isinstance(part, Mapping) for part in (self.arguments, self.preprocessing)):
            raise TypeError("arguments and preprocessing must be objects")
        if self.inputs is not None:
            shape, dtype = self.inputs["shape"], getattr(torch, self.inputs["dtype"])
            if not isinstance(dtype, torch.dtype) or not all(type(size) is int and 0 < size < 2**31 for size in shape):
                raise TypeError("inputs must have a shape of whole numbers and a dtype of PyTorch")

    def build(self, path: Path) -> nn.Module:
        """The network again, with weights of its own making.

        Args:
            path: folder of the run.

        Raises:
            RunFolderError: it cannot be made.
        """
        if self.target is None:
            return _exported(path, self.problem)
        try:
            with read_from(path / MODEL, advice="see to that file"):
                return models.build(_with_code(self.target, path / CODE), **(self.arguments or {}))
        except DeepZeroError as error:
            raise RunFolderError(
                f"the network {self.target} of {path} cannot be made again: {error}; {GIVE_IT}"
            ) from error


EXPORTED = ModelFile()
"""A network that is exported at the end of its run."""


def _keep_code(folder: RunFolder, target: str) -> None:
    """Copy the user's file, so that the folder can be used when the file has changed."""
    place, _ = parted(target)
    if place.endswith(".py"):
        with writing(folder.path / CODE):
            (folder.path / CODE).mkdir(exist_ok=True)
            replace_file(folder.path / CODE / Path(place).name, Path(place).read_bytes())


def _with_code(target: str, code: Path) -> str:
    """The target in the copy of the user's file, if there is one and the file itself has gone or changed."""
    place, rest = parted(target)
    original, kept = Path(place), code / Path(place).name
    if not place.endswith(".py") or not kept.is_file():
        return target
    unchanged = original.is_file() and original.read_bytes() == kept.read_bytes()
    return target if unchanged else f"{kept}{rest}"


def _export(folder: RunFolder, model: nn.Module, inputs: Mapping[str, Any] | None) -> str | None:
    """Write the network as a program of ``torch.export``; the reason if that is not possible, else None."""
    if inputs is None:
        return "its input is not one tensor of samples"
    example = torch.zeros(2, *inputs["shape"], dtype=getattr(torch, inputs["dtype"]))
    with writing(folder.path / PROGRAM):
        return export_program(model, example, folder.path / PROGRAM)


def export_program(model: nn.Module, example: Tensor, path: Path) -> str | None:
    """Write a network, in eval mode on the CPU, as a program of ``torch.export`` for batches of any size.

    Args:
        model: takes one tensor.
        example: a batch of at least two.
        path: of the file.

    Returns:
        The reason why it cannot be written; None if it was.
    """
    buffer, model = io.BytesIO(), copy.deepcopy(model).cpu()
    try:
        with eval_mode(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("n")},))
            torch.export.save(program, buffer)
    except Exception as error:  # the exporter's own, of many kinds
        return f"torch.export cannot express it: {str(error).splitlines()[0][:300]}"
    replace_file(path, buffer.getvalue())
    return None


def export_onnx(model: nn.Module, example: Tensor, path: Path, *, names: tuple[str, str] = ("image", "logits")) -> None:
    """Write a network, in eval mode, as an ONNX file for batches of any size.

    Args:
        model: takes one tensor.
        example: a batch of at least two.
        path: of the file.
        names: of the input and of the output.

    Raises:
        MissingPackageError: the packages that write such files are not installed.
        InvalidInputError: they cannot express the network.
    """
    with required_for("writing ONNX files"):
        import onnxscript  # noqa: F401, PLC0415 - optional, and needed by torch.onnx
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with eval_mode(model), warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        try:
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                input_names=[names[0]],
                output_names=[names[1]],
                dynamic_shapes=({0: torch.export.Dim("n")},),
            )
        except Exception as error:
            raise InvalidInputError(f"the network cannot be written as an ONNX file: {str(error)[:300]}") from error
    assert program is not None
    replace_file(path, program.model_proto.SerializeToString())


def _exported(path: Path, problem: str | None) -> nn.Module:
    if problem is not None or not (path / PROGRAM).exists():
        raise RunFolderError(
            f"the network of {path} was not exported ({problem or f'{PROGRAM} is missing'}); {GIVE_IT}"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ExportedNetwork(torch.export.load(path / PROGRAM).module())
        except Exception as error:  # of many kinds
            raise RunFolderError(f"{path / PROGRAM} cannot be read ({one_line(error)}); {GIVE_IT}") from error


class ExportedNetwork(nn.Module):
    """An exported network in eval mode, which is the only one it has."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, x: Tensor) -> Any:
        """The output for a batch."""
        return self.program(x)

    def train(self, mode: bool = True) -> Self:
        """Refuse train mode.

        Raises:
            InvalidInputError: train mode is asked for.
        """
        if mode:
            raise InvalidInputError("an exported network has eval mode only; to train on, give load_run(model=Net())")
        return self

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Weights under the names that they had in training."""
        return self.program.load_state_dict(state_dict, strict, assign)
