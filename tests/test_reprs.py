"""What an interpreter shows of estimators, objectives and estimates: what they are of, in a line."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import deepzero as dz


def error(p: dict[str, Any]) -> float:
    return float((p["w"] ** 2).sum())


def test_a_black_box_shows_its_function_and_shapes() -> None:
    assert repr(dz.BlackBox(error, {"w": np.ones((2, 3))})) == "BlackBox(error, {w: [2, 3]})"
    assert repr(dz.BlackBox(lambda x: 1.0, np.ones(3), batched=4)) == "BlackBox(a lambda, {x: [3]}, batched=4)"


def test_an_estimator_shows_its_four_choices_and_its_counters() -> None:
    zo = dz.CGE(dz.BlackBox(error, {"w": np.ones(2)}), step_size=1e-3, stencil=dz.CENTRAL)
    zo.backward()
    shown = repr(zo)
    for part in ("BlackBox(error", "CoordinateProbes", "central", "0.001", "SequentialEvaluator", "1 steps, 5 queries"):
        assert part in shown, part
    network = repr(dz.RGE(torch.nn.Linear(3, 2), loss=F.cross_entropy, queries=4))
    for part in ("Linear of 8 trainable parameters", "loss=cross_entropy", "queries=4", "step_size=by dtype"):
        assert part in network, part
    closed = dz.CGE(torch.nn.Linear(3, 2), closure=lambda model, x: model(x).square().mean())
    assert "closure=a lambda" in repr(closed)
    assert "loss=MSELoss" in repr(dz.CGE(torch.nn.Linear(3, 2), loss=torch.nn.MSELoss()))


def test_an_estimate_shows_its_loss_and_the_norm_of_its_gradient() -> None:
    estimate = dz.CGE(dz.BlackBox(error, {"w": np.ones(4)}), step_size=1e-6).estimate()
    assert repr(estimate) == "Estimate(loss=4, gradient of norm 4 and 4 entries, queries=5)"
