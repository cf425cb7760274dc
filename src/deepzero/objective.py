"""Something that can only be queried: a network with a loss or a closure, or a black box."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils import _pytree as pytree

from deepzero import validation
from deepzero.arrays import Given, as_parameters, described, named
from deepzero.errors import InvalidInputError, QueryError, WrittenParameterWarning, from_black_box
from deepzero.operator import Answers, answering, asks, forgives, perturbed_query, stirred
from deepzero.placement import Attributes, Places, put_back
from deepzero.randomness import Draws, derive_seed, seeded_scope
from deepzero.writes import DRAWS, ViewWatch, WriteNoticed, WriteWatch, copied, overlaps_itself, written_so_far

Loss = Callable[[Any, Any], Any]
Closure = Callable[..., Any]
Parameters = Mapping[str, Tensor]
Query = Callable[[Parameters], Tensor]
"""The loss at other values of the parameters, 0-dim float64."""


class Batch(tuple[Any, ...]):
    """The arguments of one estimate: the positional ones as a tuple, the keyword ones beside them.

    Attributes:
        keywords: keyword arguments.

    Example:
        >>> batch = Batch((1, 2), {"mask": 3})
        >>> batch, batch.keywords
        ((1, 2), {'mask': 3})
    """

    keywords: dict[str, Any]

    def __new__(cls, arguments: Sequence[Any] = (), keywords: Mapping[str, Any] | None = None) -> Batch:
        """A tuple with keywords."""
        made = super().__new__(cls, arguments)
        made.keywords = dict(keywords or {})
        return made


def keywords(batch: tuple[Any, ...]) -> dict[str, Any]:
    """The keyword arguments of a batch; a plain tuple has none."""
    return batch.keywords if isinstance(batch, Batch) else {}


class State(dict[str, Tensor]):
    """Buffers by name as a query leaves them, and what else it moved: plain attributes (counters, flags), generators.

    Attributes:
        attributes: container, key and value of attributes that changed.
        generators: generators of the program's own, with their states.
        tensors: plain tensors that were written into, and what they hold then.
    """

    def __init__(
        self,
        buffers: Mapping[str, Tensor] = {},
        attributes: Sequence[Any] = (),
        generators: Sequence[tuple[torch.Generator, Tensor]] = (),
        tensors: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> None:
        super().__init__(buffers)
        self.attributes = tuple(attributes)
        self.generators = tuple(generators)
        self.tensors = tuple(tensors)


@dataclass(frozen=True)
class Evaluation:
    """One query's answer: the loss (0-dim float64) and the buffers as the query leaves them."""

    loss: Tensor
    buffers: Mapping[str, Tensor] = field(default_factory=State)


class Objective(Protocol):
    """A function of named parameters. Queries never change the objective.

    Whatever has these three methods can be estimated and trained: see the page "Your own objective". Further ones are
    used where an objective has them:

    - ``owners()``, in place of ``named_parameters()``: a mapping;
    - ``first_query(parameters, batch, seed)``: see :func:`first_query`, for queries that share random numbers;
    - ``steady_block()``: a context in which nothing but queries is made;
    - ``constrain_gradients(gradients)``: gradients as its parameters hold them;
    - ``asks_black_boxes()``, ``forgives_black_boxes()``: a black box inside has a price, may leave out answers;
    - ``worker_function()``, for workers in other processes: see :class:`SendableObjective`.
    """

    def named_parameters(self) -> Iterable[tuple[str, Tensor]]:
        """The trainable parameters, as those of a module: an estimator fills their ``.grad``, an optimizer moves them.

        The names and their order stay the same.
        """
        ...

    def evaluate(self, parameters: Parameters, batch: tuple[Any, ...], *, seed: int) -> Evaluation:
        """One query: the loss at ``parameters`` on ``batch``; ``seed`` fixes whatever the objective draws.

        ``parameters`` has the names, shapes and dtypes of :func:`parameters_of`.
        """
        ...

    def commit(self, buffers: Mapping[str, Tensor]) -> None:
        """Make ``buffers`` (as returned by the base query) the objective's own: once a step."""
        ...


def owners_of(objective: Any) -> dict[str, Tensor]:
    """The trainable parameters themselves by name: those of ``named_parameters()``, or of ``owners()``, a mapping.

    Example:
        >>> owners_of(BlackBox(lambda x: float(x.sum()), np.ones(2)))["x"].requires_grad
        True
    """
    named = getattr(objective, "named_parameters", None)
    return dict(named() if callable(named) else objective.owners())


def parameters_of(objective: Objective) -> dict[str, Tensor]:
    """The trainable parameters, live, by name, as queries know them: real tensors without a gradient of their own.

    They share memory with those of :func:`owners_of`. Complex ones become real and imaginary parts along
    a last dimension.

    Example:
        >>> box = BlackBox(lambda x: float(x.sum()), np.ones(2))
        >>> parameters_of(box)
        {'x': tensor([1., 1.], dtype=torch.float64)}
    """
    return {name: as_real(p.detach() if p.requires_grad else p) for name, p in owners_of(objective).items()}


