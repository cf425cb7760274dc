"""Values in the place of a program's parameters and buffers: one program, evaluated wherever it is asked for.

A program is the user's Python: ``loss(model, *batch)``, with whatever it reads on its way. While it runs, every place
that holds a parameter holds the value of the query instead: modules, the lists that recurrent layers keep beside them,
plain lists of parameters. Afterwards all is as it was, attributes that the forward changed included.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

STRUCTURE = frozenset({"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"})
CRITERION = "criterion."
"""Prefix of the names of a loss module's own parameters and buffers (``criterion_.`` where the model has one)."""


EVERYTHING = object()
"""In place of a key: all that a list, set or deque holds."""


class StandIn(nn.Parameter):
    """A query's value where the program expects a parameter: it says that it wants a gradient, and records none.

    So ``isinstance(p, nn.Parameter)`` and ``if p.requires_grad`` hold as they do for the model's own, and no autograd
    graph is built.
    """

    @property
    def requires_grad(self) -> bool:
        """True, as of the parameter that it stands for."""
        return True

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        """Nothing: a query differentiates nothing."""


def stand_in(value: Tensor) -> Tensor:
    """``value`` as a parameter that records nothing; a tensor subclass with operations of its own as it is."""
    if dispatches(value):
        return value.detach()
    made: Tensor = torch.Tensor._make_subclass(StandIn, value.detach(), False)
    return made


def dispatches(value: Tensor) -> bool:
    """True if a tensor is of a class that runs its operations itself, and holds its numbers elsewhere."""
    own = getattr(type(value), "__torch_dispatch__", None)
    return own is not None and own != Tensor.__torch_dispatch__


@dataclass(frozen=True)
class Place:
    """The place of a tensor: a dict or list, and the key or position in it."""

    container: Any
    key: Any

    @property
    def tensor(self) -> Any:
        """The object that is there now."""
        return self.container[self.key]

    def put(self, value: Any) -> None:
        """Put ``value`` there."""
        self.container[self.key] = value


