"""``deepzero defend`` and ``deepzero certify``, from words to a table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from deepzero.cli import main
from deepzero.recipes import Recipe
from deepzero.recipes import defense_recipes as defenses
from deepzero.recipes.defense_recipes import RECIPES, digits
from deepzero.tasks.classification import DataConfig
from deepzero.tasks.defense import METHODS, DefenseConfig, DenoiserConfig, StageConfig, settings_of

pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")


def small() -> DefenseConfig:
    return replace(
        digits(),
        data=DataConfig(name="digits", batch_size=16, limit=100),
        denoiser=DenoiserConfig(depth=2, width=2),
        classifier=StageConfig(steps=20, batch_size=16),
        pretraining=StageConfig(steps=5, batch_size=16),
        finetuning=StageConfig(batch_size=16),
    )


@pytest.fixture(autouse=True)
def _small_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(RECIPES, "digits", Recipe("digits", small, "seconds"))


def test_from_a_recipe_to_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["defend", "digits", "--method", "opaque", "--budget", "600", "--directions", "3", "--seed", "1"]
    assert main([*words, "--max-minutes", "1e-9"]) == 75
    assert "deepzero defend --resume --out runs/defend-digits-opaque-seed1" in capsys.readouterr().out
    assert main(["defend", "--resume", "--out", "runs/defend-digits-opaque-seed1"]) == 0
    assert "now `deepzero certify runs/defend-digits-opaque-seed1`" in capsys.readouterr().out
    command = ["certify", "runs/defend-digits-opaque-seed1", "--images", "2", "--trials", "50", "--radii", "0", "0.1"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "images 2/2" in out
    assert "r = 0.1" in out
    assert main(["report", "runs/defend-digits-opaque-seed1", "--out", "page.html"]) == 0
    page = Path("page.html").read_text()
    assert "Certified accuracy" in page
    assert "Loss against queries" in page


def test_a_page_of_what_is_not_certified_yet(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["defend", "digits", "--method", "smoothing", "--out", "plain"]) == 0
    assert main(["report", "plain", "--out", "page.html"]) == 0
    assert "deepzero certify plain" in Path("page.html").read_text()
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["defend", "digit"], "unknown defense 'digit' (did you mean digits?)"),
        (["defend", "--method", "magic"], "method must be one of"),
        (["defend", "--sigma", "0"], "sigma must be a finite number above 0"),
        (["defend", "--resume"], "name the folder of the run to resume"),
        (["certify", "nowhere"], "nowhere holds no run, because there is no such folder"),
    ],
)
def test_bad_input_is_exit_code_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_every_recipe_can_be_made_for_every_method() -> None:
    for name in RECIPES:
        own = RECIPES.find(name).config()
        for method in METHODS:
            config = defenses.with_method(own, method)
            assert config.method == method
            rate = defenses.RATES.get(method, 1.0) * own.finetuning.learning_rate
            assert config.finetuning == replace(own.finetuning, learning_rate=rate)
            per_step = config.finetuning.batch_size * (1 + config.directions)
            assert 20 * per_step <= config.budget  # room for some steps


def test_options_reach_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--method", "deepzero", "--loss", "classification", "--finetuned", "last-layer", "--budget", "400"]
    assert main(["defend", "digits", *words, "--directions", "3", "--out", "run"]) == 0
    config, classifier = settings_of(Path("run"))
    assert (config.loss, config.finetuned, config.budget, classifier) == ("classification", "last-layer", 400, None)
    assert config.finetuning.learning_rate == pytest.approx(0.3 * small().finetuning.learning_rate)
    assert main(["defend", "--loss", "mse"]) == 2
    assert "loss must be one of classification, stability; got 'mse'" in capsys.readouterr().err


def test_the_recipes_of_defenses_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert "deepzero defend RECIPE" in listed
    assert all(name in listed for name in RECIPES)
