"""The wait for `deepzero train`, until the first word and until the first step.

    python benchmarks/startup.py --rounds 5 --out benchmarks/records/startup.json

Fresh processes: help, an option that there is not, `import deepzero` and `import torch`, and a training until its first
line and until its first step: with an empty cache of compiled loops, as after an installation, and with a filled one.
The first step is told by the clock and in the training's seconds of the processor, which depend less on what else the
machine does; those of the second process, which compiles loops ahead where the cache is empty, are not among them.
Leave it alone meanwhile.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepzero.measure.measurement_record import environment, flat_heading, write_record
from deepzero.measure.rounds import Spread
from deepzero.stopwatch import Stopwatch, seconds_of

TARGETS = {"help": 1.0, "mistake": 1.0, "first_line": 2.0, "first_step_cold": 12.0, "first_step_warm": 6.0}
"""Seconds by the clock, on two cores."""
IMPORT_TARGET = 0.5
"""Seconds of `import deepzero` and of its main names beyond `import torch`."""
PROGRAM = [sys.executable, "-m", "deepzero"]
SHORT = {
    "help": [*PROGRAM, "--help"],
    "mistake": [*PROGRAM, "train", "--lr", "0.1"],
    "import_torch": [sys.executable, "-c", "import torch"],
    "import_deepzero": [sys.executable, "-c", "import deepzero, torch"],
    "import_names": [sys.executable, "-c", "import deepzero, torch; deepzero.CGE, deepzero.BlackBox, deepzero.Opaque"],
}
FIRST_STEP = """
import os, resource, sys
from deepzero.training import ProgressBar
write = ProgressBar.write
def first(self, record):
    write(self, record)
    if record["kind"] == "step":
        used = resource.getrusage(resource.RUSAGE_SELF)
        print("processor seconds", used.ru_utime + used.ru_stime, flush=True)
        os._exit(0)
ProgressBar.write = first
"""
"""Ends the process after its first step. It imports what the command itself imports a moment later."""


def seconds_of_process(command: list[str]) -> float:
    """Seconds of a process from start to end, by the clock."""
    return seconds_of(lambda: subprocess.run(command, capture_output=True, check=False))


def first_line() -> float:
    """Seconds until the first line of a training, which then is stopped."""
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        command = [*PROGRAM, "train", "--out", f"{folder}/run"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables({})) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            seconds = watch.seconds()
            process.kill()
    if not line.startswith("deepzero"):
        sys.exit(f"expected the first line of a training, got {line!r}")
    return seconds


def first_step(cache: Path) -> dict[str, float]:
    """Seconds until the first step of a training, by the clock and by the processor."""
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        words = ["train", "--epochs", "1", "--out", f"{folder}/run"]
        script = f"{FIRST_STEP}\nfrom deepzero.cli import main\nsys.exit(main({words!r}))"
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            env=variables({"NUMBA_CACHE_DIR": str(cache)}),
        )
    seconds = watch.seconds()
    lines = [line for line in done.stdout.splitlines() if line.startswith("processor seconds")]
    return {"clock": seconds, "processor": float(lines[0].split()[-1])}


def variables(more: Mapping[str, str]) -> dict[str, str]:
    """Of a process that shows its words at once."""
    return {**os.environ, "PYTHONUNBUFFERED": "1", **more}


def one_round() -> dict[str, Any]:
    """Everything once, in turns."""
    found: dict[str, Any] = {name: seconds_of_process(command) for name, command in SHORT.items()}
    found["first_line"] = first_line()
    with tempfile.TemporaryDirectory() as cache:
        found["first_step_cold"] = first_step(Path(cache))
        found["first_step_warm"] = first_step(Path(cache))
    return found


def spread(values: list[float]) -> dict[str, float]:
    """Median and extremes."""
    found = Spread.of(values)
    return {"median": found.median, "least": found.min, "most": found.max}


def main() -> None:
    """Measure, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    circumstances = environment()
    seconds_of_process(SHORT["import_names"])  # files are read from the disk once before anything is timed
    rounds = [one_round() for _ in range(options.rounds)]
    seconds: dict[str, Any] = {}
    for name, value in rounds[0].items():
        if isinstance(value, dict):
            seconds[name] = {kind: spread([r[name][kind] for r in rounds]) for kind in value}
        else:
            seconds[name] = spread([r[name] for r in rounds])
        by_clock = seconds[name].get("clock", seconds[name])
        print(f"{name:16s} {by_clock['median']:6.2f} s ({by_clock['least']:.2f} to {by_clock['most']:.2f})")
    beyond = statistics.median(r["import_names"] - r["import_torch"] for r in rounds)
    print(f"import of deepzero's main names beyond torch: {beyond:.2f} s")
    record = {
        **flat_heading(circumstances),
        "targets_seconds_by_the_clock": {**TARGETS, "import_beyond_torch": IMPORT_TARGET},
        "seconds": seconds,
        "import_beyond_torch": beyond,
        "rounds": rounds,
    }
    write_record(options.out, record)


if __name__ == "__main__":
    main()
