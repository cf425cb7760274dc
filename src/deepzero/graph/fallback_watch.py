"""Who falls back: rules hand some of their cases to the generic fallback, which shows only once they are called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from deepzero.graph.capture import Node

_watches: list[dict[str, str]] = []


@contextmanager
def watch_fallbacks() -> Iterator[dict[str, str]]:
    """Operations that the fallback evaluates inside of the block, on any thread: name in the graph -> operation.

    Example:
        >>> import torch, torch.nn.functional as F, deepzero as dz
        >>> loss = lambda output, y: torch.logcumsumexp(output, 1).mean()
        >>> with watch_fallbacks() as seen:
        ...     _ = dz.CGE(torch.nn.Linear(3, 2), loss=loss).estimate(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))
        >>> set(seen.values())
        {'aten.logcumsumexp.default'}
    """
    seen: dict[str, str] = {}
    _watches.append(seen)
    try:
        yield seen
    finally:
        _watches[:] = [watch for watch in _watches if watch is not seen]


def note_fallback(node: Node) -> None:
    """Tell whoever watches that the fallback is asked for an operation."""
    for seen in _watches:
        seen[node.name] = str(node.target)
