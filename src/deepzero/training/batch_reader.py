"""Training batches, read so that an interrupted epoch goes on with the batches that an unbroken one would have had."""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from deepzero.errors import CheckpointError, InvalidInputError, TeamError
from deepzero.team import Team

Arguments = tuple[Any, ...]
"""The arguments of an estimator's ``backward``."""


@runtime_checkable
class Batches(Protocol):
    """Batches that are each a pure function of epoch and position, so that their order needs no state."""

    def __len__(self) -> int:
        """Batches of an epoch."""
        ...

    def batch(self, epoch: int, index: int) -> Any:
        """Batch number ``index`` of ``epoch``, both from 0."""
        ...


class Reader(ABC):
    """Reads the batches of one epoch after the other, from any position on."""

    @property
    @abstractmethod
    def length(self) -> int | None:
        """Batches of an epoch; None where only reading tells."""

    @abstractmethod
    def read(self, epoch: int, start: int) -> Iterator[Arguments]:
        """The batches ``start``, ``start + 1``, ... of ``epoch``."""

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the state that reading on needs."""
        return {}

    def values(self) -> dict[str, Any]:
        """The JSON-able part of that state."""
        return {}

    def restore(self, _values: Mapping[str, Any], _tensors: Mapping[str, Tensor]) -> None:
        """Continue from the state of :meth:`values` and :meth:`tensors`."""
        return


def reader(train: Any, device: torch.device, team: Team, *, name: str = "train") -> Reader:
    """The reader of training data.

    Args:
        train: a ``DataLoader`` or another iterable of batches; a function of the epoch that returns one; an object with
            ``batch(epoch, index)`` and a length; or None for a problem without data, whose epochs have one step.
        device: of the tensors of a batch, which are brought there.
        team: the processes of the run, which read the same batches.
        name: of the argument, for errors.

    Raises:
        InvalidInputError: it is none of these.
    """
    if train is None:
        return Addressed(_NoData(), device)
    if isinstance(train, (str, Mapping)):
        raise InvalidInputError(
            f"{name} must be batches, such as a DataLoader or a list of (x, y), got {type(train).__name__}; for a "
            f"single batch type {name}=[batch]"
        )
    if isinstance(train, Batches):
        return Addressed(train, device)
    if isinstance(train, Iterable):
        if isinstance(train, Iterator):
            raise InvalidInputError(
                f"{name} is a {type(train).__name__}, which can be read only once; give a DataLoader, a list, or a "
                f"function of the epoch that returns a fresh iterator, for example {name}=lambda epoch: batches()"
            )
        return Replayed(lambda _epoch: train, device, team, holder=train)
    if callable(train):
        return Replayed(train, device, team, holder=None)
    raise InvalidInputError(
        f"{name} must be a DataLoader or another iterable of batches, a function of the epoch that returns one, or "
        f"None; got {type(train).__name__}"
    )


def scores_itself(data: Any) -> bool:
    """True if validation or test data are a function of the model that returns numbers, and no batches."""
    return callable(data) and not isinstance(data, (Iterable, Batches))


def arguments(batch: Any, device: torch.device) -> Arguments:
    """A batch as the arguments of ``backward``, its tensors on ``device``; a dict is one argument."""
    moved = pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), batch)
    return tuple(moved) if isinstance(moved, (tuple, list)) else (moved,)


class Addressed(Reader):
    """Batches that need no state."""

    def __init__(self, batches: Batches, device: torch.device) -> None:
        self._batches, self._device = batches, device

    @property
    def length(self) -> int:
        """Batches of an epoch."""
        return len(self._batches)

    def read(self, epoch: int, start: int) -> Iterator[Arguments]:
        """The batches ``start``, ``start + 1``, ... of ``epoch``."""
        return (arguments(self._batches.batch(epoch, index), self._device) for index in range(start, self.length))


class Replayed(Reader):
    """Batches of any iterable: an interrupted epoch is read again from the random state that it began with.

    The state is that of the global generators of Python, NumPy and torch, and of the ``torch.Generator`` objects of a
    ``DataLoader`` and its sampler. Data with other randomness of its own is found out: the last batch before the
    interruption must have the same bits again.

    Args:
        epochs: function of the epoch that returns its batches.
        device: of the tensors of a batch, which are brought there.
        team: the processes of the run; the random state of rank 0 holds on all of them.
        holder: the iterable whose generators count; None if there is a new one for every epoch.
    """

    def __init__(
        self, epochs: Callable[[int], Iterable[Any]], device: torch.device, team: Team, *, holder: Any
    ) -> None:
        self._epochs, self._device, self._team, self._holder = epochs, device, team, holder
        self._begun: dict[str, Tensor] = {}
        self._now: dict[str, Tensor] = {}
        self._last: Any = None
        self._expected: str | None = None

    @property
    def length(self) -> int | None:
        """Batches of an epoch, if the iterable tells."""
        try:
            return len(self._holder)
        except TypeError:  # no holder, or one without a length
            return None

    def read(self, epoch: int, start: int) -> Iterator[Arguments]:
        """The batches ``start``, ``start + 1``, ... of ``epoch``; those before are read and passed over.

        Raises:
            CheckpointError: the data gives other batches than before.
            TeamError: the processes of the team read different batches.
        """
        goes_on = start > 0 and bool(self._begun)
        now = self._now or random_states(self._holder)  # of the checkpoint, or of this very process
        if goes_on:
            set_random_states(self._begun, self._holder)
        else:
            self._begun = self._shared(random_states(self._holder))
            set_random_states(self._begun, self._holder)
        for part in (self._holder, getattr(self._holder, "sampler", None)):
            if callable(tell := getattr(part, "set_epoch", None)):
                tell(epoch)
        batches = iter(self._epochs(epoch))
        for index in range(start):
            self._last = next(batches, None)
            if self._last is None:
                raise CheckpointError(
                    f"epoch {epoch + 1} has only {index} batches now, but {start} of it were trained on before; resume "
                    "with the data that the run was started with"
                )
        if goes_on:
            self._require_as_before(epoch, start)
            set_random_states(now, self._holder)
            self._now, self._expected = {}, None
        for index, batch in enumerate(batches):
            self._last = batch
            if index == 0:
                self._require_one_batch(batch)
            yield arguments(batch, self._device)

    def tensors(self) -> dict[str, Tensor]:
        """Random states at the start of the epoch, and now."""
        now = random_states(self._holder)
        return {f"begun/{k}": v for k, v in self._begun.items()} | {f"now/{k}": v for k, v in now.items()}

    def values(self) -> dict[str, Any]:
        """The fingerprint of the last batch."""
        return {"last": None if self._last is None else fingerprint(self._last)}

    def restore(self, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go on from the random states of a checkpoint."""
        self._begun = {k.removeprefix("begun/"): v for k, v in tensors.items() if k.startswith("begun/")}
        self._now = {k.removeprefix("now/"): v for k, v in tensors.items() if k.startswith("now/")}
        self._expected = values.get("last")
        if self._now:
            set_random_states(self._now, self._holder)

    def _shared(self, states: dict[str, Tensor]) -> dict[str, Tensor]:
        own = torch.cat([state.contiguous().view(torch.uint8).reshape(-1) for state in states.values()])
        shared = self._team.broadcast(own.numpy().tobytes())
        if len(shared) != len(own):
            raise TeamError("the processes of the team have different random generators; start them alike")
        parts = torch.split(torch.frombuffer(bytearray(shared), dtype=torch.uint8), [s.nbytes for s in states.values()])
        return {k: p.view(s.dtype).reshape(s.shape) for (k, s), p in zip(states.items(), parts, strict=True)}

    def _require_as_before(self, epoch: int, start: int) -> None:
        if self._expected is not None and fingerprint(self._last) != self._expected:
            raise CheckpointError(
                f"batch {start} of epoch {epoch + 1} is another one than before the interruption, so the run cannot go "
                "on bit for bit: the data has changed, or draws from a random generator that is not known here. Let it "
                "draw from torch's, NumPy's or Python's global generator or from the DataLoader's generator=..., or "
                "give train an object with batch(epoch, index)"
            )

    def _require_one_batch(self, batch: Any) -> None:
        if not self._team.agrees(lambda: int(fingerprint(batch)[:15], 16)):
            raise TeamError(
                "the processes of the team read different batches; give all of them the same data and the same seeds "
                "(no DistributedSampler: queries are divided, not data)"
            )


