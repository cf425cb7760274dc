"""``dz.Opaque``: something that can only be queried, as a module at any place of a network."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from deepzero import validation
from deepzero.errors import BlackBoxWarning, CoupledRowsError, InvalidInputError
from deepzero.estimator import Estimator
from deepzero.executors import QueryJournal, QueryPolicy
from deepzero.executors.pool import ExecutorSource
from deepzero.executors.problem import problem_of_function
from deepzero.objective import Objective
from deepzero.opaque.directions import COORDINATES, ORTHOGONAL, RANDOM
from deepzero.opaque.locality import Colouring, Locality, PerChannel
from deepzero.opaque.parameters import Call, Contracted, EveryCoordinate, by_channel, by_estimator
from deepzero.opaque.products import Differences, ProductPoint, along_colours, along_coordinates, along_random
from deepzero.opaque.rows import Ledger, RowFunction, Rows, flat_rows
from deepzero.opaque.surrogate import Learned, pulled_back
from deepzero.opaque.tangents import pushed_forward, unpacked
from deepzero.operator import TARGET, register
from deepzero.randomness import derive_seed
from deepzero.stencils import CENTRAL, Stencil, as_stencil

QUERIES = 16
"""Random directions of a row by default."""
PROBES = 8
"""Entries that are moved to check a declared locality."""
NOISES = 10
"""A row is coupled to another if it moves with it by more than this many times its own noise."""
OUTSIDE = 3
"""The same for outputs outside of a declared locality: there the noise is the largest of many."""
SAME = 1e-3
"""Largest change of a row with the rows beside it, relative to the output, that is rounding of another batch size."""


class Opaque(nn.Module):
    """A function that can only be queried, at any place of a network.

    In ``loss.backward()`` the layers around it are differentiated by autograd, and its own part,
    :math:`v_b^T J_b` for every row b, is estimated from function values: the cotangent :math:`v_b` comes exactly from
    what follows, and :math:`\\langle v_b, f(z)_b \\rangle` is differenced along directions in the row's inputs. In
    ``zo.backward(...)`` it is one operation of the program.

    Args:
        fn: takes one or several tensors (or NumPy arrays, with ``numpy=True``) whose first dimension is the batch, and
            returns a row for each row. An ``nn.Module`` is called without autograd; its parameters with
            ``requires_grad`` are the black box's own.
        output: shape of a row of the output. Not needed: it is learned from the first call.
        parameters: the black box's own parameters by name: ``fn(*inputs, parameters)``. Their gradient is estimated
            from :math:`\\langle v, f(z, \\theta) \\rangle`.
        numpy: ``fn`` takes and gives NumPy arrays; by default what ``fn.numpy`` says, else False.
        directions: ``"orthogonal"`` (orthonormal blocks), ``"gaussian"``, ``"sphere"``, ``"rademacher"``, or
            ``"coordinates"``: every coordinate of a row.
        queries: directions of a row; with ``"coordinates"`` there are as many as entries.
        stencil: ``dz.CENTRAL`` or ``dz.FORWARD``.
        step_size: how far inputs move along a direction; by default from their dtype and size.
        parameter_step_size: likewise of own parameters, where no ``estimator`` says so.
        locality: declares which inputs an output may depend on (:class:`Conv`, :class:`PerToken`,
            :class:`Elementwise`), which makes ``"coordinates"`` cheap. It is checked.
        estimator: makes the estimator of the own parameters from an objective, for example
            ``lambda objective: dz.RGE(objective, queries=32)``; by default every coordinate.
        parameter_locality: by parameter name: entries along one dimension act on one channel of the output each.
        surrogate: a differentiable guess of ``fn``, a module or a :class:`Learned`: a control variate of random
            directions. It changes the error, never the mean.
        coupled: rows depend on each other, as with batch statistics: products are estimated for all rows together, one
            call a direction.
        rows: most rows of one call; by default all.
        executor: sends calls to threads, processes or machines.
        policy: timeout, retries, limits of these calls. Without an executor it says what follows an exception or an
            answer that is not finite; timeouts and limits need an executor.
        journal: keeps every answer on disk before it is used.
        repeats: how often each row is asked, for answers with noise; they are averaged, and :attr:`ledger` keeps the
            standard error.
        price: of a query, in units of your own; see :attr:`spent`.
        max_queries: an upper bound; the call that would exceed it raises, before it is made.
        seed: of the directions.

    Attributes:
        queries: rows that the function answered so far.
        calls: calls that it took.

    Raises:
        CoupledRowsError: rows depend on each other without ``coupled=True``, or on more than ``locality`` says.
        NonFiniteLossError: NaN or infinity came back.
        QueryBudgetError: ``max_queries`` would be exceeded.
        QueryError: a call failed for good; a :class:`~deepzero.errors.RowError` holds what was asked.

    Example:
        >>> import numpy as np, torch, deepzero as dz
        >>> from torch import nn
        >>> box = dz.Opaque(lambda z: np.tanh(z) ** 3, numpy=True, directions="coordinates")
        >>> model = nn.Sequential(nn.Linear(4, 3), box, nn.Linear(3, 2)).double()
        >>> loss = nn.functional.cross_entropy(model(torch.ones(5, 4).double()), torch.tensor([0, 1, 0, 1, 0]))
        >>> loss.backward()
        >>> model[0].weight.grad.shape, box.queries  # 5 rows, and 2 more along each of 3 coordinates
        (torch.Size([3, 4]), 37)
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        output: Sequence[int] | None = None,
        parameters: Mapping[str, Any] | None = None,
        numpy: bool | None = None,
        directions: str = ORTHOGONAL,
        queries: int | None = None,
        stencil: Stencil | str = CENTRAL,
        step_size: float | None = None,
        parameter_step_size: float | None = None,
        locality: Locality | None = None,
        estimator: Callable[[Objective], Estimator] | None = None,
        parameter_locality: Mapping[str, PerChannel] | None = None,
        surrogate: nn.Module | Learned | None = None,
        coupled: bool = False,
        rows: int | None = None,
        executor: ExecutorSource | None = None,
        policy: QueryPolicy | None = None,
        journal: QueryJournal | None = None,
        repeats: int = 1,
        price: float | None = None,
        max_queries: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not callable(fn):
            raise InvalidInputError(
                f"fn must be callable on a batch, for example dz.Opaque(lambda z: ...), got {type(fn).__name__}"
            )
        self.directions = validation.choice("directions", directions, (*RANDOM, COORDINATES))
        if directions == COORDINATES and queries is not None:
            raise InvalidInputError('queries=... goes with random directions; directions="coordinates" asks along all')
        self.directions_per_row = QUERIES if queries is None else validation.count("queries", queries)
        self.stencil = as_stencil(stencil)
        self.step_size = (
            None if step_size is None else validation.positive("step_size", step_size, hint="1e-3, or leave it out")
        )
        self.parameter_step_size = (
            None
            if parameter_step_size is None
            else validation.positive("parameter_step_size", parameter_step_size, hint="1e-3, or leave it out")
        )
        if locality is not None and (directions != COORDINATES or coupled):
            raise InvalidInputError('locality=... goes with directions="coordinates" and rows that are not coupled')
        if surrogate is not None and directions == COORDINATES:
            raise InvalidInputError("surrogate=... goes with random directions; all coordinates leave it nothing to do")
        if surrogate is not None and coupled:
            raise InvalidInputError("surrogate=... goes with rows that do not depend on each other, not coupled=True")
        self.locality, self.coupled = locality, coupled
        self.seed = validation.integer("seed", seed)
        if parameters is not None and isinstance(fn, nn.Module):
            raise InvalidInputError("parameters=... goes with a function; a module brings its own")
        self.module = fn if isinstance(fn, nn.Module) else None
        self.values = nn.ParameterDict(
            {name: nn.Parameter(as_tensor(name, value)) for name, value in (parameters or {}).items()}
        )
        self._estimator = estimator or EveryCoordinate(self.stencil, self.parameter_step_size)
        self._parameter_locality = dict(parameter_locality or {})
        self._names = tuple(self._own())
        unknown = sorted(set(self._parameter_locality) - set(self._names))
        if unknown:
            some = ", ".join(self._names) or "(none)"
            raise InvalidInputError(f"parameter_locality names {', '.join(unknown)}, not among the parameters {some}")
        if policy is not None and executor is None:
            _require_no_limits(policy)
        if numpy is None:
            numpy = self.module is None and bool(getattr(fn, "numpy", False))
        budget = None if max_queries is None else validation.count("max_queries", max_queries)
        answered = Rows(
            RowFunction(fn if self.module is None else Functional(self.module), numpy, self._names),
            most=None if rows is None else validation.count("rows", rows),
            executor=executor,
            policy=policy,
            journal=journal,
            price=None if price is None else validation.positive("price", price, hint="0.001"),
            max_queries=budget,
            repeats=validation.count("repeats", repeats),
            problem="" if journal is None else problem_of_function(fn),
        )
        _states[self] = _State(answered, surrogate, None if output is None else torch.Size(output))
        self._handle = register(self)

    # Asking -----------------------------------------------------------------------------------------------------------

    def forward(self, *inputs: Tensor) -> Tensor:
        """The output; a query a row."""
        if not inputs or any(not isinstance(value, Tensor) or value.dim() == 0 for value in inputs):
            raise InvalidInputError("a dz.Opaque is called with tensors whose first dimension is the batch")
        if any(value.is_complex() for value in inputs):
            raise InvalidInputError("a dz.Opaque takes real tensors; give it torch.view_as_real(z) of complex ones")
        if len({len(value) for value in inputs}) > 1:
            sizes = ", ".join(str(tuple(value.shape)) for value in inputs)
            raise InvalidInputError(f"the inputs must have as many rows each, got shapes {sizes}")
        arguments = [*inputs, *self._own().values()]
        values, tangents = unpacked(arguments)
        if all(tangent is None for tangent in tangents):
            return self._called(arguments, len(inputs))
        return self._pushed_forward(values, tangents, len(inputs))

    def _called(self, arguments: Sequence[Tensor], count: int) -> Tensor:
        """The output, by the operation; the first ``count`` arguments are inputs, the rest its own parameters."""
        output: Tensor = TARGET(self._handle, list(arguments[:count]), list(arguments[count:]))
        return output

    def _pushed_forward(self, values: Sequence[Tensor], tangents: Sequence[Tensor | None], count: int) -> Tensor:
        """The output and its tangent, where forward-mode differentiation goes through."""
        inputs, parameters = values[:count], values[count:]
        call = partial(self._called, count=count)
        output = call(values)
        by_row = not self.coupled and all(tangent is None for tangent in tangents[count:])
        if by_row:
            self._require_own_rows(inputs, parameters, output)
        return pushed_forward(call, output, values, tangents, self.stencil, self.step_size, by_row=by_row)

    def _own(self) -> dict[str, Tensor]:
        """The black box's own parameters."""
        if self.module is None:
            return dict(self.values.items())
        names = getattr(self, "_names", None)
        found = dict(self.module.named_parameters())
        return {n: p for n, p in found.items() if (p.requires_grad if names is None else n in names)}

    def answer(self, inputs: Sequence[Tensor], parameters: Sequence[Tensor], *, required: bool = True) -> Tensor:
        """The output at some inputs and parameters; where it is not ``required``, NaN in rows that the policy skips."""
        state = _states[self]
        if len(inputs[0]) == 0:
            return self.output_like(inputs)
        output = state.rows.ask(inputs, parameters, required=required)
        shape = output.shape[1:]
        if state.shape is not None and shape != state.shape and state.like is None:
            raise InvalidInputError(
                f"output={tuple(state.shape)} was given as the shape of a row of the output, but the black box "
                f"returned {tuple(shape)}"
            )
        if state.like is None:
            _tell_probabilities(output)
        state.shape, state.like = shape, output.new_empty(0)
        state.dtypes = [value.dtype for value in inputs], [value.dtype for value in parameters]
        return output

    def answer_narrowed(self, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
        """The output, asked in the dtypes of the last call."""
        state = _states[self]
        if state.dtypes is None:
            return self.answer(inputs, parameters)
        arguments = [
            [value.to(dtype) for value, dtype in zip(values, dtypes, strict=True)]
            for values, dtypes in zip((inputs, parameters), state.dtypes, strict=True)
        ]
        return state.rows.ask(*arguments)

    def output_like(self, inputs: Sequence[Tensor]) -> Tensor:
        """An empty tensor of the output's shape and dtype, without a query."""
        state = _states[self]
        if state.shape is None:
            raise InvalidInputError(
                "the shape of a row of the output is not known yet: give dz.Opaque(fn, output=(...)), or call the "
                "model once"
            )
        dtype = inputs[0].dtype if state.like is None else state.like.dtype
        return inputs[0].new_empty((len(inputs[0]), *state.shape), dtype=dtype)

    # Products ---------------------------------------------------------------------------------------------------------

    def gradients(
        self,
        inputs: Sequence[Tensor],
        parameters: Sequence[Tensor],
        output: Tensor,
        cotangent: Tensor,
        needs: tuple[Sequence[bool], Sequence[bool]],
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Vector-Jacobian products with respect to the inputs and parameters that ``needs`` marks."""
        number = _states[self].rows.ledger.drawn
        _states[self].rows.ledger.drawn += 1
        seed = derive_seed(self.seed, "opaque", number)
        for_inputs: list[Tensor | None] = [None] * len(inputs)
        if any(needs[0]):
            if not self.coupled:
                self._require_own_rows(inputs, parameters, output)
                self._require_declared(inputs, parameters, output, needs[0])
            for_inputs = self._of_inputs(inputs, parameters, output, cotangent, needs[0], seed)
        for_parameters: list[Tensor | None] = [None] * len(parameters)
        if any(needs[1]):
            for_parameters = self._of_parameters(inputs, parameters, output, cotangent, needs[1], number)
        return for_inputs, for_parameters

    def _of_inputs(
        self,
        inputs: Sequence[Tensor],
        parameters: Sequence[Tensor],
        output: Tensor,
        cotangent: Tensor,
        needs: Sequence[bool],
        seed: int,
    ) -> list[Tensor | None]:
        moving = [k for k, needed in enumerate(needs) if needed]
        parts = Parts([inputs[k] for k in moving])
        point = ProductPoint(parts.flat, flat_rows(output), flat_rows(cotangent))
        used = point.cotangent.any(1) | ~point.cotangent.isfinite().all(1)  # a row without a cotangent costs nothing
        if not bool(used.all()) and not self.coupled:
            found = torch.zeros_like(point.inputs)
            rows = used.nonzero().flatten()
            if len(rows):
                some = [value[rows] for value in inputs]
                found[rows] = self._product(
                    some, parameters, Parts([some[k] for k in moving]), point.of(rows), moving, seed
                )
        else:
            found = self._product(inputs, parameters, parts, point, moving, seed)
        split = iter(parts.split(found))
        return [next(split) if needed else None for needed in needs]

    def _product(
        self,
        inputs: Sequence[Tensor],
        parameters: Sequence[Tensor],
        parts: Parts,
        point: ProductPoint,
        moving: Sequence[int],
        seed: int,
    ) -> Tensor:
        """``[b, d]``."""
        rows, surrogate = _states[self].rows, _states[self].surrogate
        count = len(point.inputs)

        def placed(flat: Tensor, others: Sequence[Tensor]) -> list[Tensor]:
            """The moving inputs, from flat rows, and the others, repeated."""
            moved, copies = iter(parts.split(flat)), len(flat) // count
            return [next(moved) if k in moving else v.repeat_interleave(copies, 0) for k, v in enumerate(others)]

        def ask(flat: Tensor) -> Tensor:
            return flat_rows(rows.ask(placed(flat, inputs), parameters, required=False))

        def ask_jointly(flat: Tensor) -> Tensor:
            return torch.stack([ask(one.reshape(count, -1)).reshape(-1) for one in flat])

        def observed(guess: Learned, flat: Tensor, directions: Tensor, change: Tensor) -> None:
            along = placed(directions, [torch.zeros_like(value) for value in inputs])
            values = point.output.repeat_interleave(len(flat) // count, 0)
            shaped = (v.reshape(len(flat), *(_states[self].shape or ())) for v in (values, change))
            guess.learn(placed(flat, inputs), along, *shaped)

        guess = None
        if surrogate is not None:
            shaped = point.cotangent.reshape(count, *(_states[self].shape or ()))
            needs = [k in moving for k in range(len(inputs))]
            guess = torch.cat([flat_rows(g) for g in pulled_back(surrogate, inputs, shaped, needs)], dim=1)
        if self.coupled:
            point = ProductPoint(*(value.reshape(1, -1) for value in (point.inputs, point.output, point.cotangent)))
            guess = None if guess is None else guess.reshape(1, -1)
        differences = Differences(
            ask_jointly if self.coupled else ask,
            self.stencil,
            self.step_size,
            self.directions,
            observed=partial(observed, surrogate) if isinstance(surrogate, Learned) else None,
        )
        if self.locality is not None:
            found = along_colours(differences, point, self._colouring([inputs[k] for k in moving]))
        elif self.directions == COORDINATES:
            found = along_coordinates(differences, point)
        else:
            found = along_random(differences, point, self.directions_per_row, seed, guess)
        return found.reshape(count, -1)

    def _colouring(self, inputs: Sequence[Tensor]) -> Colouring:
        assert self.locality is not None
        if len(inputs) != 1:
            raise InvalidInputError(
                f"locality=... is for one input that wants a gradient, got {len(inputs)}; detach the others"
            )
        key = inputs[0].shape[1:], _states[self].shape
        found = _states[self].colourings.get(key)
        if found is None:
            found = self.locality.colouring(key[0], key[1] or torch.Size())
            _states[self].colourings[key] = found
        return found

    def _of_parameters(
        self,
        inputs: Sequence[Tensor],
        parameters: Sequence[Tensor],
        output: Tensor,
        cotangent: Tensor,
        needs: Sequence[bool],
        number: int,
    ) -> list[Tensor | None]:
        rows = _states[self].rows

        def call(values: Sequence[Tensor]) -> Tensor:
            return rows.ask(inputs, values)

        found: list[Tensor | None] = [None] * len(parameters)
        jointly = [k for k, one in enumerate(needs) if one and self._names[k] not in self._parameter_locality]
        for k, one in enumerate(needs):
            if one and k not in jointly:
                local = self._parameter_locality[self._names[k]]
                self._require_own_channels(call, parameters, k, local, output)
                step = self.parameter_step_size
                found[k] = by_channel(call, parameters, k, local, output, cotangent, self.stencil, step)
        if jointly:

            def some(values: Sequence[Tensor]) -> Tensor:
                there = list(parameters)
                for k, value in zip(jointly, values, strict=True):
                    there[k] = value
                return call(there)

            named = {self._names[k]: parameters[k] for k in jointly}
            estimated = by_estimator(self._estimator, Contracted(some, named, output, cotangent), number)
            for k in jointly:
                found[k] = estimated[self._names[k]]
        return found

    # Checks -----------------------------------------------------------------------------------------------------------

    def stackable(self, inputs: Sequence[Tensor], parameters: Sequence[Tensor], output: Tensor | None = None) -> bool:
        """True if rows of several queries may go into one call."""
        return not self.coupled and self._apart(inputs, parameters, output) == 0.0

    def _require_own_rows(self, inputs: Sequence[Tensor], parameters: Sequence[Tensor], output: Tensor) -> None:
        """Check that the first row does not move when the row beside it does."""
        apart, key = self._apart(inputs, parameters, output), self._situation(inputs)
        if apart == 0.0 or key in _states[self].warned:
            return
        pair = [_beside(value, 0) for value in inputs]
        noise = self._distance(*(_states[self].rows.ask(pair, parameters) for _ in range(2)))
        if apart > NOISES * noise:
            raise CoupledRowsError(
                "the rows of the black box depend on each other: its first row changed with the rows beside it "
                "(batch normalization in train mode does so). Use its inference mode, or dz.Opaque(..., "
                "coupled=True), which estimates all rows together at one call a direction"
            )
        warnings.warn(
            f"the black box answers the same rows differently, by {noise:.2g}: an estimate by differences carries that "
            "over the step. Use its inference mode (dropout draws), repeats=..., or a larger step_size",
            BlackBoxWarning,
            stacklevel=2,
        )
        _states[self].warned.add(key)

    def _situation(self, inputs: Sequence[Tensor]) -> tuple[Any, ...]:
        """For what a finding holds: shapes of rows, and modes of the modules."""
        return *(value.shape[1:] for value in inputs), *(module.training for module in self.modules())

    def _apart(self, inputs: Sequence[Tensor], parameters: Sequence[Tensor], output: Tensor | None) -> float:
        """Change of the output's first row with the rows beside it; 0 if that is rounding. Measured once."""
        state = _states[self]
        key = self._situation(inputs)
        with state.rows.lock:
            if key not in state.apart:
                if output is None:
                    output = state.rows.ask([_beside(value, 1) for value in inputs], parameters)
                found = state.rows.ask([_beside(value, 0) for value in inputs], parameters)
                distance = self._distance(found, output)
                size = float(output.double().square().mean().sqrt())
                state.apart[key] = distance if distance > SAME * (size + 1e-30) else 0.0
            return state.apart[key]

    @staticmethod
    def _distance(one: Tensor, other: Tensor) -> float:
        """Between first rows."""
        return float((one[0].double() - other[0].double()).abs().max())

    def _require_declared(
        self, inputs: Sequence[Tensor], parameters: Sequence[Tensor], output: Tensor, needs: Sequence[bool]
    ) -> None:
        """Check a declared locality, once."""
        key = self._situation(inputs)
        if self.locality is not None and key not in _states[self].checked:
            self._require_local(inputs, parameters, output, [k for k, needed in enumerate(needs) if needed])
            _states[self].checked.add(key)

    def _require_local(
        self, inputs: Sequence[Tensor], parameters: Sequence[Tensor], output: Tensor, moving: Sequence[int]
    ) -> None:
        """A few entries of the first row are moved one by one: what the declaration says they do not reach stays."""
        colouring = self._colouring([inputs[k] for k in moving])
        value = inputs[moving[0]]
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "locality"))
        entries = torch.randint(value[0].numel(), (PROBES,), generator=generator)
        size = float(value.double().square().mean().sqrt()) or 1.0
        rows = value[:1].repeat(PROBES, *(1 for _ in value.shape[1:]))
        flat = rows.reshape(PROBES, -1)
        flat[torch.arange(PROBES), entries] += size
        moved = flat.reshape(rows.shape)
        points = [moved if k == moving[0] else v[:1].expand(PROBES, *v.shape[1:]) for k, v in enumerate(inputs)]
        found = _states[self].rows.ask(points, parameters)
        change, noise = flat_rows((found - output[:1]).abs()), None
        for k, entry in enumerate(entries.tolist()):
            reached = colouring.seen[colouring.colours[entry]] == entry
            outside = change[k][~reached.to(change.device)]
            if not outside.numel() or float(outside.max()) <= SAME * float(output.abs().max() + change[k].max()):
                continue
            if noise is None:  # asked again, it may answer as differently
                noise = float((_states[self].rows.ask(points, parameters) - found).abs().max())
            if float(outside.max()) > OUTSIDE * noise:
                raise CoupledRowsError(
                    f"locality={self.locality} is not true of this black box: moving entry {entry} of a row's input "
                    "moves outputs that it should not reach; declare a wider field, or leave locality out"
                )

    def _require_own_channels(
        self, call: Call, parameters: Sequence[Tensor], index: int, locality: PerChannel, output: Tensor
    ) -> None:
        """Moving the entries of one channel moves no other channel of the output."""
        key = self._names[index], output.shape[1:]
        if key in _states[self].checked:
            return
        entries, channel = locality.colours(parameters[index].shape, output.shape[1:])
        moved = parameters[index].detach().clone()
        flat = moved.view(-1)
        flat[entries[:, 0]] += float(moved.double().square().mean().sqrt()) or 1.0
        some = [moved if k == index else value for k, value in enumerate(parameters)]
        found = call(some)
        change = (found - output).abs().flatten(1).amax(0)
        others = change[(channel != 0).to(change.device)]
        moves = others.numel() and float(others.max()) > SAME * float(output.abs().max() + change.max())
        if moves and float(others.max()) > OUTSIDE * float((call(some) - found).abs().max()):
            raise CoupledRowsError(
                f"{locality} is not true of {self._names[index]}: entries of its first channel move other channels of "
                "the output; leave it out of parameter_locality"
            )
        _states[self].checked.add(key)

    # State ------------------------------------------------------------------------------------------------------------

    @property
    def forgiving(self) -> bool:
        """True if the policy skips rows: the output is NaN there, and an estimator leaves such a query out."""
        policy = _states[self].rows.policy
        return policy is not None and "skip" in (policy.on_error, policy.on_nan, policy.exhausted)

    @property
    def ledger(self) -> Ledger:
        """Counters of queries and calls so far."""
        return _states[self].rows.ledger

    @property
    def queries(self) -> int:
        """Rows that it answered so far."""
        return self.ledger.queries

    @property
    def calls(self) -> int:
        """Calls that it took."""
        return self.ledger.calls

    @property
    def spent(self) -> float:
        """Cost of the queries so far, at the ``price`` of each."""
        price = _states[self].rows.price
        if price is None:
            raise InvalidInputError("a query has no price; give dz.Opaque(fn, price=...)")
        return price * self.queries

    def get_extra_state(self) -> Tensor:
        """Counters, on which the directions of the next product depend."""
        ledger = self.ledger
        return torch.tensor([ledger.queries, ledger.calls, ledger.replayed, ledger.skipped, ledger.drawn])

    def set_extra_state(self, state: Tensor) -> None:
        """Take over counters."""
        ledger = self.ledger
        ledger.queries, ledger.calls, ledger.replayed, ledger.skipped, ledger.drawn = state.tolist()

    def close(self) -> None:
        """Shut down an executor that a function made."""
        _states[self].rows.close()

    def extra_repr(self) -> str:
        """Directions, stencil, locality and queries."""
        along = self.directions if self.directions == COORDINATES else f"{self.directions_per_row} {self.directions}"
        more = "" if self.locality is None else f", locality={self.locality}"
        return f"{along}, {self.stencil.name}{more}, {self.queries} queries so far"

    def __deepcopy__(self, memo: dict[int, Any]) -> Opaque:
        """A copy that asks the same function, with parameters and counters of its own."""
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__dict__.update(
            {key: copy.deepcopy(value, memo) for key, value in self.__dict__.items() if key != "_handle"}
        )
        _states[made] = _states[self].copied(made)
        made._handle = register(made)
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pickled": _states[self]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        pickled = state.pop("_pickled")
        self.__dict__.update(state)
        _states[self] = pickled
        self._handle = register(self)


