"""Versions and hardware, for the records of runs and measurements."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from deepzero import __version__


def versions() -> dict[str, str]:
    """Versions of Python, torch and deepzero.

    >>> sorted(versions())
    ['deepzero', 'python', 'torch']
    """
    return {"python": platform.python_version(), "torch": torch.__version__, "deepzero": __version__}


def hardware(device: torch.device) -> dict[str, str | int | None]:
    """The processor, the cores this process may use, torch's threads, and the GPU if ``device`` is one."""
    return {
        "cpu": _cpu_model(),
        "cores": _usable_cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "platform": platform.platform(),
    }


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())
