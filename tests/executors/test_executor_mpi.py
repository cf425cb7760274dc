"""MPI: one process gives out queries, two answer them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("mpi_script.py")
LAUNCHERS = {"mpiexec": None, "mpiexec.openmpi": "openmpi", "mpiexec.mpich": "mpich"}
ROOT_MAY = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
CROWDED = {"OMPI_MCA_rmaps_base_oversubscribe": "1"}


def launch(launcher: str, count: int, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python under a launcher, as root and on few cores if need be."""
    abi = LAUNCHERS[launcher]
    environment = {**os.environ, **ROOT_MAY, **CROWDED} | ({"MPI4PY_MPIABI": abi} if abi else {})
    command = [launcher, "-n", str(count), sys.executable, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@cache
def launcher() -> str | None:
    """A launcher under which the installed mpi4py finds its library."""
    there = [name for name in LAUNCHERS if shutil.which(name)]
    probe = "from mpi4py import MPI; assert MPI.COMM_WORLD.size == 2"
    return next((name for name in there if launch(name, 2, "-c", probe).returncode == 0), None)


@pytest.mark.slow
def test_mpi_agrees_with_the_oracle() -> None:
    pytest.importorskip("mpi4py", reason="needs mpi4py: pip install 'deepzero[mpi]'")
    if (found := launcher()) is None:
        pytest.skip("needs an MPI that mpi4py can use: for example apt-get install openmpi-bin")
    done = launch(found, 3, "-m", "mpi4py.futures", str(SCRIPT))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("2 workers, equal: [True, True]")
