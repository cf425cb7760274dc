"""The operation ``deepzero::opaque``: one call of something that can only be queried.

Programs, autograd, ``torch.func.vmap`` and exported graphs see it as one operation of tensors. What it calls is known
by a number, its handle, because an operation takes no Python objects.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from deepzero.errors import InvalidInputError, RowError


class Answering(Protocol):
    """An object that the operation calls, found by its handle."""

    def answer(self, inputs: Sequence[Tensor], parameters: Sequence[Tensor], *, required: bool = True) -> Tensor:
        """The output at some inputs and parameters: a row for each row of the inputs.

        One that is not ``required`` is NaN where the policy skips it.
        """
        ...

    def answer_narrowed(self, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
        """The same, asked in the dtypes of the call before."""
        ...

    def output_like(self, inputs: Sequence[Tensor]) -> Tensor:
        """An empty tensor of the output's shape and dtype, without a query."""
        ...

    def stackable(self, inputs: Sequence[Tensor], parameters: Sequence[Tensor], output: Tensor | None = None) -> bool:
        """True if rows may be stacked with rows of other queries: they depend on themselves alone."""
        ...

    def gradients(
        self,
        inputs: Sequence[Tensor],
        parameters: Sequence[Tensor],
        output: Tensor,
        cotangent: Tensor,
        needs: tuple[Sequence[bool], Sequence[bool]],
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Vector-Jacobian products with respect to the inputs and parameters that ``needs`` marks."""
        ...


_handles = itertools.count(1)
_answering: WeakValueDictionary[int, Any] = WeakValueDictionary()
_stand_in: ContextVar[bool] = ContextVar("deepzero_stand_in", default=False)
_narrow: ContextVar[bool] = ContextVar("deepzero_narrow", default=False)
_perturbed: ContextVar[bool] = ContextVar("deepzero_perturbed", default=False)
_stirred: ContextVar[bool | None] = ContextVar("deepzero_stirred", default=None)
_recalled: ContextVar[Answers | None] = ContextVar("deepzero_answers", default=None)


@dataclass
class Answers:
    """The answers of black boxes inside of a program to the base query of a step.

    The same call again in that step, by the forward of its graph or by a query that moves nothing in front of the black
    box, gets the same answer, and costs nothing.

    Attributes:
        entries: handle, inputs, parameters and output of each call.
        open: whether calls are added.
    """

    entries: list[tuple[int, list[Tensor], list[Tensor], Tensor]] = field(default_factory=list)
    open: bool = True

    @contextmanager
    def opened(self) -> Iterator[None]:
        """A block whose calls are added."""
        before, self.open = self.open, True
        try:
            yield
        finally:
            self.open = before

    def find(self, handle: int, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor | None:
        """The recorded answer to the same call; None if there is none."""
        for known, *arguments, output in self.entries:
            if known == handle and all(map(_same, (inputs, parameters), arguments)):
                return output.clone()
        return None

    def add(self, handle: int, inputs: Sequence[Tensor], parameters: Sequence[Tensor], output: Tensor) -> None:
        """Remember an answer, if calls are added."""
        if self.open:
            copies = [[value.detach().clone() for value in values] for values in (inputs, parameters)]
            self.entries.append((handle, copies[0], copies[1], output.detach().clone()))


def _same(values: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(values) == len(others) and all(
        one.dtype == other.dtype and torch.equal(one, other) for one, other in zip(values, others, strict=True)
    )


@contextmanager
def answering(answers: Answers) -> Iterator[None]:
    """A block in which a call that was answered once is answered from ``answers``."""
    token = _recalled.set(answers)
    try:
        yield
    finally:
        _recalled.reset(token)


@contextmanager
def narrowed() -> Iterator[None]:
    """A block of a graph in float64: black boxes are called in the dtypes in which they live."""
    token = _narrow.set(True)
    try:
        yield
    finally:
        _narrow.reset(token)


@contextmanager
def perturbed_query() -> Iterator[None]:
    """A block of queries that an estimator can do without: what a black box's policy skips is NaN, and no error."""
    token = _perturbed.set(True)
    try:
        yield
    finally:
        _perturbed.reset(token)


@contextmanager
def in_perturbation(of_row: Callable[[int], int]) -> Iterator[None]:
    """A block that asks for several perturbations at once: a row that fails for good says which of them it belongs to.

    Args:
        of_row: number of a row in the call to that of its perturbation.
    """
    try:
        yield
    except RowError as error:
        error.perturbation = of_row(error.row)
        raise


@contextmanager
def stirred(*, python: bool) -> Iterator[None]:
    """A block in which a black box finds the global generators elsewhere than the program does.

    Its own draws are not the program's to have in common, so such a block shows a black box that draws.

    Args:
        python: NumPy's and Python's generators are borrowed, too, and may be moved.
    """
    token = _stirred.set(python)
    try:
        yield
    finally:
        _stirred.reset(token)


def _stir(device: torch.device, python: bool) -> None:
    torch.rand(1)
    torch.rand(1, device=device)
    if python:
        np.random.random()  # noqa: NPY002 - the generators that a black box would draw from
        random.random()


_PLAIN = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()


@contextmanager
def as_called_alone() -> Iterator[None]:
    """A block inside of the operation that PyTorch runs as it runs any program, whoever called the operation.

    Inside an operation some of PyTorch's dispatch is switched off, and ``vmap`` may be under way, so that a black box
    which traces itself, or differentiates inside, would fail, though it works when it is called by itself.
    """
    with torch._C._ForceDispatchKeyGuard(*_PLAIN), temporarily_clear_interpreter_stack():
        yield


def register(answering: Answering) -> int:
    """A handle, by which the operation finds ``answering`` as long as it lives."""
    handle = next(_handles)
    _answering[handle] = answering
    return handle


def asks(module: object) -> bool:
    """True if a module calls a black box, so that its queries have a price."""
    handle = getattr(module, "_handle", None)
    return isinstance(handle, int) and _answering.get(handle) is module


def forgives(module: object) -> bool:
    """True if a module calls a black box whose failed answers are left out: a query with one of them has no loss."""
    return asks(module) and bool(getattr(module, "forgiving", False))


def behind(handle: int) -> Answering:
    """The object behind a handle.

    Raises:
        InvalidInputError: it is gone, or in another process.
    """
    found = _answering.get(handle)
    if found is None:
        raise InvalidInputError(
            f"the dz.Opaque behind this graph (number {handle}) is gone, or lives in another process; keep the model "
            "that holds it, and export where it lives"
        )
    return found  # type: ignore[no-any-return]


@contextmanager
def standing_in() -> Iterator[None]:
    """A block in which a smooth function of the same shape answers instead: rules are checked without a query."""
    token = _stand_in.set(True)
    try:
        yield
    finally:
        _stand_in.reset(token)


def stackable(
    handle: int, inputs: Sequence[Tensor], parameters: Sequence[Tensor], output: Tensor | None = None
) -> bool:
    """True if rows of several queries may go into one call."""
    return _stand_in.get() or behind(handle).stackable(inputs, parameters, output)


def _smooth(handle: int, inputs: Sequence[Tensor], parameters: Sequence[Tensor], like: Tensor) -> Tensor:
    """Rows of ``sin(W z + w)``, with ``W`` of the handle's own and ``w`` of the parameters; floats in their dtype."""
    rows = like.shape[0]
    floats = [value for value in inputs if value.is_floating_point()]
    dtype = floats[0].dtype if floats else like.dtype
    flat = torch.cat([value.reshape(rows, -1).to(dtype) for value in inputs], dim=1)
    generator = torch.Generator().manual_seed(handle)
    width = like[0].numel()
    weight = torch.randn(flat.shape[1], width, generator=generator, dtype=torch.float64).to(flat)
    shift = sum((value.to(flat).mean() for value in parameters), start=flat.new_zeros(()))
    return torch.sin(flat @ weight / max(1, flat.shape[1]) ** 0.5 + shift).reshape(like.shape)


@torch.library.custom_op("deepzero::opaque", mutates_args=())
def opaque(handle: int, inputs: list[Tensor], parameters: list[Tensor]) -> Tensor:
    """The output behind ``handle``."""
    found = behind(handle)
    if _stand_in.get():
        return _smooth(handle, inputs, parameters, found.output_like(inputs))
    if _narrow.get():
        return found.answer_narrowed(inputs, parameters).to(inputs[0].dtype)
    answers = _recalled.get()
    known = None if answers is None else answers.find(handle, inputs, parameters)
    if known is not None:
        return known
    if (python := _stirred.get()) is not None:
        _stir(inputs[0].device, python)
    output = found.answer(inputs, parameters, required=not _perturbed.get())
    if answers is not None:
        answers.add(handle, inputs, parameters, output)
    return output


@opaque.register_fake
def _(handle: int, inputs: list[Tensor], parameters: list[Tensor]) -> Tensor:  # noqa: ARG001 - the operation's
    return behind(handle).output_like(inputs)


@opaque.register_vmap
def _(
    info: Any, in_dims: tuple[Any, ...], handle: int, inputs: list[Tensor], parameters: list[Tensor]
) -> tuple[Tensor, int]:
    """Rows of all the batch in one call, where only inputs are batched and may be; else one call after another."""
    _, input_dims, parameter_dims = in_dims
    count = info.batch_size

    def at(values: Sequence[Tensor], dims: Sequence[int | None], k: int) -> list[Tensor]:
        return [v if d is None else v.select(d, k) for v, d in zip(values, dims, strict=True)]

    batched = any(dim is not None for dim in parameter_dims)
    if batched or not stackable(handle, at(inputs, input_dims, 0), parameters):
        outputs = []
        for k in range(count):
            with in_perturbation(lambda _, k=k: k):  # type: ignore[misc]
                outputs.append(opaque(handle, at(inputs, input_dims, k), at(parameters, parameter_dims, k)))
        return torch.stack(outputs), 0
    rows = [
        (v.expand(count, *v.shape) if d is None else v.movedim(d, 0)).flatten(0, 1)
        for v, d in zip(inputs, input_dims, strict=True)
    ]
    with in_perturbation(lambda row: row * count // len(rows[0])):
        output = opaque(handle, rows, parameters)
    return output.unflatten(0, (count, -1)), 0


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    handle, values, parameters = inputs
    ctx.answering, ctx.count = behind(handle), len(values)  # it lives as long as its history
    ctx.save_for_backward(output, *values, *parameters)


def _backward(ctx: Any, cotangent: Tensor) -> tuple[None, list[Tensor | None], list[Tensor | None]]:
    if torch.is_grad_enabled():
        raise InvalidInputError(
            "a dz.Opaque has no second derivatives: its gradient is an estimate from values (create_graph=True went "
            "through it); keep the black box out of what is differentiated twice"
        )
    output, *saved = ctx.saved_tensors
    values, parameters = saved[: ctx.count], saved[ctx.count :]
    _, needs_values, needs_parameters = ctx.needs_input_grad
    needs = (_each(needs_values, len(values)), _each(needs_parameters, len(parameters)))
    return None, *ctx.answering.gradients(values, parameters, output, cotangent, needs)


def _each(needs: Any, count: int) -> list[bool]:
    """A flag for each tensor of a list: PyTorch gives one for each, or one for all."""
    return list(needs) if isinstance(needs, (list, tuple)) else [bool(needs)] * count


opaque.register_autograd(_backward, setup_context=_setup)

TARGET = torch.ops.deepzero.opaque.default