class Placing(Enum):
    """Ways to give a program the values of its parameters."""

    HELD = "in their places in the modules"
    POINTED = "by the parameters themselves, which point to them"
    BOTH = "both ways, so that references of the program's own follow, too"


class NetworkObjective:
    """A module and what is computed with it, as one program: :math:`\\ell(\\theta) = \\mathrm{program}(f_\\theta, x)`.

    The whole program sees the query's parameters: the forward, a second forward, penalties on ``model.parameters()``.
    It runs under the caller's grad mode, on live Python: what it computes now is what an estimate is of.

    Args:
        model: any ``nn.Module``. Parameters with ``requires_grad=False`` are left alone.
            Its mode (train or eval) is respected: in train mode batch norm uses batch statistics.
        loss: takes ``(model(x), y)`` for a batch ``(x, y)``, returns a scalar or a tensor of per-sample losses, which
            is averaged in float64. ``F.cross_entropy`` and ``F.mse_loss`` are averaged in float64 too. The trainable
            parameters of a loss module are estimated with the model's, under names that begin with ``criterion.``.
        closure: in place of ``loss``: takes ``(model, *batch, **keywords)``, returns one number (a tensor, or a NumPy
            or Python number).

    Example:
        >>> import torch, torch.nn.functional as F
        >>> objective = NetworkObjective(torch.nn.Linear(2, 1), F.mse_loss)
        >>> list(parameters_of(objective))
        ['weight', 'bias']
        >>> penalized = NetworkObjective(
        ...     torch.nn.Linear(2, 1), closure=lambda m, x: m(x).square().mean() + 0.1 * m.weight.abs().sum()
        ... )
    """

    def __init__(self, model: nn.Module, loss: Loss | None = None, *, closure: Closure | None = None) -> None:
        self.model = _checked_model(model)
        if (loss is None) == (closure is None):
            raise InvalidInputError(
                "a network needs either loss=..., called as loss(model(x), y), for example "
                "loss=torch.nn.functional.cross_entropy, or closure=..., called as closure(model, *batch), for "
                "example closure=lambda model, x: model(x).square().mean()"
            )
        for name, given, call in (
            ("loss", loss, "loss(output, target)"),
            ("closure", closure, "closure(model, *batch)"),
        ):
            if given is not None and not callable(given):
                raise InvalidInputError(f"{name} must be callable as {call}, got {type(given).__name__}")
            if isinstance(given, type) and issubclass(given, nn.Module):
                raise InvalidInputError(f"{name} is the class {given.__name__}; make one: {given.__name__}()")
        self._loss, self.closure = loss, closure
        self._hidden = self._settled = self._writes_batch = False
        self._written: set[str] = set()
        self._multiplied: set[str] = set()
        self._marked: dict[int, Tensor] = {}
        self.repeatable = self._draws = True
        self._steady: Places | None = None
        self._before: Attributes | None = None
        self._watched_in: set[Hashable] = set()
        if not self.places().trainable:
            raise InvalidInputError("the model has no trainable parameter (requires_grad=True): nothing to estimate")

    @property
    def loss(self) -> Loss:
        """``loss(output, target)``, for what can only work with one."""
        if self._loss is None:
            raise InvalidInputError(
                "this works with loss=..., called as loss(model(x), y); the objective has a closure"
            )
        return self._loss

    @property
    def hidden(self) -> bool:
        """True if the program holds references to parameters of its own, or differentiates with respect to them."""
        return self._hidden

    @property
    def criterion(self) -> nn.Module | None:
        """The loss, if it is a module."""
        return self._loss if isinstance(self._loss, nn.Module) else None

    def places(self) -> Places:
        """The places in which the program holds its parameters and buffers now."""
        return Places.of(self.model, self.criterion) if self._steady is None else self._steady

    @contextmanager
    def steady_block(self) -> Iterator[None]:
        """A block of queries alone: the model's places, and the attributes that they put back, are looked up once."""
        outer = self._steady, self._before
        self._steady = self.places()
        self._before = self._before or Attributes.of(self._stateful(self._steady))
        try:
            yield
        finally:
            self._steady, self._before = outer

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The trainable parameters, those of a loss module included; tied ones appear once, under their first name."""
        yield from self.places().trainable.items()

    def owners(self) -> dict[str, nn.Parameter]:
        """The same as a dict."""
        return dict(self.named_parameters())

    def parameters(self) -> dict[str, Tensor]:
        """Their values by name, as queries know them: :func:`parameters_of`. The model has those for an optimizer."""
        return parameters_of(self)

    def __repr__(self) -> str:
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        how = "closure" if self.closure is not None else "loss"
        fn = self.closure if self.closure is not None else self._loss
        name = type(fn).__name__ if isinstance(fn, nn.Module) else described(fn)  # type: ignore[arg-type]
        size = sum(p.numel() for p in parameters)
        return f"NetworkObjective({type(self.model).__name__} of {size:,} trainable parameters, {how}={name})"

    def program(self, model: nn.Module, *batch: Any, **options: Any) -> Any:
        """The user's program, as it is written."""
        if self.closure is not None:
            return self.closure(model, *batch, **options)
        x, y = split_batch(batch, options)
        return mean_loss(self.loss, model(x), y)

    def raw_program(self, model: nn.Module, *batch: Any, **options: Any) -> Any:
        """The same without the average in float64: what is captured as a graph, whose rules average so themselves."""
        if self.closure is not None:
            return self.closure(model, *batch, **options)
        x, y = split_batch(batch, options)
        return self.loss(model(x), y)

    def evaluate(
        self, parameters: Parameters, batch: tuple[Any, ...], *, seed: int, draws: Draws | None = None
    ) -> Evaluation:
        """Loss at ``parameters`` on ``batch``.

        Args:
            parameters: as :func:`parameters_of` gives them.
            batch: arguments of the program.
            seed: where dropout and the like draw from.
            draws: recorded by the base query, replayed by all others of its step; None: recorded and forgotten.
        """
        if draws is None:
            return self.base(parameters, batch, seed=seed)[0]
        with answering(draws.answers), draws.replaying():
            return self._evaluate(parameters, batch, draws)

    def base(self, parameters: Parameters, batch: tuple[Any, ...], *, seed: int) -> tuple[Evaluation, Draws]:
        """The base query, and the random numbers that it drew."""
        if not self._settled:
            self._settle(parameters, batch, seed)
        with _Tried(last=self._hidden):
            return self._recorded(parameters, batch, seed)
        self._settle(parameters, batch, seed)  # it may differentiate with respect to parameters since the last step
        return self._recorded(parameters, batch, seed)

    def first_query(self, parameters: Parameters, batch: tuple[Any, ...], seed: int) -> tuple[Evaluation, Query]:
        """The base query, and a function that makes perturbed ones with the random numbers that it drew."""
        evaluation, draws = self.base(parameters, batch, seed=seed)

        def query(moved: Parameters) -> Tensor:
            with perturbed_query():
                return self.evaluate(moved, batch, seed=seed, draws=draws).loss

        return evaluation, query

    def asks_black_boxes(self) -> bool:
        """True if a :class:`~deepzero.Opaque` is a part of the program: its answers have a price."""
        return any(map(asks, self.places().modules))

    def forgives_black_boxes(self) -> bool:
        """True if a perturbed query may stay without a loss, because a black box inside has skipped an answer."""
        return any(map(forgives, self.places().modules))

    def _recorded(
        self, parameters: Parameters, batch: tuple[Any, ...], seed: int, how: Placing | None = None
    ) -> tuple[Evaluation, Draws]:
        """A first query: it finds out what the program draws, and what it writes into."""
        situation = self._situation(batch)
        known = how is None and situation in self._watched_in
        while True:
            draws = Draws(seed)
            watched = self._watched(batch)
            watch = nullcontext() if known else WriteWatch(watched, draws=not self._draws)
            versions = [written_so_far(tensor) for tensor in watched.values()]
            try:
                with draws.recording() if self._draws else nullcontext(), watch, answering(draws.answers):
                    evaluation = self._evaluate(parameters, batch, draws, how=how)
                draws.answers.open = False
            except WriteNoticed as noticed:
                self._notice(noticed.name)
                continue
            self._require_unwritten(watched, versions)
            if self._draws or not draws.stirred:
                self._draws = bool(draws.entries) or draws.stirred
                if isinstance(watch, WriteWatch):
                    self._multiplied = {name.removeprefix("parameter ") for name in watch.multiplied}
                    self._watched_in.add(situation)
                return evaluation, draws
            self._draws = True  # it did not draw before

    def _situation(self, batch: tuple[Any, ...]) -> Hashable:
        """Modes of the modules and shapes of the batch: in each, the first query is watched operation by operation."""
        leaves = pytree.tree_leaves((tuple(batch), keywords(batch)))
        shapes = tuple(shape_of(leaf) if isinstance(leaf, Tensor) else type(leaf) for leaf in leaves)
        return shapes, tuple(module.training for module in self.places().modules)

    def _require_unwritten(self, watched: Mapping[str, Tensor], versions: Sequence[int]) -> None:
        """A program that begins to write where it did not write before is not noticed in time."""
        for (name, tensor), version in zip(watched.items(), versions, strict=True):
            if written_so_far(tensor) != version:
                raise InvalidInputError(
                    f"the program has just written into {name}, as it did not before in this mode and on these shapes: "
                    "its values have changed. Restore them and make a new estimator, which will work on copies"
                )

    def _watched(self, batch: tuple[Any, ...]) -> dict[str, Tensor]:
        """Tensors that a query must not write into, by a descriptive name."""
        places = self.places()
        done = {*self._written, *(name for name, (p, _) in places.parameters.items() if id(p) in self._marked)}
        own = {f"parameter {name}": p for name, (p, _) in places.parameters.items() if name not in done}
        plain = {f"plain {i}": t for i, t in enumerate(places.plain_tensors()) if id(t) not in self._marked}
        leaves = [] if self._writes_batch else pytree.tree_leaves((tuple(batch), keywords(batch)))
        return {**{f"batch {i}": leaf for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}, **plain, **own}

    def _notice(self, found: str) -> None:
        """From now on, every query gets a copy of what its program writes into."""
        kind, _, name = found.partition(" ")
        places = self.places()
        if kind == DRAWS:
            self._draws = True
        elif kind == "batch":
            self._writes_batch = True
        elif kind == "plain" or name not in places.trainable:
            tensor = places.plain_tensors()[int(name)] if kind == "plain" else places.parameters[name][0]
            self._marked[id(tensor)] = tensor
        else:
            self._written.add(name)
            warnings.warn(
                f"the program writes into its parameter {name} in its forward (Embedding(max_norm=...) does). Every "
                "query works on a copy, so the model's own values stay; what is estimated is the gradient at these",
                WrittenParameterWarning,
                stacklevel=6,
            )

    def _settle(self, parameters: Parameters, batch: tuple[Any, ...], seed: int) -> None:
        """Find out how the program must be given its parameters.

        In most programs values take their places in the modules. A program that keeps references to parameters
        elsewhere (a list in a closure), or differentiates with respect to them, gets them through the parameters
        themselves; it is recognized by an error, or by a loss that does not follow when all parameters move.
        """
        self._hidden, base, draws, views = True, None, Draws(seed), set[str]()
        with _Tried():
            base, draws = self._recorded(parameters, batch, seed, Placing.HELD)
            watch = ViewWatch(self.places().trainable)
            self._hidden = not self.follows(parameters, batch, seed, draws, watch)
            views = watch.read
        if views:
            raise InvalidInputError(
                f"the program reads the parameter {min(views)} through a view of it that was made before, such as "
                "self.transposed = layer.weight.t() in a constructor, which does not follow when the parameter moves; "
                "make the view where it is used"
            )
        if base is None:
            base, draws = self._recorded(parameters, batch, seed)  # the user's own error, if it is one
        with draws.replaying(), stirred(python=draws.python):  # black boxes inside are asked again, too
            again = self._evaluate(parameters, batch, draws)
        self.repeatable = _same_loss(base.loss, again.loss, parameters)
        self._settled = True

    def follows(
        self,
        parameters: Parameters,
        batch: tuple[Any, ...],
        seed: int,
        draws: Draws,
        watch: AbstractContextManager[Any] | None = None,
    ) -> bool:
        """True if values in the places of parameters act as in the parameters: tested where all have moved.

        While parameters point to the values, the program runs in ``watch``.
        """
        if not self.places().can_point:
            return True
        moved = displaced(parameters, seed)
        try:
            with torch.no_grad():
                losses = self._both_ways(moved, batch, draws, watch)
        except Exception as error:  # a program that differentiates inside
            if isinstance(error, QueryError):
                raise
            if from_black_box(error):
                return True  # it has no answer there: nothing can be said
            try:
                losses = self._both_ways(moved, batch, draws, watch)
            except Exception:
                return True  # the program does not run there: nothing can be said
        return losses[0] == losses[1] or not abs(losses[0] - losses[1]) > 1e-6 * (abs(losses[0]) + abs(losses[1]))

    def _both_ways(
        self,
        parameters: Parameters,
        batch: tuple[Any, ...],
        draws: Draws,
        watch: AbstractContextManager[Any] | None,
    ) -> list[float]:
        """The loss with values in the places of parameters, and with values that the parameters point to."""
        losses, answers = [], Answers()
        for how in (Placing.HELD, Placing.POINTED):
            with draws.replaying(), answering(answers):
                seen = watch if how is Placing.POINTED else None
                losses.append(float(self._evaluate(parameters, batch, draws, how=how, watch=seen).loss))
        return losses

    def _evaluate(
        self,
        parameters: Parameters,
        batch: tuple[Any, ...],
        draws: Draws,
        *,
        how: Placing | None = None,
        watch: AbstractContextManager[Any] | None = None,
    ) -> Evaluation:
        places = self.places()
        batch = self.given(batch)
        how = how or (Placing.POINTED if self._hidden else Placing.BOTH)
        how = how if places.can_point else Placing.HELD
        before = self._before or Attributes.of(self._stateful(places))
        buffers = {name: b.detach().clone() for name, (b, _) in places.buffers.items()}
        values = {**self.own_copies(parameters), **buffers}
        try:
            with (
                self.scope(draws, device_of(parameters)),
                self.restoring() as moved,
                self._placed(places, values, how) as buffer_places,
                watch or nullcontext(),
            ):
                value = self.program(self.model, *batch, **keywords(batch))
                after = {name: where[0].tensor for name, where in buffer_places.items()}
        finally:
            changed = before.changed()
            attributes, grown = changed.moved(), changed.grown()
            changed.restore()
            generators = draws.give_back()
        if grown:
            raise InvalidInputError(
                f"the forward makes parameters ({', '.join(grown)}), which an estimate cannot know; run it once, "
                "model(x), before you make the estimator and the optimizer"
            )
        return Evaluation(
            one_number(value), State({n: b.detach() for n, b in after.items()}, attributes, generators, moved)
        )

    def own_copies(self, values: Parameters) -> dict[str, Tensor]:
        """``values`` with copies of those that the program writes into."""
        return {name: copied(value) if name in self._written else value for name, value in values.items()}

    @contextmanager
    def restoring(self) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Plain tensors that the program writes into are put back after a block; yields what they held at its end."""
        kept = [(tensor, copied(tensor)) for tensor in self._marked.values()]
        moved: list[tuple[Tensor, Tensor]] = []
        try:
            yield moved
            moved += [(tensor, copied(tensor)) for tensor, _ in kept]
        finally:
            with torch.no_grad():
                for tensor, value in kept:
                    tensor.copy_(value)

    def given(self, batch: tuple[Any, ...]) -> tuple[Any, ...]:
        """The batch for one query, in lists and dicts of its own; copies of tensors that the program writes into."""
        return copy_of(batch, tensors=self._writes_batch)

    def _stateful(self, places: Places) -> list[Any]:
        plain = [f for f in (self._loss, self.closure) if f is not None and not isinstance(f, nn.Module)]
        return [*places.modules, *(f for f in plain if hasattr(f, "__dict__"))]

    @contextmanager
    def _placed(self, places: Places, values: Parameters, how: Placing) -> Iterator[dict[str, Any]]:
        """``values`` where the program looks for them."""
        put = {
            name: as_complex(value, places.parameters[name][0]) if name in places.parameters else value
            for name, value in values.items()
        }
        pointing = nullcontext() if how is Placing.HELD else places.pointing(put)
        inside = {name: value for name, value in put.items() if how is not Placing.POINTED or name in places.buffers}
        with pointing, places.holding(inside) as buffers:
            yield buffers

    @contextmanager
    def scope(self, draws: Draws, device: torch.device) -> Iterator[None]:
        """The surroundings of every query: seeded generators, and attention as in training.

        PyTorch's inference path of its transformer layers gives other outputs for padded positions, and would be taken
        because no query records a gradient. What autocast keeps of a parameter in another type is what the parameter
        held when it was first used: no query may find it.
        """
        with seeded_scope(draws.seed, device, draws=draws):
            fast, kept = torch.backends.mha.get_fastpath_enabled(), torch.is_autocast_cache_enabled()
            torch.backends.mha.set_fastpath_enabled(False)
            torch.set_autocast_cache_enabled(False)
            torch.clear_autocast_cache()
            try:
                yield
            finally:
                torch.backends.mha.set_fastpath_enabled(fast)
                torch.set_autocast_cache_enabled(kept)

    def call(self, values: Parameters, x: Any) -> Any:
        """The model's output with ``values`` (parameters and buffers by name) in place of its own."""
        with self.places().holding(values, as_parameters=False):
            return self.model(x)

    def loss_value(self, output: Any, target: Any) -> Tensor:
        """The loss of an output as a 0-dim float64 tensor, with its history where the caller records gradients."""
        return as_number(mean_loss(self.loss, output, target))

    def constrain_gradients(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gradients as PyTorch has them: complex for complex parameters, 0 on the padding rows of embeddings.

        A table that the program also multiplies with (as an output layer) keeps the gradient of its padding row.
        """
        places = self.places()
        padded = padding_rows(places)
        constrained = {}
        for name, gradient in gradients.items():
            parameter = places.parameters[name][0]
            constrained[name] = as_complex(gradient, parameter)
            if name in padded and name not in self._multiplied:
                constrained[name][padded[name]] = 0
        return constrained

    def commit(self, buffers: Mapping[str, Tensor]) -> None:
        """Make the base query's buffers and counters the model's own, as one training forward would."""
        places = self.places()
        with torch.no_grad():
            for name, value in buffers.items():
                own, where = places.buffers[name]
                same = own.shape == value.shape and own.dtype == value.dtype
                if same and not overlaps_itself(own):
                    own.copy_(value)
                elif not same or not torch.equal(own, value):
                    for place in where:
                        place.put(value)
            for tensor, value in getattr(buffers, "tensors", ()):
                tensor.copy_(value)
        put_back(getattr(buffers, "attributes", ()))
        for generator, state in getattr(buffers, "generators", ()):
            generator.set_state(state)


def _checked_model(model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise InvalidInputError(
            f"model must be a torch.nn.Module, got {type(model).__name__}; for a plain function of parameters "
            "use dz.BlackBox(fn, params)"
        )
    if isinstance(model, (DataParallel, DistributedDataParallel)):
        raise InvalidInputError(
            f"model is wrapped in {type(model).__name__}; pass the network itself, model.module, and start several "
            "processes with torchrun (dz.DistributedEvaluator)"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise InvalidInputError(
            f"model is a TorchScript module ({type(model).__name__}); pass the Python module that it was made from"
        )
    plain: nn.Module = getattr(model, "_orig_mod", model)
    _require_values(plain)
    return plain


def _require_values(model: nn.Module) -> None:
    """Raise unless every parameter has values that can be moved one by one."""
    lazy = [name for name, p in model.named_parameters() if nn.parameter.is_lazy(p)]
    if lazy:
        raise InvalidInputError(
            f"parameter {lazy[0]} has no shape yet; run the lazy model once, model(x), before you make the estimator"
        )
    nowhere = [name for name, p in model.named_parameters() if p.is_meta]
    if nowhere:
        raise InvalidInputError(
            f"parameter {nowhere[0]} is on the meta device and has no values; use model.to_empty(device='cpu') and "
            f"load weights"
        )
    sparse = [name for name, p in model.named_parameters() if p.layout != torch.strided]
    if sparse:
        raise InvalidInputError(f"parameter {sparse[0]} is sparse; pass a dense one, p.to_dense()")


def first_query(
    objective: Objective, parameters: Parameters, batch: tuple[Any, ...], seed: int
) -> tuple[Evaluation, Query]:
    """The base query of a step, and a function that makes the others with the same random numbers."""
    own = getattr(objective, "first_query", None)
    if own is not None:
        found: tuple[Evaluation, Query] = own(parameters, batch, seed)
        return found
    evaluation = objective.evaluate(parameters, batch, seed=seed)
    return evaluation, lambda moved: objective.evaluate(moved, batch, seed=seed).loss


def constrained(objective: Objective, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients as the objective's parameters hold them: see :meth:`NetworkObjective.constrain_gradients`."""
    hook = "constrain_gradients"
    constrain: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = getattr(objective, hook, None)
    return gradients if constrain is None else constrain(gradients)


def steady(objective: Objective) -> AbstractContextManager[None]:
    """A block in which the objective is the same: see :meth:`NetworkObjective.steady_block`."""
    block: Callable[[], AbstractContextManager[None]] = getattr(objective, "steady_block", nullcontext)
    return block()


def asks_black_boxes(objective: Objective) -> bool:
    """True if a black box is a part of the program: see :meth:`NetworkObjective.asks_black_boxes`."""
    asks_them = getattr(objective, "asks_black_boxes", None)
    return asks_them is not None and bool(asks_them())


def forgives_black_boxes(objective: Objective) -> bool:
    """True if a black box inside may skip an answer: see :meth:`NetworkObjective.forgives_black_boxes`."""
    forgives_them = getattr(objective, "forgives_black_boxes", None)
    return forgives_them is not None and bool(forgives_them())


def shape_of(tensor: Tensor) -> Hashable:
    """The shape of a tensor; of a nested one, those of its parts."""
    return tuple(part.shape for part in tensor.unbind()) if tensor.is_nested else tensor.shape


def displaced(parameters: Parameters, seed: int, relative: float = 1e-2) -> dict[str, Tensor]:
    """All parameters moved a little, in a direction that is a pure function of ``seed``."""
    moved = {}
    for name, value in parameters.items():
        generator = torch.Generator().manual_seed(derive_seed(seed, "displaced", name))
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float32).to(value.device, value.dtype)
        scale = float(value.double().square().mean().sqrt()) if value.numel() else 0.0
        moved[name] = value + noise * (relative * (scale or 1.0))
    return moved


