"""What the how-tos promise: their error texts exist, every number of a run is explained, figures are those of the records."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import statistics
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import deepzero
from deepzero import errors
from deepzero.doctor import Diagnosis
from deepzero.report import documents
from deepzero.tasks.classification import (
    ClassificationConfig,
    DataConfig,
    EstimatorConfig,
    ModelConfig,
    SparsityConfig,
    train,
)
from deepzero.training import TrainingConfig
from deepzero.training.run_folder import COMMANDS

ROOT = Path(__file__).parents[1]
HOWTO = ROOT / "docs" / "howto"
PAGES = sorted(path for path in HOWTO.glob("*.md") if path.name != "index.md")
RECORDS = ROOT / "benchmarks" / "records"
GAP = "\0"
"""Stands for what is put into a message."""


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# Their form -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_howto_ends_with_what_can_go_wrong_and_is_listed(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE)[-1] == "What can go wrong"
    assert f"]({path.name})" in page("docs/howto/index.md")


# Messages -------------------------------------------------------------------------------------------------------------


def template(node: ast.AST) -> str | None:
    """The text of a string expression, with gaps; None if it is none."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(template(value) or GAP for value in values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            first, second = template(left), template(right)
            return None if first is None and second is None else (first or GAP) + (second or GAP)
    return None


def templates() -> set[str]:
    """Every text in the sources but docstrings."""
    found = set()
    for path in (ROOT / "src").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        found |= {text for node in ast.walk(tree) if id(node) not in docstrings and (text := template(node))}
    return found


def said(fragment: str, text: str) -> bool:
    """Whether the parts of a fragment stand in a text, in order and within what is not put in."""
    at = 0
    for part in filter(None, (part.strip() for part in fragment.split("…"))):
        at = text.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return True


def quoted() -> Iterator[tuple[str, str]]:
    """Page and message: first cells of the tables of errors, and entries of "What can go wrong" that are messages."""
    for row in re.findall(r"^\| (`.+?) \| ", page("docs/howto/troubleshooting.md"), re.MULTILINE):
        for message in re.findall(r"`([^`]+)`", re.sub(r"\(an? `\w+`\)", "", row)):
            yield "troubleshooting", message
    for path in PAGES:
        for entry in re.findall(r"^- \*\*(`[^*]+`)\.?\*\*", path.read_text(encoding="utf-8"), re.MULTILINE):
            for message in re.findall(r"`([^`]+)`", entry):
                yield path.stem, message


def test_every_message_that_is_quoted_is_in_the_source() -> None:
    known, messages = templates(), list(quoted())
    assert len(messages) > 70
    assert [message for message in messages if not any(said(message[1], text) for text in known)] == []


def test_the_search_for_messages_finds_no_others() -> None:
    assert said("a step of … vanishes in …", f"a step of {GAP} vanishes in {GAP}[{GAP}]")
    assert not said("a step of 3 vanishes", f"a step of {GAP} vanishes in {GAP}")
    assert not said("vanishes … a step of", f"a step of {GAP} vanishes in {GAP}")


def test_every_error_and_warning_is_in_the_tables() -> None:
    text = page("docs/howto/troubleshooting.md")
    classes = [
        name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == errors.__name__
    ]
    assert len(classes) > 15
    assert [name for name in classes if f"`{name}`" not in text] == []


# Numbers --------------------------------------------------------------------------------------------------------------

NUMBERS = "docs/howto/numbers.md"


def section(title: str) -> str:
    """A part of the page on numbers."""
    return page(NUMBERS).split(f"\n## {title}\n")[1].split("\n## ")[0]


def unexplained(keys: set[str], text: str) -> list[str]:
    """Keys that a part of the page does not name."""
    return sorted(key for key in keys if f"`{key}`" not in text)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run with everything that writes a number."""
    config = ClassificationConfig(
        data=DataConfig(name="digits", limit=96, batch_size=32),
        model=ModelConfig(name="mlp", options={"hidden": (4,)}),
        estimator=EstimatorConfig(method="fo"),
        sparsity=SparsityConfig(sparsity=0.5, ratios="magnitude"),
        training=TrainingConfig(epochs=2, warmup_epochs=0),
    )
    return train(config, out=tmp_path_factory.mktemp("numbers") / "run").folder


def test_every_number_of_a_run_is_explained(run: Path) -> None:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {record["kind"] for record in records} == {"step", "epoch", "test"}
    keys = {re.sub("/.*", "/NAME", key) for record in records for key in record}  # kept/<parameter>
    assert unexplained(keys, section("metrics.jsonl")) == []
    summary = json.loads((run / "summary.json").read_text())
    keys = {*summary, *summary["hardware"], *summary["versions"]}
    assert unexplained(keys, section("summary.json of a training")) == []


def test_every_number_of_a_report_is_explained(run: Path) -> None:
    [document] = documents([run])
    shown = {*document.headline, *(str(column) for table in document.tables for column in table.columns)}
    shown |= {
        series.name for figure in document.figures for series in figure.series if not series.name.startswith("test ")
    }
    assert {"test accuracy", "keep ratio", "training, epoch mean"} <= shown
    text = section("The report")
    assert sorted(name for name in shown if name not in text) == []


def keys_beside(path: Path, *keys: str) -> set[str]:
    """Keys of the one dictionary of a source file that has these keys."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tables = [
        {str(k.value) for k in node.keys if isinstance(k, ast.Constant)}
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict)
    ]
    [found] = [table for table in tables if table.issuperset(keys)]
    return found


