"""ZO-GraSP is eq. (3): both gradients over the same directions, nothing moved, FO-GraSP in the limit."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepzero import BatchedEvaluator, SequentialEvaluator
from deepzero.errors import InvalidInputError, NonFiniteLossError
from deepzero.objective import NetworkObjective, parameters_of
from deepzero.probes import RandomPerturbations
from deepzero.randomness import derive_seed
from deepzero.sparsity import fo_grasp, masks_from_scores, zo_grasp


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def seeded(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with weights N(0, 0.5^2) from a seed."""
    draws = generator(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=draws))
    return model


def batch(inputs: int, classes: int, samples: int = 16, seed: int = 1) -> tuple[Tensor, Tensor]:
    draws = generator(seed)
    return torch.randn(samples, inputs, generator=draws), torch.randint(classes, (samples,), generator=draws)


def batch_norm_net(dropout: float = 0.0) -> nn.Module:
    return seeded(nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(dropout), nn.Linear(6, 3)))


def flat(scores: dict[str, Tensor]) -> Tensor:
    return torch.cat([score.double().reshape(-1) for score in scores.values()])


def cosine(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return float(F.cosine_similarity(flat(a), flat(b), dim=0))


def quadratic() -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model under the squared error: the loss is a quadratic function of its 4 weights."""
    x = torch.randn(10, 4, generator=generator(2))
    return seeded(nn.Linear(4, 1, bias=False)), x, torch.randn(10, 1, generator=generator(3))


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher", "sphere"])
def test_on_a_quadratic_the_scores_are_projected_hessian_products_whatever_the_step(distribution: str) -> None:
    model, x, y = quadratic()
    scores = zo_grasp(model, F.mse_loss, x, y, queries=3, step_size=0.5, seed=7, distribution=distribution)["weight"]

    theta = model.weight.detach().double()
    inputs = x.double()
    hessian = 2 / len(x) * inputs.T @ inputs
    gradient = hessian @ theta[0] - 2 / len(x) * inputs.T @ y.double()[:, 0]
    directions = RandomPerturbations(3, distribution, derive_seed(7, "directions", 0), {"weight": theta}).stack(0, 3)
    u = directions["weight"][:, 0]
    projection = u.T @ u / 3 * (4 if distribution == "sphere" else 1)
    bias = 0.25 * torch.einsum("ki,ij,kj,kl->l", u, hessian, u, u) / 3 * (4 if distribution == "sphere" else 1)
    estimate = projection @ gradient + bias  # the forward difference's bias enters g, and cancels in the difference
    torch.testing.assert_close(scores[0], -theta[0] * (projection @ hessian @ estimate), rtol=1e-9, atol=1e-11)


def test_fo_grasp_is_minus_theta_times_the_hessian_gradient_product() -> None:
    model, x, y = quadratic()
    theta, inputs = model.weight.detach().double(), x.double()
    hessian = 2 / len(x) * inputs.T @ inputs
    gradient = hessian @ theta[0] - 2 / len(x) * inputs.T @ y.double()[:, 0]
    expected = -theta * (hessian @ gradient)
    torch.testing.assert_close(fo_grasp(model, F.mse_loss, x, y)["weight"], expected, rtol=1e-12, atol=1e-13)


def test_zo_grasp_tends_to_fo_grasp_as_queries_grow() -> None:
    model = seeded(nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)))
    x, y = batch(3, 2)
    exact = fo_grasp(model, F.cross_entropy, x, y)
    estimate = functools.partial(zo_grasp, model, F.cross_entropy, x, y, step_size=1e-4)
    cosines = [cosine(estimate(queries=q, evaluator=BatchedEvaluator(chunk=256)), exact) for q in (20, 200, 4000)]
    assert cosines == sorted(cosines)
    assert cosines[-1] > 0.97


def test_scores_depend_on_the_data() -> None:
    """The fault of a known implementation: scores that are noise, the same for every batch."""
    model = seeded(nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)))
    one, other = batch(3, 2, seed=1), batch(3, 2, seed=2)
    scores = [zo_grasp(model, F.cross_entropy, *data, queries=500, step_size=1e-4) for data in (one, other)]
    assert cosine(*scores) < 0.9
    exact = [fo_grasp(model, F.cross_entropy, *data) for data in (one, other)]
    for i in (0, 1):
        assert cosine(scores[i], exact[i]) > cosine(scores[i], exact[1 - i])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("score", [functools.partial(zo_grasp, queries=5), fo_grasp])
def test_model_mode_gradients_and_global_rng_are_untouched(score: object, training: bool) -> None:
    assert callable(score)
    model = batch_norm_net(dropout=0.5).train(training)
    x, y = batch(5, 3)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rng = torch.get_rng_state()
    score(model, F.cross_entropy, x, y, seed=3)
    assert torch.equal(torch.get_rng_state(), rng)
    assert model.training is training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))


def test_zo_grasp_builds_no_autograd_graph() -> None:
    model = batch_norm_net()
    x, y = batch(5, 3)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        assert not output.requires_grad
        return F.cross_entropy(output, target)

    scores = zo_grasp(model, loss, x, y, queries=3)
    assert not any(score.requires_grad for score in scores.values())
    assert all(p.grad is None for p in model.parameters())


def test_scores_are_a_function_of_the_seed() -> None:
    model, data = batch_norm_net(dropout=0.5), batch(5, 3)
    one, again, other = (zo_grasp(model, F.cross_entropy, *data, queries=8, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(flat(one), flat(again))
    assert not torch.equal(flat(one), flat(other))


def test_mode_is_respected() -> None:
    data = batch(5, 3)
    train = zo_grasp(batch_norm_net().train(), F.cross_entropy, *data, queries=8)
    evaluation = zo_grasp(batch_norm_net().eval(), F.cross_entropy, *data, queries=8)
    assert cosine(train, evaluation) < 0.999


def test_evaluators_agree() -> None:
    model, data = batch_norm_net(), batch(5, 3)
    batched = zo_grasp(model, F.cross_entropy, *data, queries=6, evaluator=BatchedEvaluator(chunk=4))
    oracle = zo_grasp(model, F.cross_entropy, *data, queries=6, evaluator=SequentialEvaluator())
    torch.testing.assert_close(flat(batched), flat(oracle), rtol=1e-6, atol=1e-8)


def test_float64_is_the_default_and_scores_come_in_the_dtype() -> None:
    estimate = functools.partial(zo_grasp, batch_norm_net(), F.cross_entropy, *batch(5, 3), distribution="rademacher")
    double, single = estimate(), estimate(dtype=torch.float32)
    assert {score.dtype for score in double.values()} == {torch.float64}
    assert {score.dtype for score in single.values()} == {torch.float32}
    assert 0.999 < cosine(double, single) < 1 - 1e-9


def test_float64_is_needed_at_small_steps() -> None:
    estimate = functools.partial(zo_grasp, batch_norm_net(), F.cross_entropy, *batch(5, 3), distribution="rademacher")
    reference = estimate(step_size=1e-3)
    assert cosine(estimate(step_size=1e-5), reference) > 0.999
    assert cosine(estimate(step_size=1e-5, dtype=torch.float32), reference) < 0.5


def test_a_loss_module_follows_the_dtype_and_is_not_changed() -> None:
    model, data = batch_norm_net(), batch(5, 3)
    loss = nn.CrossEntropyLoss(weight=torch.ones(3))
    ours = zo_grasp(model, loss, *data, queries=4)
    torch.testing.assert_close(flat(ours), flat(zo_grasp(model, F.cross_entropy, *data, queries=4)))
    assert loss.weight is not None
    assert loss.weight.dtype == torch.float32


def test_frozen_and_tied_parameters() -> None:
    model = batch_norm_net()
    model[0].weight.requires_grad_(False)
    scores = zo_grasp(model, F.cross_entropy, *batch(5, 3), queries=4)
    assert list(scores) == list(parameters_of(NetworkObjective(model, F.cross_entropy)))

    tied = seeded(nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 4, bias=False)))
    tied[2].weight = tied[0].weight
    data = batch(4, 4)
    exact = fo_grasp(tied, F.cross_entropy, *data)
    assert list(exact) == ["0.weight"]
    estimate = zo_grasp(
        tied, F.cross_entropy, *data, queries=2000, step_size=1e-4, evaluator=BatchedEvaluator(chunk=200)
    )
    assert cosine(estimate, exact) > 0.95


def test_fo_grasp_is_zero_where_the_loss_is_flat_or_linear() -> None:
    x, y = batch(4, 3)
    linear = fo_grasp(seeded(nn.Linear(4, 3)), lambda output, target: output.mean(), x, y)
    flat_loss = fo_grasp(seeded(nn.Linear(4, 3)), lambda output, target: output.sign().mean(), x, y)
    assert not flat(linear).any()
    assert not flat(flat_loss).any()


def test_keeping_the_smallest_signed_scores_preserves_gradient_flow() -> None:
    """2 S_i is the change of the squared gradient norm when weight i is removed, to first order."""
    model, x, y = quadratic()
    scores = fo_grasp(model, F.mse_loss, x, y)["weight"]
    theta, inputs = model.weight.detach().double(), x.double()

    def flow(weight: Tensor) -> float:
        gradient = 2 / len(x) * inputs.T @ (inputs @ weight[0] - y.double()[:, 0])
        return float(gradient.square().sum())

    shrink = 1e-6
    for i in range(4):
        removed = theta.clone()
        removed[0, i] *= 1 - shrink
        assert (flow(removed) - flow(theta)) / shrink == pytest.approx(2 * float(scores[0, i]), rel=1e-3, abs=1e-6)
    kept = masks_from_scores({"weight": scores}, 0.75, rank="signed")["weight"]
    assert int(kept.flatten().nonzero()) == int(scores.argmin())


@pytest.mark.parametrize(
    "options",
    [
        {"queries": 0},
        {"step_size": 0.0},
        {"step_size": float("nan")},
        {"distribution": "cauchy"},
        {"dtype": torch.int64},
    ],
)
def test_bad_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError):
        zo_grasp(nn.Linear(5, 3), F.cross_entropy, *batch(5, 3), **options)


def test_bad_models_and_losses_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"nn\.Module"):
        zo_grasp("model", F.cross_entropy, *batch(5, 3))
    with pytest.raises(InvalidInputError, match="needs either loss="):
        fo_grasp(nn.Linear(5, 3), None, *batch(5, 3))
    with pytest.raises(NonFiniteLossError):
        zo_grasp(nn.Linear(5, 3), lambda output, target: output.mean() / 0, *batch(5, 3), queries=2)
