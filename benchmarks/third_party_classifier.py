"""A classifier that somebody else trained, as an ONNX file: the black box of the CIFAR-10 defense.

    pip install h5py 'deepzero[onnx]'
    pip download cifar-10-model==7.4.0 --no-deps --no-binary :all:
    python benchmarks/third_party_classifier.py cifar_10_model-7.4.0.tar.gz third-party.onnx --data-dir DIR

The package ``cifar-10-model`` (PyPI, S. Gudiduri, BSD/MIT) holds a convolutional network of Keras with 968,000 weights,
trained on CIFAR-10 by its author. Nothing of the package is run: the layers and weights in its HDF5 file are read and
written down as an ONNX graph that takes images in [0, 1], ``[n, 3, 32, 32]``, and gives scores ``[n, 10]``. Its
accuracy on the 10,000 test images, 76.57 %, is the check; with any other the script ends with an error and leaves no
file.

A plain ``.h5`` file of a Keras ``Sequential`` of convolutions, batch norm, maximum pooling, flattening, dense layers
and dropout is taken as well; ``--expected`` then says its accuracy.
"""

from __future__ import annotations

import json
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import h5py
import numpy as np
import onnx
import torch
import tyro
from onnx import TensorProto, helper, numpy_helper
from tyro.conf import Positional

from deepzero import data
from deepzero.tasks.defense.defended_classifier import accuracy, load_target

WEIGHTS = "cifar_10_model/trained_models/cnn_model.h5"


@dataclass(frozen=True)
class Options:
    """The command line."""

    source: Positional[Annotated[Path, tyro.conf.arg(metavar="ARCHIVE|H5")]]
    """The package's archive, or an HDF5 file of Keras."""
    out: Positional[Path]
    """The ONNX file to write."""
    data_dir: Path
    """Folder with CIFAR-10."""
    expected: float = 0.7657
    """Accuracy on the test images."""
    pixel: float = 255.0
    """Value of a white pixel in the network's inputs."""


