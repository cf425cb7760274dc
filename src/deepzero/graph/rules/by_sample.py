"""Operations that treat samples apart: a difference of some samples goes on as channels of the first dimension.

A row of an embedding is looked up in few samples of a batch, and a perturbation of it moves those alone. The rules see
every pair of a perturbation and a sample as if it were a perturbation of its own. That is right where a sample of the
output depends on the same sample of the input and on no other: each operation here has a condition for that. Elsewhere
the differences are written out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from deepzero.graph.calls import Call, Operand, Rule
from deepzero.graph.differences import Channel, Difference, SomeSamples
from deepzero.graph.rules.base import normal_dim

aten = torch.ops.aten
Condition = Callable[..., bool]
"""True if an operation, called with these arguments, treats samples apart."""


def by_sample(rule: Rule, call: Call, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The outcome of a rule, some of whose operands differ in some samples."""
    leaves = pytree.tree_leaves((args, kwargs), is_leaf=lambda a: isinstance(a, Operand))
    differing: list[Any] = [o.difference for o in leaves if isinstance(o, Operand) and o.difference is not None]
    first = next(d for d in differing if isinstance(d, SomeSamples))
    condition = APART.get(call.node.target)
    together = all(isinstance(d, SomeSamples) and first.sits_with(d) for d in differing)
    if condition is None or not together or not condition(call, *args, **kwargs):
        return rule(call, *_mapped(args, SomeSamples.written_out), **_mapped(kwargs, SomeSamples.written_out))
    outcome = rule(call, *_mapped(args, lambda s: s.channel), **_mapped(kwargs, lambda s: s.channel))
    if isinstance(outcome, tuple):
        return tuple(None if part is None else _of_samples(part, first, call) for part in outcome)
    return None if outcome is None else _of_samples(outcome, first, call)


def _mapped(arguments: Any, function: Callable[[SomeSamples], Difference]) -> Any:
    def change(argument: Any) -> Any:
        difference: Any = argument.difference if isinstance(argument, Operand) else None
        if isinstance(difference, SomeSamples):
            return replace(argument, difference=function(difference), expendable=False)
        return argument

    return pytree.tree_map(change, arguments, is_leaf=lambda a: isinstance(a, Operand))


def _of_samples(difference: Any, like: SomeSamples, call: Call) -> SomeSamples:
    assert isinstance(difference, Channel), f"{call.node.target} mixes samples"
    assert difference.axis == 0, f"{call.node.target} mixes samples"
    return SomeSamples(like.owners, difference, like.count)


def _keeps_shape(call: Call, *arguments: Any, **_: Any) -> bool:
    """Pointwise, of operands that are not broadcast to another number of samples."""
    shape = call.output.base.shape
    return all(a.base.shape == shape for a in arguments if isinstance(a, Operand) and a.difference is not None)


def _layer(call: Call, x: Operand, *_: Any, **__: Any) -> bool:
    """Along the last dimension alone."""
    return x.base.dim() > 1


def _norm(call: Call, x: Operand, normalized_shape: Sequence[int], *_: Any, **__: Any) -> bool:
    return len(normalized_shape) < x.base.dim()


def _view(call: Call, x: Operand, *_: Any) -> bool:
    """The first dimension stays."""
    shape = call.output.base.shape
    return len(shape) > 1 and shape[0] == x.base.shape[0]


def _transposition(call: Call, x: Operand, first: int, second: int) -> bool:
    return 0 not in (normal_dim(first, x.base.dim()), normal_dim(second, x.base.dim()))


def _permutation(call: Call, x: Operand, dims: Sequence[int]) -> bool:
    return normal_dim(dims[0], x.base.dim()) == 0


def _split(call: Call, x: Operand, _: Any, dim: int = 0) -> bool:
    return normal_dim(dim, x.base.dim()) != 0


def _slice(call: Call, x: Operand, dim: int = 0, *_: Any) -> bool:
    return normal_dim(dim, x.base.dim()) != 0


def _attention(call: Call, query: Operand, key: Operand, value: Operand, *_: Any, **__: Any) -> bool:
    """Each sample's queries meet its own keys."""
    size = call.output.base.shape[0]
    return all(o.base.dim() > 2 and o.base.shape[0] == size for o in (query, key, value))


def _always(call: Call, *_: Any, **__: Any) -> bool:
    return True


APART: dict[Any, Condition] = {
    **dict.fromkeys((aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor), _keeps_shape),
    **dict.fromkeys((aten.gelu.default, aten.relu.default, aten.silu.default, aten.tanh.default), _always),
    **dict.fromkeys((aten.clone.default, aten.contiguous.default, aten.neg.default, aten.sigmoid.default), _always),
    aten.linear.default: _layer,
    **dict.fromkeys((aten.layer_norm.default, aten.rms_norm.default), _norm),
    **dict.fromkeys((aten.view.default, aten.reshape.default, aten._unsafe_view.default), _view),
    **dict.fromkeys((aten.flatten.using_ints, aten.unflatten.int), _view),
    aten.transpose.int: _transposition,
    aten.permute.default: _permutation,
    **dict.fromkeys((aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default), _split),
    aten.slice.Tensor: _slice,
    aten.scaled_dot_product_attention.default: _attention,
}
"""Operation -> when it treats the entries of the first dimension apart; weights and masks of it do not differ then."""
