"""A device made of the CPU: its tensors hold their numbers on the CPU, and refuse what a real device refuses.

Every operation is computed on the CPU, so control flow that looks at values works and results can be compared. What
PyTorch refuses with a GPU is refused here: operands on two devices (but for indices, and numbers in pointwise operations), ``.numpy()``.
So code that mixes devices fails on a machine without a GPU. It is a device of PyTorch's "privateuse1" kind, which a process
registers once and for all: tests start a process for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

aten = torch.ops.aten
CPU, NAME = torch.device("cpu"), "pretended"

ACROSS = {aten._to_copy, aten.copy_, aten.copy, aten._local_scalar_dense}
"""Operations that take tensors of two devices."""

INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
"""Operations whose indices may lie on the CPU."""


class Pretended(Tensor):
    """A tensor that lies on the device."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls: Any, held: Tensor) -> Pretended:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        return Tensor._make_wrapper_subclass(cls, held.shape, device=torch.device(NAME, 0), **layout)

    def __init__(self, held: Tensor) -> None:
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.held.tolist()

    def __format__(self, spec: str) -> str:
        return format(self.held, spec)

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()


class _Device(TorchDispatchMode):
    """While it is on, tensors can be made on the device and moved to it."""

    def __enter__(self) -> _Device:
        self._before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) is made on the CPU, then moved
        return super().__enter__()

    def __exit__(self, *exception: object) -> None:
        torch._C._set_only_lift_cpu_tensors(self._before)
        super().__exit__(*exception)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


def computed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The operation on the CPU; its results lie on the device that it names, else on that of its tensors."""
    if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None:
        return func(*args, **kwargs)  # torch.export computes shapes and devices, no numbers
    leaves = [a for a in pytree.tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
    _refuse_mixed(func, args, leaves)
    asked = kwargs.get("device")
    there = any(isinstance(a, Pretended) for a in leaves) if asked is None else asked.type == NAME
    if func.overloadpacket is aten.copy_:
        there = isinstance(args[0], Pretended)
    on_cpu = kwargs if asked is None else {**kwargs, "device": CPU}
    held = pytree.tree_map(lambda a: a.held if isinstance(a, Pretended) else a, (args, on_cpu))
    out = func(*held[0], **held[1])
    if not there:
        return out
    known = {id(a.held): a for a in leaves if isinstance(a, Pretended)}  # what an operation in place returns
    return pytree.tree_map_only(Tensor, lambda o: known[id(o)] if id(o) in known else Pretended(o), out)


def _refuse_mixed(func: Any, args: tuple[Any, ...], leaves: list[Tensor]) -> None:
    if func.overloadpacket in ACROSS or not any(isinstance(a, Pretended) for a in leaves):
        return
    if func.overloadpacket in INDEXED and isinstance(args[0], Pretended):
        leaves = [a for a in args if isinstance(a, Tensor)]
    pointwise = torch.Tag.pointwise in func.tags
    if any(not isinstance(a, Pretended) and not (pointwise and a.dim() == 0) for a in leaves):
        where = ", ".join(f"{tuple(a.shape)} on {a.device.type}" for a in leaves)
        raise RuntimeError(f"expected all tensors to be on the same device, but {func} got {where}")


class _OfTheCPU:
    """A generator for any device: PyTorch has none for this one."""

    _made_by = torch.Generator

    def __new__(cls, *_: Any) -> Any:
        return cls._made_by()


@cache
def _register() -> None:
    _setup_privateuseone_for_python_backend(NAME)


@contextmanager
def device() -> Iterator[torch.device]:
    """The device, for the length of a block; what draws there draws from a generator of the CPU."""
    _register()
    with _Device(), mock.patch.object(torch, "Generator", _OfTheCPU):
        yield torch.device(NAME, 0)


def moved(model: nn.Module, place: torch.device) -> nn.Module:
    """``model.to(place)`` that keeps tied weights tied, which PyTorch's own breaks for tensors of another class."""
    homes = [(table, name) for m in model.modules() for table in (m._parameters, m._buffers) for name in table]
    once: dict[int, tuple[Tensor, Tensor]] = {}  # the old tensor is kept, so that no other one takes its id
    for table, name in homes:
        old = table[name]
        if old is not None and id(old) not in once:
            new = old.detach().to(place)
            wrapped = nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
            once[id(old)] = (old, wrapped)
        table[name] = None if old is None else once[id(old)][1]
    return model
