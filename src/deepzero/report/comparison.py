"""Several runs side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deepzero.report.figures import Document, Figure, Table, curve
from deepzero.report.folder_contents import RecordedRun, points
from deepzero.report.layers import parameters
from deepzero.report.value_text import MISSING, flat, shown
from deepzero.text import duration

LABEL = 40
"""Letters of a label, at most; where settings take more, runs are called by their folders."""

WITHOUT_EFFECT = ("training.checkpoint_minutes", "training.checkpoint_steps")
DECADE = 10
Points = Callable[[RecordedRun, str], list[tuple[float, float]]]


def compare(runs: Sequence[RecordedRun]) -> Document:
    """A table of all results, and the curves of all runs over common axes."""
    names = labels(runs)
    by_settings = names != folders(runs)
    return Document(
        title=f"Comparison of {len(runs)} runs",
        tables=[_results(runs, names, by_settings), *([] if by_settings else _settings(runs, names))],
        figures=[
            _overlaid(runs, names, "Validation accuracy", "validation accuracy (%)", _accuracies, "queries"),
            _overlaid(runs, names, "Validation accuracy", "validation accuracy (%)", _accuracies, "seconds"),
            _overlaid(runs, names, "Training loss", "training loss, epoch mean", _losses, "queries"),
            _overlaid(runs, names, "Training loss", "training loss, epoch mean", _losses, "seconds"),
        ],
    )


def labels(runs: Sequence[RecordedRun]) -> list[str]:
    """The differences of the configurations, or the folders if these do not tell the runs apart or are long."""
    differing = differences([run.config for run in runs])
    names = [", ".join(f"{key} {shown(values[i])}" for key, values in differing.items()) for i in range(len(runs))]
    tell_apart = len(set(names)) == len(names) and max(map(len, names)) <= LABEL
    return names if tell_apart else folders(runs)


def folders(runs: Sequence[RecordedRun]) -> list[str]:
    """Names of the folders, or their paths if names occur twice."""
    names = [run.path.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


def differences(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The settings that are not the same everywhere, by a short name, with their values.

    >>> one = {"estimator": {"method": "cge"}, "training": {"epochs": 3}, "seed": 0}
    >>> differences([one, {**one, "estimator": {"method": "fo"}}, {**one, "seed": 1}])
    {'estimator': ['cge', 'fo', 'cge'], 'seed': [0, 0, 1]}
    """
    leaves = [flat(config) for config in configs]
    keys = [key for key in dict.fromkeys(key for leaf in leaves for key in leaf) if key not in WITHOUT_EFFECT]
    found = {key: [leaf.get(key) for leaf in leaves] for key in keys}
    found = {key: values for key, values in found.items() if any(value != values[0] for value in values)}
    short = {key: _short(key) for key in found}
    twice = {name for name in short.values() if list(short.values()).count(name) > 1}
    return {key if short[key] in twice else short[key]: values for key, values in found.items()}


def _short(key: str) -> str:
    """``estimator.method`` -> ``estimator``, ``training.learning_rate`` -> ``learning rate``."""
    group, _, name = key.rpartition(".")
    return (group if name in ("method", "name", "options") and group else name).replace("_", " ")


def _results(runs: Sequence[RecordedRun], names: Sequence[str], with_folder: bool) -> Table:
    columns = [
        "run",
        "test accuracy",
        "validation accuracy",
        "queries",
        "time",
        "start-up and step 1",
        "parameters",
        "sparsity",
    ]
    rows = [[name, *_result(run)] for run, name in zip(runs, names, strict=True)]
    if with_folder:
        columns.append("folder")
        rows = [[*row, name] for row, name in zip(rows, folders(runs), strict=True)]
    return Table(title="Results", columns=columns, rows=rows, note=_note(runs))


def _note(runs: Sequence[RecordedRun]) -> str:
    unfinished = [] if all(run.summary for run in runs) else ["Runs without a test accuracy have not finished."]
    same = [f"Same settings: {', '.join(group)}." for group in _same(runs)]
    return " ".join([*unfinished, *same])


def _same(runs: Sequence[RecordedRun]) -> list[list[str]]:
    """Groups of runs with the same settings, by their folders."""
    groups: dict[str, list[str]] = {}
    for run, folder in zip(runs, folders(runs), strict=True):
        settings = {key: value for key, value in flat(run.config).items() if key not in WITHOUT_EFFECT}
        groups.setdefault(json.dumps(settings, sort_keys=True), []).append(folder)
    return [group for group in groups.values() if len(group) > 1]


def _result(run: RecordedRun) -> list[str]:
    summary = run.summary or {}
    last = run.records[-1] if run.records else {"queries": 0, "seconds": 0.0}
    return [
        _percent(summary.get("test_accuracy")),
        _percent(summary.get("validation_accuracy", run.best("accuracy"))),
        shown(last["queries"]),
        duration(last["seconds"]),
        MISSING if run.start_up is None else duration(run.start_up),
        shown(parameters(run)),
        f"{flat(run.config).get('sparsity.sparsity') or 0:.1%}",
    ]


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2%}"


def _settings(runs: Sequence[RecordedRun], names: Sequence[str]) -> list[Table]:
    """Settings down, runs across; none where nothing differs."""
    differing = differences([run.config for run in runs])
    rows = [[key, *(shown(value) for value in values)] for key, values in differing.items()]
    return [Table(title="What differs", columns=["setting", *names], rows=rows)] if rows else []


def _overlaid(
    runs: Sequence[RecordedRun], names: Sequence[str], title: str, label: str, found: Points, axis: str
) -> Figure:
    curves = [curve(name, found(run, axis)) for run, name in zip(runs, names, strict=True)]
    ends = [max(series.x) for series in curves if series.x]
    return Figure(
        title=f"{title} against {axis}",
        x_label=axis,
        y_label=label,
        series=curves,
        x_log=bool(ends) and min(ends) > 0 and max(ends) > DECADE * min(ends),
        x_from_zero=True,
    )


def _accuracies(run: RecordedRun, axis: str) -> list[tuple[float, float]]:
    return points(run.validations, axis, "validation_accuracy", scale=100)


def _losses(run: RecordedRun, axis: str) -> list[tuple[float, float]]:
    return points(run.epochs, axis, "training_loss")
