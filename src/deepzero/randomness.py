"""Randomness as an argument: derived seeds, and random numbers that every query of a step has in common.

A finite difference means something only if both of its losses see the same random numbers. A seed alone does not give
that: PyTorch fills a tensor in the order of its memory, so another layout means other dropout masks, and the global
generator belongs to every thread of the process. Here the base query *records* the outcome of every draw
(:class:`Draws`), and all other queries *replay* it, whatever their layout, whichever evaluator runs them, and whatever
other threads draw meanwhile.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from deepzero.errors import DrawError
from deepzero.operator import Answers

aten = torch.ops.aten

_GENERATORS = threading.RLock()
"""Held while the global generators are borrowed: they belong to the whole process, and saving their state in one thread
while another one restores it can lock up inside of PyTorch (seen with 2.13)."""


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that is a pure function of ``parts``, the same on every machine.

    Example:
        >>> derive_seed(0, "directions", 3) == derive_seed(0, "directions", 3)
        True
        >>> derive_seed(0, "directions", 3) == derive_seed(0, "directions", 4)
        False
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def step_seed(seed: int, step: int) -> int:
    """Seed of whatever the objective draws in a step, such as dropout masks: the same for all queries of the step.

    Args:
        seed: of the estimator.
        step: number of steps before this one.
    """
    return derive_seed(seed, "objective", step)


@contextmanager
def seeded_scope(seed: int, device: torch.device, *, draws: Draws | None = None) -> Iterator[None]:
    """Run a block whose draws from the global generators start from ``seed``; afterwards they are as before.

    The generators are PyTorch's (CPU, and the device's), NumPy's and Python's. One thread of a process at a time:
    others wait.

    Args:
        seed: the seed.
        device: where the block computes.
        draws: learns from a block that is recorded whether it draws from Python's or NumPy's generators; if it does
            not, replays leave them alone, which saves time.
    """
    with _GENERATORS, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        before = _global_states(device) if draws is not None else None
        if draws is not None and not draws.python:
            yield
        else:
            with _python_scope(seed, draws):
                yield
        if draws is not None and before is not None:
            draws.stirred = not all(map(torch.equal, before, _global_states(device)))


@contextmanager
def _python_scope(seed: int, draws: Draws | None) -> Iterator[None]:
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 - lent, and given back
    np.random.seed(seed % 2**32)  # noqa: NPY002, TID251
    random.seed(seed)
    fresh = _fresh_positions()
    try:
        yield
        if draws is not None:
            draws.python = _positions() != fresh
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


@cache
def _fresh_positions() -> tuple[Any, ...]:
    """Positions of the generators right after seeding, which is now: the same for every seed."""
    return _positions()


def _positions() -> tuple[Any, ...]:
    """Positions of NumPy's and Python's generators: numbers drawn since they were seeded."""
    numpy_state: Any = np.random.get_state()  # noqa: NPY002
    _, numbers, gauss = random.getstate()
    return numpy_state[2:], numbers[-1], gauss


@dataclass(frozen=True)
class Draw:
    """The outcome of one draw.

    Attributes:
        family: the distribution, whatever the operation that drew from it is called.
        values: the numbers, or the tuple of outputs of an operation with several.
        state: where the generator stood, if the numbers depend on the values of the operation's inputs: such an
            operation is run again from there.
    """

    family: str
    values: Any
    state: Any = None

    @property
    def shape(self) -> torch.Size:
        """Logical shape of the numbers."""
        first = pytree.tree_leaves(self.values)[0]
        return first.shape  # type: ignore[no-any-return]


class Draws:
    """The random numbers of one step, drawn once and had in common by all of its queries.

    Numbers come from generators of its own that start from ``seed``: the base query sees what
    ``torch.manual_seed(seed)`` would have given it, and what depends on values (``torch.normal(mean, std)``,
    ``multinomial``) is drawn in the order of a contiguous tensor.

    Attributes:
        seed: the seed.
        entries: outcomes in the order of the program, once recorded.
        python: True if the program draws from Python's or NumPy's generators, too (assumed until it was recorded).
        stirred: True if a block moved one of PyTorch's global generators: intercepted draws do not.
        borrowed: generators of the program's own that were drawn from, each with its state before.

    Example:
        >>> draws = Draws(0)
        >>> with draws.recording():
        ...     first = torch.nn.functional.dropout(torch.ones(2, 3).t())
        >>> with draws.replaying():
        ...     again = torch.nn.functional.dropout(torch.ones(3, 2))  # another layout
        >>> torch.equal(first, again), len(draws.entries)
        (True, 1)
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.entries: list[Draw] = []
        self.python = True
        self.stirred = False
        self.borrowed: list[tuple[torch.Generator, Tensor]] = []
        self.answers = Answers()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Draw, and remember the outcomes."""
        self.entries, self.borrowed = [], []
        with _Recording(self):
            yield

    def give_back(self) -> list[tuple[torch.Generator, Tensor]]:
        """Put the program's own generators where they stood; returned is where the draws had moved them."""
        moved = [(generator, generator.get_state()) for generator, _ in self.borrowed]
        for generator, state in self.borrowed:
            generator.set_state(state)
        return moved

    @contextmanager
    def replaying(self, *, strict: bool = False) -> Iterator[None]:
        """Give out the remembered outcomes again, in their order; nothing is intercepted if there are none.

        Args:
            strict: a draw that does not fit the recorded ones raises :class:`~deepzero.errors.DrawError`. Otherwise it,
                and all that follow, are made afresh, from a seed that depends on nothing but ``seed`` and the position.
        """
        if not self.entries:
            yield
            return
        with _Replaying(self, strict):
            yield


