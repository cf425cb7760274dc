"""What does the executor path add to a query, on a process pool, for a black box of 10,000 parameters?

    python benchmarks/executor.py --rounds 5 --out benchmarks/records/executor.json

The black box does nothing. A round is one coordinate-wise estimate on a pool that is warm: seconds over queries. For
comparison: with a journal, one after another, and the same pool when every query brings all parameters. Leave the
machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

import deepzero as dz
from deepzero.training import hardware, versions

PARAMETERS = 10_000
TARGET = 1e-3


def nothing(params: dict[str, np.ndarray[Any, Any]]) -> float:
    """The black box."""
    return 0.0 * len(params)


def values() -> dict[str, np.ndarray[Any, Any]]:
    """Its parameters, 80 kB."""
    return {"w": np.zeros(PARAMETERS)}


def estimate(queries: int, **options: Any) -> float:
    """Seconds a query of one estimate."""
    sparse = dz.Coordinates({"w": torch.arange(queries - 1)})
    zo = dz.CGE(dz.BlackBox(nothing, values()), sparsity=sparse, **options)
    start = time.perf_counter()
    zo.estimate()
    return (time.perf_counter() - start) / queries


def journaled(queries: int, pool: Executor) -> float:
    """With a journal, every answer synced to disk."""
    with tempfile.TemporaryDirectory() as folder, dz.QueryJournal(Path(folder) / "queries.sqlite") as journal:
        return estimate(queries, executor=pool, journal=journal)


def whole(queries: int, pool: Executor) -> float:
    """Every query sends all parameters: what this library does not do."""
    start = time.perf_counter()
    list(pool.map(nothing, (values() for _ in range(queries))))
    return (time.perf_counter() - start) / queries


def sides(queries: int, pool: Executor) -> dict[str, Callable[[], float]]:
    """What is measured, by name; each gives seconds a query."""
    return {
        "process_pool": lambda: estimate(queries, executor=pool),
        "process_pool_with_journal": lambda: journaled(queries, pool),
        "process_pool_whole_parameters": lambda: whole(queries, pool),
        "sequential": lambda: estimate(queries),
    }


def main() -> int:
    """All rounds, interleaved, then the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--queries", type=int, default=2000, help="queries of a round")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    with ProcessPoolExecutor(options.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        measured = sides(options.queries, pool)
        for run in measured.values():
            run()
        rounds = [{name: run() for name, run in measured.items()} for _ in range(options.rounds)]
    medians = {name: statistics.median(one[name] for one in rounds) for name in measured}
    record = {
        "command": f"python {' '.join(sys.argv)}",
        "versions": versions(),
        "hardware": hardware(torch.device("cpu")),
        "load_before": load,
        "parameters": PARAMETERS,
        "queries": options.queries,
        "workers": options.workers,
        "seconds_per_query": {"rounds": rounds, "median": medians},
    }
    if options.out is not None:
        options.out.write_text(json.dumps(record, indent=2) + "\n")
    print(*(f"{name}: {1e3 * seconds:.3f} ms a query" for name, seconds in medians.items()), sep="\n")
    return int(medians["process_pool"] > TARGET)


if __name__ == "__main__":
    sys.exit(main())
