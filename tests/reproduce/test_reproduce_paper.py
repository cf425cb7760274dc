"""Tables and figures of made-up outcomes: means and deviations by hand, and the paper's numbers beside them."""

from __future__ import annotations

import pytest
from made_up import cells_of, shown

from deepzero.report.figures import Figure, Series, Table
from deepzero.reproduce import SingleMeasurement
from deepzero.reproduce.paper.published import FIG1D
from deepzero.reproduce.presentation import Outcomes


def row(table: Table, *begin: str) -> dict[str, str]:
    """The row that begins with some texts, by column."""
    [found] = [r for r in table.rows if tuple(r[: len(begin)]) == begin]
    return dict(zip(table.columns, found, strict=True))


def percent(runs: Outcomes) -> str:
    """Mean and standard deviation of the accuracy of three runs, written out."""
    a, b, c = (100 * run.result["test_accuracy"] for run in runs)
    mean = (a + b + c) / 3
    return f"{mean:.2f} ± {(((a - mean) ** 2 + (b - mean) ** 2 + (c - mean) ** 2) / 2) ** 0.5:.2f} (3)"


def curve(figure: Figure, name: str) -> Series:
    [found] = [s for s in figure.series if s.name == name]
    return found


def test_figure_1d() -> None:
    presented, outcomes = shown("fig1d", "paper")
    [table], [figure, published] = presented.tables, presented.figures
    runs = outcomes.where(method="Align-ada")
    assert [run.result["test_accuracy"] for run in runs] == [0.302, 0.307, 0.312]
    line = row(table, "Align-ada")
    assert line["test accuracy, %"] == percent(runs) == "30.70 ± 0.50 (3)"
    assert line["time of a run"] == "67.0 s"
    assert line["parameters"] == "5,002"
    assert (line["paper: parameters"], line["paper: accuracy, %"]) == ("14,178,314", "58.00")
    ours = curve(figure, "DeepZero")
    assert (ours.x, ours.y, ours.spread) == ([5000], [pytest.approx(30.5)], [pytest.approx(0.5)])
    assert all(s.reference for s in published.series)
    assert {s.name: (s.x, s.y) for s in published.series} == {
        f"{method}, paper": ([parameters], [accuracy]) for method, (parameters, accuracy) in FIG1D.items()
    }


def test_figure_2() -> None:
    presented, outcomes = shown("fig2")
    accuracy, time, errors = presented.tables
    line = row(accuracy, "730")
    assert line["CGE"] == percent(outcomes.where(method="CGE", d=730))
    assert (line["paper: FO"], line["paper: CGE"], line["paper: RGE"]) == ("42.09", "41.65", "37.53")
    assert row(accuracy, "9640")["CGE"] == "—"
    assert row(accuracy, "9640")["paper: CGE"] == "76.07"
    assert list(time.columns) == ["d", "FO", "CGE"]
    assert [list(r) for r in errors.rows] == [["730", "1.100 ± 0.141 (2)", "1.001", "2.50e-04"]]
    references = presented.figures[1].series
    assert all(s.reference for s in references)
    assert [s.name for s in references] == ["FO, paper", "CGE, paper", "RGE, paper"]
    assert references[0].x == [730, 3700, 6670, 9640, 12610]
    assert [c.labels["d"] for c in cells_of("fig2", "paper") if c.labels["method"] == "CGE"][:5] == references[0].x


def test_table_a1() -> None:
    presented, _ = shown("tabA1")
    [table], [figure] = presented.tables, presented.figures
    line = row(table, "3,700", "RGE")
    assert [line[name] for name in ("directions", "perturbation", "inference", "arithmetic", "all")] == [
        "0.25",
        "0.5",
        "0.75",
        "1",
        "2.5",
    ]
    assert [line[f"paper: {name}"] for name in ("directions", "perturbation", "inference", "arithmetic")] == [
        "1.43",
        "1.2",
        "2.11",
        "1.1",
    ]
    assert row(table, "12,610", "CGE")["paper: inference"] == "14.6"
    propagated = row(table, "730", "CGE, difference propagation")
    assert (propagated["all"], propagated["directions"]) == ("0.600 ± 0.141 (2)", "—")
    hours = curve(figure, "CGE")
    assert hours.x == [730, 3700, 6670, 9640, 12610]
    assert hours.y[0] == pytest.approx(2.5 * 390 * 50 / 3600)
    assert curve(figure, "CGE, difference propagation").y[0] == pytest.approx(0.6 * 390 * 50 / 3600)


