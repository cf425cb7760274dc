"""A black box's own parameters: a chain of stages that can be run and not differentiated is trained stage by stage."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deepzero as dz
from deepzero.errors import CoupledRowsError, InvalidInputError

X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 1])


def net(wrap: bool, **options: object) -> nn.Module:
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 3, stride=2, padding=1)

    def stage(layer: nn.Module, stride: int) -> nn.Module:
        if not wrap:
            return layer
        return dz.Opaque(
            layer,
            directions="coordinates",
            locality=dz.Conv(3, stride),
            parameter_locality={"weight": dz.PerChannel(), "bias": dz.PerChannel()},
            stencil="forward",
            step_size=1e-2,
            parameter_step_size=1e-2,
            **options,  # type: ignore[arg-type]
        )

    model = nn.Sequential(
        stage(first, 1), nn.BatchNorm2d(4), nn.ReLU(), stage(second, 2), nn.Flatten(), nn.Linear(18, 3)
    )
    return model.double()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    F.cross_entropy(model(X), Y).backward()
    return {name.replace("module.", ""): p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_a_chain_of_stages_agrees_with_backpropagation() -> None:
    """Linear operators with train-mode batch norm between them: exact up to rounding, stage by stage."""
    model = net(wrap=True)
    found, expected = gradients(model), gradients(net(wrap=False))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-9, atol=1e-11), name


def test_as_many_runs_as_the_declaration_says() -> None:
    """Forward, checks, and ``C k^2`` runs for the input, ``C k^2 + 1`` for the weights; the image gets no gradient."""
    model = net(wrap=True)
    gradients(model)
    first, second = model[0], model[3]
    assert first.queries == 4 + 2 * 4 + 4 * (27 + 1)  # forward; two checks of channels; weight and bias
    assert second.queries == 4 + (2 + 8) + 4 * 36 + 2 * 4 + 4 * (36 + 1)


def test_every_coordinate_without_a_declaration() -> None:
    torch.manual_seed(1)
    layer = nn.Linear(3, 2).double()
    box = dz.Opaque(copy.deepcopy(layer), directions="coordinates")
    x = X[:, :, 0, :3].reshape(-1, 3)
    for model in (layer, box):
        model(x).square().mean().backward()
    assert torch.allclose(box.module.weight.grad, layer.weight.grad, rtol=1e-6, atol=1e-9)
    assert torch.allclose(box.module.bias.grad, layer.bias.grad, rtol=1e-6, atol=1e-9)


def test_an_estimator_of_ones_own() -> None:
    """RGE from the same function: its mean is the gradient, and each product draws directions of its own."""
    weight = torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def fn(z: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        return z @ parameters["w"]

    box = dz.Opaque(fn, parameters={"w": weight}, estimator=lambda objective: dz.RGE(objective, queries=4))
    x = X[:, :, 0, 0]
    found = []
    for _ in range(300):
        box.values["w"].grad = None
        box(x).sum().backward()
        found.append(box.values["w"].grad)
    stack = torch.stack(found)
    expected = x.sum(0).unsqueeze(1).expand(3, 2)
    assert bool(((stack.mean(0) - expected).abs() < 4.5 * stack.std(0) / 300**0.5).all())
    assert float(stack.std(0).min()) > 0


def test_numpy_functions_with_parameters() -> None:
    box = dz.Opaque(
        lambda z, p: z * p["scale"], parameters={"scale": [2.0, 3.0, 4.0]}, numpy=True, directions="coordinates"
    ).double()
    x = X[:, :, 0, 0].clone().requires_grad_()
    box(x).sum().backward()
    assert torch.allclose(x.grad, box.values["scale"].detach().expand(4, 3), rtol=1e-7)
    assert torch.allclose(box.values["scale"].grad, x.detach().sum(0), rtol=1e-7)


def test_a_frozen_module_has_no_parameters_of_its_own() -> None:
    layer = nn.Linear(3, 2).double().requires_grad_(False)
    model = nn.Sequential(nn.Linear(3, 3).double(), dz.Opaque(layer, directions="coordinates"))
    model(X[:, :, 0, 0]).sum().backward()
    assert layer.weight.grad is None
    assert model[0].weight.grad is not None


def test_a_false_declaration_about_weights_is_refused() -> None:
    layer = nn.Linear(3, 3).double()
    box = dz.Opaque(layer, parameter_locality={"weight": dz.PerChannel(dim=1)})
    with pytest.raises(CoupledRowsError, match="not true of weight"):
        box(X[:, :, 0, 0]).sum().backward()


def test_declarations_about_unknown_names() -> None:
    with pytest.raises(InvalidInputError, match=r"parameter_locality names kernel, not among the parameters weight"):
        dz.Opaque(nn.Linear(3, 3), parameter_locality={"kernel": dz.PerChannel()})
    with pytest.raises(InvalidInputError, match="a module brings its own"):
        dz.Opaque(nn.Linear(3, 3), parameters={"w": 1.0})


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda box: pickle.loads(pickle.dumps(box))], ids=["copy", "pickle"])
def test_copies_have_parameters_and_counters_of_their_own(copied: object) -> None:
    box = dz.Opaque(nn.Linear(3, 2).double(), queries=2)
    box(X[:, :, 0, 0]).sum().backward()
    other = copied(box)  # type: ignore[operator]
    assert (other.queries, other.ledger.drawn) == (box.queries, 1)
    before = box.queries
    with torch.no_grad():
        other.module.weight.zero_()
        other.module.bias.zero_()
        assert bool((other(X[:, :, 0, 0]) == 0).all())
    assert box.queries == before
    assert not bool((box(X[:, :, 0, 0]) == 0).any())


def test_a_resumed_box_goes_on_with_the_directions_that_come_next() -> None:
    x = X[:, :, 0, 0].clone().requires_grad_()

    def step(box: dz.Opaque) -> Tensor:
        return torch.autograd.grad(box(x).sum(), x)[0]

    one = dz.Opaque(torch.sin, queries=1)
    step(one)
    state = one.state_dict()
    other = dz.Opaque(torch.sin, queries=1)
    other.load_state_dict(state)
    assert other.queries == one.queries
    assert torch.equal(step(one), step(other))
