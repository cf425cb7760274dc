"""How far a query goes: the forms of ``step_size``, what they come to, what is refused, and that slopes are right in any unit and dtype."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close, initialize, normal
from torch import Tensor, nn

import deepzero as dz
from deepzero.errors import CheckpointError, InvalidInputError
from deepzero.probes import RandomPerturbations, RandomProbes
from deepzero.step_sizes import FromDtype, FromNoise, as_step_size, relative_noise, size_of

X, Y = normal(6, 4), torch.tensor([0, 1, 2, 1, 0, 2])
UNITS = [1e-8, 1e-4, 1.0, 1e4, 1e8]
EPS = {torch.float32: torch.finfo(torch.float32).eps, torch.float64: torch.finfo(torch.float64).eps}


def linear(dtype: torch.dtype = torch.float64) -> nn.Linear:
    return initialize(nn.Linear(4, 3), dtype=dtype)


def rms(tensor: Tensor) -> float:
    return float(tensor.detach().double().square().mean().sqrt())


class TestForms:
    def test_a_number_is_everyone_s(self) -> None:
        zo = dz.CGE(linear(), loss=F.cross_entropy, step_size=5e-3)
        assert zo.step_sizes() == {"weight": 5e-3, "bias": 5e-3}
        assert zo.step_size == 5e-3

    def test_a_mapping_names_every_parameter(self) -> None:
        zo = dz.CGE(linear(), loss=F.cross_entropy, step_size={"bias": 1e-2, "weight": 1e-3})
        assert zo.step_sizes() == {"weight": 1e-3, "bias": 1e-2}
        assert zo.step_size == 1e-2

    def test_a_share_follows_the_parameters(self) -> None:
        model = linear()
        zo = dz.CGE(model, loss=F.cross_entropy, step_size={"relative": 1e-3})
        assert zo.step_sizes() == pytest.approx({n: 1e-3 * rms(p) for n, p in model.named_parameters()})
        with torch.no_grad():
            model.weight.mul_(10)
            model.bias.zero_()
        assert zo.step_sizes() == pytest.approx({"weight": 1e-3 * rms(model.weight), "bias": 1e-3})

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_by_default_the_dtype_says(self, dtype: torch.dtype) -> None:
        """The cube root of the rounding unit, in units of what is larger than 1."""
        model = linear(dtype)
        with torch.no_grad():
            model.bias.fill_(50)
        sizes = dz.CGE(model, loss=F.cross_entropy).step_sizes()
        assert sizes == pytest.approx({"weight": EPS[dtype] ** (1 / 3), "bias": 50 * EPS[dtype] ** (1 / 3)})

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_types_count_as_float32(self, dtype: torch.dtype) -> None:
        sizes = dz.CGE(linear(dtype), loss=F.cross_entropy).step_sizes()
        assert sizes["bias"] == pytest.approx(EPS[torch.float32] ** (1 / 3))

    @pytest.mark.parametrize("asked", [5e-3, {"weight": 1e-3, "bias": 1e-2}, {"relative": 1e-3}, "auto", None])
    def test_a_state_is_json(self, asked: Any) -> None:
        zo = dz.CGE(linear(), loss=F.cross_entropy, step_size=asked)
        zo.backward(X, Y)
        state = json.loads(json.dumps(zo.state_dict()))
        resumed = dz.CGE(linear(), loss=F.cross_entropy, step_size=asked)
        resumed.load_state_dict(state)
        assert resumed.state_dict() == zo.state_dict()
        with pytest.raises(CheckpointError, match=r"another estimator.*step_size: .* -> 0.25"):
            dz.CGE(linear(), loss=F.cross_entropy, step_size=0.25).load_state_dict(state)


def test_the_size_of_values_whose_squares_overflow() -> None:
    assert size_of(torch.tensor([3e200, 4e200], dtype=torch.float64)) == pytest.approx(12.5**0.5 * 1e200)
    assert size_of(torch.tensor([1.0, math.inf])) == 1.0


class TestRefused:
    @pytest.mark.parametrize(
        ("asked", "message"),
        [
            (0.0, "step_size must be"),
            (-1e-3, "step_size must be"),
            (float("nan"), "step_size must be"),
            (float("inf"), "step_size must be"),
            ("small", r"step_size must be a number.*mapping.*relative.*auto.*got 'small'"),
            ({"relative": 0.0}, r'step_size\["relative"\] must be'),
            ({"weight": 1e-3}, "step_size names no step for bias; give one for every trainable parameter"),
            ({"weight": 1e-3, "bias": 1e-3, "bais": 1e-3}, "step_size.*bais"),
            ({"weight": 1e-3, "bias": -1.0}, "step_size of bias must be"),
            ({}, "step_size names no step for bias, weight"),
        ],
    )
    @pytest.mark.parametrize("make", [dz.CGE, dz.RGE])
    def test_forms(self, make: Any, asked: Any, message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            make(linear(), loss=F.cross_entropy, step_size=asked)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    @pytest.mark.parametrize("size", [1e-300, 1e-200, 1e200, 1e300])
    def test_what_differences_cannot_hold(self, size: float, dtype: torch.dtype) -> None:
        with pytest.raises(
            InvalidInputError, match=r"step_size=1e[+-]\d+ for weight .*differences can hold.*try step_size="
        ):
            dz.CGE(linear(dtype), loss=F.cross_entropy, step_size=size)

    @pytest.mark.parametrize("size", [1e-30, 1e-25, 1e25])
    def test_what_float32_cannot_hold(self, size: float) -> None:
        with pytest.raises(
            InvalidInputError, match=r"float32 differences can hold, 1e-19 to 2e\+19; try step_size=0.005"
        ):
            dz.CGE(linear(torch.float32), loss=F.cross_entropy, step_size=size)

    @pytest.mark.parametrize("stencil", ["forward", "central"])
    def test_a_step_that_vanishes(self, stencil: str) -> None:
        """With the coordinate, its value, and a step that works."""
        values = torch.tensor([1.0, 3e8, 2.0])
        box = dz.BlackBox(lambda p: float(p["w"].double().sum()), {"w": values})
        with pytest.raises(
            InvalidInputError,
            match=r"step of 0.001 vanishes in w\[1\] = 3e\+08.*float32.*give step_size=(\S+) or more.*auto",
        ) as error:
            dz.CGE(box, step_size=1e-3, stencil=stencil).estimate()
        advised = float(str(error.value).split("give step_size=")[1].split()[0])
        found = dz.CGE(box, step_size=advised, stencil=stencil).estimate().gradients["w"]
        torch.testing.assert_close(found, torch.ones(3), rtol=1e-6, atol=0)

    def test_a_direction_that_is_mostly_rounding(self) -> None:
        box = dz.BlackBox(lambda p: float(p["w"].double().sum()), {"w": torch.full((5,), 1e4)})
        with pytest.raises(
            InvalidInputError, match=r"gaussian direction 0 moved by 0.0001 is mostly rounding.*larger step_size"
        ):
            dz.RGE(box, step_size=1e-4, queries=2).estimate()


class TestTaken:
    """A difference is divided by the step that rounding leaves, not by the one that was asked for."""

    @pytest.mark.parametrize("stencil", ["forward", "central"])
    @pytest.mark.parametrize("value", [1e3, 1e4, 1e5])
    def test_coordinates(self, value: float, stencil: str) -> None:
        box = dz.BlackBox(lambda p: p["w"].astype(float).sum(), {"w": np.full(3, value, dtype=np.float32)})
        found = dz.CGE(box, step_size=1.1e-2, stencil=stencil).estimate().gradients["w"]
        torch.testing.assert_close(found, torch.ones(3), rtol=1e-6, atol=0)

    @pytest.mark.parametrize("stencil", ["forward", "central"])
    def test_directions(self, stencil: str) -> None:
        """Along a random direction the slope of a linear function is the direction's sum, whatever the rounding does to the step."""
        values = torch.full((40,), 1e3)
        box = dz.BlackBox(lambda p: float((p["w"].double() * weights).sum()), {"w": values})
        weights = torch.ones(40, dtype=torch.float64)
        zo = dz.RGE(box, step_size=5e-4, queries=1, stencil=stencil, distribution="rademacher")
        u = zo.probes.draw(dz.coordinates.StepContext(0, 0, box, (), {})).direction(0)["w"]
        expected = float((u.double() * weights).sum())
        found = zo.estimate().gradients["w"]
        assert float((found * u).mean()) == pytest.approx(expected, abs=0.3 * 40**0.5)

    @pytest.mark.parametrize("stencil", ["forward", "central"])
    @pytest.mark.parametrize("make", [dz.CGE, lambda *a, **k: dz.RGE(*a, queries=3, **k)], ids=["cge", "rge"])
    def test_steps_of_their_own_give_the_same_slopes(self, make: Any, stencil: str) -> None:
        """Of a linear function, whatever the step of each parameter."""
        closure = lambda m, x: (m(x) * torch.arange(3.0).double()).sum()  # noqa: E731
        same = make(linear(), closure=closure, step_size=1e-3, stencil=stencil).estimate(X).gradients
        own = (
            make(linear(), closure=closure, step_size={"weight": 1e-2, "bias": 1e-4}, stencil=stencil)
            .estimate(X)
            .gradients
        )
        if make is dz.CGE:
            assert_close(own, same, 1e-8)
        else:  # one slope a direction: the share of each parameter in it is its own
            assert own["weight"].isfinite().all()

    def test_random_directions_with_steps_of_their_own_are_unbiased(self) -> None:
        weights = torch.tensor([3.0, -1.0]).double()
        start = {"a": torch.zeros(1).double(), "b": torch.zeros(1).double()}
        box = dz.BlackBox(lambda p: float(p["a"] * weights[0] + p["b"] * weights[1]), start)
        zo = dz.RGE(box, step_size={"a": 1e-2, "b": 1e-3}, queries=4000, distribution="rademacher")
        found = zo.estimate().gradients
        spread_a, spread_b = 0.1 * 1 / 4000**0.5, 10 * 3 / 4000**0.5
        assert float(found["a"]) == pytest.approx(3, abs=4 * spread_a)
        assert float(found["b"]) == pytest.approx(-1, abs=4 * spread_b)

    @pytest.mark.parametrize("make", [dz.CGE, lambda *a, **k: dz.RGE(*a, queries=3, **k)], ids=["cge", "rge"])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_networks(self, dtype: torch.dtype, make: Any) -> None:
        """Against the same network and values in float64."""
        model = initialize(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), dtype=dtype)
        wide = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        wide.load_state_dict(model.state_dict())
        x = X.to(dtype)
        zo = make(model, loss=F.cross_entropy)
        found = zo.estimate(x, Y).gradients
        gradient = torch.autograd.grad(F.cross_entropy(wide(x.double()), Y), list(wide.parameters()))
        expected = dict(zip(found, gradient, strict=True))
        if make is not dz.CGE:
            directions = zo.probes.draw(dz.coordinates.StepContext(0, 0, zo.objective, (x, Y), {}))
            along = {name: torch.zeros_like(g) for name, g in expected.items()}
            for k in range(3):
                u = {name: part.double() for name, part in directions.direction(k).items()}
                slope = sum(float((u[name] * g).sum()) for name, g in expected.items())
                for name in along:
                    along[name] += slope * u[name] / 3
            expected = along
        unit = torch.finfo(dtype).eps
        assert_close({n: g.double() for n, g in found.items()}, expected, 8 * unit)


