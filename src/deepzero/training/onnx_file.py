"""A network as a model file, which answers and is not differentiated."""

from __future__ import annotations

import io
import logging
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from torch import Tensor, nn

from deepzero.errors import InvalidInputError
from deepzero.extras import required_for
from deepzero.files import replace_file
from deepzero.training.evaluation import eval_mode


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
