"""The cost of a query on a process pool beyond the black box itself, for a black box of 10,000 parameters.

    python benchmarks/executor.py --rounds 5 --out benchmarks/records/executor.json

The black box does nothing. A round is one coordinate-wise estimate on a pool that is warm: seconds over queries. For
comparison: with a journal, one after another, and the same pool when every query brings all parameters. Leave the
machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

import deepzero as dz
from deepzero.measure.measurement_record import environment, flat_heading, write_record
from deepzero.measure.rounds import by_side, in_turns
from deepzero.stopwatch import seconds_of

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
    return seconds_of(zo.estimate) / queries


def journaled(queries: int, pool: Executor) -> float:
    """With a journal, every answer synced to disk."""
    with tempfile.TemporaryDirectory() as folder, dz.QueryJournal(Path(folder) / "queries.sqlite") as journal:
        return estimate(queries, executor=pool, journal=journal)


def whole(queries: int, pool: Executor) -> float:
    """Every query sends all parameters: what this library does not do."""
    return seconds_of(lambda: list(pool.map(nothing, (values() for _ in range(queries))))) / queries


def sides(queries: int, pool: Executor) -> dict[str, Callable[[int], float]]:
    """The sides by name; each gives seconds a query."""
    return {
        "process_pool": lambda _: estimate(queries, executor=pool),
        "process_pool_with_journal": lambda _: journaled(queries, pool),
        "process_pool_whole_parameters": lambda _: whole(queries, pool),
        "sequential": lambda _: estimate(queries),
    }


def main() -> int:
    """All rounds, interleaved, then the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--queries", type=int, default=2000, help="queries of a round")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    circumstances = environment()
    with ProcessPoolExecutor(options.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        measured = sides(options.queries, pool)
        list(in_turns(measured, 1))  # starts the processes
        rounds = list(in_turns(measured, options.rounds))
    medians = {name: statistics.median(seconds) for name, seconds in by_side(rounds).items()}
    record = {
        **flat_heading(circumstances),
        "parameters": PARAMETERS,
        "queries": options.queries,
        "workers": options.workers,
        "seconds_per_query": {"rounds": rounds, "median": medians},
    }
    write_record(options.out, record)
    print(*(f"{name}: {1e3 * seconds:.3f} ms a query" for name, seconds in medians.items()), sep="\n")
    return int(medians["process_pool"] > TARGET)


if __name__ == "__main__":
    sys.exit(main())
