"""A second process compiles loops ahead: the ones that are needed, each once, and it is gone when nobody needs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numba
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import deepzero as dz
from deepzero import models
from deepzero.coordinates import Coordinates
from deepzero.folder_lock import FileLock
from deepzero.graph.cpu import compilation, second_compiler
from deepzero.graph.cpu.expected_loops import CHECKED, expected_loops
from deepzero.graph.cpu.second_compiler import MODULES, SWITCH, arguments_of, loop_of, signature_of

SMALL = ("relu", "label_losses_of_column")
COUNTED = """
import sys
from numba.core import event
from deepzero.graph.cpu import compilation
from deepzero.graph.cpu.second_compiler import compile_all, loop_of, signature_of

class Count(event.Listener):
    def on_start(self, event):
        function = event.data["dispatcher"].py_func
        if event.data["dispatcher"]._cache.__class__.__name__ == "FunctionCache":
            print(function.__name__, *event.data["args"], flush=True)
    def on_end(self, event):
        pass

event.register("numba:compile", Count())
"""
"""Prints each loop that a process compiles."""


def script(lines: str, folder: Path, **variables: str) -> subprocess.Popen[str]:
    """A program, without a guard around its main part, that keeps its loops in a folder."""
    path = folder / "program.py"
    path.write_text(lines)
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder / "kept"), SWITCH: "1", **variables}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(dz.__file__).parents[1]), environment.get("PYTHONPATH")])
    )
    return subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, text=True, env=environment)


def ended(pid: int, seconds: float = 10.0) -> bool:
    """True if a process ends in time; one that was ended and not waited for counts as such."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        state = Path(f"/proc/{pid}/stat")
        try:
            if state.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def images() -> nn.Module:
    return models.build("digits_cnn", input_shape=(1, 8, 8), num_classes=3, seed=0)


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def wide_images() -> nn.Module:
    """A change of a weight is in one channel in front of the second convolution, and in all in front of the third."""
    channels = (1, 18, 18, 18)
    blocks = [nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU()) for i, o in pairwise(channels)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(18, 3))


