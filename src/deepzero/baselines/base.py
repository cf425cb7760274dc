"""The base of all baselines, a rule whose draws are seeded by its name and the step; and baselines by name."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from deepzero.errors import InvalidInputError
from deepzero.objective import Loss, device_of
from deepzero.randomness import derive_seed, seeded_scope
from deepzero.text import did_you_mean
from deepzero.training.gradient_sources import GradientRule


class Baseline(GradientRule):
    """A rule that turns a batch into an update direction, as a gradient source of the training loop.

    A class with a ``name`` of its own is known to :func:`build` from its definition on.

    Args:
        model: a network of the kind that the rule is made for.
        loss: ``loss(output, target)``.
        seed: of everything that the rule draws; the draws of a step are a pure function of it and the step.

    Attributes:
        name: its name for :func:`build`.
        queries: forward passes of the network used so far.
        step: calls of :meth:`backward` so far.
        memory: JSON-able values that the rule remembers from step to step; saved in checkpoints.
    """

    memory: dict[str, Any]
    by_name: ClassVar[dict[str, type[Baseline]]] = {}

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "name" in vars(cls):
            Baseline.by_name[cls.name] = cls

    def __init__(self, model: nn.Module, *, loss: Loss, seed: int = 0) -> None:
        super().__init__(model, loss=loss, seed=seed)
        self.memory = {}

    @abstractmethod
    def directions(
        self, x: Float[Tensor, "b ..."], y: Tensor
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, " ..."]], int]:
        """The loss, the direction to add to ``p.grad`` by parameter name, and the forward passes that it took.

        Global generators are seeded for the step when it is called, and autograd is as the caller left it.
        """

    def gradients(self, x: Any, y: Any) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, " ..."]], int]:
        """The same as :meth:`directions`, which runs with generators seeded for the step."""
        with seeded_scope(derive_seed(self.seed, self.name, self.step), device_of(self.parameters())):
            return self.directions(x, y)


def names() -> list[str]:
    """The names that :func:`build` takes, sorted."""
    return sorted(Baseline.by_name)


def build(name: str, model: nn.Module, *, loss: Loss, seed: int = 0, **options: Any) -> Baseline:
    """The baseline called ``name`` on a model.

    Args:
        name: one of :func:`names`.
        model: a network of the kind that the baseline is made for.
        loss: ``loss(output, target)``.
        seed: of everything that it draws.
        options: further keywords of the baseline's class.

    Raises:
        InvalidInputError: the name or an option is unknown, or the model is of another kind.
    """
    if name not in Baseline.by_name:
        raise InvalidInputError(
            f"unknown baseline {name!r}{did_you_mean(name, names())}; there are: {', '.join(names())}"
        )
    chosen = Baseline.by_name[name]
    known = set(inspect.signature(chosen).parameters) - {"model", "loss", "seed"}
    if unknown := sorted(options.keys() - known):
        raise InvalidInputError(f"{name} has no option {unknown[0]!r}; it takes: {', '.join(sorted(known)) or 'none'}")
    return chosen(model, loss=loss, seed=seed, **options)
