"""The arrays of a black box: shared with an optimizer where that is safe, refused with what to type where it is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from deepzero.errors import InvalidInputError

BARE = "x"
"""The name under which a bare array is kept."""
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Numbers that can be updated in place, entry by entry."""

Array = Tensor | np.ndarray[Any, Any]
Function = Callable[..., Any]
Given = Mapping[str, Array] | Array | nn.Module


@dataclass(frozen=True)
class OnBareArray:
    """``fn(x)`` as a function of ``{"x": x}``; it can be pickled if ``fn`` can.

    Example:
        >>> OnBareArray(lambda x, scale: scale * x)({"x": 3.0}, 2.0)
        6.0
    """

    fn: Function

    def __call__(self, params: Mapping[str, Any], *batch: Any) -> Any:
        """``fn`` on the array alone."""
        return self.fn(params[BARE], *batch)


def named(fn: Function, params: Given) -> tuple[Function, dict[str, Array]]:
    """A function of a dict of arrays, and these arrays by name, of whatever a black box is made from.

    Args:
        fn: takes what ``params`` is: a dict for a dict or a module, an array for an array.
        params: arrays by name; one array or tensor; or a module, of which the trainable parameters are meant.

    Raises:
        InvalidInputError: there is no array, or something else in its place.

    Example:
        >>> fn, arrays = named(lambda x: x.sum(), np.ones(3))
        >>> arrays, float(fn(arrays))
        ({'x': array([1., 1., 1.])}, 3.0)
    """
    if not callable(fn):
        raise InvalidInputError(f"fn must be callable as fn(params) -> float, got {type(fn).__name__}")
    if isinstance(params, (Tensor, np.ndarray)):
        return _with_numbers(OnBareArray(fn), {BARE: params})
    if isinstance(params, nn.Module):
        trainable: dict[str, Array] = {name: p for name, p in params.named_parameters() if p.requires_grad}
        if not trainable:
            raise InvalidInputError("the module has no trainable parameter (requires_grad=True): nothing to estimate")
        return _with_numbers(fn, trainable)
    if not isinstance(params, Mapping):
        raise InvalidInputError(
            "params must be arrays by name, one array or tensor, or a torch.nn.Module, which are updated in place; got "
            f"{type(params).__name__}; "
            + ("pass np.array(params, dtype=float)" if is_like_array(params) else 'for example {"w": np.zeros(3)}')
        )
    if not params:
        raise InvalidInputError('params must name at least one array, for example {"w": np.zeros(3)}')
    return _with_numbers(fn, dict(params))


def _with_numbers(fn: Function, values: dict[str, Array]) -> tuple[Function, dict[str, Array]]:
    for name in values:
        if not isinstance(name, str):
            raise InvalidInputError(f"the names of params must be strings, got {name!r}; try {str(name)!r}")
    if all(_is_empty(value) for value in values.values()):
        raise InvalidInputError("the arrays of params hold no number (a dimension of each is 0): nothing to estimate")
    return fn, values


def _is_empty(value: Array) -> bool:
    if isinstance(value, Tensor):
        return not nn.parameter.is_lazy(value) and 0 in value.shape
    return isinstance(value, np.ndarray) and 0 in value.shape


def is_like_array(value: object) -> bool:
    """True for what is no array but becomes one of real numbers in NumPy: a number, or lists of numbers.

    Example:
        >>> is_like_array(3), is_like_array([[1.0, 2.0]]), is_like_array("3"), is_like_array(np.zeros(2))
        (True, True, False, False)
    """
    if not isinstance(value, (list, tuple, int, float, np.generic)):
        return False
    try:
        return np.asarray(value).dtype.kind in "fiu"
    except ValueError:  # rows of different lengths
        return False