@dataclass(frozen=True)
class Places:
    """All places of all named tensors of some modules.

    Attributes:
        parameters: by name; tied ones are listed under their first name.
        buffers: likewise.
        modules: every module, for their attributes.
        model: the model.
        criterion: the loss, if it is a module.
    """

    parameters: dict[str, tuple[nn.Parameter, list[Place]]]
    buffers: dict[str, tuple[Tensor, list[Place]]]
    modules: list[nn.Module]
    model: nn.Module
    criterion: nn.Module | None

    @classmethod
    def of(cls, model: nn.Module, criterion: nn.Module | None = None) -> Places:
        """Places in a model and, under names that begin with :data:`CRITERION`, in a loss module."""
        parameters: dict[str, tuple[nn.Parameter, list[Place]]] = {}
        buffers: dict[str, tuple[Tensor, list[Place]]] = {}
        names: dict[int, str] = {}
        modules: dict[int, nn.Module] = {}
        own = CRITERION if not hasattr(model, "criterion") else "criterion_."
        for prefix, root in (("", model), (own, criterion)):
            if root is None:
                continue
            for path, module in root.named_modules(remove_duplicate=True):
                if id(module) in modules:
                    continue
                modules[id(module)] = module
                lead = f"{prefix}{path}." if path else prefix
                for table, found in ((module._parameters, parameters), (module._buffers, buffers)):
                    for local, tensor in table.items():
                        if tensor is not None:
                            name = names.setdefault(id(tensor), lead + local)
                            found.setdefault(name, (tensor, []))[1].append(Place(table, local))
        every = {**parameters, **buffers}
        for module in modules.values():
            for place in _unregistered(module, names):
                every[names[id(place.tensor)]][1].append(place)
        return cls(parameters, buffers, list(modules.values()), model, criterion)

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters with ``requires_grad``, by name."""
        return {name: p for name, (p, _) in self.parameters.items() if p.requires_grad}

    def plain_tensors(self) -> list[Tensor]:
        """Tensors in the modules' attributes, or in lists and dicts there, that are neither parameters nor buffers."""
        named = {id(tensor) for tensor, _ in (*self.parameters.values(), *self.buffers.values())}
        found: dict[int, Tensor] = {}
        for module in self.modules:
            for key, value in module.__dict__.items():
                if key in STRUCTURE or "_hooks" in key:
                    continue
                items = (
                    value.values()
                    if isinstance(value, dict)
                    else value
                    if isinstance(value, (list, tuple))
                    else (value,)
                )
                found |= {id(item): item for item in items if isinstance(item, Tensor) and id(item) not in named}
        return list(found.values())

    @contextmanager
    def holding(self, values: Mapping[str, Tensor], *, as_parameters: bool = True) -> Iterator[dict[str, list[Place]]]:
        """Put ``values`` (parameters and buffers by name) in their places for a block, and take them out again.

        Args:
            values: what to put; other tensors stay.
            as_parameters: trainable parameters get a :class:`StandIn`; else the tensor itself.

        Yields:
            The places of the buffers among ``values``, to read from them what the program left there.
        """
        kept: list[tuple[Place, Any]] = []
        buffers: dict[str, list[Place]] = {}
        try:
            for name, value in values.items():
                entry = self.parameters.get(name) or self.buffers[name]
                if name in self.buffers:
                    buffers[name] = entry[1]
                put = stand_in(value) if as_parameters and isinstance(entry[0], nn.Parameter) else value
                for place in entry[1]:
                    kept.append((place, place.tensor))
                    place.put(put)
            yield buffers
        finally:
            for place, original in reversed(kept):
                place.put(original)

    @cached_property
    def can_point(self) -> bool:
        """True if parameters can point to other numbers: not those of classes that hold theirs elsewhere."""
        return not any(dispatches(p) for p, _ in self.parameters.values())

    @contextmanager
    def pointing(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Let the parameters themselves point to ``values`` for a block: whoever holds a parameter sees its value move.

        For programs that keep references of their own, or differentiate with respect to parameters inside. No byte of
        the parameters is written.
        """
        kept = [(self.parameters[name][0], self.parameters[name][0].data) for name in values if name in self.parameters]
        try:
            for name, value in values.items():
                if name in self.parameters:
                    self.parameters[name][0].data = value.detach()
            yield
        finally:
            for parameter, data in kept:
                parameter.data = data


def _unregistered(module: nn.Module, names: Mapping[int, str]) -> Iterator[Place]:
    """Places in plain lists and dicts among a module's attributes."""
    for key, value in module.__dict__.items():
        if key in STRUCTURE or "_hooks" in key:
            continue
        if isinstance(value, list):
            yield from (
                Place(value, i) for i, item in enumerate(value) if id(item) in names and isinstance(item, Tensor)
            )
        elif isinstance(value, dict):
            yield from (Place(value, k) for k, item in value.items() if id(item) in names and isinstance(item, Tensor))
        elif isinstance(value, Tensor) and id(value) in names:
            yield Place(module.__dict__, key)


Container = dict[Any, Any] | list[Any] | set[Any] | deque[Any]


@dataclass
class Attributes:
    """The plain attributes of modules at one moment: what a forward may change beside buffers.

    Lists, dicts and sets among them are remembered by what they hold, one level deep. So are the tables of parameters,
    buffers and modules, which a forward may add to.
    """

    kept: list[tuple[Container, Any]] = field(default_factory=list)
    tables: list[tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=list)

    @classmethod
    def of(cls, modules: Sequence[Any]) -> Attributes:
        """As they are now."""
        kept: list[tuple[Container, Any]] = []
        tables = []
        for module in modules:
            own = module.__dict__
            for key, value in own.items():
                if key in STRUCTURE:
                    tables += [(value, value.copy())] if isinstance(value, dict) else []
                elif type(value) in (dict, list, set, deque):
                    kept.append((value, value.copy()))
            kept.append((own, own.copy()))
        return cls(kept, tables)

    def changed(self) -> Attributes:
        """Only what is not as it was."""
        kept = [(now, before) for now, before in self.kept if not _same(now, before)]
        return Attributes(kept, [(now, before) for now, before in self.tables if not _same(now, before)])

    def restore(self) -> None:
        """Put everything back that is not as it was."""
        for container, before in (*self.kept, *self.tables):
            if not _same(container, before):
                _refill(container, before)

    def grown(self) -> list[str]:
        """Names of parameters, and of modules that hold some, that were added."""
        added = [(key, value) for table, before in self.tables for key, value in table.items() if key not in before]
        return [
            key
            for key, value in added
            if (isinstance(value, nn.Parameter) and not isinstance(value, StandIn))
            or (isinstance(value, nn.Module) and any(True for _ in value.parameters()))
        ]

    def moved(self) -> list[tuple[Container, Any, Any]]:
        """Container, key and present value of what changed: counters, flags, carried states, histories.

        Numbers, strings and tensors (alone or in tuples and lists), without a history; of lists, sets and deques all
        that they hold, under :data:`EVERYTHING`.
        """
        found: list[tuple[Container, Any, Any]] = []
        for container, before in self.kept:
            if _same(container, before):
                continue
            if not isinstance(container, dict):
                items = [without_history(item) for item in container]
                if all(_is_plain(item) for item in items):
                    found.append((container, EVERYTHING, items))
                continue
            for key, value in container.items():
                present = without_history(value)
                if (key not in before or value is not before[key]) and key not in STRUCTURE and _is_plain(present):
                    found.append((container, key, present))
        return found


def put_back(moved: Sequence[tuple[Container, Any, Any]]) -> None:
    """Set attributes to the values that :meth:`Attributes.moved` returned."""
    for container, key, value in moved:
        if key is EVERYTHING:
            _refill(container, value)
        else:
            container[key] = value  # type: ignore[index]


def without_history(value: Any) -> Any:
    """Tensors, alone or in tuples, lists and dicts, without the operations they came from; anything else itself."""
    if isinstance(value, StandIn):
        return value.detach().as_subclass(Tensor)
    if isinstance(value, Tensor):
        return value.detach() if value.grad_fn is not None else value
    if type(value) in (tuple, list):
        return type(value)(without_history(item) for item in value)
    return {key: without_history(item) for key, item in value.items()} if type(value) is dict else value


def _is_plain(value: Any) -> bool:
    if type(value) in (tuple, list):
        return all(_is_plain(item) for item in value)
    if type(value) is dict:
        return all(_is_plain(item) for item in value.values())
    return value is None or isinstance(value, (int, float, complex, str, bool, Tensor))


def _same(container: Container, before: Any) -> bool:
    """True if a container holds the same objects, by identity, as ``before``."""
    if len(container) != len(before):
        return False
    if isinstance(container, dict):
        return all(map(is_, container.values(), before.values())) and all(map(is_, container, before))
    if isinstance(container, set):
        return set(map(id, container)) == set(map(id, before))
    return all(map(is_, container, before))


def _refill(container: Container, before: Any) -> None:
    container.clear()
    if isinstance(container, (dict, set)):
        container.update(before)
    else:
        container.extend(before)
