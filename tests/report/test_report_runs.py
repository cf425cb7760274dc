"""Folders of real runs as documents: finished, unfinished, cut off, several, reproductions, and what is none."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pages import Page

import deepzero as dz
from deepzero.errors import RunFolderError
from deepzero.report import Document, Figure, Table, documents, page
from deepzero.report.comparison import compare, labels
from deepzero.report.folder_contents import RecordedRun, read
from deepzero.report.value_text import shown as values_shown
from deepzero.tasks import classification
from deepzero.tasks.classification import (
    ClassificationConfig,
    DataConfig,
    EstimatorConfig,
    ModelConfig,
    SparsityConfig,
)
from deepzero.text import duration
from deepzero.training import RunFolder, TrainingConfig
from deepzero.training.run_folder import COMMANDS

CONFIG = ClassificationConfig(
    data=DataConfig(name="digits", limit=64, batch_size=16),
    model=ModelConfig(name="mlp", options={"hidden": (8,)}),
    estimator=EstimatorConfig(method="fo"),
    sparsity=SparsityConfig(sparsity=0.5, ratios="uniform"),
    training=TrainingConfig(epochs=3, warmup_epochs=0, checkpoint_steps=5),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "first"
    classification.train(CONFIG, out=path, notes={"recipe": "digits", "settings": {"epochs": 3}})
    return path


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "dense"
    classification.train(replace(CONFIG, sparsity=SparsityConfig()), out=path)
    return path


@pytest.fixture
def unfinished(finished: Path, tmp_path: Path) -> Path:
    """As a crash leaves it: no result, the last line cut off."""
    path = tmp_path / "crashed here"
    shutil.copytree(finished, path)
    for name in ("summary.json", "model.safetensors", "plot.png"):
        (path / name).unlink()
    lines = (path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (path / "metrics.jsonl").write_bytes(b"".join(lines[:6]) + lines[6][:20])
    return path


def document(path: Path) -> Document:
    [found] = documents([path])
    return found


def summary(path: Path) -> dict:
    return json.loads((path / "summary.json").read_text())


def figure(shown: Document, title: str) -> dict:
    [found] = [figure for figure in shown.figures if figure.title == title]
    return {series.name: (list(series.x), list(series.y)) for series in found.series}


def figure_named(shown: Document, title: str) -> Figure:
    return next(figure for figure in shown.figures if figure.title == title)


def column(table: Table, name: str) -> list[str]:
    return [row[list(table.columns).index(name)] for row in table.rows]


def test_the_headline_of_a_finished_run_is_its_summary(finished: Path) -> None:
    shown, result = document(finished), summary(finished)
    assert shown.title == "first: mlp on digits, fo, 50% sparse"
    assert shown.headline["test accuracy"] == f"{result['test_accuracy']:.2%}"
    assert shown.headline["validation accuracy"] == f"{result['validation_accuracy']:.2%}"
    assert shown.headline["queries"] == str(result["queries"])
    assert shown.headline["queries of a step"] == "1"
    assert shown.headline["parameters"] == str(result["parameters"]) == "610"
    assert shown.headline["sparsity"] == "50.0%"
    assert f"epoch {result['selected_epoch'] + 1}," in shown.caption


def test_curves_are_the_metrics(finished: Path) -> None:
    shown, result = document(finished), summary(finished)
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    steps, epochs = ([r for r in records if r["kind"] == kind] for kind in ("step", "epoch"))
    accuracy = [100 * r["validation_accuracy"] for r in epochs]
    for axis in ("queries", "seconds"):
        curves = figure(shown, f"Accuracy against {axis}")
        assert curves["validation"] == ([r[axis] for r in epochs], accuracy)
        assert curves[f"test {result['test_accuracy']:.2%}"] == ([records[-1][axis]], [100 * result["test_accuracy"]])
    losses = figure(shown, "Loss against queries")
    assert losses["training, steps"] == ([r["queries"] for r in steps], [r["loss"] for r in steps])
    assert losses["training, epoch mean"][1] == [r["training_loss"] for r in epochs]
    assert losses["validation"][1] == [r["validation_loss"] for r in epochs]
    rates = figure(shown, "Learning rate")["learning rate"]
    assert rates == ([r["step"] for r in steps], [r["learning_rate"] for r in steps])


def test_layers_are_listed_with_sizes_and_what_is_kept(finished: Path) -> None:
    [table] = document(finished).tables
    assert column(table, "layer") == ["hidden.0.weight", "fc.weight", "others (biases, norms)", "all"]
    assert column(table, "shape") == ["8×64", "10×8", "", ""]
    assert column(table, "weights") == ["512", "80", "18", "610"]
    assert column(table, "kept") == ["256", "40", "18", "314"]
    assert column(table, "keep ratio") == ["50.0%", "50.0%", "100.0%", "51.5%"]
    assert table.bars == ["keep ratio"]
    assert "again every step" in table.note


def test_a_dense_run_has_no_layers_to_tell_apart(dense: Path) -> None:
    assert document(dense).tables == []


def test_settings_hardware_and_versions_are_facts(finished: Path) -> None:
    facts, result = document(finished).facts, summary(finished)
    assert facts["configuration"] == result["config"]
    assert facts["hardware"] == result["hardware"]
    assert facts["versions"] == result["versions"]
    assert facts["recipe"] == "digits"
    assert facts["changed settings"] == "epochs 3"


def test_an_unfinished_run_is_shown_as_far_as_it_went_and_says_how_to_continue(unfinished: Path) -> None:
    shown = document(unfinished)
    assert "has not finished: step 5, epoch 2, of 3 epochs" in shown.caption
    assert f"\n\n    deepzero train --resume --out '{unfinished}'" in shown.caption
    assert shown.headline["state"] == "unfinished"
    assert "test accuracy" not in shown.headline
    assert shown.headline["parameters"] == "610"
    assert len(figure(shown, "Loss against queries")["training, steps"][0]) == 5
    assert len(figure(shown, "Accuracy against queries")["validation"][0]) == 1
    assert column(shown.tables[0], "kept") == ["256", "40", "18", "314"]
    Page(page([shown], title=shown.title))


def test_a_run_that_was_not_started_from_a_recipe_names_no_command(unfinished: Path) -> None:
    record = json.loads((unfinished / "run.json").read_text())
    del record["recipe"]
    (unfinished / "run.json").write_text(json.dumps(record))
    assert "deepzero train" not in document(unfinished).caption
    assert "resume=True" in document(unfinished).caption


def test_a_run_that_has_only_begun(unfinished: Path) -> None:
    shutil.rmtree(unfinished / "checkpoints")
    (unfinished / "metrics.jsonl").unlink()
    shown = document(unfinished)
    assert "no step yet" in shown.caption
    assert shown.headline["parameters"] == "610"
    assert shown.headline["start-up and step 1"] == "—"
    assert column(shown.tables[0], "layer")[:2] == ["hidden.0.weight", "fc.weight"]
    (unfinished / "ratios.json").unlink()
    assert document(unfinished).tables == []
    assert page([shown], title="").count("no data") == len(shown.figures)


@pytest.fixture
def older(unfinished: Path) -> Path:
    """A run of a version that did not write down the parameters, nor what was queried."""
    record = json.loads((unfinished / "run.json").read_text())
    del record["parameters"]
    (unfinished / "run.json").write_text(json.dumps(record))
    lines = [json.loads(line) for line in (unfinished / "metrics.jsonl").read_text().splitlines()[:-1]]
    kept = [{key: value for key, value in line.items() if not key.startswith("kept/")} for line in lines]
    (unfinished / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    return unfinished


def test_a_run_of_an_earlier_version_has_its_layers_by_name_and_no_map(older: Path) -> None:
    shown = document(older)
    assert column(shown.tables[0], "layer") == ["fc.weight", "hidden.0.weight", "others (biases, norms)", "all"]
    assert column(shown.tables[0], "kept") == ["40", "256", "18", "314"]
    assert shown.headline["parameters"] == "610"
    assert shown.maps == []
    shutil.rmtree(older / "checkpoints")
    assert document(older).headline["parameters"] == "—"
    assert column(document(older).tables[0], "weights") == ["—", "—"]


def test_what_was_queried_is_a_map_of_layers_and_epochs(finished: Path, dense: Path) -> None:
    [shown] = document(finished).maps
    assert (list(shown.y), list(shown.x)) == (["hidden.0", "fc"], [1, 2, 3])
    assert [list(row) for row in shown.values] == [[50.0] * 3, [50.0] * 3]
    assert shown.limits == (0.0, 50.0)
    assert document(dense).maps == []


def test_the_axis_of_seconds_begins_at_0_and_the_start_up_is_marked(finished: Path) -> None:
    shown = document(finished)
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    [span] = figure_named(shown, "Accuracy against seconds").spans
    assert (span.start, span.end) == (0.0, records[0]["seconds"])
    assert shown.headline["start-up and step 1"] == duration(records[0]["seconds"])
    assert span.name == f"start-up and first step: {duration(records[0]['seconds'])}"
    assert all(figure_named(shown, f"Accuracy against {axis}").x_from_zero for axis in ("queries", "seconds"))
    assert figure_named(shown, "Accuracy against queries").spans == []


def test_a_run_of_a_trainer_of_ones_own_is_shown_by_what_it_measures(tmp_path: Path) -> None:
    """No accuracy, no recipe, no validation loss under a familiar name: a regression with a metric of its own."""
    model = torch.nn.Linear(3, 1)
    x = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8)
    dz.Trainer(
        model,
        dz.CGE(model, loss=F.mse_loss),
        torch.optim.SGD(model.parameters(), lr=0.1),
        data,
        validation=data,
        metrics={"largest_error": lambda outputs, targets: float((outputs - targets).abs().max())},
        out=tmp_path / "own",
    ).fit(epochs=3)
    shown, result = document(tmp_path / "own"), summary(tmp_path / "own")
    assert shown.title == "own: Linear, Estimator"
    assert shown.headline["validation largest error"] == values_shown(result["validation_largest_error"])
    assert shown.caption.startswith(f"Weights of epoch {result['selected_epoch'] + 1}, selected on the validation")
    assert len(figure(shown, "Largest error against seconds")["validation"][0]) == 3
    assert len(figure(shown, "Loss against queries")["validation"][0]) == 3
    assert "Accuracy against queries" not in [f.title for f in shown.figures]
    Page(page(documents([tmp_path / "own", tmp_path / "own" / ".." / "own"]), title="Own"))


def test_weights_that_cannot_be_read_are_passed_over(older: Path) -> None:
    newest = max((older / "checkpoints").glob("step-*"))
    (newest / "tensors.safetensors").write_bytes(b"cut off")
    assert document(older).headline["parameters"] == "610"


def test_long_runs_are_thinned_to_means_that_keep_the_end(unfinished: Path) -> None:
    record = {"kind": "step", "seconds": 1.0, "epoch": 0, "learning_rate": 0.1}
    lines = [{**record, "step": i, "queries": 3 * i, "loss": float(i)} for i in range(1, 1002)]
    (unfinished / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    x, y = figure(document(unfinished), "Loss against queries")["training, steps"]
    assert len(x) == 167  # groups of six
    assert (x[0], y[0]) == (18, 3.5)
    assert (x[-1], y[-1]) == (3003, 999.0)
    assert document(unfinished).headline["queries of a step"] == "3"


def test_queries_of_a_step_are_a_curve_where_they_change(unfinished: Path) -> None:
    record = {"kind": "step", "seconds": 1.0, "epoch": 0, "learning_rate": 0.1, "loss": 1.0}
    lines = [{**record, "step": i, "queries": queries} for i, queries in [(1, 900), (2, 1000), (3, 1150)]]
    (unfinished / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shown = document(unfinished)
    assert figure(shown, "Queries of a step")["queries"] == ([2, 3], [100, 150])
    assert shown.headline["queries of a step"] == "100 to 150"


def test_several_runs_are_compared_first_and_called_by_what_differs(finished: Path, dense: Path) -> None:
    comparison, first, second = documents([finished, dense])
    assert comparison.title == "Comparison of 2 runs"
    assert (first, second) == (document(finished), document(dense))
    [results] = comparison.tables
    results_of = [summary(path) for path in (finished, dense)]
    assert column(results, "test accuracy") == [f"{r['test_accuracy']:.2%}" for r in results_of]
    assert column(results, "queries") == [str(r["queries"]) for r in results_of]
    assert column(results, "folder") == ["first", "dense"]
    names = column(results, "run")
    assert names == ["ratios uniform, sparsity 0.5", "ratios zo-grasp, sparsity 0"]
    for axis in ("queries", "seconds"):
        assert set(figure(comparison, f"Validation accuracy against {axis}")) == set(names)
        alone = figure(first, f"Accuracy against {axis}")["validation"]
        assert figure(comparison, f"Validation accuracy against {axis}")[names[0]] == alone


def test_runs_with_the_same_settings_are_called_by_their_folders(finished: Path, unfinished: Path) -> None:
    comparison = documents([finished, unfinished])[0]
    assert column(comparison.tables[0], "run") == ["first", "crashed here"]
    assert column(comparison.tables[0], "test accuracy")[1] == "—"
    assert "have not finished. Same settings: first, crashed here." in comparison.tables[0].note
    assert len(comparison.tables) == 1
    assert [shown.title.partition(":")[0] for shown in documents([finished, unfinished])[1:]] == [
        "first",
        "crashed here",
    ]


def test_folders_of_the_same_name_are_called_by_their_paths(finished: Path, tmp_path: Path) -> None:
    other = tmp_path / "first"
    shutil.copytree(finished, other)
    _, first, second = documents([finished, other])
    assert first.title == f"{finished}: mlp on digits, fo, 50% sparse"
    assert second.title == f"{other}: mlp on digits, fo, 50% sparse"
    assert len({shown.title for shown in documents([finished, other])}) == 3


def test_runs_that_differ_in_much_are_called_by_their_folders_and_a_table_says_in_what(finished: Path) -> None:
    run = read(finished)
    assert isinstance(run, RecordedRun)

    def other(**training: object) -> RecordedRun:
        config = {**run.config, "seed": 1, "training": {**run.config["training"], **training}}
        return replace(run, path=Path("elsewhere") / "first", record={**run.record, "config": config})

    assert labels([run, other(epochs=9)]) == ["seed 0, epochs 3", "seed 1, epochs 9"]
    much = other(epochs=9, learning_rate=0.25, momentum=0.5, weight_decay=0.125)
    assert labels([run, much]) == [str(run.path), "elsewhere/first"]
    _, settings = compare([run, much]).tables
    assert settings.columns[1:] == [str(run.path), "elsewhere/first"]
    assert dict(zip(column(settings, "setting"), column(settings, "elsewhere/first"), strict=True)) == {
        "seed": "1",
        "epochs": "9",
        "learning rate": "0.25",
        "momentum": "0.5",
        "weight decay": "0.125",
    }


def test_how_often_checkpoints_are_made_is_no_difference(finished: Path) -> None:
    run = read(finished)
    config = {**run.config, "training": {**run.config["training"], "checkpoint_steps": 1}}
    other = replace(run, path=Path("other"), record={**run.record, "config": config})
    assert labels([run, other]) == ["first", "other"]


def test_a_folder_named_twice_is_shown_once(finished: Path) -> None:
    roundabout = finished.parent / "." / ".." / finished.parent.name / "first"
    assert documents([finished, finished, roundabout]) == documents([finished])


def test_a_task_without_figures_of_its_own_is_shown_by_its_numbers(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a run of it is not compared with trainings."""
    monkeypatch.setitem(COMMANDS, "novel", "invent")
    run = RunFolder.create(tmp_path / "new", config={"novel": {"size": 3}}, notes={})
    [unfinished] = documents([run.path])
    assert "deepzero invent --resume --out" in unfinished.caption
    run.write("summary.json", {"score": 0.25, "queries": 12_000, "seconds": 90.0, "method": "guess"})
    assert len(documents([run.path, finished])) == 2
    [shown] = documents([run.path])
    assert shown.headline == {"score": "0.25", "queries": "12,000", "seconds": duration(90.0)}
    assert shown.facts["configuration"] == {"novel": {"size": 3}}