def as_parameters(values: Mapping[str, Array]) -> dict[str, nn.Parameter]:
    """All arrays by :func:`as_parameter`; no two of them may share memory.

    Raises:
        InvalidInputError: an array cannot be updated in place, or not without moving another one.

    Example:
        >>> flat = np.zeros(5)
        >>> sorted(as_parameters({"w": flat[:3], "b": flat[3:]}))
        ['b', 'w']
        >>> as_parameters({"w": flat[:3], "b": flat[2:]})
        Traceback (most recent call last):
        ...
        deepzero.errors.InvalidInputError: params['w'] and params['b'] share memory, so that one could not be moved \
        without the other; pass one of them, or copies
    """
    parameters = {name: as_parameter(name, value) for name, value in values.items()}
    end, last = ("", 0), ""
    filling = {name: p for name, p in parameters.items() if _fills_its_memory(p)}
    for device, start, name in sorted((str(p.device), p.data_ptr(), name) for name, p in filling.items()):
        if (device, start) < end:
            raise InvalidInputError(
                f"params[{last!r}] and params[{name!r}] share memory, so that one could not be moved without the "
                "other; pass one of them, or copies"
            )
        end, last = (device, start + parameters[name].nbytes), name
    return parameters


def _fills_its_memory(value: Tensor) -> bool:
    """True if its entries lie side by side, in whatever order, so that its memory is a range."""
    reach = sum((length - 1) * stride for length, stride in zip(value.shape, value.stride(), strict=True))
    return value.numel() > 0 and reach + 1 == value.numel()


def as_parameter(name: str, value: object) -> nn.Parameter:
    """The trainable tensor whose memory is that of ``value``, so that an optimizer's step is seen there.

    A leaf tensor that requires gradients, such as a module's parameter, is itself that tensor.

    Raises:
        InvalidInputError: ``value`` cannot be updated in place, or not safely; the message says what to pass instead.

    Example:
        >>> array = np.zeros(2)
        >>> _ = as_parameter("w", array).data.add_(1)
        >>> array
        array([1., 1.])
        >>> as_parameter("w", np.broadcast_to(array, (2, 2)))
        Traceback (most recent call last):
        ...
        deepzero.errors.InvalidInputError: params['w'] is read-only and could not be updated; pass np.array(w)
    """
    if isinstance(value, np.ndarray):
        return _of_array(name, value)
    if isinstance(value, Tensor):
        return _of_tensor(name, value)
    if isinstance(value, (bool, int, float, complex, np.generic)):
        problem = f"is a number ({value!r}), which cannot be updated in place"
        raise _refused(name, problem, f"np.array({name}, dtype=float)")
    if isinstance(value, (Mapping, nn.Module)):
        problem = f"is a {type(value).__name__}: names are not nested"
        raise _refused(name, problem, f"its arrays under names of their own, such as {name + '.w'!r}")
    raise InvalidInputError(
        f"params[{name!r}] must be a tensor or a NumPy array, got {type(value).__name__}"
        + (f"; pass np.array({name}, dtype=float)" if is_like_array(value) else "")
    )


def _of_array(name: str, value: np.ndarray[Any, Any]) -> nn.Parameter:
    copy = f"np.array({name})"
    if isinstance(value, np.ma.MaskedArray):
        raise _refused(name, "is a masked array, and PyTorch has no masks", f"{name}.filled(0.0), or another filling")
    if type(value) not in (np.ndarray, np.memmap):
        raise _refused(name, f"is of the subclass {type(value).__name__}; fn gets plain arrays", f"np.asarray({name})")
    if value.dtype.kind != "f":
        raise _not_real(name, value.dtype, complex_=value.dtype.kind == "c")
    if value.dtype.itemsize > 8:
        raise _refused(name, f"holds {value.dtype}, which PyTorch does not have", f"{name}.astype(np.float64)")
    if not value.flags.writeable:
        hint = f'{copy}, or open the file with mmap_mode="r+"' if isinstance(value, np.memmap) else copy
        raise _refused(name, "is read-only and could not be updated", hint)
    if not value.dtype.isnative:
        native = value.dtype.newbyteorder("=")
        raise _refused(
            name, f"is not in the byte order of this machine ({value.dtype.str})", f"{name}.astype('{native}')"
        )
    if any(stride < 0 for stride in value.strides):
        raise _refused(name, "runs backwards in memory, which PyTorch cannot share", copy)
    if _overlaps(value.shape, value.strides, value.itemsize):
        raise _refused(name, "has entries that share memory, so that they could not be moved one by one", copy)
    if not value.flags.aligned or any(stride % value.itemsize for stride in value.strides):
        raise _refused(name, "is a field of a record or not aligned, which PyTorch cannot share", copy)
    return nn.Parameter(torch.from_numpy(value))


