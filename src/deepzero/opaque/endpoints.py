"""Black boxes that live in a file or behind an address: models in ONNX Runtime, and services that speak HTTP."""

from __future__ import annotations

import io
import urllib.error
import urllib.request
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from deepzero import validation
from deepzero.errors import DataNotFoundError, InvalidInputError, QueryError
from deepzero.executors import query_key
from deepzero.extras import required_for

Array = np.ndarray[Any, Any]


class OnnxModel:
    """A model file, run by ONNX Runtime: arrays to one array.

    The session is made when it is first needed, in each process by itself, so the object can be sent to workers.

    Args:
        path: an ``.onnx`` file.
        output: name of the output; the first by default.
        threads: of the session; ONNX Runtime's own choice by default.

    Raises:
        DataNotFoundError: there is no such file.
        InvalidInputError: ONNX Runtime is not installed, or cannot read the file.
    """

    numpy = reads_only = True

    def __init__(self, path: str | Path, *, output: str | None = None, threads: int | None = None) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise DataNotFoundError(f"there is no model file {self.path}; name an .onnx file that is there")
        self.output = output
        self.threads = None if threads is None else validation.count("threads", threads)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "session"}

    @cached_property
    def session(self) -> Any:
        """The ``onnxruntime.InferenceSession``."""
        with required_for("an ONNX file"):
            import onnxruntime  # noqa: PLC0415 - optional
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        try:
            session = onnxruntime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise InvalidInputError(f"ONNX Runtime cannot read {self.path}: {error}") from error
        known = [one.name for one in session.get_outputs()]
        if self.output is not None and self.output not in known:
            raise InvalidInputError(f"{self.path} has no output {self.output!r}; there are: {', '.join(known)}")
        return session

    def __call__(self, *inputs: Array) -> Array:
        """The output for a batch."""
        expected = self.session.get_inputs()
        if len(expected) != len(inputs):
            names = ", ".join(one.name for one in expected)
            raise InvalidInputError(f"{self.path} takes {len(expected)} inputs ({names}), got {len(inputs)}")
        named = {one.name: np.ascontiguousarray(value) for one, value in zip(expected, inputs, strict=True)}
        found: Array = self.session.run(None if self.output is None else [self.output], named)[0]
        return found

    def __repr__(self) -> str:
        return f"OnnxModel({str(self.path)!r})"


class HttpModel:
    """A service: a POST request with a batch as an ``.npy`` file, answered by another one with a row for each row.

    The content key of a batch travels as ``Idempotency-Key`` where an executor or a journal gives it one.

    Args:
        url: of the service.
        timeout: seconds to wait for an answer.
        headers: further ones, such as a token.
    """

    numpy = reads_only = True

    def __init__(self, url: str, *, timeout: float = 60.0, headers: dict[str, str] | None = None) -> None:
        if not url.startswith(("http://", "https://")):
            raise InvalidInputError(f"url must begin with http:// or https://, got {url!r}")
        self.url, self.headers = url, dict(headers or {})
        self.timeout = validation.positive("timeout", timeout, hint="60.0")

    def __call__(self, batch: Array) -> Array:
        """The output for a batch.

        Raises:
            QueryError: no answer, an error status, or an answer that is no ``.npy`` file.
        """
        body = io.BytesIO()
        np.save(body, np.ascontiguousarray(batch), allow_pickle=False)
        key = query_key()
        headers = {
            "Content-Type": "application/octet-stream",
            **({} if key is None else {"Idempotency-Key": key}),
            **self.headers,
        }
        request = urllib.request.Request(self.url, data=body.getvalue(), headers=headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                answer = response.read()
        except urllib.error.HTTPError as error:
            raise QueryError(f"{self.url} answered {error.code} {error.reason}") from error
        except OSError as error:
            raise QueryError(f"{self.url} did not answer: {error}") from error
        try:
            found: Array = np.load(io.BytesIO(answer), allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise QueryError(f"{self.url} answered {len(answer)} bytes that are no .npy file of numbers") from error
        return found

    def __repr__(self) -> str:
        return f"HttpModel({self.url!r})"
