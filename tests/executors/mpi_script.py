"""What ``mpiexec -n 3 python -m mpi4py.futures mpi_script.py`` runs: the same estimates on MPI processes and here."""

from __future__ import annotations

import sys

import boxes

import deepzero as dz


def main() -> None:
    from mpi4py.futures import MPIPoolExecutor

    with MPIPoolExecutor() as pool:
        found = [make(boxes.box(), executor=pool, stencil=dz.CENTRAL).estimate(1.5) for make in (dz.CGE, dz.RGE)]
        workers = pool.num_workers
    expected = [make(boxes.box(), stencil=dz.CENTRAL).estimate(1.5) for make in (dz.CGE, dz.RGE)]
    equal = [boxes.same(a, b) for a, b in zip(found, expected, strict=True)]
    sys.stdout.write(f"{workers} workers, equal: {equal}\n")


if __name__ == "__main__":
    main()
