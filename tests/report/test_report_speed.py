"""Tables and figures of a record of speeds, of numbers that were made up."""

from __future__ import annotations

from typing import Any

import pytest

from deepzero.report.speed_figures import growth_figure, speed_figure, speed_tables


def spread(*rounds: float) -> dict[str, Any]:
    return {"median": sorted(rounds)[len(rounds) // 2], "min": min(rounds), "max": max(rounds), "rounds": rounds}


def case(name: str, count: int, **ratios: dict[str, Any]) -> dict[str, Any]:
    return {
        "case": name,
        "coordinates": {"count": count},
        "sides": {
            "deepzero": {"queries_per_second": spread(500.0), "form": None},
            "naive": {"form": {"taken": "channels_last, no_grad"}},
        },
        "ratios": {f"deepzero/{loop}": ratio for loop, ratio in ratios.items()},
        "errors": {"rounding": {"deepzero": 1e-6, "naive": 2e-3}},
        "floor": {
            "ceilings_of_one_thread": {"product": 1.4e11, "convolution": 1.3e11, "copy": 25e9},
            "work_of_a_query": {"operations": 8e6, "bytes": 3e6, "seconds": 1e-3},
            "reached": spread(0.25),
        },
        "profile": {"rules": {"add": 0.04, "conv2d": 0.7, "other": 0.01, "relu": 0.2, "view": 0.05}},
        "memory": [{"growth": 300 << 20}],
    }


def content(threads: int = 2) -> dict[str, Any]:
    fast = case("cnn", 12_610, naive=spread(20.0, 26.0, 30.0), block_reuse=spread(9.0, 9.8, 10.0))
    noisy = case("gpt", 100, naive=spread(0.4), naive_float64=spread(1.3))
    return {"environment": {"threads": threads}, "cases": [fast, noisy], "growth": []}


def test_a_case_is_a_row() -> None:
    speed, floor = speed_tables(content())
    first, second = speed.rows
    assert speed.title == "Speed on 2 threads"
    assert list(first[:5]) == [
        "cnn",
        "500",
        "26.0x (20.0 to 30.0)",
        "channels_last, no_grad",
        "9.8x (9.0 to 10.0)",
    ]
    assert list(first[5:]) == ["1e-06", "2e-03", "1,000 µs", "25%", "300 MiB"]
    assert second[4] == "-"
    assert second[6] == "2e-03 (float64: 1.30x (1.30 to 1.30))"
    assert floor.rows[0][:6] == ["cnn", "8 M", "3 MB", "1,000 µs", "4,000 µs", "25%"]
    assert floor.rows[0][6] == "conv2d 70%, relu 20%, view 5%, add 4%"
    assert "products 140 and convolutions 130 GFLOP/s, a copy 25.0 GB/s" in floor.note


def test_cases_stand_at_their_coordinates() -> None:
    figure = speed_figure([content()])
    assert [series.name for series in figure.series] == [
        "over the best plain loop",
        "over the loop with block reuse",
        "over the best plain loop in float64",
    ]
    assert (figure.series[0].x, figure.series[0].y) == ([100, 12_610], [0.4, 26.0])
    assert figure.series[0].spread == pytest.approx([0.0, 5.0])
    both = speed_figure([content(1), content(2)])
    assert [s.name for s in both.series][0::3] == [
        "over the best plain loop, one thread",
        "over the best plain loop, 2 threads",
    ]


def test_growth_is_over_the_smallest_size() -> None:
    points = [
        {"curve": "batch", "at": 128, "seconds_per_query": 6e-3},
        {"curve": "batch", "at": 32, "seconds_per_query": 2e-3},
        {"curve": "threads", "at": 1, "seconds_per_query": 1e-3},
    ]
    batch, threads, linear = growth_figure(points).series
    assert (list(batch.x), list(batch.y)) == ([1.0, 4.0], [1.0, 3.0])
    assert (list(threads.x), list(threads.y)) == ([1.0], [1.0])
    assert linear.reference
    assert list(linear.x) == [1.0, 4.0]