@pytest.mark.parametrize("task", COMMANDS)
def test_every_key_of_a_staged_summary_is_explained(task: str) -> None:
    tasks = ROOT / "src" / "deepzero" / "tasks"
    keys = keys_beside(tasks / task / f"train_{task}.py", "seconds", "seed") | keys_beside(
        tasks / "staged_run.py", "hardware"
    )
    assert {"seconds", "seed", "versions", "hardware", "config"} <= keys
    assert unexplained(keys, section(f"summary.json of a {task}")) == []


def fields(kind: Any) -> Iterator[str]:
    """Names of the fields of a dataclass and of those within it."""
    for name, hint in typing.get_type_hints(kind).items():
        yield name
        for part in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(part):
                yield from fields(part)


def test_every_number_of_a_diagnosis_is_explained() -> None:
    names = set(fields(Diagnosis))
    assert {"slope_noise", "epoch_overhead", "expected_cosine", "felt"} <= names
    assert unexplained(names, section("The doctor")) == []


# Figures --------------------------------------------------------------------------------------------------------------


def record(name: str) -> Any:
    return json.loads((RECORDS / f"{name}.json").read_text(encoding="utf-8"))


def spread(values: list[float], form: str, scale: float = 1.0) -> str:
    """Median and extremes, as they are printed."""
    low, middle, high = (format(scale * f(values), form) for f in (min, statistics.median, max))
    return f"{middle} ({low}–{high})"


def cells(name: str, table: int, first: str) -> list[str]:
    """A row of a reproduction's table."""
    return next(row for row in record(name)["tables"][table]["rows"] if row[0] == first)


def of_the_library() -> Iterator[tuple[str, str]]:
    """Page and text that follow from the record of accuracy; speeds are filled in (`benchmarks/speed_page.py`)."""
    digits = record("digits-accuracy")["runs"]
    for estimator in ("cge", "fo"):
        accuracy, seconds = ([run[key] for run in digits[estimator]] for key in ("test_accuracy", "seconds"))
        percent = spread(accuracy, ".1f", 100).replace(" (", " % (")
        times = spread(seconds, ".1f").replace(" (", " s (")
        yield "README.md", percent
        yield "README.md", times
        yield "docs/howto/when_not.md", f"{times.split(' (')[0]}, {percent.split(' (')[0]}"


def of_runs_and_workers() -> Iterator[tuple[str, str]]:
    """Page and text that follow from the records of forecasts and of several processes."""
    forecasts = record("forecast")["rounds"]
    for rounds in forecasts.values():
        yield "README.md", spread([r["predicted"] / r["measured"] for r in rounds], ".2f")
    over = [r["measured"] / r["predicted"] for rounds in forecasts.values() for r in rounds]
    yield "docs/howto/when_not.md", f"between {min(over):.2f} and {max(over):.2f} in six runs"
    start = record("startup")["seconds"]
    for times in (start["first_line"], start["first_step_cold"]["clock"], start["first_step_warm"]["clock"]):
        yield "README.md", f"{times['median']:.1f} s ({times['least']:.1f}–{times['most']:.1f})"
    scaling = record("scaling")
    speed_up = spread([r["speed_up"] for r in scaling["rounds"]], ".2f")
    yield "README.md", speed_up.replace(" (", "x (")
    yield "README.md", f"load {scaling['load']:.1f} | `scaling.json`"
    low, high = speed_up[6:-1].split("–")
    yield (
        "docs/howto/several_machines.md",
        f"{speed_up[:4]} times the queries of one (median of 5 rounds, {low} to {high}",
    )
    yield "docs/howto/when_not.md", f"| {scaling['simulation'][0]['seconds']:,.0f} s |"
    pool = [r["process_pool"] for r in record("executor")["seconds_per_query"]["rounds"]]
    overhead = spread(pool, ".2f", 1e3)
    yield (
        "README.md",
        f"{overhead.replace(' (', ' ms (')} | median of 5 rounds of 2,000 queries, load {record('executor')['load_before']:.1f}",
    )
    low, high = overhead[6:-1].split("–")
    yield (
        "docs/howto/several_machines.md",
        f"{overhead[:4]} ms a query was measured on a process pool (median of 5 rounds, {low} to {high};",
    )


