"""One family of errors: every failure that deepzero reports by itself derives from :class:`DeepZeroError`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class DeepZeroError(Exception):
    """Base class of every error that deepzero raises on purpose."""


class InvalidInputError(DeepZeroError, ValueError):
    """An argument is out of its domain; the message says what was expected, what came, and what to type instead."""


class MissingPackageError(InvalidInputError, ImportError):
    """An optional package is not installed; the message says which extra of deepzero brings it."""


class GraphError(DeepZeroError):
    """The model cannot be turned into a graph whose differences can be propagated."""


class DrawError(DeepZeroError):
    """A query draws other random numbers than the base query did, where they must be the same."""


class UnbatchableError(DeepZeroError):
    """``torch.func.vmap`` cannot run a network's program, or runs another one."""


class VerificationError(DeepZeroError):
    """A fast evaluator disagrees with the sequential oracle."""


class BudgetError(DeepZeroError):
    """The memory budget is too small for even one query."""


class NonFiniteLossError(DeepZeroError, ArithmeticError):
    """The objective returned NaN or infinity."""


class CheckpointError(DeepZeroError):
    """A checkpoint is missing, truncated, corrupted or not one of deepzero's."""


class DataNotFoundError(DeepZeroError, FileNotFoundError):
    """A data set is not where it was looked for; the message says where to get it and where to put it."""


class QueryError(DeepZeroError):
    """A black box, or the executor that it runs on, left a query unanswered for good."""


class RowError(QueryError):
    """A black box inside of a network failed for good on one of its rows.

    Attributes:
        row: its number in the call.
        inputs: its arguments, each of one row.
        job: of an evaluator, in which it was asked; None outside of an estimate.
        perturbation: of that job.
    """

    def __init__(self, message: str, *, row: int, inputs: Sequence[Any]) -> None:
        super().__init__(message)
        self.row, self.inputs = row, inputs
        self.job: Any = None
        self.perturbation = 0

    def during(self, query: str) -> None:
        """Say in which query of an estimate it happened."""
        self.args = (f"{self.args[0]} (asked for {query})",)


class QueryBudgetError(QueryError):
    """The next call would take more queries than were allowed; nothing of it was asked."""


class CoupledRowsError(DeepZeroError):
    """The rows of a black box's output depend on the rows beside them, or on more of a row than was declared."""


class JournalError(DeepZeroError):
    """A query journal is damaged, in use by another process, or cannot be written."""


class RunFolderError(DeepZeroError):
    """The output folder cannot be used for this run."""


class TeamError(DeepZeroError):
    """Another process of a distributed run hangs, has ended, or has come to other numbers."""


class BlackBoxWarning(UserWarning):
    """A black box gives something that is probably not what was meant; the message says what."""


class SlowQueriesWarning(UserWarning):
    """Queries are answered exactly, but in a slower way than propagation; the message says why."""


class WrittenParameterWarning(UserWarning):
    """A program writes into its parameters while it computes the loss; queries work on copies."""


_FROM_BLACK_BOX = "_deepzero_from_black_box"


def from_black_box(error: BaseException) -> bool:
    """True if asking a black box raised it: then no other way to evaluate the same query should be tried."""
    return getattr(error, _FROM_BLACK_BOX, False)


def mark_from_black_box(error: BaseException) -> None:
    """Let :func:`from_black_box` know."""
    setattr(error, _FROM_BLACK_BOX, True)
