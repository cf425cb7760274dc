"""Difference rules on a GPU: every operation and structure that is tested on the CPU, against full forwards there."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import pretended
import pytest
import torch
import torch.nn.functional as F
from every_kind import SHAPE, EveryKind, Op, groups
from oracle import TOLERANCE, assert_agrees, estimate, initialize, normal, ramp_loss, seeded, some_coordinates
from test_graph_structures import IMAGES, LABELS, STRUCTURES, TinyLanguageModel
from test_rules_modules import MODULES
from test_rules_pointwise import BROADCASTING, POINTWISE
from test_rules_pooling import POOLING
from test_rules_products import ATTENTION, PRODUCTS
from test_rules_reduction import DISCRETE, REDUCTIONS
from test_rules_shape import SHAPES
from torch import Tensor, nn

import deepzero as dz

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:Using padding='same'")]
There = Callable[[Any], Any]

ROUNDED = {"weight_norm": 1e-5}
"""Structures of which the full forwards are coarse: the CUDA kernel of weight norm takes its root in float32."""

OPERATIONS: dict[str, Op] = {**POINTWISE, **BROADCASTING, **POOLING, **PRODUCTS, **ATTENTION, **REDUCTIONS, **SHAPES}


def relocated(op: Op, there: There) -> Op:
    """The operation with the constants of its module there."""
    if not isinstance(op, FunctionType):
        return op
    constants = {name: there(value) for name, value in op.__globals__.items() if isinstance(value, Tensor)}
    names = {**op.__globals__, **constants, "normal": lambda *shape, **options: there(normal(*shape, **options))}
    return FunctionType(op.__code__, names, op.__name__, op.__defaults__, op.__closure__)


def runs_there(op: Op, z: Tensor) -> bool:
    """Whether an operation takes its input where that lies: some make operands on the CPU as they go."""
    try:
        op(z)
    except RuntimeError as error:
        if "same device" not in str(error):
            raise
        return False
    return True


def check(ops: dict[str, Op], there: There) -> None:
    z = there(normal(*SHAPE))
    if z.device.type != pretended.NAME:  # torch.export takes no constants of its kind
        ops = {name: relocated(op, there) for name, op in ops.items()}
    fit = {name: op for name, op in ops.items() if isinstance(op, nn.Module) or runs_there(op, z)}
    assert 2 * len(fit) >= len(ops), f"too few operations run there: {sorted(fit)}"
    model = initialize(EveryKind(fit))
    with torch.no_grad():
        model.table.copy_(normal(*SHAPE, seed=9))
    coordinates = some_coordinates(model, most=3)
    assert_agrees(there(model), ramp_loss, there(normal(2, 2, 6, 5, seed=3)), sparsity=coordinates)


@pytest.mark.parametrize("ops", groups({**OPERATIONS, **DISCRETE}, size=24))
def test_operation(ops: dict[str, Op], there: There) -> None:
    check(ops, there)


@pytest.mark.parametrize("makers", groups(MODULES, size=24))
def test_module(makers: dict[str, Callable[[], nn.Module]], there: There) -> None:
    check({name: make() for name, make in makers.items()}, there)


@pytest.mark.parametrize("name", [name for name in STRUCTURES if name != "quantized"])
def test_structure(name: str, there: There, device: torch.device) -> None:
    model = initialize(STRUCTURES[name]())
    some = some_coordinates(model, most=4)
    tolerance = ROUNDED.get(name, TOLERANCE) if device.type == "cuda" else TOLERANCE
    assert_agrees(there(model), F.cross_entropy, *there((IMAGES, LABELS)), sparsity=some, tolerance=tolerance)


def test_rules_pass_their_check_where_full_forwards_are_coarse(there: There) -> None:
    model = there(initialize(STRUCTURES["weight_norm"]()))
    estimate(model, F.cross_entropy, *there((IMAGES, LABELS)), dz.PropagationEvaluator())


def test_language_model(there: There) -> None:
    tokens = torch.randint(0, 7, (3, 5), generator=seeded(2))
    model = initialize(TinyLanguageModel())
    some = some_coordinates(model, most=8)
    assert_agrees(there(model), F.cross_entropy, *there((tokens, tokens.roll(-1, 1))), sparsity=some)


@pytest.mark.parametrize("train", [True, False])
def test_encoder_layer(train: bool, there: There) -> None:
    layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True, norm_first=True)
    model = initialize(nn.Sequential(layer, nn.Flatten())).train(train)
    some = some_coordinates(model, most=6)
    assert_agrees(there(model), F.mse_loss, *there((normal(2, 5, 6), normal(2, 30, seed=8))), sparsity=some)
