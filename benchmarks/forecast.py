"""The doctor's prediction of seconds per epoch against the seconds of a run; 30 % apart at the most.

    python benchmarks/forecast.py --rounds 3 --out benchmarks/records/forecast.json

For each recipe and round, ``deepzero doctor`` and then ``deepzero train`` are run as processes of their own, as a user
would. The first epoch of a run, in which loops are compiled, does not count. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from deepzero.measure.measurement_record import environment, flat_heading, load_average, write_record
from deepzero.measure.rounds import by_side, in_turns, ratio
from deepzero.training import read_metrics

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


def compare(recipe: str, epochs: int, _: int) -> dict[str, Any]:
    """One round of one recipe."""
    load = load_average()
    with tempfile.TemporaryDirectory() as folder:
        forecast = predicted(recipe, Path(folder) / "doctor")
        seconds = measured(recipe, Path(folder) / "run", epochs)
    expected = forecast["seconds_per_epoch"]
    words = f"predicted {expected:.2f} s, measured {seconds:.2f} s, ratio {expected / seconds:.2f}"
    print(f"{recipe}: {words}", flush=True)
    one = None if load is None else load[0]
    return {"method": forecast["method"], "predicted": expected, "measured": seconds, "load": one}


def main() -> int:
    """All rounds of all recipes, then the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4, help="epochs of a run")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    circumstances = environment()
    rounds = by_side(in_turns({r: partial(compare, r, options.epochs) for r in RECIPES}, options.rounds))
    ratios = {
        recipe: ratio([one["predicted"] for one in found], [one["measured"] for one in found]).median
        for recipe, found in rounds.items()
    }
    record = {
        **flat_heading(circumstances),
        "rounds": rounds,
        "median_of_predicted_over_measured": ratios,
    }
    write_record(options.out, record)
    print(ratios)
    return int(any(abs(found - 1) > TOLERANCE for found in ratios.values()))


if __name__ == "__main__":
    sys.exit(main())