def smooth(unit: float, noise: float, dtype: torch.dtype) -> tuple[dz.BlackBox, Tensor]:
    """``sum(sin(w/unit + 0.5 i))`` about ``w = unit``, with relative noise, and its gradient."""
    values = torch.full((3,), unit, dtype=dtype)
    phase = torch.arange(3, dtype=torch.float64) * 0.5
    generator = torch.Generator().manual_seed(0)

    def fn(params: dict[str, Tensor]) -> float:
        value = 3 + float(torch.sin(params["w"].double() / unit + phase).sum())
        return value * (1 + noise * float(torch.randn((), generator=generator, dtype=torch.float64)))

    at = values.double() / unit + phase
    return dz.BlackBox(fn, {"w": values}), torch.cos(at) / unit


class TestAuto:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("noise", [0.0, 1e-9, 1e-7])
    @pytest.mark.parametrize("unit", UNITS)
    def test_black_boxes_of_any_unit(self, unit: float, noise: float, dtype: torch.dtype) -> None:
        box, exact = smooth(unit, noise, dtype)
        found = dz.CGE(box, step_size="auto", stencil="central").estimate().gradients["w"].double()
        error = float((found - exact).abs().max() / exact.abs().max())
        assert error < 2e-2

    @pytest.mark.parametrize("unit", UNITS)
    def test_more_noise_makes_longer_steps(self, unit: float) -> None:
        sizes = []
        for noise in (0.0, 1e-8, 1e-4):
            zo = dz.CGE(smooth(unit, noise, torch.float64)[0], step_size="auto")
            zo.estimate()
            sizes.append(zo.step_size / unit)
        assert sizes[0] < sizes[1] < sizes[2]

    def test_the_queries_of_the_measurement_are_counted(self) -> None:
        zo = dz.CGE(smooth(1.0, 0.0, torch.float64)[0], step_size="auto")
        zo.backward()
        assert zo.queries == 8 + 4
        zo.backward()
        assert zo.queries == 8 + 8

    def test_a_checkpoint_keeps_the_noise(self) -> None:
        zo = dz.CGE(smooth(1.0, 1e-6, torch.float64)[0], step_size="auto")
        zo.backward()
        state = json.loads(json.dumps(zo.state_dict()))
        assert state["noise"] > 1e-8
        resumed = dz.CGE(smooth(1.0, 0.0, torch.float64)[0], step_size="auto")
        resumed.load_state_dict(state)
        assert resumed.step_size == zo.step_size
        resumed.backward()
        assert resumed.queries == zo.queries + 4  # not measured again

    @pytest.mark.parametrize("make", [dz.CGE, lambda *a, **k: dz.RGE(*a, queries=4, **k)], ids=["cge", "rge"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_networks(self, make: Any, dtype: torch.dtype) -> None:
        model = linear(dtype)
        zo = make(model, loss=F.cross_entropy, step_size="auto", stencil="central")
        found = zo.estimate(X.to(dtype), Y).gradients
        fine = make(linear(), loss=F.cross_entropy, step_size=1e-5, stencil="central")
        if make is dz.CGE:
            expected = fine.estimate(X, Y).gradients
            assert_close({n: g.double() for n, g in found.items()}, expected, 2e-2)
        else:
            assert all(g.isfinite().all() for g in found.values())
            assert 0 < zo.step_size < 0.1

    def test_directions_of_ones_own_are_not_taken_for_exact(self) -> None:
        """Only coordinates have differences without the noise of the loss; of others it is measured, whoever made them."""

        class Own:
            def draw(self, context: dz.coordinates.StepContext) -> RandomPerturbations:
                return RandomProbes(2).draw(context)

            def state(self) -> dict[str, object]:
                return {"probes": "own"}

        objective = dz.NetworkObjective(linear(torch.float32), F.cross_entropy)
        zo = dz.Estimator(objective, probes=Own(), evaluator=dz.AutomaticEvaluator(), step_size="auto")
        zo.estimate(X.float(), Y)
        assert zo.step_rule.noise > 0

    def test_the_noise_of_a_table_of_differences(self) -> None:
        """The measured level is that of the noise that was put in, within a factor of 4."""
        for level in (1e-10, 1e-6, 1e-3):
            generator = torch.Generator().manual_seed(3)
            loss = lambda p: 5.0 + 5.0 * level * float(torch.randn((), generator=generator, dtype=torch.float64))  # noqa: B023, E731
            found = relative_noise(loss, {"w": torch.ones(4).double()}, seed=0)
            assert level / 4 < found < level * 4

    @pytest.mark.parametrize("value", [0.0, float("nan")])
    def test_a_function_without_a_scale_has_no_noise(self, value: float) -> None:
        assert relative_noise(lambda p: value, {"w": torch.ones(2)}, seed=0) == 0.0

    def test_descriptions(self) -> None:
        assert as_step_size("auto", order=2).describe() == "auto"
        assert as_step_size(None, order=1).describe() is None
        assert isinstance(as_step_size(None, order=1), FromDtype)
        assert isinstance(as_step_size("auto", order=2), FromNoise)
        assert FromNoise(1, 1e-8).of({"w": torch.ones(2).double()})["w"] == pytest.approx(1e-4)
        assert FromNoise(2, 1e-9).of({"w": torch.ones(2).double()})["w"] == pytest.approx(1e-3)
