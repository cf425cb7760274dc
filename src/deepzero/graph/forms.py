"""The form of a difference: its kind, shapes, layouts and dtypes, and the entries it sits on, without its numbers.

Rules choose what they do by the forms that they are given. So from a place in the program where the same nodes differ
in the same forms, two perturbations go on alike, whichever parameters they came from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from deepzero.graph.capture import Node
from deepzero.graph.differences import BaseRows, Blocks, ChannelEntry, Difference, RankOne, SomeSamples
from deepzero.graph.host_numbers import on_host
from deepzero.graph.program import Step
from deepzero.graph.propagate import memory_of


def form(part: Any) -> Hashable:
    """The form of a difference, or of a part of one; of indices also which they are."""
    if isinstance(part, Tensor):
        which = tuple(on_host(part).tolist()) if part.dtype is torch.int64 and part.dim() == 1 else None
        return part.shape, part.stride(), part.dtype, which
    if isinstance(part, BaseRows):
        return BaseRows, form(part.base)
    if isinstance(part, ChannelEntry):
        return ChannelEntry, part.axis, form(part.channels), form(part.line), form(part.places), part.shape
    if dataclasses.is_dataclass(part):
        return type(part), *(form(getattr(part, f.name)) for f in dataclasses.fields(part))
    if isinstance(part, (tuple, list)):
        return tuple(form(one) for one in part)
    return part if isinstance(part, Hashable) else id(part)


def state(step: Step, live: Mapping[Node, Any]) -> Hashable:
    """Before a step, all that decides which rules follow and what they do: the nodes that differ still, and how.

    None where a node's outputs, of which it has several, have not been told apart yet.
    """
    if not all(isinstance(difference, Difference | Blocks | SomeSamples) for difference in live.values()):
        return None
    forms = frozenset((node, _lasting_form(difference)) for node, difference in live.items())
    return step.node, forms, _shared_memory(live)


def _lasting_form(difference: Any) -> Hashable:
    """The form; of rank one, whether rows are given in full, and not which: no two perturbations agree on that."""
    if not isinstance(difference, RankOne):
        return form(difference)
    grouped = len(difference.directions), len(difference.runs) * 4 > difference.count
    return RankOne, form(difference.coefficients), form(difference.directions), grouped, difference.places is None


def _shared_memory(live: Mapping[Node, Any]) -> Hashable:
    """The nodes whose differences have memory in common, which a rule may then not overwrite."""
    held = {node: memory_of(difference) for node, difference in live.items()}
    return frozenset(
        frozenset((one, other)) for one in held for other in held if one is not other and held[one] & held[other]
    )