def fingerprint(batch: Any) -> str:
    """SHA-256 over the contents of a batch, as 64 hexadecimal digits.

    Example:
        >>> fingerprint(torch.zeros(2)) == fingerprint(torch.zeros(2)), fingerprint([1]) == fingerprint([2])
        (True, False)
    """
    digest = hashlib.sha256()
    leaves, structure = pytree.tree_flatten(batch)
    digest.update(repr(structure).encode())
    for leaf in leaves:
        if isinstance(leaf, (Tensor, np.ndarray)):
            plain = torch.as_tensor(leaf).detach().cpu().contiguous()
            digest.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
            digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
        else:
            digest.update(repr(leaf).encode())
    return digest.hexdigest()


def random_states(holder: Any = None) -> dict[str, Tensor]:
    """States of the global generators and of those that a data loader holds; nothing is drawn."""
    _, numbers, gauss = random.getstate()
    legacy: Any = np.random.get_state()  # noqa: NPY002 - the user's, kept for a resume
    _, keys, position, has_gauss, cached = legacy
    states = {
        "python": torch.tensor(numbers),
        "python-gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.tensor([*keys.tolist(), position, has_gauss]),
        "numpy-gauss": torch.tensor([cached], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states |= {f"cuda-{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states | {f"loader-{i}": own.get_state() for i, own in enumerate(_generators(holder))}


def set_random_states(states: Mapping[str, Tensor], holder: Any = None) -> None:
    """Put generators where :func:`random_states` found them; those of a device that is not here are left alone."""
    gauss = states["python-gauss"].tolist()
    random.setstate((3, tuple(states["python"].tolist()), gauss[0] if gauss else None))
    *keys, position, has_gauss = states["numpy"].tolist()
    cached = float(states["numpy-gauss"])
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(states["torch"].clone())  # PyTorch reads a view from the beginning of its storage
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            if f"cuda-{i}" in states:
                torch.cuda.set_rng_state(states[f"cuda-{i}"].clone(), i)
    for i, own in enumerate(_generators(holder)):
        if f"loader-{i}" in states:
            own.set_state(states[f"loader-{i}"].clone())


def _generators(holder: Any) -> list[torch.Generator]:
    """The generators of a data loader, its samplers and its data set, each once."""
    sampler, batch_sampler = getattr(holder, "sampler", None), getattr(holder, "batch_sampler", None)
    parts = (holder, sampler, batch_sampler, getattr(batch_sampler, "sampler", None), getattr(holder, "dataset", None))
    found = [getattr(part, "generator", None) for part in parts]
    return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())


class _NoData:
    """A problem without data: an epoch is one step."""

    def __len__(self) -> int:
        return 1

    def batch(self, _epoch: int, _index: int) -> Arguments:
        return ()