class Graph:
    """An ONNX graph that grows at its end."""

    def __init__(self, pixel: float) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.end = "image"
        self.add("Mul", np.float32(pixel))

    def add(self, operation: str, *constants: Any, **attributes: Any) -> None:
        """An operation on what is there so far, and on constants."""
        number = len(self.nodes)
        names = [f"{operation}_{number}_{k}" for k in range(len(constants))]
        self.constants += [numpy_helper.from_array(np.asarray(c), n) for c, n in zip(constants, names, strict=True)]
        self.nodes.append(helper.make_node(operation, [self.end, *names], [f"value_{number}"], **attributes))
        self.end = f"value_{number}"

    def model(self, shape: tuple[int, int, int], classes: int) -> Any:
        """The model file, checked."""
        graph = helper.make_graph(
            self.nodes,
            "classifier",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", *shape])],
            [helper.make_tensor_value_info(self.end, TensorProto.FLOAT, ["n", classes])],
            self.constants,
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(made, full_check=True)
        return made


Weights = dict[str, Any]


def _activated(graph: Graph, layer: dict[str, Any]) -> None:
    if layer["activation"] == "relu":
        graph.add("Relu")
    elif layer["activation"] != "linear":
        raise SystemExit(f"layer {layer['name']}: no rule for the activation {layer['activation']}")


def _convolution(graph: Graph, layer: dict[str, Any], weights: Weights) -> None:
    if layer["padding"] != "valid":
        raise SystemExit(f"layer {layer['name']}: no rule for the padding {layer['padding']}")
    kernel = weights["kernel"].transpose(3, 2, 0, 1)  # height, width, in, out -> out, in, height, width
    graph.add("Conv", kernel, weights["bias"], strides=layer["strides"])
    _activated(graph, layer)


def _batch_norm(graph: Graph, layer: dict[str, Any], weights: Weights) -> None:
    values = [weights[name] for name in ("gamma", "beta", "moving_mean", "moving_variance")]
    graph.add("BatchNormalization", *values, epsilon=layer["epsilon"])


def _pool(graph: Graph, layer: dict[str, Any], _: Weights) -> None:
    graph.add("MaxPool", kernel_shape=layer["pool_size"], strides=layer["strides"])


def _flatten(graph: Graph, _: dict[str, Any], __: Weights) -> None:
    graph.add("Transpose", perm=[0, 2, 3, 1])  # Keras keeps channels last
    graph.add("Flatten")


def _dense(graph: Graph, layer: dict[str, Any], weights: Weights) -> None:
    graph.add("Gemm", weights["kernel"], weights["bias"])
    _activated(graph, layer)


def _nothing(_: Graph, __: dict[str, Any], ___: Weights) -> None:
    """Dropout at inference, and what only names the input."""


RULES: dict[str, Callable[[Graph, dict[str, Any], Weights], None]] = {
    "InputLayer": _nothing,
    "Dropout": _nothing,
    "Conv2D": _convolution,
    "BatchNormalization": _batch_norm,
    "MaxPooling2D": _pool,
    "Flatten": _flatten,
    "Dense": _dense,
}


def weights_of(kept: Any, layer: str) -> Weights:
    """A layer's arrays by their last name: ``kernel``, ``bias``, ``gamma`` and so on."""
    found: Weights = {}

    def take(name: str, value: Any) -> None:
        if isinstance(value, h5py.Dataset):
            found[name.rsplit("/", 1)[-1].split(":", maxsplit=1)[0]] = value[()]

    if layer in kept:
        kept[layer].visititems(take)
    return found


def rebuilt(file: Path, pixel: float) -> Any:
    """The network in an HDF5 file of Keras, as an ONNX model."""
    with h5py.File(file) as kept:
        layers = json.loads(kept.attrs["model_config"])["config"]["layers"]
        graph = Graph(pixel)
        classes = 0
        for layer in layers:
            kind, config = layer["class_name"], layer["config"]
            if kind not in RULES:
                raise SystemExit(f"layer {config['name']}: no rule for {kind}; there are {', '.join(RULES)}")
            RULES[kind](graph, config, weights_of(kept["model_weights"], config["name"]))
            classes = config.get("units", classes)
        height, width, channels = next(
            layer["config"]["batch_input_shape"][1:] for layer in layers if "batch_input_shape" in layer["config"]
        )
    return graph.model((channels, height, width), classes)


@contextmanager
def weights_file(source: Path) -> Iterator[Path]:
    """The HDF5 file, taken out of the package's archive where it is in one."""
    if not tarfile.is_tarfile(source):
        yield source
        return
    with tarfile.open(source) as archive, tempfile.TemporaryDirectory() as folder:
        name = next((n for n in archive.getnames() if n.endswith(WEIGHTS)), None)
        if name is None:
            raise SystemExit(f"{source} holds no {WEIGHTS}")
        content = archive.extractfile(name)
        assert content is not None
        path = Path(folder) / "weights.h5"
        path.write_bytes(content.read())
        yield path


def main(options: Options) -> None:
    """Rebuild, check, write."""
    with weights_file(options.source) as file:
        model = rebuilt(file, options.pixel)
    unchecked = options.out.with_suffix(".unchecked.onnx")
    onnx.save(model, unchecked)
    try:
        test = data.load("cifar10", validation=0.0, data_dir=options.data_dir).test
        found = accuracy(load_target(unchecked).ask, test)
        print(f"accuracy on {len(test):,} test images: {found:.2%}")
        if abs(found - options.expected) > 1e-4:
            raise SystemExit(f"expected {options.expected:.2%}: something was read wrongly, and no file is left")
        unchecked.replace(options.out)
    finally:
        unchecked.unlink(missing_ok=True)
    print(f"{options.out}: {sum(np.prod(c.dims) for c in model.graph.initializer):,.0f} numbers")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(tyro.cli(Options))