def _of_tensor(name: str, value: Tensor) -> nn.Parameter:
    _require_dense(name, value)
    _require_own(name, value)
    if value.requires_grad:
        return cast("nn.Parameter", value)  # a leaf, to which optimizers do what they do to a parameter
    return nn.Parameter(value.detach())


def _require_dense(name: str, value: Tensor) -> None:
    """Real numbers, all there."""
    if type(value) is not Tensor and not isinstance(value, nn.Parameter):
        raise _refused(name, f"is of the subclass {type(value).__name__}", "a plain torch.Tensor")
    if nn.parameter.is_lazy(value):
        raise InvalidInputError(f"params[{name!r}] has no shape yet; call the lazy module once on a batch first")
    if value.is_meta:
        raise _refused(name, "is on the meta device and holds no numbers", f"torch.zeros({tuple(value.shape)})")
    if value.is_nested or value.layout is not torch.strided:
        raise _refused(name, f"is not a dense tensor (layout {value.layout})", f"{name}.to_dense()")
    if not value.is_floating_point():
        raise _not_real(name, value.dtype, complex_=value.is_complex())
    if value.dtype not in DTYPES:
        raise _refused(name, f"holds {value.dtype}, in which PyTorch does not compute", f"{name}.float()")


def _require_own(name: str, value: Tensor) -> None:
    """Memory of its own, which an update in place changes entry by entry."""
    if value.grad_fn is not None:
        problem = "was computed under autograd, and an update of the result would not reach what it was computed from"
        raise _refused(name, problem, f"the leaf tensor itself, or {name}.detach().clone()")
    if value.is_inference():
        raise _refused(name, "was made under torch.inference_mode() and could not be updated", f"{name}.clone()")
    if value.is_neg():
        raise _refused(name, "is a view whose sign is flipped lazily", f"{name}.resolve_neg()")
    if _overlaps(value.shape, value.stride(), 1):
        problem = "has entries that share memory (expand, as_strided), so that they could not be moved one by one"
        raise _refused(name, problem, f"{name}.contiguous()")


def _overlaps(shape: tuple[int, ...], strides: tuple[int, ...], size: int) -> bool:
    """True if two entries may share memory: a dimension does not step past all that the smaller strides cover."""
    if 0 in shape:
        return False
    covered = size
    for stride, length in sorted((abs(stride), length) for stride, length in zip(strides, shape, strict=True)):
        if length > 1 and stride < covered:
            return True
        covered += (length - 1) * stride
    return False


def _refused(name: str, problem: str, instead: str) -> InvalidInputError:
    return InvalidInputError(f"params[{name!r}] {problem}; pass {instead}")


def _not_real(name: str, dtype: Any, *, complex_: bool) -> InvalidInputError:
    hint = (
        f"pass real and imaginary parts as two arrays, {name}.real.copy() and {name}.imag.copy()"
        if complex_
        else f"convert it with {name}.{'float()' if isinstance(dtype, torch.dtype) else 'astype(float)'}"
    )
    return InvalidInputError(f"params[{name!r}] must hold real numbers, got {dtype}; {hint}")


def described(fn: Function) -> str:
    """A function's name, as a person knows it.

    Example:
        >>> described(np.linalg.norm), described(OnBareArray(lambda x: x))
        ('norm', 'a lambda')
    """
    inner = fn.fn if isinstance(fn, OnBareArray) else fn
    name = getattr(inner, "__qualname__", None) or type(inner).__name__
    return "a lambda" if name.endswith("<lambda>") else str(name).rpartition(".")[2]
