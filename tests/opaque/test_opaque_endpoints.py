"""Models in files and behind addresses: a real ONNX Runtime session, a real HTTP server."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import deepzero as dz
from deepzero.errors import DataNotFoundError, InvalidInputError, QueryError
from deepzero.opaque import HttpModel, OnnxModel

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")

W = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    """``tanh(x W)`` as a graph, with the product as a second output."""
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["product"]), helper.make_node("Tanh", ["product"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 5])],
        [
            helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 3]),
            helper.make_tensor_value_info("product", onnx.TensorProto.FLOAT, ["n", 3]),
        ],
        [onnx.numpy_helper.from_array(W, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return path


def test_a_model_file_inside_of_a_network(model_file: Path) -> None:
    torch.manual_seed(0)
    box = dz.Opaque(OnnxModel(model_file, threads=1), directions="orthogonal", queries=5)
    front = nn.Linear(4, 5)
    x = torch.randn(6, 4)
    box(front(x)).square().sum().backward()
    estimate = front.weight.grad.clone()
    front.zero_grad()
    torch.tanh(front(x) @ torch.from_numpy(W)).square().sum().backward()
    assert torch.allclose(estimate, front.weight.grad, rtol=2e-3, atol=2e-3)


def test_another_output_and_another_process(model_file: Path) -> None:
    model = OnnxModel(model_file, output="product")
    x = np.ones((2, 5), dtype=np.float32)
    assert np.allclose(model(x), x @ W, rtol=1e-5)
    assert np.allclose(pickle.loads(pickle.dumps(model))(x), x @ W, rtol=1e-5)


def test_what_is_wrong_with_a_file(model_file: Path, tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match="there is no model file"):
        OnnxModel(tmp_path / "missing.onnx")
    with pytest.raises(InvalidInputError, match=r"has no output 'logits'; there are: y, product"):
        _ = OnnxModel(model_file, output="logits").session
    with pytest.raises(InvalidInputError, match=r"takes 1 inputs \(x\), got 2"):
        OnnxModel(model_file)(W.T, W.T)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(InvalidInputError, match="ONNX Runtime cannot read"):
        _ = OnnxModel(broken).session


class Service(BaseHTTPRequestHandler):
    """Answers ``x W``; fails where it is told to."""

    answers: ClassVar[list[int]] = []
    keys: ClassVar[list[str | None]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.keys.append(self.headers.get("Idempotency-Key"))
        status = self.answers.pop(0) if self.answers else 200
        out = io.BytesIO()
        np.save(out, np.load(io.BytesIO(body)) @ W)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(out.getvalue() if status == 200 else b"busy")

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def service() -> Iterator[str]:
    Service.answers, Service.keys = [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_service_inside_of_a_network(service: str) -> None:
    box = dz.Opaque(HttpModel(service), directions="coordinates")
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    box(x).sum().backward()
    assert torch.allclose(x.grad, torch.from_numpy(W.sum(1)).expand(3, 5), rtol=1e-2, atol=1e-3)


def test_a_busy_service_is_asked_again_under_the_same_key(service: str) -> None:
    Service.answers = [429, 500]
    policy = dz.QueryPolicy(retries=3, backoff=0.001)
    with ThreadPoolExecutor(1) as pool:
        box = dz.Opaque(HttpModel(service), executor=pool, policy=policy)
        with torch.no_grad():
            found = box(torch.ones(2, 5))
    assert torch.allclose(found, torch.from_numpy(np.ones((2, 5), dtype=np.float32) @ W))
    assert len(Service.keys) == 3
    assert len(set(Service.keys)) == 1
    assert Service.keys[0] is not None


def test_a_service_that_fails(service: str) -> None:
    Service.answers = [503]
    with pytest.raises(QueryError, match="answered 503"):
        HttpModel(service)(W.T)
    with pytest.raises(QueryError, match="did not answer"):
        HttpModel("http://127.0.0.1:9/", timeout=2.0)(W.T)
    with pytest.raises(InvalidInputError, match="url must begin with"):
        HttpModel("ftp://somewhere")
