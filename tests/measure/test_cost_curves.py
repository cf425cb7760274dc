"""The growth of a query's cost."""

from collections import defaultdict

import torch

from deepzero.measure.cases import CASES
from deepzero.measure.cost_curves import PlannedPoint, cost_point, planned_points


def test_a_curve_varies_one_size() -> None:
    curves = defaultdict(list)
    for point in planned_points(2):
        curves[point.curve].append(point)
    assert set(curves) == {"batch", "width", "depth", "share of coordinates", "threads"}
    for name, points in curves.items():
        sizes = [point.at for point in points]
        assert sizes == sorted(set(sizes))
        assert len(sizes) > 1
        assert {point.threads for point in points} == ({1, 2} if name == "threads" else {1})
    assert {point.batch for point in curves["batch"]} == {32, 128, 512}
    assert [point.case.options["width"] for point in curves["width"]] == [9, 18, 36]


def test_a_point_is_measured_beside_a_plain_loop() -> None:
    before = torch.get_num_threads()
    asked = PlannedPoint("batch", 4, CASES["digits"], batch=4, threads=before + 1)
    found = cost_point(asked, step_size=5e-3, seed=0, seconds=0.05)
    assert (found.curve, found.at, found.network, found.queries) == ("batch", 4, "digits", 4955)
    assert min(found.seconds_per_query, found.plain_seconds_per_query, found.setup_seconds) > 0
    assert len(found.ratio.rounds) == 3
    assert torch.get_num_threads() == before
