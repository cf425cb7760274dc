"""The queries of one step, and content keys that identify them: the same question has the same key on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from deepzero.errors import InvalidInputError
from deepzero.objective import Parameters
from deepzero.probes import Displacement, Perturbations

BASE = 0
"""The place of the base query; perturbed queries follow, offset by offset."""
KEY_BYTES = 16


class Query(Protocol):
    """One point that is asked about."""

    @property
    def place(self) -> int:
        """Position in the step."""
        ...

    @property
    def key(self) -> str | None:
        """Content key; None where the point cannot be identified."""
        ...

    @property
    def point(self) -> Any:
        """The point as the payload takes it."""
        ...


@dataclass(frozen=True, slots=True)
class LossQuery:
    """One point at which the loss is asked for.

    Attributes:
        place: position in the step, :data:`BASE` for the base query.
        displacement: the direction; None for the base query.
        offset: how far along it.
        key: content key; None where the batch cannot be identified.
    """

    place: int
    displacement: Displacement | None
    offset: float
    key: str | None

    @property
    def point(self) -> tuple[Displacement | None, float]:
        """Displacement and offset."""
        return self.displacement, self.offset


def is_finite(answer: float | np.ndarray[Any, Any]) -> bool:
    """True if an answer, a number or an array of them, is finite.

    Example:
        >>> is_finite(1.0), is_finite(np.array([1.0, np.nan]))
        (True, False)
    """
    return bool(np.isfinite(answer).all())


def listed_queries(perturbations: Perturbations, offsets: Sequence[float], identity: bytes | None) -> list[LossQuery]:
    """All queries of a step by place: the base, then every direction at the first offset, and so on."""
    directions = [perturbations.displacement(k) for k in range(len(perturbations))]
    points: list[tuple[Displacement | None, float]] = [(None, 0.0)]
    points += [(direction, float(offset)) for offset in offsets for direction in directions]
    return [LossQuery(place, d, t, _key(identity, d, t)) for place, (d, t) in enumerate(points)]


def _key(identity: bytes | None, displacement: Displacement | None, offset: float) -> str | None:
    if identity is None:
        return None
    content = f"{displacement!r} {offset.hex()}".encode()
    return hashlib.blake2b(content, key=identity, digest_size=KEY_BYTES).hexdigest()


def joint_key(keys: Sequence[str | None], not_numbers: int) -> str | None:
    """The key of one call: of its query, or of its stack; ``not_numbers`` counts the answers that were none.

    Such an answer was an answer: to ask once more is another question, which a service that remembers keys must not
    answer from its memory.
    """
    known = [key for key in keys if key is not None]
    if len(known) != len(keys):
        return None
    joint = known[0] if len(known) == 1 else hashlib.blake2b("".join(known).encode(), digest_size=KEY_BYTES).hexdigest()
    return f"{joint}-{not_numbers}" if not_numbers else joint


def step_identity(parameters: Parameters, batch: tuple[Any, ...], seed: int) -> bytes:
    """Digest of all that a step's queries share: names, shapes and bytes of parameters and batch, and the seed.

    Raises:
        InvalidInputError: an argument is not made of numbers, strings, arrays and containers of these.
    """
    digest = hashlib.blake2b(digest_size=32)
    for part in (dict(parameters), batch, seed):
        _feed(digest, part)
    return digest.digest()


def _feed(digest: hashlib.blake2b, value: Any) -> None:
    """Add ``value``; a header before each part keeps different values apart."""
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        _feed_array(digest, value)
    elif value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        digest.update(f"{type(value).__name__} {value!r};".encode())
    elif isinstance(value, Mapping):
        digest.update(f"mapping {len(value)};".encode())
        for item in value.items():
            _feed(digest, item)
    elif isinstance(value, (list, tuple)):
        digest.update(f"sequence {len(value)};".encode())
        for item in value:
            _feed(digest, item)
    else:
        raise InvalidInputError(
            f"an argument of the black box holds a {type(value).__name__}, which has no content key; with a journal, "
            "pass numbers, strings, arrays, and lists, tuples or dicts of these"
        )


def _feed_array(digest: hashlib.blake2b, value: Tensor | np.ndarray[Any, Any] | np.generic) -> None:
    if isinstance(value, Tensor):
        digest.update(f"tensor {value.dtype} {tuple(value.shape)};".encode())
        digest.update(tensor_bytes(value))
        return
    if value.dtype.hasobject:
        raise InvalidInputError(
            "an argument of the black box is an array of Python objects, which has no content key; with a journal, "
            "pass arrays of numbers"
        )
    digest.update(f"array {value.dtype.str} {value.shape};".encode())
    digest.update(value.tobytes())


def tensor_bytes(value: Tensor) -> bytes:
    """The elements in row-major order."""
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