def _require_no_limits(policy: QueryPolicy) -> None:
    """Without an executor nothing can be given up or sent later."""
    limits = [name for name in ("timeout", "per_second", "in_flight") if getattr(policy, name) is not None]
    if limits:
        raise InvalidInputError(
            f"policy has {' and '.join(f'{name}=...' for name in limits)}, which needs an executor, for example "
            "dz.Opaque(fn, executor=ThreadPoolExecutor(1), policy=...)"
        )


@dataclass
class _State:
    """The state that a module cannot hold, because modules are compared, copied and put back at every query.

    Attributes:
        rows: the function, and how its rows are answered.
        surrogate: the guess.
        shape: of a row of the output, once known.
        like: a tensor of the output's dtype and device, once known.
        dtypes: of inputs and parameters in the last call.
        apart: change of rows with those beside them, by situation.
        warned: situations in which a warning of noise was given.
        checked: declarations that were found to be true.
        colourings: by shapes.
    """

    rows: Rows
    surrogate: nn.Module | Learned | None
    shape: torch.Size | None = None
    like: Tensor | None = None
    dtypes: tuple[list[torch.dtype], list[torch.dtype]] | None = None
    apart: dict[Any, float] = field(default_factory=dict)
    warned: set[Any] = field(default_factory=set)
    checked: set[Any] = field(default_factory=set)
    colourings: dict[Any, Colouring] = field(default_factory=dict)

    def copied(self, owner: Opaque) -> _State:
        """For a copy of the module."""
        function = self.rows.function
        if owner.module is not None:
            function = replace(function, fn=Functional(owner.module))
        rows = replace(self.rows, function=function, ledger=replace(self.rows.ledger))
        own = {name: copy.copy(getattr(self, name)) for name in ("apart", "warned", "checked", "colourings")}
        return replace(self, rows=rows, **own)


