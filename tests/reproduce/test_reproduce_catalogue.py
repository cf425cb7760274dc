"""Every experiment at every scale: cells, configurations, networks, and what is shown of made-up outcomes."""

from __future__ import annotations

import itertools
import json
import re

import pytest
import torch
from made_up import cells_of, network, shown

from deepzero.report import draw, markdown
from deepzero.reproduce import EXPERIMENTS, SCALES, Outcomes, Training

EVERY = [(name, scale) for name in EXPERIMENTS for scale in SCALES]
every_experiment = pytest.mark.parametrize("name", list(EXPERIMENTS))
every_scale = pytest.mark.parametrize(("name", "scale_name"), EVERY)


@every_experiment
def test_experiments_are_complete(name: str) -> None:
    experiment = EXPERIMENTS[name]
    assert experiment.name == name
    assert tuple(experiment.scales) == SCALES
    assert experiment.title
    for scale in experiment.scales.values():
        assert scale.caption.endswith(".")
        assert scale.caption[0].isupper() or scale.caption.startswith("resnet")


@every_scale
def test_cells_are_told_apart_by_their_names(name: str, scale_name: str) -> None:
    cells = cells_of(name, scale_name)
    assert cells
    found = [cell.name for cell in cells]
    assert len({found.lower() for found in found}) == len(cells)  # some file systems ignore case
    assert all(len(n) < 200 and not re.search(r'[/\\:*?"<>|\n]', n) for n in found)
    assert [cell.name for cell in cells_of(name, scale_name)] == found
    for cell in cells:
        if isinstance(cell.work, Training):
            assert cell.work.config.seed == cell.labels["seed"]
        json.dumps(cell.work.settings())


@every_scale
def test_cells_of_different_names_do_different_things(name: str, scale_name: str) -> None:
    settings = [json.dumps(cell.work.settings()) for cell in cells_of(name, scale_name)]
    assert len(set(settings)) == len(settings)


@every_scale
def test_networks_can_be_built_and_batches_are_full(name: str, scale_name: str) -> None:
    checked = set()
    for cell in cells_of(name, scale_name):
        if not isinstance(cell.work, Training):
            continue
        config = cell.work.config
        key = (config.model.name, json.dumps(dict(config.model.options)), config.data.name, config.data.image_size)
        if key not in checked:
            with torch.device("meta"):
                assert sum(p.numel() for p in network(config).parameters()) > 0
            checked.add(key)
        assert config.data.limit is None or config.data.limit >= config.data.batch_size


@every_scale
def test_the_paper_scale_is_the_full_data_set_and_smoke_needs_none(name: str, scale_name: str) -> None:
    for cell in cells_of(name, scale_name):
        if isinstance(cell.work, Training):
            data = cell.work.config.data
            assert data.name == ("digits" if scale_name == "smoke" else "cifar10")
            if scale_name == "paper" and name not in ("schedules", "fig5") and "Pattern" not in str(cell.labels):
                assert (data.limit, data.image_size) == (None, None)


@every_scale
def test_nothing_is_shown_of_no_outcomes(name: str, scale_name: str) -> None:
    experiment = EXPERIMENTS[name]
    presented = experiment.present(Outcomes([]), experiment.scale(scale_name))
    for figure in presented.figures:
        assert all(series.reference or not len(series.x) for series in figure.series)
        assert draw(figure).startswith("<svg")
    for table in presented.tables:
        assert markdown(table)


@every_scale
def test_what_is_shown_of_some_and_of_all_outcomes(name: str, scale_name: str) -> None:
    """Every third cell, the first alone, the last alone, all but the first, all."""
    count = len(cells_of(name, scale_name))
    kept = (lambda n: n % 3 == 0, lambda n: n == 0, lambda n: n == count - 1, lambda n: n > 0, lambda n: True)
    for keep in kept:
        presented, _ = shown(name, scale_name, keep)
        for series in itertools.chain.from_iterable(figure.series for figure in presented.figures):
            assert all(isinstance(value, (int, float)) for value in (*series.x, *series.y))
    assert all(table.rows for table in presented.tables)
    assert sum(len(s.x) for figure in presented.figures for s in figure.series if not s.reference) > 0