def of_reproductions() -> Iterator[tuple[str, str]]:
    """Page and text that follow from the tables of the paper's experiments."""
    _, first_order, coordinates, random, *_ = cells("reproduce-fig2-730", 0, "730")
    first_order, coordinates, random = (rounded(cell) for cell in (first_order, coordinates, random))
    yield "README.md", f"{coordinates} % (by backpropagation {first_order} %)"
    yield "docs/howto/queries.md", f"(autograd: {first_order} %) | {coordinates} % | {random} % |"
    times = cells("reproduce-fig2-730", 1, "730")
    yield "docs/howto/when_not.md", f"{times[2]}, {coordinates.split()[0]} % | {times[1]}, {first_order.split()[0]} %"
    _, random, _, coordinates = cells("reproduce-fig2", 2, "730")
    yield "docs/howto/queries.md", f"{coordinates} | {rounded(random, 2)} (theory 1.00)"
    rge, cge = (
        row[6]
        for row in record("reproduce-tabA1")["tables"][0]["rows"]
        if row[0] == "12,610" and row[1] in {"RGE", "CGE"}
    )
    yield "docs/howto/queries.md", f"| {cge} | {rge} |"
    yield "docs/howto/queries.md", f"| {float(cells('reproduce-fig3', 0, '12,610')[3]):.1f} | cannot |"
    errors_of = {row[0]: rounded(row[1], 3) for row in record("reproduce-fig6")["tables"][0]["rows"]}
    yield (
        "docs/howto/queries.md",
        f"(untrained: {errors_of['src']}) | {errors_of['zo-sol']} | {errors_of['zo-sol-rge']} |",
    )
    kept = {s: rounded(cells("reproduce-fig4", 0, s)[4]).split()[0] for s in ("80 %", "90 %", "99 %")}
    yield (
        "docs/howto/queries.md",
        f"accuracy was {kept['80 %']} % at 80 % sparsity, {kept['90 %']} % at 90 % and {kept['99 %']} % at 99 %",
    )
    dense = rounded(cells("reproduce-fig4", 0, "0 %")[1]).split()[0]
    yield "docs/howto/queries.md", f"autograd without sparsity reached {dense} %"
    minutes = cells("reproduce-fig4", 1, "90 %")[4]
    yield (
        "docs/howto/when_not.md",
        f"{minutes}, {kept['90 %']} % | {cells('reproduce-fig4', 1, '0 %')[1]}, {dense} % (dense)",
    )


def rounded(cell: str, digits: int = 1) -> str:
    """``44.56 ± 0.71 (3)`` as ``44.6 ± 0.7``."""
    return " ± ".join(f"{float(number):.{digits}f}" for number in re.sub(r" \(\d+\)$", "", cell).split(" ± "))


@pytest.mark.parametrize(("name", "text"), [*of_the_library(), *of_runs_and_workers(), *of_reproductions()])
def test_figures_are_those_of_the_records(name: str, text: str) -> None:
    assert text in page(name)


# Names ----------------------------------------------------------------------------------------------------------------


def test_every_module_of_the_reference_has_a_table_of_its_names() -> None:
    pages = [path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").glob("*.md")]
    described = {name for text in pages for name in re.findall(r"^\.\. automodule:: (\S+)$", text, re.MULTILINE)}
    listed = {name for text in pages for name in re.findall(r"^\.\. summary:: (\S+)", text, re.MULTILINE)}
    assert listed == described | {"deepzero"}
    with_names = {
        name
        for name in (f"deepzero.{path.parent.name}" for path in (ROOT / "src" / "deepzero").glob("*/__init__.py"))
        if "__all__" in (ROOT / "src" / name.replace(".", "/") / "__init__.py").read_text(encoding="utf-8")
    }
    assert len(with_names) > 10
    assert with_names - described - {"deepzero.cli", "deepzero.own"} == set()


def test_every_public_name_is_described_where_its_table_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_extensions"))
    summary = pytest.importorskip("summary", reason="needs Sphinx, of the extra docs")
    reference = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").glob("*.md"))
    homes = {summary.place(deepzero, name).rpartition(".")[0] for name in deepzero.__all__} - {"deepzero"}
    assert {"deepzero.estimator", "deepzero.evaluators"} <= homes
    assert [home for home in homes if f"automodule:: {home}\n" not in reference] == []