_states: WeakKeyDictionary[Opaque, _State] = WeakKeyDictionary()


@dataclass(frozen=True)
class Functional:
    """A module as a function of inputs and parameters; its buffers stay as they are."""

    module: nn.Module

    def __call__(self, *arguments: Any) -> Any:
        """The output; a last dict holds parameters."""
        *inputs, parameters = arguments if isinstance(arguments[-1], dict) else (*arguments, {})
        buffers = {name: value.clone() for name, value in self.module.named_buffers()}
        return torch.func.functional_call(self.module, {**buffers, **parameters}, tuple(inputs))


@dataclass(frozen=True)
class Parts:
    """Inputs of several shapes as one flat tensor."""

    inputs: list[Tensor]

    @property
    def flat(self) -> Tensor:
        """``[b, d]``."""
        return torch.cat([flat_rows(value.detach()) for value in self.inputs], dim=1)

    def split(self, flat: Tensor) -> list[Tensor]:
        """``[n, d]`` in the inputs' shapes and dtypes."""
        sizes = [value[0].numel() for value in self.inputs]
        parts = torch.split(flat, sizes, dim=1)
        return [p.reshape(len(flat), *v.shape[1:]).to(v.dtype) for p, v in zip(parts, self.inputs, strict=True)]


def _beside(value: Tensor, seed: int) -> Tensor:
    """The first row beside one that no batch holds: between it and the last, so that a black box can make sense of it.

    Where the last is like the first, noise of a tenth of its size is added.
    """
    first, last = value[:1], value[-1:]
    if not value.is_floating_point():
        return torch.cat([first, last])
    if not torch.equal(first, last):
        return torch.cat([first, torch.lerp(first, last, 0.5 if seed else 0.25)])
    size = float(first.double().square().mean().sqrt()) or 1.0
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(first.shape, generator=generator, dtype=torch.float64).to(first)
    return torch.cat([first, first + 0.1 * size * noise])


def _tell_probabilities(output: Tensor) -> None:
    """Warn once where logits were probably meant."""
    if output.dim() != 2 or output.shape[1] < 2:
        return
    if bool((output >= 0).all()) and bool(((output.double().sum(1) - 1).abs() < 1e-3).all()):
        warnings.warn(
            "the black box returns rows that are not negative and sum to 1: probabilities. cross_entropy expects "
            "logits; take their logarithm, for example dz.Opaque(lambda z: torch.log(fn(z) + 1e-12))",
            BlackBoxWarning,
            stacklevel=2,
        )


def as_tensor(name: str, value: Any) -> Tensor:
    """A starting value as a floating-point tensor of its own."""
    found = torch.as_tensor(value)
    if not found.is_floating_point():
        raise InvalidInputError(f"parameter {name} must hold floating-point numbers, got {found.dtype}")
    return found.detach().clone()