class _Recording(TorchDispatchMode):
    supports_higher_order_operators = True

    def __init__(self, draws: Draws) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._draws = draws
        self._generators = Generators(draws.seed, draws.borrowed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not is_random(func, args, kwargs):
            return func(*args, **kwargs)
        draw = fresh(func, args, kwargs, self._generators)
        self._draws.entries.append(draw)
        return placed(func, args, draw)


class _Replaying(TorchDispatchMode):
    supports_higher_order_operators = True

    def __init__(self, draws: Draws, strict: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._draws, self._strict = draws, strict
        self._position = 0
        self._afresh: Generators | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not is_random(func, args, kwargs):
            return func(*args, **kwargs)
        draw = self._next(func, args, kwargs)
        self._position += 1
        return placed(func, args, draw)

    def _next(self, func: Any, args: Any, kwargs: Any) -> Draw:
        if self._afresh is None:
            draw = matching(self._draws.entries, self._position, func, args, kwargs)
            if draw is not None:
                return draw
            if self._strict:
                raise DrawError(f"draw {self._position} of a query ({func}) does not fit those of the base query")
            self._afresh = Generators(derive_seed(self._draws.seed, "afresh", self._position))
        return fresh(func, args, kwargs, self._afresh)


class Generators:
    """One private generator a device, each from the same seed; a program's own generator where it names one."""

    def __init__(self, seed: int, borrowed: list[tuple[torch.Generator, Tensor]] | None = None) -> None:
        self._seed = seed
        self._made: dict[torch.device, torch.Generator] = {}
        self._borrowed = borrowed

    def on(self, device: torch.device, own: torch.Generator | None = None) -> torch.Generator:
        """The generator of a device, or the program's ``own``."""
        if own is not None:
            if self._borrowed is not None and all(own is not generator for generator, _ in self._borrowed):
                self._borrowed.append((own, own.get_state()))
            return own
        if device not in self._made:
            self._made[device] = torch.Generator(device).manual_seed(self._seed)
        return self._made[device]


# Operations -----------------------------------------------------------------------------------------------------------

FILLS = {
    "bernoulli_": "bernoulli",
    "uniform_": "uniform",
    "normal_": "normal",
    "random_": "random",
    "exponential_": "exponential",
    "geometric_": "geometric",
    "cauchy_": "cauchy",
    "log_normal_": "log_normal",
}
"""Operations that fill a tensor from a distribution with fixed parameters -> its family."""

FUNCTIONAL = {"normal_functional": "normal_", **{family: name for name, family in FILLS.items() if family != "normal"}}
"""The functional forms, as graphs hold them -> the operation that fills."""

LIKE = {"rand_like": "uniform_", "randn_like": "normal_", "randint_like": "random_"}
FACTORIES = {"rand": "uniform", "randn": "normal", "randint": "random", "randperm": "randperm"}
FIXED = {
    "native_dropout",
    "_fused_dropout",
    "rrelu",
    "rrelu_with_noise",
    "rrelu_with_noise_",
    "rrelu_with_noise_functional",
}
"""Operations that draw from a fixed distribution and use what they draw at once."""

RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}
"""Operations that draw between their layers, in train mode, if they drop anything at all."""


@cache
def _name(func: Any) -> str:
    return str(func._schema.name).removeprefix("aten::")


@cache
def _takes_generator(func: Any) -> bool:
    return any(argument.name == "generator" for argument in func._schema.arguments)


def is_random(func: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> bool:
    """True if an operation, with these arguments, draws random numbers that all queries must have in common.

    A draw from a generator that the program brings along counts, too: a generator moves from query to query.
    """
    if torch.Tag.nondeterministic_seeded not in getattr(func, "tags", ()):
        return False
    name = _name(func)
    if name == "native_dropout":
        return args[1] not in (0, 1) and not (len(args) > 2 and args[2] is False)
    if name.startswith("rrelu"):
        return bool(_argument(func, args, kwargs or {}, "training"))
    if name.startswith(("_scaled_dot_product", "scaled_dot_product")):
        return bool(_argument(func, args, kwargs or {}, "dropout_p"))
    if name in RECURRENT:
        return bool(_argument(func, args, kwargs or {}, "dropout")) and bool(
            _argument(func, args, kwargs or {}, "train")
        )
    return True


def _argument(func: Any, args: Any, kwargs: Mapping[str, Any], name: str) -> Any:
    for position, argument in enumerate(func._schema.arguments):
        if argument.name == name:
            if position < len(args):
                return args[position]
            return kwargs.get(name, argument.default_value)
    return None


def without_draw(func: Any, args: Any) -> Any:
    """The result of a dropout of nothing or of everything, for which PyTorch's own draws none the less; else None."""
    if func is not aten.native_dropout.default or args[1] not in (0, 1) or (len(args) > 2 and args[2] is False):
        return None
    keep = torch.full(args[0].shape, args[1] == 0, device=args[0].device)
    return args[0] * keep, keep


def family_of(func: Any) -> str:
    """The distribution that an operation draws from."""
    name = _name(func)
    if name in ("native_dropout", "_fused_dropout"):
        return "bernoulli"
    if name.startswith("rrelu"):
        return "uniform"
    if name in FUNCTIONAL and not _depends_on_values(func):
        return FILLS[FUNCTIONAL[name]]
    if name in LIKE:
        return FILLS[LIKE[name]]
    return FILLS.get(name) or FACTORIES.get(name) or name


def _depends_on_values(func: Any) -> bool:
    """True if the distribution depends on a tensor's values: ``bernoulli(p)``, ``normal(mean)``, ``multinomial``."""
    name = _name(func)
    if name in ("bernoulli", "bernoulli_"):
        return str(func._overloadname) in ("default", "Tensor", "out")
    if name == "normal":
        return str(func._overloadname) != "float_float"
    return name not in {*FILLS, *FUNCTIONAL, *LIKE, *FACTORIES, *FIXED}


def fresh(func: Any, args: Any, kwargs: Mapping[str, Any], generators: Generators) -> Draw:  # noqa: PLR0911 - one case a line
    """Draw as PyTorch does, in the order of the tensor's memory."""
    name, family = _name(func), family_of(func)
    if _depends_on_values(func):
        return _fresh_dependent(func, args, kwargs, generators)
    if name in ("native_dropout", "_fused_dropout"):
        keep = 1 - args[1] if name == "native_dropout" else args[1]
        return Draw(family, _filled("bernoulli_", args[0], (keep,), generators))
    if name.startswith("rrelu"):
        bounds = _argument(func, args, kwargs, "lower"), _argument(func, args, kwargs, "upper")
        return Draw(family, _filled("uniform_", args[0], bounds, generators))
    if name in FILLS:
        return Draw(family, _filled(name, args[0], args[1:], generators, kwargs))
    if name in FUNCTIONAL:
        return Draw(family, _filled(FUNCTIONAL[name], args[0], args[1:], generators, kwargs))
    if name in LIKE:
        bounds = ((0, *args[1:]) if len(args) == 2 else args[1:]) if name == "randint_like" else ()
        like = torch.empty_like(args[0], dtype=kwargs.get("dtype") or args[0].dtype)
        return Draw(family, _filled(LIKE[name], like, bounds, generators))
    return Draw(family, _made(func, args, kwargs, generators))


def _filled(
    name: str, like: Tensor, options: Any, generators: Generators, kwargs: Mapping[str, Any] | None = None
) -> Tensor:
    out = torch.empty_like(like)
    rest = {k: v for k, v in (kwargs or {}).items() if k != "generator"}
    fill: Callable[..., Tensor] = getattr(out, name)
    own = (kwargs or {}).get("generator")
    return fill(*options, **rest, generator=generators.on(out.device, own))


def _made(func: Any, args: Any, kwargs: Mapping[str, Any], generators: Generators) -> Tensor:
    """``rand``, ``randn``, ``randint``, ``randperm`` and ``normal`` by size."""
    rest = {k: v for k, v in kwargs.items() if k not in ("generator", "memory_format", "layout", "pin_memory")}
    device = torch.device(rest.get("device") or "cpu")
    function: Callable[..., Tensor] = getattr(torch, _name(func))
    return function(*args, **rest, generator=generators.on(device, kwargs.get("generator")))


def _fresh_dependent(func: Any, args: Any, kwargs: Mapping[str, Any], generators: Generators) -> Draw:
    device = next(a.device for a in pytree.tree_leaves((args, kwargs)) if isinstance(a, Tensor))
    if not _takes_generator(func):
        state = _global_state(device)
        return Draw(family_of(func), _run(func, args, kwargs), (None, state))
    generator = generators.on(device, kwargs.get("generator"))
    state = generator.get_state()
    return Draw(family_of(func), _run(func, args, {**kwargs, "generator": generator}), (device, state))


def _again(func: Any, args: Any, kwargs: Mapping[str, Any], draw: Draw) -> Any:
    """The outcome of an operation that depends on values, from where the generator stood."""
    device, state = draw.state
    if device is None:
        where = next(a.device for a in pytree.tree_leaves((args, kwargs)) if isinstance(a, Tensor))
        with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
            _set_global_state(where, state)
            return _run(func, args, kwargs)
    generator = torch.Generator(device)
    generator.set_state(state)
    return _run(func, args, {**kwargs, "generator": generator})


def _run(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Run on contiguous copies, so that the layout has no say; what is filled in place is a copy."""
    args, kwargs = pytree.tree_map(lambda a: a.contiguous() if isinstance(a, Tensor) else a, (args, dict(kwargs)))
    if func._schema.is_mutable:
        args = (args[0].clone(), *args[1:])
    return func(*args, **kwargs)


def _global_states(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _global_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_global_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


def matching(entries: list[Draw], position: int, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Draw | None:
    """The recorded draw at a position, if it can stand for this one: same family, same logical shape."""
    if position >= len(entries):
        return None
    draw = entries[position]
    if draw.family != family_of(func):
        return None
    if draw.state is not None:
        return Draw(draw.family, _again(func, args, kwargs, draw), draw.state)
    return draw if _shape(func, args, kwargs) in (None, draw.shape) else None


def _shape(func: Any, args: Any, kwargs: Mapping[str, Any]) -> torch.Size | None:
    if args and isinstance(args[0], Tensor):
        return args[0].shape
    size = _argument(func, args, kwargs, "size")
    if size is None:
        size = [_argument(func, args, kwargs, "n")]
    return torch.Size(size) if all(isinstance(s, int) for s in size) else None


def placed(func: Any, args: Any, draw: Draw) -> Any:
    """The operation's result, made of a draw, which stays untouched by whatever the program does to the result."""
    name = _name(func)
    if name in ("native_dropout", "_fused_dropout"):
        keep = 1 - args[1] if name == "native_dropout" else args[1]
        mask = draw.values.to(args[0].dtype)
        return args[0] * mask * (0.0 if keep <= 0 else 1 / keep), draw.values.bool()
    if name.startswith("rrelu"):
        return _leaky(name, args, draw)
    if func._schema.is_mutable:
        return args[0].copy_(draw.values)
    return pytree.tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, draw.values)


def _leaky(name: str, args: Any, draw: Draw) -> Any:
    """Randomized leaky relu: every entry has a slope, those above 0 do not use it."""
    x = args[0]
    slope = torch.where(x <= 0, draw.values.to(x.dtype), 1)
    if name == "rrelu":
        return x * slope
    if name == "rrelu_with_noise_functional":
        return x * slope, slope
    args[1].copy_(slope)
    return x.mul_(slope) if name.endswith("_") else x * slope
