"""The arguments of a rule: base values, incoming differences, and a memo that lives for one step.

Legend: b samples, c entries along an axis; rest: the other dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from jaxtyping import Shaped
from torch import Tensor

from deepzero.graph.capture import Node
from deepzero.graph.differences import Difference

T = TypeVar("T")


@dataclass(eq=False)
class Value:
    """The base value of a node, and what rules derive from it once a step."""

    base: Any
    memo: dict[str, Any] = field(default_factory=dict)

    def remember(self, key: str, make: Callable[[], T]) -> T:
        """``make()``, computed at most once a step (twice at worst, with equal results, if two threads meet)."""
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]  # type: ignore[no-any-return]

    def channel_first(self, axis: int) -> Shaped[Tensor, " c *rest"]:
        """A contiguous copy of the base value with its channel axis in front."""
        copy: Tensor = self.remember(f"channel_first{axis}", lambda: self.base.movedim(axis, 0).contiguous())
        return copy

    def channels_last(self) -> Shaped[Tensor, "b *rest c"]:
        """A base value ``[b, c, *rest]`` with channels last, contiguous, once a step."""
        rows: Tensor = self.remember("rows", lambda: self.base.movedim(1, -1).contiguous())
        return rows


@dataclass(frozen=True, eq=False)
class Operand:
    """A tensor argument: its base value and its difference.

    Attributes:
        value: the base value.
        difference: None if it does not differ.
        expendable: whether the memory of the difference is this call's to overwrite: nothing else reads it any more.
    """

    value: Value
    difference: Difference | None
    expendable: bool = False

    @property
    def base(self) -> Tensor:
        """The base value."""
        return self.value.base  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class Call:
    """One operation at one step.

    Attributes:
        node: the operation.
        values: base values of the operations it stands for (one; several if fused), the last of them its output.
        overwrite: whether the first operand's difference is this call's to destroy.
        by_sample: whether the outcome may be a difference of some samples.
    """

    node: Node
    values: tuple[Value, ...]
    overwrite: bool = False
    by_sample: bool = False

    @property
    def output(self) -> Value:
        """The base output."""
        return self.values[-1]

    @property
    def memo(self) -> Callable[[str, Callable[[], Any]], Any]:
        """Remember something for this step, with the operation's output."""
        return self.output.remember


Outcome = Difference | None | tuple[Difference | None, ...]
Rule = Callable[..., Outcome]
