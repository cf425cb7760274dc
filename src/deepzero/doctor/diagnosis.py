"""The diagnosis: everything the doctor found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group

from deepzero.doctor.records import (
    Determinism,
    Finding,
    Forecast,
    GradientCheck,
    Operations,
    StepChoice,
    Sweep,
    Trial,
)
from deepzero.doctor.render import render


@dataclass(frozen=True)
class Diagnosis:
    """What to know before a run. ``rich.print(diagnosis)`` shows it; :meth:`as_dict` is ready for JSON.

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
        findings: advice in words, the most serious first.
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
    findings: tuple[Finding, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether a run can work: no finding is an error."""
        return all(finding.level != "error" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, finite or None, as JSON takes them."""
        return asdict(self)

    def __rich__(self) -> Group:
        return Group(
            *render(
                self.determinism,
                self.operations,
                self.plan,
                self.sweep,
                self.step,
                self.gradients,
                self.forecast,
                self.findings,
            )
        )
