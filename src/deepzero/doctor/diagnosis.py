"""The diagnosis: what every check found, the advice, and the verdict."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from deepzero.doctor.advice import Finding
from deepzero.doctor.determinism import Determinism
from deepzero.doctor.forecast import Forecast, RunCost
from deepzero.doctor.gradient_check import GradientCheck, Trial
from deepzero.doctor.metered_objective import QueryCheck
from deepzero.doctor.operations import Operations
from deepzero.doctor.step_choice import StepChoice
from deepzero.doctor.sweep import Sweep
from deepzero.text import duration

if TYPE_CHECKING:
    from rich.console import Group

WIDTH = 100
"""Columns of a diagnosis as text."""


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """Everything to know before a run: ``print(diagnosis)`` shows it, in colours ``rich.print``; JSON: :meth:`as_dict`.

    Attributes:
        determinism: does the objective give the same loss twice?
        operations: the way of differences to the loss; None where nothing is propagated (black boxes and the
            like).
        plan: the way queries are run, and its check, as :meth:`deepzero.estimator.Estimator.explain` says it,
            line by line.
        sweep: errors at many step sizes; None if the loss is not finite.
        step: the recommended step size; None if every step gives noise.
        gradients: the estimate at the configured step size against autograd.
        forecast: queries, seconds and memory.
        trial: a step of the learning rate along the estimate; None without a learning rate, or if a step is too long to
            be tried.
        failure: why the examination ended early, None if it did not.
        queries: the queries of a black box; None for a network.
        run: the cost of a run of a black box; None for a network.
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
    queries: QueryCheck | None = None
    run: RunCost | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def healthy(self) -> bool:
        """True if a run can work: no finding is an error."""
        return all(finding.level != "error" for finding in self.findings)

    @property
    def verdict(self) -> str:
        """The whole in one line: ``fit to train: ...``, ``fit, but ...`` or ``not fit: ...``, with figures."""
        errors = [finding.short or finding.text for finding in self.findings if finding.level == "error"]
        if errors:
            more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
            return f"not fit: {errors[0]}{more}"
        warnings = [finding.short for finding in self.findings if finding.level == "warning" and finding.short]
        facts = ", ".join(self._facts())
        return f"fit, but {'; '.join(warnings)}: {facts}" if warnings else f"fit to train: {facts}"

    def _facts(self) -> Iterator[str]:
        yield "deterministic" if self.determinism.repeatable else f"noisy (sd {self.determinism.noise:.1e})"
        if self.step is not None and self.step.configured_error is not None:
            of = "slope" if self.gradients is None or self.gradients.expected_cosine is not None else "gradient"
            yield f"{of} error {self.step.configured_error:.1e} at the step {self.step.configured:.1e}"
        if self.run is not None:
            run, price = self.run, "" if self.run.price is None else f", price {self.run.price:,.2f}"
            yield f"{run.queries:,} queries and about {duration(run.seconds)} for {run.steps:,} steps{price}"
        elif self.forecast is not None and self.forecast.loop is not None:
            yield f"about {duration(self.forecast.seconds_of_run or 0.0)} for {self.forecast.loop.epochs} epochs"
        elif self.forecast is not None:
            yield f"about {duration(self.forecast.seconds_per_step)} a step"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, finite or None, as JSON takes them; the verdict among them."""
        return {**asdict(self), "verdict": self.verdict}

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
