"""Notice, before it happens, a write of a program into its batch, its parameters or plain tensors of its modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from deepzero.randomness import is_random

DRAWS = "draws"
PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "linear", "matmul"})


class WriteNoticed(BaseException):
    """An operation is about to write into a watched tensor.

    Attributes:
        name: its name.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class WriteWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """An operation that would write into the memory of one of ``tensors`` raises :class:`WriteNoticed` instead.

    Args:
        tensors: by name.
        draws: an operation that would draw random numbers is noticed, too, by the name :data:`DRAWS`.

    Attributes:
        multiplied: names of tensors that went into a matrix product.

    Example:
        >>> weight = torch.ones(2)
        >>> with WriteWatch({"weight": weight}):
        ...     doubled = weight * 2  # reading is allowed
        ...     try:
        ...         weight.mul_(2)
        ...     except WriteNoticed as noticed:
        ...         print(noticed.name, weight.tolist())
        weight [1.0, 1.0]
    """

    supports_higher_order_operators = True

    def __init__(self, tensors: Mapping[str, Tensor], *, draws: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        found = {name: memory_of(tensor) for name, tensor in tensors.items()}
        self._names = {memory: name for name, memory in found.items() if memory}
        self.multiplied: set[str] = set()
        self._draws = draws

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._draws and is_random(func, args, kwargs):
            raise WriteNoticed(DRAWS)
        if not isinstance(func, torch._ops.OpOverload):
            return func(*args, **kwargs)  # a higher-order operation: its parts run unwatched
        if func._schema.is_mutable:
            for position, argument in enumerate(func._schema.arguments):
                if argument.alias_info is None or not argument.alias_info.is_write:
                    continue
                written = args[position] if position < len(args) else kwargs.get(argument.name)
                for tensor in pytree.tree_leaves(written):
                    name = self._names.get(memory_of(tensor)) if isinstance(tensor, Tensor) else None
                    if name is not None:
                        raise WriteNoticed(name)
        if func.overloadpacket.__name__ in PRODUCTS:
            names = {
                self._names.get(memory_of(tensor)) for tensor in pytree.tree_leaves(args) if isinstance(tensor, Tensor)
            }
            self.multiplied |= {name for name in names if name is not None}
        return func(*args, **kwargs)


class ViewWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notices operations on views of parameters that were made before, while the parameters point elsewhere.

    ``self.transposed = self.layer.weight.t()`` in a constructor follows an optimizer's step, which writes into the
    memory of both; it does not follow a value that takes the parameter's place. Detached ones are constants to autograd
    as well, and are let pass.

    Args:
        parameters: by name, in their own memory.

    Attributes:
        read: names of the parameters that are read so.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2, 3))
        >>> before = weight.t()
        >>> with ViewWatch({"weight": weight}) as watch:
        ...     _ = before.detach() + 1, watch.read.copy(), before + 1
        >>> watch.read
        {'weight'}
    """

    supports_higher_order_operators = True

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._memory = {memory_of(tensor): name for name, tensor in parameters.items() if memory_of(tensor)}
        self.read: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in pytree.tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor) and tensor.requires_grad and not tensor.is_leaf:
                name = self._memory.get(memory_of(tensor))
                if name is not None:
                    self.read.add(name)
        return func(*args, **(kwargs or {}))


def memory_of(tensor: Tensor) -> int:
    """Address of a tensor's memory; 0 if it has none of its own (empty, sparse, or a stand-in of the tracer)."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return 0


def copied(tensor: Tensor) -> Tensor:
    """A copy with the same strides, on which operations give the same bits.

    What overlaps itself cannot be written into, and is returned as it is.
    """
    detached = tensor.detach()
    if detached.layout != torch.strided or type(detached) is not Tensor:
        made = detached.clone()
    elif overlaps_itself(detached):
        return tensor
    else:
        made = torch.empty_strided(detached.shape, detached.stride(), dtype=detached.dtype, device=detached.device)
        made.copy_(detached)
    return made.requires_grad_(tensor.requires_grad)


def overlaps_itself(tensor: Tensor) -> bool:
    """True if several entries of a tensor share memory, as after ``expand``: PyTorch refuses to write into it."""
    if tensor.layout != torch.strided:
        return False
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def written_so_far(tensor: Tensor) -> int:
    """Number of writes into a tensor, as PyTorch counts them; 0 of one that is not counted."""
    return 0 if tensor.is_inference() else tensor._version
