"""A network as a model file, which answers and is not differentiated."""

from __future__ import annotations

import importlib.util
import io
import logging
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from torch import Tensor, nn

from deepzero.errors import InvalidInputError
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
        InvalidInputError: the packages that write such files are not installed, or cannot express the network.
    """
    if importlib.util.find_spec("onnxscript") is None:  # what torch.onnx needs
        raise InvalidInputError("writing ONNX files needs onnx and onnxscript; try pip install 'deepzero[onnx]'")
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
