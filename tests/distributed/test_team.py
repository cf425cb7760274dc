"""The team of a process that is alone, and what a leader tells the others."""

from typing import Any

import pytest
import torch
from threads_team import together

from deepzero.errors import InvalidInputError, RunFolderError, TeamError
from deepzero.team import Alone, Team, Torchrun, joined, launch_name, own_device


def test_a_process_without_torchrun_is_a_team_of_one() -> None:
    with joined() as team:
        part = torch.arange(3, dtype=torch.float64)
        assert (team.rank, team.size, team.leads) == (0, 1, True)
        assert team.exchange(part, [3])[0] is part
        assert team.broadcast(b"x") == b"x"
        assert team.highest(-4) == -4
        assert team.from_leader(lambda: {"a": [1, 2]}) == {"a": [1, 2]}
        assert team.exchanged == 0


def test_a_team_is_of_the_kind_that_its_size_asks_for() -> None:
    assert type(Team()) is Alone
    assert type(Team(1, 3)) is Torchrun
    assert (Team(1, 3).rank, Team(1, 3).size, Team(1, 3).interruptible) == (1, 3, False)
    assert Team(timeout=3.0).interruptible


def test_what_need_not_be_compared_is_not_computed() -> None:
    assert Team().agrees(lambda: pytest.fail("alone"))
    assert together(3, lambda team: team.agrees(lambda: 5)) == [True] * 3
    assert together(3, lambda team: team.agrees(lambda: team.rank // 2)) == [False] * 3


@pytest.mark.parametrize(
    ("texts", "first"), [([None, None, None], None), ([None, "b", "ccc"], "b"), (["", "b", None], "")]
)
def test_the_first_text_is_that_of_the_lowest_rank(texts: list[Any], first: str | None) -> None:
    assert together(3, lambda team: team.first(texts[team.rank])) == [first] * 3
    assert [Team().first(text) for text in texts] == texts


def test_only_the_leader_is_asked() -> None:
    asked = []

    def answer(team: Team) -> object:
        return team.from_leader(lambda: asked.append(team.rank) or {"rank": team.rank})

    assert together(3, answer) == [{"rank": 0}] * 3
    assert asked == [0]


def test_bytes_may_be_empty() -> None:
    assert together(2, lambda team: team.bytes_from_leader(lambda: b"")) == [b"", b""]


def test_an_error_of_the_leader_reaches_all_ranks() -> None:
    def fail() -> None:
        raise RunFolderError("the folder is full")

    def run(team: Team) -> Exception:
        with pytest.raises((RunFolderError, TeamError)) as caught:
            team.from_leader(fail)
        return caught.value

    first, second, third = together(3, run)
    assert isinstance(first, RunFolderError)
    assert isinstance(second, TeamError)
    assert str(second) == str(third) == "rank 0 stopped: the folder is full"


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_a_timeout_is_a_time(timeout: float) -> None:
    with pytest.raises(InvalidInputError, match="timeout must be a finite number above 0"), joined(timeout=timeout):
        pass


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="device must be cpu, cuda or"), joined("tpu"):
        pass


def test_every_process_of_a_host_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert own_device(torch.device("cuda")) == torch.device("cuda", 1)
    assert own_device(torch.device("cpu")) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InvalidInputError, match="local rank 1 has no GPU of its own: this host has 1"):
        own_device(torch.device("cuda"))


def test_the_name_of_a_launch_outlives_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert launch_name() is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "my-run")
    assert launch_name() == "my-run"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert launch_name() == launch_name()
    assert launch_name() != "none", "a launch without a name is told by its host and agent"
