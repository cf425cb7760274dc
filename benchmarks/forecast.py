"""Is the doctor's prediction of seconds per epoch within 30 % of what a run then takes?

    python benchmarks/forecast.py --rounds 3 --out benchmarks/records/forecast.json

For each recipe and round, ``deepzero doctor`` and then ``deepzero train`` are run as processes of their own, as a user
would. The first epoch of a run, in which loops are compiled, does not count. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from deepzero.training import hardware, read_metrics, versions

RECIPES = ("digits", "digits-dense")
TOLERANCE = 0.3


def deepzero(*words: str) -> None:
    """Run a command of the library."""
    subprocess.run([sys.executable, "-m", "deepzero", *words], check=True, stdout=subprocess.DEVNULL)


def predicted(recipe: str, folder: Path) -> dict[str, Any]:
    """The forecast of the doctor."""
    deepzero("doctor", recipe, "--out", str(folder))
    forecast: dict[str, Any] = json.loads((folder / "diagnosis.json").read_text())["diagnosis"]["forecast"]
    return forecast


def measured(recipe: str, folder: Path, epochs: int) -> float:
    """Mean seconds of the epochs of a run after the first."""
    deepzero("train", recipe, "--epochs", str(epochs), "--out", str(folder))
    ends = [record["seconds"] for record in read_metrics(folder / "metrics.jsonl") if record["kind"] == "epoch"]
    return float(ends[-1] - ends[0]) / (len(ends) - 1)


def compare(recipe: str, epochs: int) -> dict[str, Any]:
    """One round of one recipe."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    with tempfile.TemporaryDirectory() as folder:
        forecast = predicted(recipe, Path(folder) / "doctor")
        seconds = measured(recipe, Path(folder) / "run", epochs)
    ratio = forecast["seconds_per_epoch"] / seconds
    print(
        f"{recipe}: predicted {forecast['seconds_per_epoch']:.2f} s, measured {seconds:.2f} s, ratio {ratio:.2f}",
        flush=True,
    )
    return {"method": forecast["method"], "predicted": forecast["seconds_per_epoch"], "measured": seconds, "load": load}


def main() -> int:
    """All rounds of all recipes, then the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4, help="epochs of a run")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rounds = {r: [compare(r, options.epochs) for _ in range(options.rounds)] for r in RECIPES}
    ratios = {r: statistics.median(one["predicted"] / one["measured"] for one in rounds[r]) for r in RECIPES}
    record = {
        "command": f"python {' '.join(sys.argv)}",
        "versions": versions(),
        "hardware": hardware(torch.device("cpu")),
        "rounds": rounds,
        "median_of_predicted_over_measured": ratios,
    }
    if options.out is not None:
        options.out.write_text(json.dumps(record, indent=2) + "\n")
    print(ratios)
    return int(any(abs(ratio - 1) > TOLERANCE for ratio in ratios.values()))


if __name__ == "__main__":
    sys.exit(main())
