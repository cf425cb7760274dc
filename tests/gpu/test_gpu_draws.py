"""Random operations, half types, budgets and checkpoints on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pretended
import pytest
import torch
import torch.nn.functional as F
from conformance_suite import X, Y, network
from oracle import assert_close, initialize, normal, nothing_changes, some_coordinates
from torch import Tensor, nn

import deepzero as dz
from deepzero.errors import BudgetError
from deepzero.sparsity import DynamicRatios, fo_grasp, masks_from_scores, zo_grasp
from deepzero.training import Autograd, Checkpoint, CheckpointStore, evaluate
from deepzero.training import checkpoint_contents as kept

pytestmark = pytest.mark.gpu
There = Callable[[Any], Any]
TIGHT = 24 << 20


class Between(nn.Module):
    """A function between two layers of an image network."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 3, 3), nn.Linear(27, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)).flatten(1))


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda z: F.dropout(z, 0.4),
    "dropout_channels_last": lambda z: F.dropout(z.contiguous(memory_format=torch.channels_last), 0.4),
    "dropout_transposed": lambda z: F.dropout(z.transpose(1, 3), 0.4),
    "dropout_sliced": lambda z: torch.cat([F.dropout(z[:, :, ::2], 0.4), z[:, :, 1::2]], 2),
    "dropout_of_channels": lambda z: F.dropout2d(z, 0.4),
    "alpha_dropout": lambda z: F.alpha_dropout(z, 0.4, training=True),
    "noise_like": lambda z: z + 0.1 * torch.randn_like(z),
    "noise_there": lambda z: z * torch.rand(z.shape[0], 1, 1, 1, dtype=z.dtype, device=z.device),
    "stochastic_depth": lambda z: z * z.new_empty(z.shape[0], 1, 1, 1).bernoulli_(0.7),
}


def estimates(model: nn.Module, batch: Any, fast: Any, **options: Any) -> tuple[dz.Estimate, dz.Estimate]:
    """The same estimate by the fast evaluator and by the oracle."""
    make = dz.RGE if isinstance(fast, dz.BatchedEvaluator) else dz.CGE
    options = {"loss": F.cross_entropy, "step_size": 1e-4, **options}
    return tuple(make(model, evaluator=e, **options).estimate(*batch) for e in (fast, dz.SequentialEvaluator()))


def skip_unknown_layout(device: torch.device, layout: torch.memory_format) -> None:
    if device.type == pretended.NAME and layout is torch.channels_last:
        pytest.skip("torch.export does not know the memory formats of this device")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", DRAWS)
def test_coordinates_see_the_draws_of_the_base_query(
    name: str, layout: torch.memory_format, device: torch.device, there: There
) -> None:
    skip_unknown_layout(device, layout)
    model = initialize(Between(DRAWS[name]))
    some = some_coordinates(model, most=8)
    batch = there((X.contiguous(memory_format=layout), Y))
    found, expected = estimates(there(model), batch, dz.PropagationEvaluator(verify=False), sparsity=some)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=0)
    assert_close(found.gradients, expected.gradients, 1e-7)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "name", [name for name in DRAWS if name != "dropout_channels_last"]
)  # vmap knows no such format
def test_directions_see_the_draws_of_the_base_query(
    name: str, layout: torch.memory_format, device: torch.device, there: There
) -> None:
    skip_unknown_layout(device, layout)
    model = there(initialize(Between(DRAWS[name])))
    batch = there((X.contiguous(memory_format=layout), Y))
    found, expected = estimates(model, batch, dz.BatchedEvaluator(chunk=3), queries=4)
    assert_close(found.gradients, expected.gradients, 1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_stays_near_the_gradient(dtype: torch.dtype, there: There) -> None:
    """Differences are propagated, never subtracted, so rounding stays relative to the gradient."""
    wide = there(network(dropout=0.0))
    exact = Autograd(wide, loss=F.cross_entropy)
    exact.backward(*there((X, Y)))
    zo = dz.CGE(there(network(dropout=0.0).to(dtype)), loss=F.cross_entropy, step_size=1e-3)
    found = zo.estimate(there(X.to(dtype)), there(Y)).gradients
    flat = [
        torch.cat([g.double().flatten() for g in gradients])
        for gradients in (found.values(), [p.grad for p in wide.parameters() if p.grad is not None])
    ]
    error = float((flat[0] - flat[1]).norm() / flat[1].norm())
    assert error < {torch.float32: 2e-2, torch.bfloat16: 0.15, torch.float16: 0.05}[dtype]


def test_a_coordinate_that_nothing_depends_on(there: There) -> None:
    """A bias before a batch norm: the check at the start meets coordinates whose differences are nowhere."""
    model = initialize(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)))
    some = {"0.bias": torch.ones(4, dtype=torch.bool), "2.bias": torch.ones(3, dtype=torch.bool)}
    gradients = dz.CGE(there(model), loss=F.cross_entropy, sparsity=some).estimate(*there((normal(5, 6), Y))).gradients
    assert float(gradients["0.bias"].abs().max()) == 0.0
    assert float(gradients["2.bias"].abs().min()) > 0.0


