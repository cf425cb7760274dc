import os
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from deepzero.errors import InvalidInputError, RunFolderError
from deepzero.recipes import named, resumed, start_of_team, started
from deepzero.recipes.run_starts import Start
from deepzero.team import Team
from deepzero.training import RunFolder


def of(recipe: str) -> Callable[..., Any]:
    return partial(named, recipe)


def begin(start: Start) -> RunFolder:
    return RunFolder.create(start.out, config=asdict(start.config), notes=start.notes)


def test_a_new_run_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    first = started(None, {}, None, root=tmp_path)
    assert first.recipe == "digits"
    assert first.out == tmp_path / "digits-cge-seed0"
    begin(first)
    second = started(of("digits"), {"seed": 0}, None, root=tmp_path)
    assert second.out == tmp_path / "digits-cge-seed0-2"
    begin(second)
    assert started(None, {}, None, root=tmp_path).out == tmp_path / "digits-cge-seed0-3"
    assert started(None, {"seed": 1, "estimator": "fo"}, None, root=tmp_path).out == tmp_path / "digits-fo-seed1"


def test_a_folder_that_is_named_is_taken() -> None:
    assert started(None, {}, Path("here")).out == Path("here")


def test_bad_input_is_an_error_at_once() -> None:
    with pytest.raises(InvalidInputError, match="did you mean digits"):
        started(of("digit"), {}, None)
    with pytest.raises(InvalidInputError, match="sparsity"):
        started(of("digits"), {"sparsity": 2.0}, Path("here"))


def test_a_resumed_run_has_the_settings_it_was_started_with(tmp_path: Path) -> None:
    start = started(of("cifar10-cnn"), {"depth": 2, "epochs": None, "seed": 4}, tmp_path / "run")
    begin(start)
    again = resumed(None, {"depth": None}, tmp_path / "run")
    assert again == replace(start, resume=True)
    assert again.config == start.config
    assert resumed(of("cifar10-cnn"), {"epochs": 1}, tmp_path / "run").config.training.epochs == 1


def test_without_a_folder_the_latest_unfinished_run_is_resumed(tmp_path: Path) -> None:
    for age, (recipe, seed) in enumerate([("digits", 0), ("digits", 1), ("digits-dense", 0), ("digits", 2)]):
        folder = begin(started(of(recipe), {"seed": seed}, None, root=tmp_path))
        os.utime(folder.path / "run.json", (age, age))
        if seed == 2:
            folder.write("summary.json", {})
    assert resumed(None, {}, None, root=tmp_path).out.name == "digits-dense-cge-seed0"
    assert resumed(of("digits"), {}, None, root=tmp_path).out.name == "digits-cge-seed1"


def test_if_there_is_none_the_error_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no unfinished run of digits .*--out, or leave out --resume"):
        resumed(of("digits"), {}, None, root=tmp_path)


def test_a_run_started_from_python_is_resumed_from_python(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, config={}, notes={})
    with pytest.raises(RunFolderError, match=r"resume it as it was started: from Python by fit\(resume=True\)"):
        resumed(None, {}, tmp_path)


class TestStartOfTeam:
    def begin_under(self, launch: str, out: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Start:
        monkeypatch.setattr("deepzero.recipes.run_starts.launch_name", lambda: launch)
        start = start_of_team(of("digits"), settings, out, resume=False, team=Team())
        begin(start)
        return start

    def test_a_run_of_the_same_launch_goes_on_unasked(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = self.begin_under("job-7", tmp_path / "run", monkeypatch, seed=3)
        again = start_of_team(of("digits"), {"seed": 3}, tmp_path / "run", resume=False, team=Team())
        assert again == replace(first, resume=True)

    def test_without_a_folder_the_run_of_the_launch_is_found(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.begin_under("job-6", tmp_path / "a", monkeypatch)
        mine = self.begin_under("job-7", tmp_path / "b", monkeypatch)
        again = start_of_team(of("digits"), {}, None, resume=False, team=Team(), root=tmp_path)
        assert (again.out, again.resume) == (mine.out, True)

    def test_another_launch_or_none_does_not_touch_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begin_under("job-7", tmp_path / "run", monkeypatch)
        for launch in ("job-8", None):
            monkeypatch.setattr("deepzero.recipes.run_starts.launch_name", lambda launch=launch: launch)
            start = start_of_team(of("digits"), {}, tmp_path / "run", resume=False, team=Team())
            assert not start.resume, "and train() refuses the folder, which is not free"

    def test_a_finished_run_does_not_go_on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        start = self.begin_under("job-7", tmp_path / "run", monkeypatch)
        RunFolder.reopen(start.out, config=asdict(start.config)).write("summary.json", {})
        assert not start_of_team(of("digits"), {}, tmp_path / "run", resume=False, team=Team()).resume

    def test_asked_to_resume_it_goes_on_under_any_launch(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begin_under("job-7", tmp_path / "run", monkeypatch)
        monkeypatch.setattr("deepzero.recipes.run_starts.launch_name", lambda: "job-9")
        assert start_of_team(None, {}, tmp_path / "run", resume=True, team=Team()).resume