def test_figure_3() -> None:
    presented, _ = shown("fig3")
    [table], [figure] = presented.tables, presented.figures
    assert row(table, "3,700") == {
        "d": "3,700",
        "no reuse": "9",
        "feature reuse": "4",
        "difference propagation": "0.5",
        "gain by reuse": "2.0x (1.0 to 4.0)",
        "gain by propagation": "17.0x (8.5 to 34.0)",
    }
    assert curve(figure, "no reuse").y == [8.0, 9.0, 10.0, 11.0, 12.0]


def test_figure_4() -> None:
    presented, outcomes = shown("fig4", "paper")
    accuracy, time = presented.tables
    bars, published, course = presented.figures
    line = row(accuracy, "90 %")
    runs = outcomes.where(method="DeepZero", **{"sparsity, %": 90})
    assert line["DeepZero"] == percent(runs)
    assert line["paper: DeepZero"] == "86.46"
    assert line["paper: FO, sparse weights"] == "86.25"
    assert line["paper: FO, sparse gradients"] == "88.55"
    dense = row(accuracy, "0 %")
    assert dense["FO, dense"] == percent(outcomes.where(method="FO, dense"))
    assert (dense["paper: FO, dense"], dense["DeepZero"]) == ("92.85", "—")
    assert [r[0] for r in accuracy.rows] == [r[0] for r in time.rows] == ["0 %", "80 %", "90 %", "95 %", "99 %"]
    assert curve(published, "DeepZero, paper").y == [86.94, 86.46, 84.26, 73.37]
    assert curve(bars, "DeepZero").x == [80, 90, 95, 99]
    assert [s.name for s in course.series] == ["DeepZero at 90 %", "FO, dense"]
    assert course.series[0].x == [float(epoch) for epoch in range(1, 51)]
    assert course.series[0].y[-1] == pytest.approx(100 * runs.mean("test_accuracy"))
    assert course.series[0].y[24] == pytest.approx(50 * runs.mean("test_accuracy"))


def test_figure_5() -> None:
    presented, outcomes = shown("fig5", "paper")
    accuracy, time, queries = presented.tables
    runs = outcomes.where(method="Pattern Search, fast", **{"training images": 1000})
    a, b, c = (run.result["seconds"] for run in runs)
    assert row(time, "1,000")["Pattern Search, fast"] == f"{(a + b + c) / 3:.1f} s"
    assert row(accuracy, "1,000")["Pattern Search, fast"] == percent(runs)
    assert row(queries, "1,000")["Pattern Search, fast"] == "1,000"
    by_images = curve(presented.figures[1], "Pattern Search, fast")
    assert by_images.x == [100, 500, 1000, 2000, 4000, 8000, 16_000, 32_000]
    assert by_images.y[2] == pytest.approx((a + b + c) / 3)


def test_table_1() -> None:
    presented, outcomes = shown("tab1", "paper")
    [table], [ours, theirs] = presented.tables, presented.figures
    runs = outcomes.where(method="DFA", width=512)
    line = row(table, "DFA", "512")
    assert line["test accuracy, %"] == percent(runs)
    assert line["parameters"] == f"{runs[0].result['parameters']:,}"
    published = row(table, "DeepZero, paper", "64")
    assert (published["test accuracy, %"], published["time of a run"]) == ("64.10", "28.15 h")
    assert row(table, "Align-ada, paper", "512")["test accuracy, %"] == "58.00"
    assert curve(theirs, "FA, paper").y == [46.5, 45.4]
    assert curve(ours, "FA").x == [64, 512]


@pytest.mark.parametrize(
    ("name", "ratio", "published"),
    [("tabA2", 95, ("82.51", "85.48", "84.80")), ("tabA3", 80, ("94.58", "95.97", "95.28"))],
)
def test_tables_a2_and_a3(name: str, ratio: int, published: tuple[str, str, str]) -> None:
    presented, outcomes = shown(name, "paper")
    line = row(presented.tables[0], f"{ratio} %")
    assert line["ZO-GraSP"] == percent(outcomes.where(method="ZO-GraSP", **{"pruned, %": ratio}))
    assert tuple(line[f"paper: {method}"] for method in ("random", "FO-GraSP", "ZO-GraSP")) == published
    assert curve(presented.figures[1], "random, paper").x == [10, 20, 30, 40, 50, 60, 70, 80, 90, 95]


