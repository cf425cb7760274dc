import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deepzero.errors import InvalidInputError
from deepzero.training import Scores, eval_mode, evaluate


def test_accuracy_and_loss_over_batches_of_different_sizes() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
    labels = torch.tensor([0, 1, 1])
    scores = evaluate(nn.Identity(), [(logits[:2], labels[:2]), (logits[2:], labels[2:])], F.cross_entropy)
    assert scores.accuracy == pytest.approx(2 / 3)
    assert scores.loss == pytest.approx((2 * math.log1p(math.exp(-2)) + math.log1p(math.exp(2))) / 3)


def test_the_model_is_scored_in_eval_mode_and_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3).eval())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, [(torch.randn(4, 2), torch.zeros(4, dtype=torch.long))], F.cross_entropy)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model] == [True, True, False]


def test_modes_are_restored_after_an_error() -> None:
    model = nn.BatchNorm1d(2)
    seen = []

    def fail() -> None:
        with eval_mode(model):
            seen.append(model.training)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen == [False]
    assert model.training


def test_no_autograd_graph_is_built() -> None:
    seen = []
    model = nn.Linear(2, 2)
    model.register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    evaluate(model, [(torch.randn(4, 2), torch.zeros(4, dtype=torch.long))], F.cross_entropy)
    assert seen == [False]


def test_an_empty_split_is_an_error() -> None:
    with pytest.raises(InvalidInputError, match="empty"):
        evaluate(nn.Identity(), [], F.cross_entropy)


def test_better_is_more_accurate_then_less_lossy() -> None:
    low = Scores(0.5, 1.0)
    assert low.better_than(None)
    assert Scores(0.6, 9.0).better_than(low)
    assert Scores(0.5, 0.9).better_than(low)
    assert not Scores(0.5, 1.0).better_than(low)
    assert not Scores(0.4, 0.1).better_than(low)


def test_scores_do_not_depend_on_the_number_of_threads() -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 300), nn.BatchNorm1d(300), nn.Linear(300, 4))
    for p in model.parameters():
        p.data.uniform_(-0.1, 0.1, generator=generator)
    batches = [(torch.randn(n, 3, 4, 4, generator=generator), torch.arange(n) % 4) for n in (64, 64, 64, 5)]
    before = torch.get_num_threads()
    scores = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            scores.append(evaluate(model, iter(batches), F.cross_entropy))
    finally:
        torch.set_num_threads(before)
    assert scores[0] == scores[1] == scores[2]