def copy_of(batch: tuple[Any, ...], *, tensors: bool = True) -> tuple[Any, ...]:
    """A batch in lists and dicts of its own, which a program may take apart; copies of its tensors to write into."""
    options = keywords(batch)
    if not tensors and not any(isinstance(item, (list, dict)) for item in (*batch, *options.values())):
        return batch  # tuples, tensors and numbers cannot be taken apart
    arguments, options = pytree.tree_map(
        lambda leaf: copied(leaf) if tensors and isinstance(leaf, Tensor) else leaf, (tuple(batch), options)
    )
    return Batch(arguments, options)


@dataclass(frozen=True)
class _Tried:
    """A block whose errors pass, for there is another way to run the program; not those of a black box inside."""

    last: bool = False
    """There is no other way: let nothing pass."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        return not self.last and isinstance(error, Exception) and not from_black_box(error)


def _same_loss(one: Tensor, other: Tensor, parameters: Parameters) -> bool:
    """True if two losses at the same parameters are the same but for rounding (sums on a GPU come in any order)."""
    coarsest = max(float(torch.finfo(p.dtype).eps) for p in parameters.values())
    apart = float((one - other).abs())
    return not math.isfinite(apart) or apart <= min(1000 * coarsest, 0.1) * (1e-3 + float(one.abs()))


def padding_rows(places: Places) -> dict[str, int]:
    """Name of an embedding's table -> its padding row, where nothing else uses the table."""
    found = {}
    for module in places.modules:
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.padding_idx is not None:
            for name, (parameter, where) in places.parameters.items():
                if parameter is module.weight and len(where) == 1:
                    found[name] = module.padding_idx
    return found