def test_figure_a3() -> None:
    presented, outcomes = shown("figA3", "paper")
    line = row(presented.tables[0], "95 %")
    assert list(line) == ["pruned, %", "M1", "M2", "Smart-Ratio", "ZO-GraSP ratios"]
    assert line["M2"] == percent(outcomes.where(method="M2", **{"pruned, %": 95}))


def test_figure_a5() -> None:
    presented, outcomes = shown("figA5", "paper")
    [table], [accuracy, time] = presented.tables, presented.figures
    runs = outcomes.where(**{"batch size": 256})
    a, b, c = (run.result["seconds"] for run in runs)
    line = row(table, "256")
    assert line["test accuracy, %"] == percent(runs)
    assert line["minutes an epoch"] == f"{(a + b + c) / 3 / 50 / 60:.2f}"
    assert line["steps"] == "500"
    assert dict(zip(time.series[0].x, time.series[0].y, strict=True))[256] == pytest.approx((a + b + c) / 9000)
    assert curve(accuracy, "DeepZero").x == [128, 256, 512, 1024, 2048, 4096]


def test_figure_a6() -> None:
    presented, _ = shown("figA6")
    [table], [figure] = presented.tables, presented.figures
    assert [list(r) for r in table.rows] == [
        ["1", "450", "1.00", "450", "1.00"],
        ["2", "800", "1.78", "900", "2.00"],
        ["4", "—", "—", "1,800", "4.00"],
        ["8", "—", "—", "3,600", "8.00"],
    ]
    assert curve(figure, "measured").y == [450.0, 800.0]


def test_coordinate_schedules() -> None:
    presented, outcomes = shown("schedules")
    table, by_queries = presented.tables
    assert [row[0] for row in by_queries.rows] == ["Smart-Ratio, every step", "cost^(-1/2)"]
    assert by_queries.rows[0][1].endswith("(1)")
    assert {o.labels["seed"] for o in outcomes.where(gradient="CGE")} == {0}
    runs = outcomes.where(network="CNN, depth 5", rule="dense")
    line = row(table, "dense")
    assert line["CNN, depth 5: test accuracy, %"] == runs.percent()
    at = list(table.columns).index("CNN, depth 5: test accuracy, %")
    assert table.rows[-1][at + 1] == "8"  # the base and 3 + 4 coordinates
    assert table.rows[-1][at + 2] == "1.0 s"  # 0.5 + 3 * 0.1 + 4 * 0.05
    queries, seconds = presented.figures[:2]
    assert (queries.x_label, seconds.x_label) == ("queries", "seconds on one thread, predicted")
    ours = curve(queries, "dense")
    assert ours.x == pytest.approx([8 * 10 * epoch for epoch in range(1, 9)])
    assert curve(seconds, "dense").x == pytest.approx([1.0 * 10 * epoch for epoch in range(1, 9)])
    first = outcomes.where(network="CNN, depth 3", rule="dense")
    assert ours.y[-1] == pytest.approx(100 * first.mean("test_accuracy"))


def test_schedules_without_a_cost_table_show_queries_only() -> None:
    count = len([c for c in cells_of("schedules", "small") if isinstance(c.work, SingleMeasurement)])
    presented, _ = shown("schedules", "small", lambda n: n >= count)
    assert {figure.x_label for figure in presented.figures} == {"queries"}
    assert "—" in presented.tables[0].rows[0]


def test_the_deepzero_of_the_paper_scales_is_the_recipe_of_the_paper() -> None:
    """Sec. 6: learning rate 0.1, momentum 0.9, weight decay 5e-4, step size 5e-3, Smart-Ratio at 90 %, 50 epochs."""
    [cell] = [c for c in cells_of("fig4", "paper") if c.labels == {"sparsity, %": 90, "method": "DeepZero", "seed": 0}]
    config = cell.work.config
    [other] = [c for c in cells_of("fig1d", "paper") if c.labels == {"method": "DeepZero", "seed": 0}]
    assert other.work.config == config
    assert config.model.name == "resnet20"
    assert (config.estimator.method, config.estimator.step_size) == ("cge", 5e-3)
    assert (config.sparsity.sparsity, config.sparsity.ratios, config.sparsity.every) == (0.9, "smart-ratio", 5)
    training = config.training
    assert (training.epochs, training.learning_rate, training.momentum, training.weight_decay) == (50, 0.1, 0.9, 5e-4)
    assert training.schedule == "cosine"