def test_a_tight_budget_gives_the_same_gradient(device: torch.device, there: There) -> None:
    model = there(
        initialize(
            nn.Sequential(
                nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(1152, 3)
            )
        )
    )
    batch = there((normal(5, 2, 16, 16), Y))
    options: dict[str, Any] = {"loss": F.cross_entropy, "sparsity": some_coordinates(model, most=40)}
    roomy = dz.CGE(model, **options).estimate(*batch)
    tight = dz.CGE(model, evaluator=dz.PropagationEvaluator(memory_budget=TIGHT), **options)
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    found = tight.estimate(*batch)
    if device.type == "cuda":
        assert torch.cuda.max_memory_allocated() - before <= TIGHT
    assert_close(found.gradients, roomy.gradients)
    with pytest.raises(BudgetError, match="memory_budget="):
        dz.CGE(model, evaluator=dz.PropagationEvaluator(memory_budget=1 << 10, verify=False), **options).estimate(
            *batch
        )


@pytest.mark.parametrize("method", ["cge", "rge", "fo"])
def test_a_run_goes_on_bitwise_from_its_checkpoint(method: str, there: There, tmp_path: Path) -> None:
    batch = there((X, Y))

    def start() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        model = there(network())
        ratios = DynamicRatios({"0.weight": 0.5, "7.weight": 0.3}, every=1, seed=3)
        makers: dict[str, Callable[[], Any]] = {
            "cge": lambda: dz.CGE(model, loss=F.cross_entropy, sparsity=ratios, seed=1),
            "rge": lambda: dz.RGE(model, loss=F.cross_entropy, queries=5, seed=1),
            "fo": lambda: Autograd(model, loss=F.cross_entropy, sparsity=ratios, seed=1),
        }
        return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), makers[method]()

    def steps(sgd: torch.optim.Optimizer, source: Any, count: int) -> None:
        for _ in range(count):
            sgd.zero_grad()
            source.backward(*batch)
            sgd.step()

    model, sgd, source = start()
    steps(sgd, source, 2)
    values = {"optimizer": kept.optimizer_values(sgd), "source": source.state_dict()}
    tensors = {
        **kept.prefixed("model", kept.snapshot(model)),
        **kept.prefixed("optimizer", kept.optimizer_tensors(sgd)),
    }
    store = CheckpointStore(tmp_path, run="run")
    store.save(Checkpoint(2, values, tensors))
    steps(sgd, source, 2)
    other, again, resumed = start()
    saved = store.load().checkpoint
    other.load_state_dict(kept.selected("model", saved.tensors))
    kept.restore_optimizer(again, saved.state["optimizer"], kept.selected("optimizer", saved.tensors))
    resumed.load_state_dict(saved.state["source"])
    steps(again, resumed, 2)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_scores_and_masks(device: torch.device, there: There) -> None:
    """GraSP by function values and by autograd; a mask that lies there chooses coordinates."""
    if device.type == pretended.NAME:
        pytest.skip("autograd has no formulas for this device's batch norm")
    model, batch = there(network(dropout=0.0)), there((X, Y))
    with nothing_changes(model):
        exact = fo_grasp(model, F.cross_entropy, *batch)
        scores = zo_grasp(model, F.cross_entropy, *batch, queries=4)
    assert all(s.device == batch[0].device for s in (*exact.values(), *scores.values()))
    masks = there(masks_from_scores(scores, 0.5))
    found = dz.CGE(model, loss=F.cross_entropy, sparsity=masks).estimate(*batch)
    assert found.queries == 1 + sum(int(mask.sum()) for mask in masks.values())


def test_evaluation(there: There) -> None:
    model, (x, y) = there(network()), there((X, Y))
    scores = evaluate(model, [(x, y), (x, y)], F.cross_entropy)
    twin = network().eval()
    assert scores.loss == pytest.approx(F.cross_entropy(twin(X), Y).item(), rel=1e-10)
    assert model.training
