"""Records of measurements: JSON files with the circumstances without which a figure is a rumour."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from deepzero.environment import hardware, versions
from deepzero.files import finite, replace_file, to_json

CPU = torch.device("cpu")


def command_line(*program: str) -> str:
    """The command line of this process, as it can be typed again.

    Args:
        program: the words in front of the arguments; by default ``python`` and the script.
    """
    return shlex.join([*(program or ("python", sys.argv[0])), *sys.argv[1:]])


def load_average() -> tuple[float, float, float] | None:
    """Processes that ran or waited on average in the last 1, 5 and 15 minutes; None where the system does not say."""
    return os.getloadavg() if hasattr(os, "getloadavg") else None


def environment(device: torch.device = CPU, *, libraries: Iterable[str] = ()) -> dict[str, Any]:
    """Hardware, versions and load of the machine; to be called before anything is measured.

    Args:
        device: where the measurement runs.
        libraries: packages whose versions matter, beside Python, PyTorch and this one.
    """
    found = {**versions(), **{name: version(name) for name in libraries}}
    return {**hardware(device), "versions": found, "load_average_before": load_average()}


def heading(circumstances: Mapping[str, Any], *, command: str | None = None) -> dict[str, Any]:
    """The beginning of every record: command, date and environment.

    Args:
        circumstances: what :func:`environment` gave before the measurement.
        command: the command line; by default that of this process.
    """
    return {
        "command": command_line() if command is None else command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": dict(circumstances),
    }


def flat_heading(circumstances: Mapping[str, Any], *, command: str | None = None) -> dict[str, Any]:
    """A heading with ``versions``, ``hardware`` and ``load_before`` by themselves, as the oldest records have them."""
    apart = ("versions", "load_average_before")
    load = circumstances["load_average_before"]
    return {
        **heading(circumstances, command=command),
        "versions": circumstances["versions"],
        "hardware": {name: value for name, value in circumstances.items() if name not in apart},
        "load_before": None if load is None else load[0],
    }


def write_record(path: Path | None, record: Mapping[str, Any]) -> None:
    """Write a record, whole or not at all; a number that JSON does not have becomes null.

    Args:
        path: the file; None for none.
        record: JSON-able values.
    """
    if path is not None:
        replace_file(path, to_json(finite(record)))
