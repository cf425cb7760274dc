"""A network inside of a simulation: after every step of a solver that can only be run, it corrects the state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deepzero import validation
from deepzero.errors import InvalidInputError
from deepzero.opaque.module import Opaque


@runtime_checkable
class Simulator(Protocol):
    """A solver that advances many simulations side by side, one a row.

    Two attributes may say more: ``numpy = True``, arrays are NumPy's; ``reads_only = True``, :meth:`step` writes into
    none of its arguments, and returns a new array every time.

    Example:
        >>> class Oscillator:
        ...     def arrays(self, state):
        ...         return state["x"], state["stiffness"]
        ...     def step(self, x, stiffness):
        ...         return torch.stack([x[:, 0] + 0.1 * x[:, 1], x[:, 1] - 0.1 * stiffness * x[:, 0]], dim=1)
        >>> isinstance(Oscillator(), Simulator)
        True
    """

    def arrays(self, state: Any) -> Sequence[Any]:
        """A state as arrays of n rows.

        Args:
            state: of n simulations, in any form; of tensors, if an estimator is to propagate through it.

        Returns:
            First the values that a step changes, ``[n, ...]``, then what a simulation keeps as it is (a viscosity, a
            load), as many arrays as there are such things.
        """
        ...

    def step(self, values: Any, *constants: Any) -> Any:
        """The values one step later, ``[n, ...]``, every row from its own row alone; NaN where a simulation blew up."""
        ...


@dataclass(frozen=True)
class SimulatorStep:
    """A step as a function of arrays, which can be sent to workers.

    Attributes:
        simulator: takes the step.
    """

    simulator: Simulator

    @property
    def numpy(self) -> bool:
        """True if arrays are NumPy's."""
        return bool(getattr(self.simulator, "numpy", False))

    @property
    def reads_only(self) -> bool:
        """True if it writes into none of its arguments."""
        return bool(getattr(self.simulator, "reads_only", False))

    def __call__(self, values: Any, *constants: Any) -> Any:
        """One step."""
        return self.simulator.step(values, *constants)


class Corrected(nn.Module):
    """A simulation that a network corrects after every step of its solver.

    .. math:: s_{i+1} = P(s_i) + C_\\theta(P(s_i)), \\qquad i = 0 \\dots n - 1

    with the solver's step :math:`P`, which is a :class:`~deepzero.Opaque` and never differentiated, and the network
    :math:`C_\\theta` (Um et al., "Solver-in-the-Loop", NeurIPS 2020). Train it by autograd around the solver,
    ``loss(corrected(state), reference).backward()``, or by an estimator, ``dz.CGE(corrected, loss=...)``. There all
    perturbed networks advance together, as rows of one call of the solver, and what does not depend on the network (the
    first step) is asked once.

    Args:
        simulator: of the solver, see :class:`Simulator`.
        network: values and constants to an increment of the values; None for the solver alone.
        steps: n.
        differentiable: the solver is made of PyTorch operations and is differentiated by autograd itself: no black box.
        **options: of the :class:`~deepzero.Opaque` around the solver's step: directions, queries, surrogate, executor,
            policy, journal, ...

    Attributes:
        solver: the black box, which counts queries and calls; None with ``differentiable``.

    Raises:
        InvalidInputError: the simulator lacks one of its two functions, or the network's increment has another shape.

    Example:
        >>> import numpy as np, deepzero as dz
        >>> class Growth:
        ...     numpy = True
        ...     def arrays(self, state):
        ...         return (state,)
        ...     def step(self, x):
        ...         return x + 0.1 * x * (1 - x)
        >>> network = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> corrected = dz.Corrected(Growth(), network, steps=3)
        >>> trajectory = corrected(torch.full((5, 1), 0.5))
        >>> trajectory.square().mean().backward()
        >>> trajectory.shape, network[0].weight.grad.shape, corrected.solver.calls > 3
        (torch.Size([5, 3, 1]), torch.Size([8, 1]), True)
    """

    def __init__(
        self,
        simulator: Simulator,
        network: nn.Module | None = None,
        *,
        steps: int = 1,
        differentiable: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        missing = [name for name in ("arrays", "step") if not callable(getattr(simulator, name, None))]
        if missing:
            raise InvalidInputError(
                "a simulator has two functions, arrays(state) and step(values, *constants); "
                f"{type(simulator).__name__} has no {' and no '.join(missing)}"
            )
        if network is not None and not isinstance(network, nn.Module):
            raise InvalidInputError(f"network must be an nn.Module or None, got {type(network).__name__}")
        self.steps = validation.count("steps", steps)
        self.network = network
        self.simulator = simulator
        step = SimulatorStep(simulator)
        if differentiable and (step.numpy or options):
            what = "a simulator of NumPy arrays" if step.numpy else f"{', '.join(options)}=..., which a black box takes"
            raise InvalidInputError(f"differentiable=True does not go with {what}; leave it out")
        self.solver = None if differentiable else Opaque(step, **options)

    def forward(self, state: Any) -> Float[Tensor, "n steps ..."]:
        """The corrected values after each step."""
        values, *constants = (torch.as_tensor(array) for array in self.simulator.arrays(state))
        trajectory = []
        for _ in range(self.steps):
            values = self._corrected(values, constants)
            trajectory.append(values)
        return torch.stack(trajectory, dim=1)

    def _corrected(self, values: Tensor, constants: Sequence[Tensor]) -> Tensor:
        advanced: Tensor = (self.solver or self.simulator.step)(values, *constants)
        if self.network is None:
            return advanced
        increment = self.network(advanced, *constants)
        if increment.shape != advanced.shape:
            raise InvalidInputError(
                f"the network must return an increment of the values, of shape {tuple(advanced.shape)}; it returned "
                f"{tuple(increment.shape)}"
            )
        corrected: Tensor = advanced + increment
        return corrected
