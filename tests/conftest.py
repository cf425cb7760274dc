"""What every test runs under: one thread a process, checked shapes, Ctrl-C as Python handles it, no chance in hypothesis."""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path

# Read once, when the thread pools start: before torch and numpy are imported. pytest-xdist runs one process per core.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_variable] = "1"
os.environ.setdefault("MPLBACKEND", "agg")
if not Path("/dev/nvidiactl").exists():  # read when Triton is imported: without a GPU its programs run as Python
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("DEEPZERO_COMPILE_AHEAD", "0")  # a test that starts a program starts no second one beside it
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or every program that a test starts compiles the package anew,
sys.dont_write_bytecode = False  # and every process of pytest-xdist rewrites the assertions of all tests

from collections.abc import Iterator

import hypothesis
import jaxtyping
import pytest
import quick_export
import shapes
import torch

shapes.install()  # before deepzero is imported
quick_export.install()
torch.set_num_threads(1)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # inherited from a shell that started the tests in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("deterministic", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("deterministic")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """``-n auto``: one more than there are cores, because many tests wait for processes that they started."""
    return (os.cpu_count() or 1) + 1


def pytest_configure(config: pytest.Config) -> None:
    """With ``-n``, a process takes neighbours: what the tests of a file share is made once, not in every process."""
    if config.getoption("dist", "no") == "load":
        config.option.dist = "worksteal"


def pytest_collection_finish() -> None:
    """What is there now stays: the garbage collector need not look at a million objects again and again."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked ``gpu`` where there is no CUDA device, unless it is told to run on another one."""
    if torch.cuda.is_available():
        return
    elsewhere = bool(os.environ.get("DEEPZERO_GPU_TESTS"))
    for item in items:
        if item.get_closest_marker("gpu") and not (elsewhere and "device" in getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def global_rng_untouched() -> Iterator[None]:
    """Fail the test if it moves torch's global CPU generator: ``@pytest.mark.usefixtures("global_rng_untouched")``."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before), "the global RNG was moved"


@pytest.fixture
def shapes_unchecked() -> Iterator[None]:
    """Annotations are not checked, as for users: for tests of how the package itself refuses a bad tensor."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