@pytest.mark.parametrize(
    ("make", "shape"),
    [(images, (64, 1, 8, 8)), (wide_images, (64, 1, 16, 16)), (perceptron, (64, 6))],
    ids=["images", "squares", "rows"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_what_is_compiled_ahead_is_what_the_first_step_runs_and_its_check_in_float64(
    make: Callable[[], nn.Module], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    model = make().to(dtype)
    names = expected_loops(model, F.cross_entropy)
    assert ("convolve_by_squares" in names) == (make is wide_images)
    some = Coordinates({name: torch.arange(min(4, p.numel())) for name, p in model.named_parameters()})
    zo = dz.CGE(model, loss=F.cross_entropy, step_size=1e-3, sparsity=some)
    zo.backward(torch.randn(shape, dtype=dtype), torch.arange(shape[0]) % 3)
    for name in names:
        for number in (CHECKED, str(dtype).removeprefix("torch.")):
            assert signature_of(name, number) in loop_of(name).overloads, (name, number)


@pytest.mark.parametrize("loss", [F.cross_entropy, nn.CrossEntropyLoss(), F.mse_loss, None])
def test_a_perceptron_does_not_wait_for_convolutions(loss: Any) -> None:
    assert not {"slices", "convolve", "convolve_by_squares", "follow"} & set(expected_loops(perceptron(), loss))
    assert ("label_losses_across" in expected_loops(perceptron(), loss)) == (loss not in (F.mse_loss, None))


@pytest.mark.slow
def test_two_processes_compile_each_loop_in_each_precision_once(tmp_path: Path) -> None:
    order = [(name, dtype) for name in SMALL for dtype in ("float32", "float64")]
    needs = "\n".join(f"loop_of({name!r}).compile(signature_of({name!r}, {dtype!r}))" for name, dtype in order)
    words = [f"{name}:{dtype}" for name, dtype in order[::-1]]
    (tmp_path / "ahead").mkdir()
    second = script(
        f"{COUNTED}\nimport os\ncompile_all(os.getppid(), {words!r})", tmp_path / "ahead", **place(tmp_path)
    )
    first = script(f"{COUNTED}\n{needs}", tmp_path, **place(tmp_path))
    compiled = [process.communicate(timeout=200)[0].splitlines() for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0]
    every = [line for lines in compiled for line in lines if line.split()[0] in (*SMALL, "_log_growth")]
    assert sorted(set(every)) == sorted(every)
    assert len(every) == len(order) + 2  # and the logarithm, in both
    again = script(f"{COUNTED}\n{needs}", tmp_path, **place(tmp_path))
    assert again.communicate(timeout=200)[0] == ""  # each was kept, none in the place of another


def place(folder: Path) -> dict[str, str]:
    return {"NUMBA_CACHE_DIR": str(folder / "kept")}


STARTS = f"""
import os, time
from pathlib import Path
os.sched_getaffinity = lambda _: {{0, 1}}
from deepzero.graph.cpu.second_compiler import start
process = start({list(MODULES)!r}, ["float64", "float32"])
while not list(Path(os.environ["NUMBA_CACHE_DIR"]).rglob("*.lock")):
    time.sleep(0.01)
print(process.pid, flush=True)
"""
"""Prints the number of the second process when that compiles."""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="of processes in POSIX")
@pytest.mark.parametrize("how", ["killed", "ended"])
def test_the_second_process_ends_with_the_first_one_and_runs_none_of_its_code(how: str, tmp_path: Path) -> None:
    first = script(STARTS + ("time.sleep(600)" if how == "killed" else ""), tmp_path)
    assert first.stdout is not None
    pid = int(first.stdout.readline())
    if how == "killed":
        first.send_signal(signal.SIGKILL)
    assert first.communicate(timeout=60)[0] == ""  # the program ran once
    assert ended(pid)


@pytest.mark.skipif(not hasattr(os, "getpriority"), reason="of processes in POSIX")
def test_the_second_process_gives_way_to_the_first(tmp_path: Path) -> None:
    nicer = "print(*(os.getpriority(os.PRIO_PROCESS, pid) for pid in (0, process.pid)), flush=True)"
    first = script(STARTS + nicer, tmp_path)
    _, priorities = first.communicate(timeout=60)[0].splitlines()
    own, others = map(int, priorities.split())
    assert others == min(own + second_compiler.NICENESS, 19)


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[str, str]]]:
    """The loops of the second processes that would have been started, where nothing is kept and there are two cores."""
    found: list[list[tuple[str, str]]] = []
    monkeypatch.setattr(second_compiler, "_started", found.append)
    monkeypatch.setattr(second_compiler, "_asked", set())
    monkeypatch.setattr(second_compiler, "is_kept", lambda *_: False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.delenv(SWITCH, raising=False)
    return found


def test_loops_are_compiled_ahead_once_the_last_first(started: list[list[tuple[str, str]]]) -> None:
    second_compiler.start(["slices", "relu"], ["float64", "float32"])
    second_compiler.start(["slices", "relu"], ["float64", "float32"])
    assert started == [[("relu", "float32"), ("slices", "float32"), ("relu", "float64"), ("slices", "float64")]]


def test_no_second_process_without_a_core_or_a_need_for_it(
    started: list[list[tuple[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start() -> list[list[tuple[str, str]]]:
        second_compiler._asked.clear()
        second_compiler.start(MODULES, ["float64", "float32"])
        return started

    with monkeypatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
        assert not start()
    with monkeypatch.context() as patch:
        patch.setenv(SWITCH, "0")
        assert not start()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/opt/blender")
        assert not start()
    with monkeypatch.context() as patch:
        patch.setattr(second_compiler, "is_kept", lambda *_: True)
        assert not start()
    assert start()


def test_where_no_process_can_be_started_this_one_compiles_alone(
    started: list[list[tuple[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise BlockingIOError("resource temporarily unavailable")

    monkeypatch.undo()
    monkeypatch.setattr(subprocess, "Popen", refused)
    assert second_compiler._started([("relu", "float32")]) is None
    assert not started


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A loop of which nothing is kept, and the lock that another process would hold while it compiles it."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "kept"))

    def double(x: float) -> float:
        return 2 * x

    loop = compilation.compiled(double)
    file = loop._cache._cache_file
    key = loop._cache._index_key((numba.float64,), loop.targetctx.codegen())
    return loop, FileLock(Path(file._data_path(f"{file._name(key)}.lock")))


def test_a_loop_that_another_process_compiles_is_left_to_it_or_waited_for(
    fresh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, lock = fresh
    assert lock.acquire()
    with monkeypatch.context() as patch:
        patch.setattr(compilation._CheckedFile, "patience", 0.0)
        with pytest.raises(compilation.ClaimedError):
            loop(3.0)
    lock.release()  # as the system does when that process is killed
    assert loop(3.0) == 6.0
    assert not lock.path.exists()


def test_a_process_that_hangs_with_a_loop_is_not_waited_for_for_ever(
    fresh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, lock = fresh
    assert lock.acquire()
    monkeypatch.setattr(compilation._CheckedFile, "patience", 0.1)
    assert loop(3.0) == 6.0
    lock.release()


def test_two_processes_that_do_not_see_each_others_index_keep_no_code_under_the_same_name(fresh: Any) -> None:
    loop, _ = fresh
    file = loop._cache._cache_file
    file.save("float32", 32)
    Path(file._index_path).unlink()
    file.save("float64", 64)
    file._save_index({"float32": file._name("float32"), "float64": file._name("float64")})
    file.release()
    assert (file.load("float32"), file.load("float64")) == (32, 64)


def test_a_second_process_that_can_keep_nothing_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    class Loop:
        _cache = type("Cache", (), {"cache_path": str(tmp_path)})

        def compile(self, signature: object) -> None:
            tried.append(str(signature))

    monkeypatch.setattr(second_compiler, "loop_of", lambda _: Loop())
    monkeypatch.setattr(second_compiler, "signature_of", lambda name, dtype: f"{name} {dtype}")
    monkeypatch.setattr(second_compiler, "end_with_parent", lambda: None)
    monkeypatch.setattr(second_compiler, "leave_to_others", lambda: None)
    for kept in (False, True):
        monkeypatch.setattr(second_compiler, "is_kept", lambda *_, kept=kept: kept)
        second_compiler.compile_all(os.getppid(), ["relu:float32", "relu:float64"])
    assert tried == ["relu float32", "relu float32", "relu float64"]
    assert not list(tmp_path.iterdir())  # nor is a lock left behind


def test_arguments_of_each_loop_have_the_types_of_its_precision() -> None:
    for name in MODULES:
        assert signature_of(name, "float32") != signature_of(name, "float64")
        assert len(arguments_of(name, "float32")) == loop_of(name).py_func.__code__.co_argcount
