"""What a black box does wrong, and what is done about it: a clear error, or a call that is made again."""

from __future__ import annotations

import collections
import functools
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deepzero as dz
from deepzero.announce import is_reminder
from deepzero.doctor import examine
from deepzero.errors import CoupledRowsError, InvalidInputError, NonFiniteLossError, QueryBudgetError, QueryError

Z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def cube(z: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return z**3


def product(box: nn.Module, z: Tensor = Z) -> Tensor:
    given = z.clone().requires_grad_()
    (found,) = torch.autograd.grad(box(given).sum(), given)
    return found


@pytest.mark.parametrize(
    ("fn", "error", "message"),
    [
        (lambda z: z[:2], InvalidInputError, r"a row for each of its 4 rows, got an array of shape \(2, 3\)"),
        (lambda z: z.sum(), InvalidInputError, r"a row for each of its 4 rows, got an array of shape \(\)"),
        (lambda z: "cat", InvalidInputError, r"one array with a row for each of its 4 rows, got str"),
        (lambda z: z.argmax(1), InvalidInputError, r"floating-point numbers, got torch.int64"),
        (lambda z: z * float("nan"), NonFiniteLossError, r"NaN or infinity for row 0"),
    ],
)
def test_answers_that_are_none(fn: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        product(dz.Opaque(fn))


def test_an_error_of_the_function_comes_out_as_it_is() -> None:
    def fn(z: Tensor) -> Tensor:
        raise ConnectionError("503 from the service")

    with pytest.raises(ConnectionError, match="503"):
        product(dz.Opaque(fn))


@pytest.mark.parametrize(
    "fn",
    [nn.BatchNorm1d(3, affine=False).double(), lambda z: z - z.mean(0), lambda z: z / z.norm()],
    ids=["batch norm", "mean", "norm"],
)
def test_rows_that_depend_on_each_other(fn: Any) -> None:
    with pytest.raises(CoupledRowsError, match="its first row changed with the rows beside it"):
        product(dz.Opaque(fn))


def test_rows_that_depend_on_each_other_are_estimated_together_on_request() -> None:
    def fn(z: Tensor) -> Tensor:
        return (z - z.mean(0)) ** 3

    given = Z.clone().requires_grad_()
    (expected,) = torch.autograd.grad(fn(given).sum(), given)
    box = dz.Opaque(fn, coupled=True, directions="coordinates")
    assert torch.allclose(product(box), expected, rtol=1e-6, atol=1e-8)
    assert box.calls == 1 + 2 * 12
    complete = dz.Opaque(fn, coupled=True, directions="orthogonal", queries=12)
    assert torch.allclose(product(complete), expected, rtol=1e-6, atol=1e-8)


def test_noise_is_told_once() -> None:
    noise = np.random.default_rng(0)
    box = dz.Opaque(lambda z: z + 0.1 * noise.normal(size=z.shape), numpy=True, queries=1)
    with pytest.warns(dz.BlackBoxWarning, match="answers the same rows differently, by 0"):
        product(box)
    product(box)  # a second warning would be an error


def test_probabilities_are_told() -> None:
    box = dz.Opaque(lambda z: z.softmax(1))
    with pytest.warns(dz.BlackBoxWarning, match="probabilities. cross_entropy expects logits"):
        box(Z)
    box(Z)  # a second warning would be an error


def test_a_budget_stops_before_the_call() -> None:
    box = dz.Opaque(cube, numpy=True, queries=2, max_queries=30, price=0.5)
    product(box)
    assert box.queries == 4 + 2 + 4 * 2 * 2
    assert box.spent == pytest.approx(11.0)
    box(Z)
    with pytest.raises(QueryBudgetError, match=r"asked 30 times and the next call would ask 16 more, .*max_queries=30"):
        product(box)
    assert box.queries == 30


def test_repeated_queries_and_their_standard_error(tmp_path: Path) -> None:
    """The mean of r answers, with the noise over the square root of r, which is told; a journal keeps each of them."""
    noise = np.random.default_rng(0)

    def noisy(z: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return z + 0.1 * noise.normal(size=z.shape)

    z = torch.linspace(-1, 1, 600, dtype=torch.float64).reshape(200, 3)
    with dz.QueryJournal(tmp_path / "rows.sqlite", problem="noisy") as journal, torch.no_grad():
        box = dz.Opaque(noisy, numpy=True, repeats=16, journal=journal, max_queries=16 * 200)
        found = box(z)
        assert box.queries == 16 * 200
        assert box.ledger.standard_error == pytest.approx(0.025, rel=0.1)
        assert float((found - z).std()) == pytest.approx(0.025, rel=0.2)
        assert torch.equal(box(z), found)  # from the journal
        with pytest.raises(QueryBudgetError, match="asked 3200 times and the next call would ask 32 more"):
            box(z[:2] + 1)
    with pytest.raises(InvalidInputError, match="repeats must be an integer"):
        dz.Opaque(noisy, repeats=0)


def test_a_price_that_was_not_given() -> None:
    with pytest.raises(InvalidInputError, match=r"give dz\.Opaque"):
        _ = dz.Opaque(cube, numpy=True).spent


@pytest.mark.parametrize("pool", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_an_executor_gives_the_same_bits(pool: Any) -> None:
    with pool(2) as workers:
        box = dz.Opaque(cube, numpy=True, executor=workers, rows=3)
        found = product(box)
    assert torch.equal(found, product(dz.Opaque(cube, numpy=True)))
    assert box.queries == 4 + 2 + 4 * 2 * 3


class Failing:
    """Fails for a row with a certain number, until it was asked often enough."""

    def __init__(self, times: int, answer: float | None = None) -> None:
        self.left, self.answer = times, answer

    def __call__(self, z: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if self.left > 0 and len(z) == 1:
            self.left -= 1
            if self.answer is None:
                raise ConnectionError("429 too many requests")
            return z * self.answer
        return z**3


@pytest.mark.parametrize("answer", [None, float("nan")], ids=["429", "nan"])
def test_failures_are_tried_again(answer: float | None) -> None:
    policy = dz.QueryPolicy(retries=3, backoff=0.001, on_nan="retry")
    with ThreadPoolExecutor(1) as pool:
        box = dz.Opaque(Failing(2, answer), numpy=True, executor=pool, rows=1, policy=policy)
        assert torch.equal(product(box), product(dz.Opaque(cube, numpy=True)))


def test_failures_for_good_name_the_row() -> None:
    policy = dz.QueryPolicy(retries=1, backoff=0.001)
    with ThreadPoolExecutor(1) as pool:
        box = dz.Opaque(Failing(99), numpy=True, executor=pool, rows=1, policy=policy)
        # Both rows of the input fail, and their waits before the second try are drawn: either may be the first to give up.
        with pytest.raises(QueryError, match=r"row [01], try 2: the black box raised ConnectionError: 429"):
            product(box)


def test_a_skipped_row_counts_as_a_slope_of_zero() -> None:
    failing, policy = Failing(0), dz.QueryPolicy(on_error="skip")
    options = {"directions": "coordinates", "stencil": "forward", "rows": 1, "policy": policy, "numpy": True}
    with ThreadPoolExecutor(1) as pool:
        box = dz.Opaque(failing, executor=pool, **options)  # type: ignore[arg-type]
        given = Z[:1].clone().requires_grad_()
        box(given).sum().backward()  # the check of the rows, which skips nothing, is behind us
        given.grad = None
        output = box(given)
        failing.left = 1
        output.sum().backward()
        failing.left = 1
        with pytest.raises(QueryError, match="row 0"):
            box(given)  # a row of the forward is never skipped
    assert float(given.grad[0, 0]) == 0.0
    assert torch.allclose(given.grad[0, 1:], 3 * Z[0, 1:] ** 2, rtol=1e-4)
    assert box.ledger.skipped == 1


def slow(z: np.ndarray[Any, Any], folder: str) -> np.ndarray[Any, Any]:
    mark = Path(folder) / "hung"
    if not mark.exists():
        mark.touch()
        time.sleep(60)
    return z**3


def test_a_call_that_hangs_is_made_again(tmp_path: Path) -> None:
    policy = dz.QueryPolicy(timeout=2.0, retries=2, backoff=0.001)
    box = dz.Opaque(
        functools.partial(slow, folder=str(tmp_path)),
        numpy=True,
        executor=lambda: ProcessPoolExecutor(1),
        policy=policy,
    )
    found = product(box)
    box.close()
    assert torch.equal(found, product(dz.Opaque(cube, numpy=True)))


def test_a_journal_answers_what_was_paid_for(tmp_path: Path) -> None:
    """A script that died is started again: the same bits, and only what is missing is asked."""
    with dz.QueryJournal(tmp_path / "rows.sqlite") as journal:
        first = dz.Opaque(cube, numpy=True, journal=journal, max_queries=20)
        with pytest.raises(QueryBudgetError):
            product(first)
        assert first.queries == 5  # four rows, and the one that is put beside the first
    with dz.QueryJournal(tmp_path / "rows.sqlite") as journal:
        second = dz.Opaque(cube, numpy=True, journal=journal)
        found = product(second)
        assert second.ledger.replayed == 6
        assert second.queries == 4 * 2 * 3
    with dz.QueryJournal(tmp_path / "rows.sqlite") as journal:
        third = dz.Opaque(cube, numpy=True, journal=journal)
        assert torch.equal(product(third), found)
        assert third.queries == 0
    assert torch.equal(found, product(dz.Opaque(cube, numpy=True)))


def test_a_journal_of_another_function(tmp_path: Path) -> None:
    with dz.QueryJournal(tmp_path / "rows.sqlite") as journal:
        product(dz.Opaque(cube, numpy=True, journal=journal))
        with pytest.raises(dz.errors.JournalError, match="answers the problem"):
            product(dz.Opaque(lambda z: z**2, numpy=True, journal=journal))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"directions": "sobol"}, "directions must be one of"),
        ({"queries": 0}, "queries must be an integer of at least 1"),
        ({"step_size": -1.0}, "step_size must be a finite number above 0"),
        ({"directions": "coordinates", "queries": 3}, "queries=... goes with random directions"),
        ({"directions": "coordinates", "surrogate": nn.Identity()}, "leave it nothing to do"),
        ({"coupled": True, "surrogate": nn.Identity()}, "surrogate=... goes with rows"),
        ({"max_queries": 0}, "max_queries must be an integer"),
        ({"rows": -1}, "rows must be an integer"),
        ({"stencil": "simpson"}, "stencil must be"),
    ],
)
def test_options_are_checked_when_they_are_given(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        dz.Opaque(cube, **options)


def test_what_it_is_called_with() -> None:
    with pytest.raises(InvalidInputError, match="fn must be callable"):
        dz.Opaque(3)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="as many rows each"):
        dz.Opaque(lambda a, b: a)(Z, Z[:2])
    with pytest.raises(InvalidInputError, match="called with tensors"):
        dz.Opaque(cube)()


def test_a_step_that_the_dtype_does_not_hold() -> None:
    box = dz.Opaque(lambda z: z * 2, directions="coordinates", step_size=1e-9)
    with pytest.raises(InvalidInputError, match="mostly rounding"):
        product(box, Z.half())


def test_a_surrogate_with_batch_statistics() -> None:
    with pytest.raises(InvalidInputError, match=r"in place of batch norm use nn\.GroupNorm"):
        dz.Learned(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    with pytest.raises(InvalidInputError, match="takes an nn"):
        dz.Learned(torch.sin)  # type: ignore[arg-type]


def test_a_surrogate_of_another_shape() -> None:
    box = dz.Opaque(lambda z: z * 2, surrogate=nn.Linear(3, 2).double())
    with pytest.raises(
        InvalidInputError, match=r"surrogate=... returns \(4, 2\), where the black box returns \(4, 3\)"
    ):
        product(box)


def test_a_shape_that_was_promised() -> None:
    with pytest.raises(InvalidInputError, match=r"output=\(7,\) was given"):
        dz.Opaque(cube, numpy=True, output=(7,))(Z)


def test_the_doctor_finds_a_black_box_that_is_not_deterministic() -> None:
    noise = np.random.default_rng(0)
    model = nn.Sequential(
        nn.Linear(3, 3), dz.Opaque(lambda z: z + 0.1 * noise.normal(size=z.shape).astype(z.dtype), numpy=True)
    )
    zo = dz.CGE(model, loss=nn.functional.mse_loss, evaluator="sequential")
    found = examine(zo, Z.float(), Z.float())
    assert not found.determinism.repeatable


@pytest.mark.parametrize(
    "evaluator", [None, dz.PropagationEvaluator(), dz.BatchedEvaluator()], ids=["default", "propagation", "batched"]
)
@pytest.mark.parametrize("calls", [1, 2, 3, 4])
def test_what_the_black_box_raises_is_not_taken_for_a_fault_of_the_library(
    calls: int, evaluator: dz.Evaluator | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Whenever it fails, its own error comes out, and it is not asked again in other ways.

    Only where the parameters are moved to see whether the program follows, no answer is an answer.
    """
    asked: list[int] = []

    def service(z: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        asked.append(len(z))
        if len(asked) > calls:
            raise ConnectionError("the line is dead")
        return np.tanh(z)

    model = nn.Sequential(nn.Linear(4, 3), dz.Opaque(service, numpy=True, output=(3,)))
    zo = dz.CGE(model, loss=F.mse_loss, step_size=1e-2, evaluator=evaluator, seed=0)
    batch = torch.randn(2, 4), torch.randn(2, 3)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=dz.SlowQueriesWarning)
        with pytest.raises(ConnectionError, match="the line is dead"):
            collections.deque((zo.estimate(*batch) for _ in range(20)), maxlen=0)
    assert len(asked) in (calls + 1, calls + 2)
    assert [record for record in caplog.records if not is_reminder(record)] == []


def _reuses(buffers: dict[int, np.ndarray[Any, Any]], z: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """One array for all answers of a size, as simulators give their state."""
    answer = buffers.setdefault(len(z), np.empty_like(z))
    answer[:] = np.tanh(z)
    return answer


def _writes(z: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    z *= 2.0
    return np.tanh(z / 2)


def _returns_what_it_wrote_into(z: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.tanh(z, out=z)


@pytest.mark.parametrize("evaluator", ["autograd", "auto", "propagation", "batched", "sequential"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: dz.Opaque(functools.partial(_reuses, {}), numpy=True, directions="coordinates"),
        lambda: dz.Opaque(_writes, numpy=True, directions="coordinates"),
        lambda: dz.Opaque(_returns_what_it_wrote_into, numpy=True, directions="coordinates"),
        lambda: dz.Opaque(lambda z: z.tanh_(), directions="coordinates"),
    ],
    ids=["reuses its answer", "writes into its input", "answers in its input", "in place"],
)
def test_a_function_may_write_into_its_arrays(make: Any, evaluator: str) -> None:
    """Its input is a copy, and so is what is kept of its answer: two uses in one forward do not touch each other."""

    class Twice(nn.Module):
        def __init__(self, box: nn.Module) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.front, self.box = nn.Linear(3, 3).double(), box

        def forward(self, x: Tensor) -> Tensor:
            h = self.front(x)
            return self.box(h) + h * self.box(0.5 * h + 1)

    y = torch.ones(4, 3, dtype=torch.float64)
    reference = Twice(nn.Tanh())
    F.mse_loss(reference(Z), y).backward()
    exact, model = reference.front.weight.grad, Twice(make())
    assert exact is not None
    if evaluator == "autograd":
        F.mse_loss(model(Z), y).backward()
        found = model.front.weight.grad
    else:
        zo = dz.CGE(model, loss=F.mse_loss, step_size=1e-6, evaluator=evaluator)
        found = zo.estimate(Z, y).gradients["front.weight"]
    assert found is not None
    assert float((found - exact).norm() / exact.norm()) < 1e-5


def test_a_wrapped_module_may_work_in_place() -> None:
    layer = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2)).double()
    given = Z.clone().requires_grad_()
    (found,) = torch.autograd.grad(dz.Opaque(layer, directions="coordinates")(given + 0.0).sum(), given)
    (exact,) = torch.autograd.grad(layer(given + 0.0).sum(), given)
    assert torch.allclose(found, exact, atol=1e-6)