def test_results_of_a_reproduction_are_shown(finished: Path, tmp_path: Path) -> None:
    results = Document(title="Table 9", tables=[Table(title="t", columns=["a"], rows=[["1"]])])
    (tmp_path / "results.json").write_text(json.dumps(results.as_dict()))
    assert json.dumps(document(tmp_path).as_dict()) == json.dumps(results.as_dict())
    assert [shown.title for shown in documents([tmp_path, finished])] == ["Table 9", document(finished).title]


def test_the_page_of_a_run_says_it_all_and_always_the_same(finished: Path) -> None:
    shown = document(finished)
    source = page([shown], title=shown.title)
    assert source == page([document(finished)], title=shown.title)
    read_again = Page(source)
    assert set(shown.headline.values()) <= set(read_again.texts)
    assert summary(finished)["hardware"]["platform"] in read_again.cells
    assert "training.learning_rate" in read_again.cells


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "holds neither a run (run.json) nor the results of a reproduction (results.json)"),
        ({"run.json": "{"}, "run.json is damaged"),
        ({"run.json": "[]"}, "run.json is damaged: it has no configuration"),
        ({"run.json": '{"format": "deepzero run 0", "config": {}}'}, "expected format 'deepzero run 1'"),
        ({"results.json": "{"}, "results.json cannot be read"),
        ({"results.json": '{"format": "x"}'}, "results.json cannot be shown: expected results of format"),
        ({"results.json": '{"format": "deepzero results 1"}'}, "results.json cannot be shown"),
    ],
    ids=["empty", "cut", "list", "older", "cut-results", "format", "incomplete"],
)
def test_what_cannot_be_shown(tmp_path: Path, files: dict[str, str], expected: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(RunFolderError) as error:
        documents([tmp_path])
    assert expected in str(error.value)


def test_folders_of_folders_name_what_they_hold(finished: Path) -> None:
    with pytest.raises(RunFolderError, match=r"holds no run itself, but holds .*/first; name one of them"):
        documents([finished.parent])
    with pytest.raises(RunFolderError, match="because there is no such folder"):
        documents([finished / "nowhere"])


@pytest.mark.parametrize("line", [b'{"kind": "st', b"7", b"\xff\xfe"], ids=["cut", "number", "bytes"])
def test_a_line_damaged_in_the_middle_is_an_error_and_at_the_end_it_is_left_out(unfinished: Path, line: bytes) -> None:
    path = unfinished / "metrics.jsonl"
    lines = path.read_bytes().splitlines()[:-1]
    path.write_bytes(b"\n".join([*lines, line]))
    assert len(figure(document(unfinished), "Learning rate")["learning rate"][0]) == 5
    path.write_bytes(b"\n".join([lines[0], line, *lines[1:]]))
    with pytest.raises(RunFolderError, match="damaged in line 2"):
        documents([unfinished])
