import errno
import hashlib
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deepzero.errors import CheckpointError
from deepzero.training import Checkpoint, CheckpointStore, read_checkpoint


def checkpoint(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    tensors = {
        "model/weight": torch.randn(3, 4, generator=generator),
        "model/half": torch.randn(5, generator=generator).to(torch.bfloat16),
        "model/count": torch.tensor(step),
        "model/tiny": torch.tensor([1e-310, -0.0, 0.1], dtype=torch.float64),
        "model/empty": torch.zeros(0, 2),
    }
    return Checkpoint(step, {"seconds": 0.1 + step, "best": None, "losses": [1 / 3]}, tensors)


def same(a: Checkpoint, b: Checkpoint) -> None:
    assert (a.step, a.state) == (b.step, b.state)
    assert a.tensors.keys() == b.tensors.keys()
    for name, value in a.tensors.items():
        assert value.dtype == b.tensors[name].dtype
        assert value.shape == b.tensors[name].shape
        assert torch.equal(value, b.tensors[name])


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    store = CheckpointStore(tmp_path / "checkpoints", run="this")
    store.save(checkpoint(10))
    store.save(checkpoint(20))
    return store


def test_a_checkpoint_comes_back_bit_for_bit(store: CheckpointStore) -> None:
    restored = store.load()
    same(restored.checkpoint, checkpoint(20))
    assert restored.rejected == []


def test_the_last_two_are_kept(store: CheckpointStore) -> None:
    store.save(checkpoint(30))
    assert [path.name for path in store.paths()] == ["step-00000030", "step-00000020"]


def test_it_holds_safetensors_and_json_only(store: CheckpointStore) -> None:
    files = sorted(path.name for path in store.paths()[0].iterdir())
    assert files == ["state.json", "tensors.safetensors"]
    json.loads((store.paths()[0] / "state.json").read_text())


def truncate(path: Path) -> None:
    data = (path / "tensors.safetensors").read_bytes()
    (path / "tensors.safetensors").write_bytes(data[:-7])


def flip_a_bit(path: Path) -> None:
    data = bytearray((path / "tensors.safetensors").read_bytes())
    data[-3] ^= 1
    (path / "tensors.safetensors").write_bytes(bytes(data))


def change_a_number(path: Path) -> None:
    text = (path / "state.json").read_text()
    (path / "state.json").write_text(text.replace('"step": 20', '"step": 21'))


def cut_the_json(path: Path) -> None:
    (path / "state.json").write_text((path / "state.json").read_text()[:-20])


def lose_a_file(path: Path) -> None:
    (path / "tensors.safetensors").unlink()


def replace_by_something_else(path: Path) -> None:
    (path / "state.json").write_text(json.dumps({"epoch": 3, "state_dict": "..."}))


def replace_by_a_list(path: Path) -> None:
    (path / "state.json").write_text("[]")


def sign(path: Path, **changes: Any) -> None:
    """Change the record, and give it the checksum that fits."""
    record = json.loads((path / "state.json").read_text())
    record |= changes
    record = {name: value for name, value in record.items() if value is not ... and name != "sha256"}
    text = json.dumps(record, indent=2, sort_keys=True) + "\n"
    (path / "state.json").write_text(json.dumps({**record, "sha256": hashlib.sha256(text.encode()).hexdigest()}))


def leave_out_the_step(path: Path) -> None:
    sign(path, step=...)


def make_the_state_a_list(path: Path) -> None:
    sign(path, state=[1, 2])


def leave_out_the_checksum_of_the_tensors(path: Path) -> None:
    sign(path, tensors_sha256=...)


def hold_a_number_that_is_none(path: Path) -> None:
    sign(path, state={"seconds": float("nan")})


def nest_without_end(path: Path) -> None:
    (path / "state.json").write_text("[" * 100_000)


DAMAGES = [
    leave_out_the_step,
    make_the_state_a_list,
    leave_out_the_checksum_of_the_tensors,
    hold_a_number_that_is_none,
    nest_without_end,
    truncate,
    flip_a_bit,
    change_a_number,
    cut_the_json,
    lose_a_file,
    replace_by_something_else,
    replace_by_a_list,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_detected_and_the_previous_one_is_used(
    store: CheckpointStore, damage: Callable[..., Any]
) -> None:
    damage(store.paths()[0])
    restored = store.load()
    same(restored.checkpoint, checkpoint(10))
    assert len(restored.rejected) == 1
    assert "step-00000020" in restored.rejected[0]


def test_a_checkpoint_of_another_run_is_rejected(store: CheckpointStore) -> None:
    CheckpointStore(store.folder, run="other").save(checkpoint(25))
    restored = store.load()
    assert restored.checkpoint.step == 20
    assert "another run" in restored.rejected[0]
    assert read_checkpoint(store.folder / "step-00000025").step == 25


def test_if_none_is_usable_the_error_says_what_is_wrong_with_each(store: CheckpointStore) -> None:
    for path in store.paths():
        truncate(path)
    with pytest.raises(CheckpointError, match=r"(?s)step-00000020 is corrupted.*step-00000010 is corrupted"):
        store.load()


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds none"):
        CheckpointStore(tmp_path, run="this").load()


def test_saving_after_a_fallback_drops_the_damaged_one_and_keeps_two_good_ones(store: CheckpointStore) -> None:
    truncate(store.paths()[0])
    store.save(checkpoint(15))
    assert [path.name for path in store.paths()] == ["step-00000015", "step-00000010"]


def test_leftovers_of_a_crash_are_ignored_and_overwritten(store: CheckpointStore) -> None:
    leftover = store.folder / ".step-00000030.tmp"
    leftover.mkdir()
    (leftover / "tensors.safetensors").write_bytes(b"half")
    assert store.load().checkpoint.step == 20
    store.save(checkpoint(30))
    same(store.load().checkpoint, checkpoint(30))
    assert not leftover.exists()


def test_a_link_in_the_way_is_not_followed(store: CheckpointStore, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "state.json").write_text("{}")
    (store.folder / ".step-00000030.tmp").symlink_to(tmp_path / "precious")
    (store.folder / "step-00000030").symlink_to(tmp_path / "precious")
    store.save(checkpoint(30))
    assert not (store.folder / "step-00000030").is_symlink()
    same(store.load().checkpoint, checkpoint(30))
    assert (tmp_path / "precious" / "state.json").read_text() == "{}"


def test_a_checkpoint_of_the_same_step_is_kept_until_the_new_one_is_there(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def full(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp") and target.name == "step-00000020" and not calls:
            calls.append(self)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    calls: list[Path] = []
    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(CheckpointError, match="step-00000020 is intact"):
        store.save(checkpoint(20))
    same(store.load().checkpoint, checkpoint(20))
    store.save(checkpoint(20))
    assert [path.name for path in sorted(store.folder.iterdir())] == ["step-00000010", "step-00000020"]


def survives(store: CheckpointStore) -> str:
    with pytest.raises(CheckpointError, match="step-00000020 is intact") as caught:
        store.save(checkpoint(30))
    assert "could not be written" in str(caught.value)
    same(store.load().checkpoint, checkpoint(20))
    assert [path.name for path in sorted(store.folder.iterdir())] == ["step-00000010", "step-00000020"]
    return str(caught.value)


def test_a_disk_that_is_full_leaves_the_previous_checkpoints(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left on device" in survives(store)


def test_a_write_that_the_system_cuts_short_leaves_the_previous_checkpoints(store: CheckpointStore) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        message = survives(store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in message


def test_a_checkpoint_travels_to_another_process_bit_for_bit() -> None:
    same(Checkpoint.from_bytes(checkpoint(7).to_bytes()), checkpoint(7))
