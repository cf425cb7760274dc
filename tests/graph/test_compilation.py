"""What numba keeps of compiled loops on the disk: damaged, it is compiled again without a word."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import damage
import numba
import pytest

from deepzero.graph.cpu.compilation import compiled

SEEDS = 12


def loop(x: float) -> float:
    return 2 * x + 1


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "kept"))
    return tmp_path / "kept"


def hits() -> int:
    """Calls a new loop, as a new process would; 1 if it came from the disk."""
    fresh = compiled(loop)
    assert fresh(3.0) == 7.0
    return sum(fresh.stats.cache_hits.values())


def files(place: Path) -> list[Path]:
    return sorted(path for path in place.rglob("*.nb*") if path.is_file())


def test_a_loop_is_kept_and_found_again(place: Path) -> None:
    assert hits() == 0
    assert [path.suffix for path in files(place)] == [".nbc", ".nbi"]
    assert hits() == 1


@pytest.mark.parametrize("kind", [0, 1], ids=["code", "index"])
def test_a_damaged_file_is_not_used_and_the_loop_is_compiled_again(kind: int, place: Path) -> None:
    for seed in range(SEEDS):
        hits()
        path = files(place)[kind]
        before = path.read_bytes()
        what = damage.damaged(path, seed)
        same = path.is_file() and path.read_bytes() == before
        assert hits() == same, what
        if path.is_dir():
            path.rmdir()  # nothing can be kept under that name, and the loop runs all the same
        hits()
        assert hits() == 1, what


class Planted:
    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.made),)


def test_a_pickle_without_a_checksum_is_not_looked_into(place: Path, tmp_path: Path) -> None:
    hits()
    for path in files(place):
        path.write_bytes(pickle.dumps(Planted(tmp_path / "ran")))
        assert hits() == 0
    assert not (tmp_path / "ran").exists()


def test_a_folder_that_cannot_be_written_costs_the_time_to_compile_alone(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert hits() == 0
    assert hits() == 0
