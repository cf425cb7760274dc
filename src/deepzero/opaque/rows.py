"""Rows to a black box and back: cut into calls, counted, paid for, sent, checked."""

from __future__ import annotations

import hashlib
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepzero.errors import (
    DeepZeroError,
    InvalidInputError,
    NonFiniteLossError,
    QueryBudgetError,
    RowError,
    mark_from_black_box,
)
from deepzero.executors import QueryJournal, QueryPolicy
from deepzero.executors.dispatch import Clock, Dispatcher
from deepzero.executors.policy import RateLimit
from deepzero.executors.pool import ExecutorSource, Pool
from deepzero.executors.queries import KEY_BYTES, tensor_bytes
from deepzero.executors.worker import PackedTensor
from deepzero.operator import as_called_alone

log = logging.getLogger("deepzero")


def flat_rows(values: Tensor) -> Tensor:
    """``[b, n]``: the entries of each row; a row may be a single number."""
    return values.flatten(1) if values.dim() > 1 else values.unsqueeze(1)


@dataclass(frozen=True)
class RowFunction:
    """A callable and how it wants to be called.

    It works on copies and its answer is copied: a function may write into its arguments (``nn.ReLU(inplace=True)``
    does) and may give the same array at every call. One that says ``reads_only = True`` does neither.

    Attributes:
        fn: takes inputs of N rows each, and the parameters by name if there are any; returns N rows.
        numpy: it takes and gives NumPy arrays.
        parameters: names of its parameters; empty: it is called with the inputs alone.
    """

    fn: Callable[..., Any]
    numpy: bool = False
    parameters: tuple[str, ...] = ()

    def __call__(self, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
        """The output, N rows, on the device of the inputs."""
        arguments: list[Any] = [self._argument(value) for value in inputs]
        if self.parameters:
            arguments.append({name: self._argument(p) for name, p in zip(self.parameters, parameters, strict=True)})
        with torch.no_grad(), as_called_alone():
            output = self.fn(*arguments)
        return self._taken(output, inputs)

    @property
    def _reads_only(self) -> bool:
        return getattr(self.fn, "reads_only", False)

    def _argument(self, value: Tensor) -> Any:
        value = value.detach() if self._reads_only else value.detach().clone()
        if self.numpy and value.dtype == torch.bfloat16:
            raise InvalidInputError(
                "NumPy has no bfloat16: give the black box float32, for example box(z.float()).to(z.dtype)"
            )
        return value.cpu().numpy() if self.numpy else value

    def _taken(self, output: Any, inputs: Sequence[Tensor]) -> Tensor:
        rows, device = len(inputs[0]), inputs[0].device
        if isinstance(output, (list, tuple)) and len(output) == 1:
            (output,) = output  # what an inference session returns
        try:
            found = torch.as_tensor(output)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidInputError(
                f"the black box must return one array with a row for each of its {rows} rows, got "
                f"{type(output).__name__}"
            ) from error
        if found.dim() == 0 or len(found) != rows:
            raise InvalidInputError(
                f"the black box must return a row for each of its {rows} rows, got an array of shape "
                f"{tuple(found.shape)}"
            )
        if not found.is_floating_point():
            raise InvalidInputError(
                f"the black box must return floating-point numbers, got {found.dtype}; labels or counts have no slope: "
                "return scores, probabilities or logits"
            )
        found = found.detach().to(device)
        return found if self._reads_only else found.clone()


@dataclass(frozen=True, slots=True)
class _RowQuery:
    """One row on its way to an executor: the row's index, its content key, and its inputs."""

    place: int
    key: str | None
    point: tuple[PackedTensor, ...]


@dataclass(frozen=True, slots=True)
class _RowPayload:
    """The function and its parameters, for a worker."""

    function: RowFunction
    parameters: tuple[PackedTensor, ...]

    def unpack(self) -> _ReadyRows:
        """With the tensors themselves."""
        return _ReadyRows(self.function, [packed.unpack() for packed in self.parameters])


@dataclass(frozen=True)
class _ReadyRows:
    """The function where its rows are answered."""

    function: RowFunction
    parameters: list[Tensor]

    def answers(self, points: Sequence[tuple[PackedTensor, ...]]) -> list[np.ndarray[Any, Any]]:
        """An array for each row."""
        inputs = [torch.stack([row.unpack() for row in column]) for column in zip(*points, strict=True)]
        return list(self.function(inputs, self.parameters).cpu().numpy())


@dataclass
class Ledger:
    """Counters of a black box.

    Attributes:
        queries: rows that were answered, each of them once.
        calls: calls of the function.
        replayed: rows that a journal answered, at no cost.
        skipped: rows that stayed without an answer, by the policy.
        drawn: estimates so far: each draws directions of its own.
        standard_error: of an entry of the last answers, root mean square, where rows are asked repeatedly; else NaN.
    """

    queries: int = 0
    calls: int = 0
    replayed: int = 0
    skipped: int = 0
    drawn: int = 0
    standard_error: float = math.nan


@dataclass
class Rows:
    """Gets rows answered.

    Args:
        function: the function.
        most: rows of one call; None: all of them.
        executor: sends calls to other threads, processes or machines.
        policy: timeout, retries, limits.
        journal: answers are recorded here before they are used, row by row, and known ones are not asked for again.
        price: of a row.
        max_queries: rows that may be asked for.
        repeats: answers for each row, which are averaged.
        problem: what the journal answers.
    """

    function: RowFunction
    most: int | None = None
    executor: ExecutorSource | None = None
    policy: QueryPolicy | None = None
    journal: QueryJournal | None = None
    price: float | None = None
    max_queries: int | None = None
    repeats: int = 1
    problem: str = ""
    ledger: Ledger = field(default_factory=Ledger)

    def __post_init__(self) -> None:
        self._pool = None if self.executor is None else Pool(self.executor)
        self._rate = RateLimit(None if self.policy is None else self.policy.per_second)
        self.lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {one.name: getattr(self, one.name) for one in fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()

    def ask(
        self,
        inputs: Sequence[Tensor],
        parameters: Sequence[Tensor],
        *,
        required: bool = True,
        names: Sequence[int] | None = None,
    ) -> Tensor:
        """The output for all rows.

        One thread at a time: few functions can be called in several, and a budget is one number.

        Args:
            inputs: N rows each.
            parameters: values of the function's parameters.
            required: a row without an answer is an error; else, with a policy that skips, it is NaN.
            names: what messages call the rows; by default their numbers.

        Raises:
            QueryBudgetError: that would be more than ``max_queries``; nothing was asked.
            NonFiniteLossError: the function returned NaN or infinity.
            QueryError: a call failed for good.
        """
        try:
            with self.lock:
                if (sound := self._sound(inputs, required)) is not None:
                    return self._of_sound(inputs, parameters, sound)
                known_as = range(len(inputs[0])) if names is None else names
                turns = [
                    self._once(inputs, parameters, required, known_as, k, self.repeats - k) for k in range(self.repeats)
                ]
        except Exception as error:
            mark_from_black_box(error)
            raise
        if self.repeats == 1:
            return turns[0]
        answers = torch.stack(turns)
        deviation = answers.double().std(0) / math.sqrt(self.repeats)
        self.ledger.standard_error = float(deviation.square().mean().sqrt())
        return answers.mean(0)

    def _sound(self, inputs: Sequence[Tensor], required: bool) -> Tensor | None:
        """Rows to ask about, where some come from an answer that was skipped before; None for all."""
        if required or self.policy is None:
            return None
        floats = [flat_rows(value) for value in inputs if value.is_floating_point()]
        if all(bool(value.sum().isfinite()) for value in floats):
            return None
        sound = torch.stack([value.isfinite().all(1) for value in floats]).all(0)
        return None if bool(sound.all()) or not bool(sound.any()) else sound

    def _of_sound(self, inputs: Sequence[Tensor], parameters: Sequence[Tensor], sound: Tensor) -> Tensor:
        """The output, NaN in the rows that nobody is asked about."""
        some = [value[sound] for value in inputs]
        found = self.ask(some, parameters, required=False, names=sound.nonzero().flatten().tolist())
        output = found.new_full((len(sound), *found.shape[1:]), math.nan)
        output[sound] = found
        return output

    def _once(
        self,
        inputs: Sequence[Tensor],
        parameters: Sequence[Tensor],
        required: bool,
        names: Sequence[int],
        turn: int,
        turns: int,
    ) -> Tensor:
        """The output for all rows, asked once; ``turns`` of them are to come, this one included."""
        count = len(inputs[0])
        keys = self._keys(inputs, parameters, turn)
        known = self._known(keys)
        self._require_budget((count - len(known)) * turns)
        if self._pool is None and self.journal is None:
            return self._here(inputs, parameters, names, required)
        missing = [k for k in range(count) if k not in known]
        if missing and self._pool is None:
            some = [value[missing] for value in inputs]
            found = self._here(some, parameters, [names[k] for k in missing], required)
            self._record(dict(zip(missing, found.cpu().numpy(), strict=True)), keys, known)
        elif missing:
            self._elsewhere(inputs, parameters, missing, keys, known, required, names)
        return self._together(known, count, inputs[0].device)

    def _require_budget(self, count: int) -> None:
        if self.max_queries is not None and self.ledger.queries + count > self.max_queries:
            raise QueryBudgetError(
                f"the black box was asked {self.ledger.queries} times and the next call would ask {count} more, with "
                f"max_queries={self.max_queries}; nothing of it was asked"
            )

    def _here(
        self, inputs: Sequence[Tensor], parameters: Sequence[Tensor], names: Sequence[int], required: bool
    ) -> Tensor:
        """Call the function in this process."""
        count, most = len(inputs[0]), self.most or len(inputs[0]) or 1
        parts = []
        for start in range(0, count, most):
            some = [value[start : start + most] for value in inputs] if most < count else list(inputs)
            answers, skipped = self._answered(some, parameters, names[start:], required)
            parts.append(self._finite(answers, names[start:], required, skipped))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _answered(
        self, inputs: Sequence[Tensor], parameters: Sequence[Tensor], names: Sequence[int], required: bool
    ) -> tuple[Tensor, list[int]]:
        """One call, made again as the policy says; rows that are skipped are NaN, and are named."""
        policy = self.policy
        if policy is None or policy.on_error == "stop":
            return self._counted(self.function(inputs, parameters)), []
        tries = 1 + (policy.retries if policy.on_error == "retry" else 0)
        for attempt in range(1, tries + 1):
            try:
                return self._counted(self.function(inputs, parameters)), []
            except DeepZeroError:
                raise  # what the function may not return
            except Exception as error:
                cause = error
            if attempt < tries:
                log.info("row %d: %r; again", names[0], cause)
                time.sleep(policy.delay(attempt, place=names[0]))
        resort = policy.on_error if policy.on_error == "skip" else policy.exhausted
        return self._one_by_one(inputs, parameters, names, cause, tries, skips=resort == "skip" and not required)

    def _one_by_one(
        self,
        inputs: Sequence[Tensor],
        parameters: Sequence[Tensor],
        names: Sequence[int],
        cause: Exception,
        tries: int,
        *,
        skips: bool,
    ) -> tuple[Tensor, list[int]]:
        """The rows of a call that failed for good, each by itself, so that an error names the one at fault."""
        rows: list[Tensor | None] = []
        for k in range(len(inputs[0])):
            one = [value[k : k + 1] for value in inputs]
            try:
                if len(inputs[0]) == 1:
                    raise cause
                rows.append(self._counted(self.function(one, parameters)))
            except DeepZeroError:
                raise
            except Exception as error:
                if not skips:
                    raise RowError(
                        f"row {names[k]}, after {tries} {'try' if tries == 1 else 'tries'}: the black box raised "
                        f"{error!r}; what it was asked is in this error's .inputs",
                        row=names[k],
                        inputs=[value.detach().clone() for value in one],
                    ) from error
                log.warning("row %d: %r; skipped", names[k], error)
                rows.append(None)
                self.ledger.skipped += 1
        like = next((row for row in rows if row is not None), None)
        if like is None:
            raise NonFiniteLossError("the policy skipped every row of a call: nothing is left to estimate from")
        answers = torch.cat([like.new_full(like.shape, math.nan) if row is None else row for row in rows])
        return answers, [k for k, row in enumerate(rows) if row is None]

    def _counted(self, answers: Tensor) -> Tensor:
        self.ledger.calls += 1
        self.ledger.queries += len(answers)
        return answers

    def _finite(self, part: Tensor, names: Sequence[int], required: bool, skipped: Sequence[int]) -> Tensor:
        """The answers; a row that is not finite is NaN as a whole if it is skipped, and else an error."""
        if bool(part.sum().isfinite()):
            return part
        odd = ~part.reshape(len(part), -1).isfinite().all(1)
        odd[list(skipped)] = False
        if not bool(odd.any()):  # a sum of finite numbers may be too large
            return part
        if required or self.policy is None or self.policy.on_nan != "skip":
            row = names[int(odd.nonzero()[0])]
            raise NonFiniteLossError(
                f"the black box returned NaN or infinity for row {row}: no gradient can be estimated there; check "
                'the inputs, or give policy=dz.QueryPolicy(on_nan="skip"), which leaves such queries out'
            )
        self.ledger.skipped += int(odd.sum())
        return part.masked_fill(odd.reshape(-1, *(1 for _ in part.shape[1:])), math.nan)

    def _elsewhere(
        self,
        inputs: Sequence[Tensor],
        parameters: Sequence[Tensor],
        missing: Sequence[int],
        keys: Sequence[str | None],
        known: dict[int, Any],
        required: bool,
        names: Sequence[int],
    ) -> None:
        """Send calls to the executor; answers come in any order and are kept as they come."""
        assert self._pool is not None
        queries = [_RowQuery(k, keys[k], tuple(PackedTensor.pack(value[k]) for value in inputs)) for k in missing]
        workers = self._pool.workers() or 1
        most = self.most or -(-len(queries) // workers)
        payload = _RowPayload(self.function, tuple(PackedTensor.pack(p) for p in parameters))

        def accept(found: dict[int, Any]) -> None:
            self.ledger.queries += sum(answer is not None for answer in found.values())
            self.ledger.skipped += sum(answer is None for answer in found.values())
            self._record(found, keys, known)

        stacks = [queries[start : start + most] for start in range(0, len(queries), most)]
        self.ledger.calls += len(stacks)
        Dispatcher(
            self._pool,
            payload,
            policy=self.policy or QueryPolicy(),
            rate=self._rate,
            accept=accept,
            describe=lambda place: f"row {names[place]}",
            clock=Clock(),
            required=lambda _: required,
        ).run(stacks)

    def _keys(self, inputs: Sequence[Tensor], parameters: Sequence[Tensor], turn: int) -> list[str | None]:
        """Content keys of the rows, where a journal or an executor wants them."""
        count = len(inputs[0])
        if self.journal is None and self._pool is None:
            return []
        shared = hashlib.blake2b(digest_size=32)
        for value in parameters:
            shared.update(f"{value.dtype} {tuple(value.shape)};".encode() + tensor_bytes(value))
        shared.update(";".join(f"{value.dtype} {tuple(value.shape[1:])}" for value in inputs).encode())
        shared.update(f" asked {turn}".encode() if turn else b"")
        identity = shared.digest()
        return [
            hashlib.blake2b(
                b"".join(tensor_bytes(value[k]) for value in inputs), key=identity, digest_size=KEY_BYTES
            ).hexdigest()
            for k in range(count)
        ]

    def _known(self, keys: Sequence[str | None]) -> dict[int, Any]:
        """Rows that the journal answers."""
        if self.journal is None:
            return {}
        self.journal.answers_for(self.problem)
        found = self.journal.lookup(key for key in keys if key is not None)
        known: dict[int, Any] = {k: found[key] for k, key in enumerate(keys) if key is not None and key in found}
        self.ledger.replayed += len(known)
        return known

    def _record(self, found: Mapping[int, Any], keys: Sequence[str | None], known: dict[int, Any]) -> None:
        if self.journal is not None:
            self.journal.record({str(keys[k]): answer for k, answer in found.items()})
        known.update(found)

    def _together(self, known: Mapping[int, Any], count: int, device: torch.device) -> Tensor:
        """All rows in their order; NaN where one was skipped."""
        like = next((answer for answer in known.values() if answer is not None), None)
        if like is None:
            raise NonFiniteLossError("the policy skipped every row of a call: nothing is left to estimate from")
        blank = np.full_like(like, np.nan)
        rows = [blank if known[k] is None else known[k] for k in range(count)]
        return torch.from_numpy(np.stack(rows)).to(device)

    def close(self) -> None:
        """Shut down an executor that a function made."""
        if self._pool is not None:
            self._pool.close()
