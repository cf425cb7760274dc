import errno
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from deepzero.errors import RunFolderError
from deepzero.training import Checkpoint, RunFolder, read_record, run_folder
from deepzero.training.run_folder import FORMAT

CONFIG = {"seed": 0, "training": {"epochs": 3, "learning_rate": 0.1}, "model": {"options": {"hidden": (4, 4)}}}


def test_a_run_is_reopened_with_the_same_settings(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", config=CONFIG, notes={"recipe": "digits"})
    folder = RunFolder.reopen(tmp_path / "run", config=CONFIG)
    assert folder.record["recipe"] == "digits"
    assert folder.read_summary() is None


def test_other_settings_are_named(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, config=CONFIG, notes={})
    other = {**CONFIG, "training": {"epochs": 4, "learning_rate": 0.1}}
    with pytest.raises(RunFolderError, match=r"training\.epochs: 3 there, 4 asked"):
        RunFolder.reopen(tmp_path, config=other)


def test_a_folder_that_holds_a_run_is_not_started_in(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, config=CONFIG, notes={})
    with pytest.raises(RunFolderError, match=r"another run; continue that with --resume .*or choose another --out"):
        RunFolder.create(tmp_path, config=CONFIG, notes={})


@pytest.mark.parametrize(
    ("name", "cause"), [("a\0b", "null byte"), ("x" * 300, "name too long"), ("x" * 300 + "/run", "name too long")]
)
def test_a_name_that_no_file_system_takes(tmp_path: Path, name: str, cause: str) -> None:
    with pytest.raises(RunFolderError, match=rf"(?i)there can be no folder .*{cause}.*choose another --out"):
        RunFolder.create(tmp_path / name, config=CONFIG, notes={})


def test_a_folder_that_cannot_be_made_was_not_moved() -> None:
    with pytest.raises(RunFolderError, match=r"there can be no folder /proc/none/run .*choose another --out"):
        RunFolder.create(Path("/proc/none/run"), config=CONFIG, notes={})


def test_a_folder_in_which_a_run_goes_on_is_refused_by_name(tmp_path: Path) -> None:
    first = RunFolder.create(tmp_path, config=CONFIG, notes={})
    second = RunFolder.reopen(tmp_path, config=CONFIG)
    with pytest.raises(RunFolderError, match=rf"is in use by this process itself, process {os.getpid()} on .* since 2"):
        second.take()
    with pytest.raises(RunFolderError, match=r"is in use by this process .*or choose another --out"):
        RunFolder.require_free(tmp_path)
    first.release()
    with second:
        assert second.taken
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("trial", range(20))
def test_of_processes_that_start_at_once_one_gets_the_folder(tmp_path: Path, trial: int) -> None:
    """The others are refused, by the lock, and the record is that of the first."""
    gate, opened = os.pipe()
    answers, told = os.pipe()
    children = []
    for number in range(3):
        child = os.fork()
        if child == 0:
            os.close(opened)
            os.read(gate, 1)  # until all are there
            try:
                _run = RunFolder.create(tmp_path / "run", config={**CONFIG, "seed": number}, notes={"trial": trial})
                os.write(told, b"+%d" % number)
                signal.pause()
            except RunFolderError as error:
                os.write(told, b"-%d" % ("is in use by" in str(error)))
            os._exit(0)
        children.append(child)
    os.close(gate)
    os.close(opened)
    said = sorted(os.read(answers, 2) for _ in children)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert [answer[:1] for answer in said] == [b"+", b"-", b"-"]
    assert said[1:] == [b"-1", b"-1"]
    assert read_record(tmp_path / "run")["config"]["seed"] == int(said[0][1:])


def test_a_process_that_begins_during_the_look_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look, begun = run_folder._is_free, []

    def slow(path: Path) -> bool:
        monkeypatch.undo()
        begun.append(RunFolder.create(path, config=CONFIG, notes={}))
        return look(path)

    monkeypatch.setattr(run_folder, "_is_free", slow)
    with pytest.raises(RunFolderError, match="is in use by"):
        RunFolder.require_free(tmp_path)
    assert begun


def test_temporary_files_of_a_killed_process_go_when_a_run_goes_on(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, config=CONFIG, notes={}).release()
    (tmp_path / f".summary.json.{'0a' * 8}.tmp").touch()
    (tmp_path / ".notes.tmp").touch()
    with RunFolder.reopen(tmp_path, config=CONFIG):
        assert sorted(file.name for file in tmp_path.iterdir()) == [".lock", ".notes.tmp", "run.json"]


def test_a_folder_that_was_moved_is_found_and_not_made_again(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", config=CONFIG, notes={})
    run.require_there(7)
    (tmp_path / "run").rename(tmp_path / "else where")
    with pytest.raises(
        RunFolderError, match=r"was moved to .*else where while it was running \(step 7\); its last good"
    ):
        run.write("summary.json", {})
    with pytest.raises(RunFolderError, match=r"\(step 8\).*--resume --out '.*else where'"):
        run.checkpoints().save(Checkpoint(8, {}, {}))
    assert not (tmp_path / "run").exists()
    (tmp_path / "else where").rename(tmp_path / "run")
    run.write("summary.json", {})


def test_another_folder_in_the_place_of_a_deleted_one_is_not_written_into(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", config=CONFIG, notes={})
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"was moved or deleted while it was running \(step 0\)"):
        run.write_weights({"w": torch.zeros(1)})
    assert not (tmp_path / "run").exists()
    RunFolder.create(tmp_path / "run", config=CONFIG, notes={}).release()
    with pytest.raises(RunFolderError, match="was moved or deleted"):
        run.write_weights({"w": torch.zeros(1)})
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["run.json"]


def test_a_record_that_was_deleted_is_missed(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, config=CONFIG, notes={})
    (tmp_path / "run.json").unlink()
    with pytest.raises(RunFolderError, match=r"run\.json was deleted while it was running \(step 4\)"):
        run.checkpoints().save(Checkpoint(4, {}, {}))


def test_an_input_is_held_to_its_checksum(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, config=CONFIG, notes={})
    run.keep_input("ratios.json", {"keep": {"a": 0.5, "b": 1.0}})
    again = RunFolder.reopen(tmp_path, config=CONFIG)
    again.keep_input("ratios.json", {"keep": {"b": 1.0, "a": 0.5}})
    with pytest.raises(RunFolderError, match=r"ratios\.json of the run in .* is not what it was when the run began"):
        again.keep_input("ratios.json", {"keep": {"a": 0.25, "b": 1.0}})
    assert again.checkpoints().run == run.checkpoints().run


def test_a_folder_that_holds_something_else_is_not_started_in(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunFolderError, match="not an empty folder; choose another --out"):
        RunFolder.create(tmp_path, config=CONFIG, notes={})
    with pytest.raises(RunFolderError, match="choose another --out"):
        RunFolder.create(tmp_path / "thesis.tex", config=CONFIG, notes={})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_run_killed_before_its_record_has_its_name_leaves_a_folder_that_can_be_used(tmp_path: Path) -> None:
    """The kill comes between writing the temporary file and renaming it."""
    path = tmp_path / "run"
    child = os.fork()
    if child == 0:
        Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        RunFolder.create(path, config=CONFIG, notes={})
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    lock, leftover = sorted(file.name for file in path.iterdir())
    assert (lock, leftover[:10], leftover[-4:]) == (".lock", ".run.json.", ".tmp")
    RunFolder.require_free(path)
    RunFolder.create(path, config=CONFIG, notes={}).release()
    assert [file.name for file in path.iterdir()] == ["run.json"]
    RunFolder.reopen(path, config=CONFIG)


def test_other_hidden_files_are_somebody_s(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").touch()
    (tmp_path / ".run.json.123.tmp").touch()
    with pytest.raises(RunFolderError, match="not an empty folder"):
        RunFolder.create(tmp_path, config=CONFIG, notes={})


def test_numbers_that_are_not_finite_are_written_as_null(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, config=CONFIG, notes={})
    folder.write("summary.json", {"test_loss": float("nan"), "steps": 3, "layers": [1.5, float("-inf")]})
    assert folder.read_summary() == {"test_loss": None, "steps": 3, "layers": [1.5, None]}


def test_there_is_nothing_to_resume_where_there_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no such folder; name the folder of a run"):
        RunFolder.reopen(tmp_path / "none", config=CONFIG)


@pytest.mark.parametrize(
    "content",
    ["{", "[]", json.dumps({"format": "other"}), json.dumps({"format": FORMAT}), "[" * 100_000],
)
def test_a_record_that_is_not_ours_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunFolderError):
        read_record(tmp_path)


def test_checkpoints_belong_to_a_configuration(tmp_path: Path) -> None:
    one = RunFolder.create(tmp_path / "1", config=CONFIG, notes={}).checkpoints()
    two = RunFolder.create(tmp_path / "2", config={**CONFIG, "seed": 1}, notes={}).checkpoints()
    assert one.run != two.run


def test_weights_come_back(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, config=CONFIG, notes={})
    folder.write_weights({"w": torch.arange(3.0)})
    assert torch.equal(folder.read_weights()["w"], torch.arange(3.0))
    folder.weights.write_bytes(b"broken")
    with pytest.raises(RunFolderError, match="cannot be read"):
        folder.read_weights()


def test_a_full_disk_is_one_clear_error_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder.create(tmp_path, config=CONFIG, notes={})
    folder.write("summary.json", {"test_accuracy": 1.0})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match="No space left on device"):
        folder.write("summary.json", {"test_accuracy": 0.0})
    assert folder.read_summary() == {"test_accuracy": 1.0}
    folder.release()
    assert not list(tmp_path.glob(".*"))