def as_real(value: Tensor) -> Tensor:
    """A complex tensor as real and imaginary parts along a last dimension; a real one as it is."""
    return torch.view_as_real(value.resolve_conj()) if value.is_complex() else value


def as_complex(value: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`as_real`, if ``like`` is complex."""
    if not like.is_complex() or value.is_complex():
        return value
    return torch.view_as_complex(value.contiguous())


def one_number(value: Any) -> Tensor:
    """The value of a program, as a 0-dim float64 tensor without a graph."""
    return as_number(value).detach()


def as_number(value: Any) -> Tensor:
    """The value of a program, as a 0-dim float64 tensor with its graph, if it has one."""
    if isinstance(value, (np.ndarray, np.generic)):
        value = torch.as_tensor(value)
    if isinstance(value, numbers.Number) and not isinstance(value, complex):
        value = torch.tensor(float(value), dtype=torch.float64)  # type: ignore[arg-type]
    if not isinstance(value, Tensor):
        raise InvalidInputError(
            f"the loss must be one real number (a tensor, or a NumPy or Python number), got {type(value).__name__}"
            + (f": {value!r}" if isinstance(value, complex) else "")
        )
    if value.is_complex():
        raise InvalidInputError("the loss must be a real number, got a complex one; take .real or .abs()")
    if value.numel() != 1:
        raise InvalidInputError(
            f"the loss must be one number, got a tensor of shape {tuple(value.shape)}; reduce it, for example with "
            f".mean()"
        )
    return value.double().reshape(())


@dataclass(frozen=True)
class BlackBoxFunction:
    """A black box's callable and how it wants to be called, without any values: what another process needs of it.

    Attributes:
        fn: the callable.
        arrays: names of the parameters that it takes as NumPy arrays; the others are tensors.
        batched: most parameter sets that it takes in one call, stacked; None if it takes one, not stacked.
    """

    fn: Callable[..., Any]
    arrays: frozenset[str]
    batched: int | None = None

    def losses(self, points: Sequence[Parameters], batch: tuple[Any, ...]) -> list[float]:
        """The loss at each of ``points``: one call of ``fn``, or a call for each where it is not batched."""
        if self.batched is not None:
            stacked = {name: torch.stack([point[name] for point in points]) for name in points[0]}
            return self._call(stacked, batch, len(points))
        copies = [{name: value.clone() for name, value in point.items()} for point in points]
        return [loss for copy in copies for loss in self._call(copy, batch, None)]

    def _call(self, values: Parameters, batch: tuple[Any, ...], stacked: int | None) -> list[float]:
        """One call on ``values``, which ``fn`` may write into."""
        arguments = {name: value.numpy() if name in self.arrays else value for name, value in values.items()}
        return _numbers(self.fn(arguments, *batch, **keywords(batch)), stacked)


@runtime_checkable
class SendableObjective(Objective, Protocol):
    """An objective whose queries workers in other processes can answer, as those of a :class:`BlackBox`."""

    def worker_function(self) -> BlackBoxFunction:
        """All that a worker needs beside the values of the parameters."""
        ...


class BlackBox:
    """Any callable ``fn(params) -> float``; nothing inside needs torch.

    The parameters are the memory of what was given: an optimizer's step is seen there, and by the next call of ``fn``.

    Args:
        fn: takes what ``params`` is, followed by whatever ``zo.backward`` is given; returns the loss as a number.
        params: starting values, real floating-point numbers, in one of these forms:

            - a NumPy array or a tensor: ``fn(x)`` gets an array or a tensor; its name is ``"x"``;
            - a dict of these by name: ``fn(params)`` gets a dict, NumPy arrays where NumPy arrays were given;
            - a ``torch.nn.Module``: ``fn(params)`` gets a dict of its trainable parameters by name, as tensors.
        batched: ``fn`` evaluates up to this many parameter sets in one call: its arrays have a leading dimension of
            1 to ``batched``, and it returns as many losses. What follows the arrays is not stacked. The loss of a set
            must not depend on the sets beside it.

    Attributes:
        value: what was given, with the values of now: the array, the dict, or the module.
        values: the arrays of it by name.

    Raises:
        InvalidInputError: ``params`` is of another kind (a list, integers, complex numbers, text), is empty, or cannot
            be updated in place.

    Example:
        >>> import numpy as np, torch, deepzero as dz
        >>> box = dz.BlackBox(lambda x: float(np.sum((x - 3.0) ** 2)), np.zeros(2))
        >>> zo = dz.CGE(box, step_size=1e-3, stencil=dz.CENTRAL)
        >>> sgd = torch.optim.SGD(box.parameters(), lr=0.5)
        >>> _ = zo.backward(); sgd.step()
        >>> box.value.round(6)
        array([3., 3.])
        >>> named = dz.BlackBox(lambda p: float(p["w"].sum() + p["b"]), {"w": np.zeros(2), "b": torch.ones(())})
        >>> [name for name, _ in named.named_parameters()]
        ['w', 'b']
        >>> many = dz.BlackBox(lambda p: ((p["w"] - 3.0) ** 2).sum(axis=1), {"w": np.zeros(2)}, batched=64)
        >>> float(dz.CGE(many).estimate().loss)
        18.0
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        params: Given,
        *,
        batched: int | None = None,
    ) -> None:
        self.fn, self.values = named(fn, params)
        self.value = params
        self.batched = None if batched is None else validation.count("batched", batched)
        self._tensors = as_parameters(self.values)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}: {list(p.shape)}" for name, p in self._tensors.items())
        many = "" if self.batched is None else f", batched={self.batched}"
        return f"BlackBox({described(self.fn)}, {{{shapes}}}{many})"

    def worker_function(self) -> BlackBoxFunction:
        """All that a worker needs to query this black box, but the values."""
        arrays = frozenset(name for name, value in self.values.items() if not isinstance(value, Tensor))
        return BlackBoxFunction(self.fn, arrays, self.batched)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters by name, as of a module; they share memory with ``values``."""
        yield from self._tensors.items()

    def owners(self) -> dict[str, nn.Parameter]:
        """The same as a dict."""
        return dict(self._tensors)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters, as of a module: what to hand to a ``torch.optim`` optimizer."""
        yield from self._tensors.values()

    def evaluate(self, parameters: Parameters, batch: tuple[Any, ...], *, seed: int) -> Evaluation:
        """One call of ``fn``; ``seed`` is not used: a black box draws what it draws."""
        (loss,) = self.worker_function().losses([parameters], batch)
        return Evaluation(torch.tensor(loss, dtype=torch.float64))

    def commit(self, buffers: Mapping[str, Tensor]) -> None:
        """A black box has no buffers."""


