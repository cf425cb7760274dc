"""The diagnosis: everything the doctor found."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from deepzero.doctor.records import (
    Determinism,
    Finding,
    Forecast,
    GradientCheck,
    Operations,
    QueryCheck,
    RunCost,
    StepChoice,
    Sweep,
    Trial,
)

if TYPE_CHECKING:
    from rich.console import Group

WIDTH = 100
"""Columns of a diagnosis as text."""


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What to know before a run: ``print(diagnosis)`` shows it, in colours ``rich.print``; :meth:`as_dict` is for JSON.

    Attributes:
        determinism: whether the objective gives the same loss twice.
        operations: how differences travel; None where nothing is propagated (black boxes, other evaluators).
        plan: how the queries are run and how that was checked, as :meth:`deepzero.estimator.Estimator.explain` says it,
            line by line.
        sweep: errors at many step sizes; None if the loss is not finite.
        step: the recommended step size; None if every step gives noise.
        gradients: the estimate at the configured step size against autograd.
        forecast: queries, seconds and memory.
        trial: a step of the learning rate along the estimate; None without a learning rate, or if a step is too long to
            be tried.
        failure: why the examination ended early, None if it did not.
        queries: what a query is like; None for a network.
        run: what a run of a black box takes; None for a network.
        findings: advice in words, the most serious first.
        verdict: the whole in one line.
    """

    determinism: Determinism
    operations: Operations | None = None
    plan: tuple[str, ...] = ()
    sweep: Sweep | None = None
    step: StepChoice | None = None
    gradients: GradientCheck | None = None
    forecast: Forecast | None = None
    trial: Trial | None = None
    failure: str | None = None
    queries: QueryCheck | None = None
    run: RunCost | None = None
    findings: tuple[Finding, ...] = ()
    verdict: str = ""

    @property
    def healthy(self) -> bool:
        """Whether a run can work: no finding is an error."""
        return all(finding.level != "error" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, finite or None, as JSON takes them."""
        return asdict(self)

    def __rich__(self) -> Group:
        from rich.console import Group  # noqa: PLC0415 - only where it is shown

        from deepzero.doctor.render import render  # noqa: PLC0415 - only where it is shown

        return Group(*render(self))

    def __str__(self) -> str:
        from rich.console import Console  # noqa: PLC0415 - only where it is shown

        console = Console(file=io.StringIO(), width=WIDTH, highlight=False, color_system=None)
        console.print(self)
        file = console.file
        assert isinstance(file, io.StringIO)
        return "\n".join(line.rstrip() for line in file.getvalue().splitlines())

    def __repr__(self) -> str:
        return f"Diagnosis({self.verdict})"
