"""The whole of a diagnosis in one line."""

from __future__ import annotations

from collections.abc import Iterator

from deepzero.doctor.diagnosis import Diagnosis
from deepzero.text import duration


def verdict(found: Diagnosis) -> str:
    """``fit to train: ...``, ``fit, but ...`` or ``not fit: ...``, with what decides it in figures."""
    errors = [finding.short or finding.text for finding in found.findings if finding.level == "error"]
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        return f"not fit: {errors[0]}{more}"
    warnings = [finding.short for finding in found.findings if finding.level == "warning" and finding.short]
    facts = ", ".join(_facts(found))
    return f"fit, but {'; '.join(warnings)}: {facts}" if warnings else f"fit to train: {facts}"


def _facts(found: Diagnosis) -> Iterator[str]:
    determinism = found.determinism
    yield "deterministic" if determinism.repeatable else f"noisy (sd {determinism.noise:.1e})"
    if found.step is not None and found.step.configured_error is not None:
        what = "slope" if found.gradients is None or found.gradients.expected_cosine is not None else "gradient"
        yield f"{what} error {found.step.configured_error:.1e} at the step {found.step.configured:.1e}"
    forecast, run = found.forecast, found.run
    if run is not None:
        price = "" if run.price is None else f", price {run.price:,.2f}"
        yield f"{run.queries:,} queries and about {duration(run.seconds)} for {run.steps:,} steps{price}"
    elif forecast is not None and forecast.loop is not None and forecast.seconds_per_epoch is not None:
        loop = forecast.loop
        whole = loop.startup + loop.epochs * forecast.seconds_per_epoch
        yield f"about {duration(whole)} for {loop.epochs} epochs"
    elif forecast is not None:
        yield f"about {duration(forecast.seconds_per_step)} a step"
