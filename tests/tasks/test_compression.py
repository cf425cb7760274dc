"""A network that gives its input back: what a run comes to, that it goes on bit for bit, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deepzero.cli import main
from deepzero.errors import InvalidInputError, RunFolderError
from deepzero.recipes.compression_recipes import RECIPES
from deepzero.report.run_pages import documents
from deepzero.tasks.compression import CompressionConfig, compress, settings_of
from deepzero.tasks.compression import train_compression as run
from deepzero.tasks.compression.compression_config import from_record
from deepzero.tasks.task_config import DataConfig
from deepzero.training import StopRequest, read_metrics

TINY = CompressionConfig(data=DataConfig(name="digits", batch_size=16, limit=100), code=2, queries=3, steps=8)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_the_recipe_does_better_than_a_constant(tmp_path: Path) -> None:
    config = replace(RECIPES["digits"].config(), code=4, steps=100, learning_rate=0.05)
    found = compress(config, out=tmp_path / "run")
    assert found.summary is not None
    assert found.summary["test_error"] < 0.8 * found.summary["mean_error"]
    assert found.summary["queries"] == 100 * (1 + found.summary["parameters"])
    assert found.summary["parameters"] == 64 * 4 + 4 + 4 * 64 + 64
    assert compress(config, out=tmp_path / "run", resume=True).summary == found.summary
    [page] = documents([tmp_path / "run"])
    assert page.title == "run: deepzero compress"
    assert {"test_error", "mean_error", "queries"} <= set(page.headline)


class _Later(StopRequest):
    """Stops a run after some looks at it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._left = 4

    @property
    def reason(self) -> str | None:
        self._left -= 1
        return "a test" if self._left < 0 else None


@pytest.mark.parametrize("queries", [None, 3])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(
    queries: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(TINY, queries=queries)
    assert compress(config, out=tmp_path / "whole").summary is not None
    with monkeypatch.context() as patch:
        patch.setattr(run, "StopRequest", _Later)
        stopped = compress(config, out=tmp_path / "parts")
    assert (stopped.summary, stopped.stopped) == (None, "a test")
    steps = [r for r in read_metrics(tmp_path / "parts" / "training" / "metrics.jsonl") if r["kind"] == "step"]
    assert 0 < len(steps) < 8
    assert compress(config, out=tmp_path / "parts", resume=True).summary is not None
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts")


def test_passes_over_the_data_are_shuffled_each() -> None:
    loader = run.training_batches(TINY.data, run.read_data(TINY.data).train, seed=0, device=torch.device("cpu"))
    batches = run.InputsAsTargets(loader, 2 * len(loader))
    x, y = batches.batch(0, 0)
    assert torch.equal(x.flatten(1), y)
    assert not torch.equal(x, batches.batch(0, len(loader))[0])
    assert torch.equal(batches.batch(0, len(loader))[0], loader.batch(1, 0)[0])


def test_what_is_refused(tmp_path: Path) -> None:
    for options in ({"code": 0}, {"steps": 0}, {"queries": 0}, {"learning_rate": 0.0}, {"schedule": "step"}):
        with pytest.raises(InvalidInputError, match=next(iter(options))):
            replace(TINY, **options)
    compress(TINY, out=tmp_path / "run")
    with pytest.raises(RunFolderError, match="holds another run"):
        compress(TINY, out=tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"compression\.code: 2 there, 3 asked"):
        compress(replace(TINY, code=3), out=tmp_path / "run", resume=True)
    assert settings_of(tmp_path / "run") == TINY
    assert from_record(json.loads((tmp_path / "run" / "run.json").read_bytes())["config"]["compression"]) == TINY


def test_from_words_to_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["compress", "digits-rge", "--code", "2", "--steps", "6", "--queries", "3", "--seed", "1"]
    assert main([*words, "--max-minutes", "1e-9"]) == 75
    assert "deepzero compress --resume --out runs/compress-digits-rge-seed1" in capsys.readouterr().out
    assert main(["train", "--resume", "--out", "runs/compress-digits-rge-seed1"]) == 2
    assert "was made by `deepzero compress`" in capsys.readouterr().err
    assert main(["compress", "--resume", "--out", "runs/compress-digits-rge-seed1"]) == 0
    assert "of a constant" in capsys.readouterr().out
    assert main(["report", "runs/compress-digits-rge-seed1", "--out", "page.html"]) == 0
    assert "deepzero compress" in Path("page.html").read_text(encoding="utf-8")
    capsys.readouterr()
    assert main(["recipes", "--json"]) == 0
    assert [recipe["name"] for recipe in json.loads(capsys.readouterr().out)["compress"]] == list(RECIPES)