def _numbers(answer: Any, stacked: int | None) -> list[float]:
    """The answer of ``fn`` as numbers: one, or ``stacked`` of them."""
    expected = "one number" if stacked is None else f"{stacked} losses, one for each of its stacked parameter sets"
    if answer.is_complex() if isinstance(answer, Tensor) else np.iscomplexobj(answer):
        raise InvalidInputError(f"fn must return {expected}, got complex values; take the real part or the modulus")
    try:
        losses = torch.as_tensor(answer, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"fn must return {expected}, got {type(answer).__name__}") from error
    if losses.numel() != (stacked or 1):
        raise InvalidInputError(f"fn must return {expected}, got an array of shape {tuple(losses.shape)}")
    found: list[float] = losses.detach().reshape(-1).tolist()
    return found


def device_of(parameters: Parameters) -> torch.device:
    """The device of the first parameter."""
    return next(iter(parameters.values())).device


def split_batch(batch: tuple[Any, ...], options: Mapping[str, Any] | None = None) -> tuple[Any, Any]:
    """``(x, y)`` from the arguments of an estimate with ``loss=...``."""
    if len(batch) != 2 or options:
        named = f" and {', '.join(options)}" if options else ""
        raise InvalidInputError(
            f"a network with loss=... is estimated on two arguments, zo.backward(x, y); got {len(batch)}{named}. For "
            "any other signature give closure=..., for example closure=lambda model, batch: model(**batch).loss"
        )
    return batch[0], batch[1]


def mean_loss(loss: Loss, output: Any, target: Any) -> Any:
    """``loss(output, target)``; what has several entries is averaged over them, in float64."""
    if isinstance(output, Tensor) and isinstance(target, Tensor) and not output.is_complex():
        if loss is F.cross_entropy and not target.is_floating_point():
            losses = F.cross_entropy(output, target, reduction="none").double()
            return losses.sum() / (target != -100).sum()
        if loss is F.mse_loss:
            return F.mse_loss(output, target, reduction="none").double().mean()
    value = loss(output, target)
    if isinstance(value, (np.ndarray, np.generic)):
        value = torch.as_tensor(value)
    if isinstance(value, Tensor) and not value.is_complex():
        return value.double().mean()
    return value
