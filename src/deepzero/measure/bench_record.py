"""A measurement as JSON-able values, with the circumstances without which a figure is a rumour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from deepzero.measure.benchmark import CaseReport, Settings, SideReport
from deepzero.measure.forms import LEFT_OUT, Trial

FORMAT = 2


def record(
    reports: Sequence[CaseReport], settings: Settings, *, command: str, environment: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that was measured, how, where and when.

    Args:
        reports: the cases.
        settings: how they were measured.
        command: the command line.
        environment: hardware, versions, and how busy the machine was before.
    """
    return {
        "format": FORMAT,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "environment": {**environment, "threads": settings.threads},
        "settings": asdict(settings),
        "cases": [_case(report) for report in reports],
    }


def _case(report: CaseReport) -> dict[str, Any]:
    asked = report.problem
    return {
        "case": asked.case.name,
        "model": {"name": asked.case.model, "parameters": sum(p.numel() for p in asked.model.parameters())},
        "batch": {"shape": list(asked.batch[0].shape), "images": asked.case.images},
        "coordinates": {"count": asked.coordinates.count, "smart_ratio_sparsity": asked.sparsity},
        "queries": asked.queries,
        "rounds": len(next(iter(report.sides.values())).timings),
        "sides": {name: _side(side) for name, side in report.sides.items()},
        "ratios": {name: asdict(spread) for name, spread in report.ratios.items()},
        "agreement": asdict(report.agreement),
        "profile": asdict(report.profile),
        "memory": [asdict(memory) for memory in report.memory],
    }


def _side(side: SideReport) -> dict[str, Any]:
    return {
        "method": side.method,
        "form": None if side.trial is None else _form(side.trial),
        "queries_per_second": asdict(side.queries_per_second),
        "timings": [{**asdict(t), "timed_fraction": t.timed_queries / t.queries} for t in side.timings],
    }


def _form(trial: Trial) -> dict[str, Any]:
    """Which form a loop took, and how fast the others were."""
    return {"taken": trial.fastest.name, "trial_queries_per_second": trial.queries_per_second, "not_tried": LEFT_OUT}
