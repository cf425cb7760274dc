"""The main job over seeds: accuracy and time from function values, and by autograd on the same coordinates.

    python benchmarks/digits_accuracy.py --seeds 0 1 2 --out benchmarks/records/digits-accuracy.json

Each run is a process of its own, as a user would start it; the two estimators take turns. Leave the machine alone
meanwhile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from deepzero.measure.measurement_record import environment, flat_heading, write_record
from deepzero.measure.rounds import Spread, by_side, in_turns

ESTIMATORS = ("cge", "fo")
FIELDS = ("test_accuracy", "validation_accuracy", "selected_epoch", "steps", "queries", "seconds")


def run(estimator: str, seeds: list[int], turn: int) -> dict[str, Any]:
    """One run of the command, and its summary."""
    seed = seeds[turn]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "deepzero", "train", "--estimator", estimator, "--seed", str(seed)]
        subprocess.run([*command, "--out", folder], check=True, stdout=subprocess.DEVNULL)
        summary = json.loads((Path(folder) / "summary.json").read_text())
    print(estimator, seed, summary["test_accuracy"], summary["seconds"], flush=True)
    return {"seed": seed, **{field: summary[field] for field in FIELDS}}


def spread(values: list[float]) -> dict[str, Any]:
    """Mean, median and extremes."""
    return {"mean": statistics.mean(values), **asdict(Spread.of(values))}


def main() -> None:
    """All seeds of both estimators, then the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    circumstances = environment()
    runs = by_side(in_turns({e: partial(run, e, options.seeds) for e in ESTIMATORS}, len(options.seeds)))
    record = {
        **flat_heading(circumstances),
        "n": len(options.seeds),
        "runs": runs,
        "test_accuracy": {e: spread([r["test_accuracy"] for r in runs[e]]) for e in ESTIMATORS},
        "seconds": {e: spread([r["seconds"] for r in runs[e]]) for e in ESTIMATORS},
    }
    print(record["test_accuracy"], record["seconds"])
    write_record(options.out, record)


if __name__ == "__main__":
    main()
