"""A network of the user's own, made for the data at hand."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from deepzero.errors import InvalidInputError
from deepzero.own import imported, located

NAME = "Net"
"""Name of the class or function in a file that is named without one."""


def own_network(target: str, arguments: dict[str, Any], options: dict[str, Any]) -> nn.Module:
    """The network that a class or function of the user's makes.

    Args:
        target: ``file.py:Net`` or ``module:Net``; ``Net`` by default.
        arguments: from the data (``num_classes``, ``in_channels``, ...), given where there is a parameter for it.
        options: further keywords, all of which it must have.

    Raises:
        InvalidInputError: there is no such class, it needs other arguments, or it makes no network.
    """
    make = imported(target, default=NAME)
    if isinstance(make, nn.Module):
        raise InvalidInputError(
            f"{target} is a network that is made already; name its class, or a function that returns one"
        )
    if not callable(make):
        raise InvalidInputError(f"{target} must be a class or function that makes a network, got {make!r}")
    parameters = inspect.signature(make).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    unknown = [name for name in options if name not in parameters and not takes_any]
    if unknown:
        raise InvalidInputError(f"{target} has no parameter {unknown[0]}; it has: {', '.join(parameters) or 'none'}")
    passed = {name: value for name, value in arguments.items() if name in parameters} | options
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    missing = [n for n, p in parameters.items() if p.default is p.empty and p.kind in plain and n not in passed]
    if missing:
        raise InvalidInputError(
            f"{target} needs {', '.join(missing)}, which is not known here: what is filled in is "
            f"{', '.join(arguments)}. Give {missing[0]} a default, or rename it"
        )
    try:
        model = make(**passed)
    except Exception as error:
        raise InvalidInputError(f"{target} could not be made: {located(error)}") from error
    if not isinstance(model, nn.Module):
        raise InvalidInputError(f"{target} must make an nn.Module, got {type(model).__name__}")
    if any(nn.parameter.is_lazy(p) for p in model.parameters()):
        _take_shape(model, target, arguments["input_shape"])
    return model


def require_fit(model: nn.Module, target: str, shape: tuple[int, ...], num_classes: int) -> None:
    """Raise unless a network takes the inputs and gives a number for each class; it is run once, in eval mode.

    Args:
        model: the network.
        target: its name.
        shape: of one input.
        num_classes: of the data.

    Raises:
        InvalidInputError: the message says what it gives instead, or why it cannot be run.
    """
    if not any(p.requires_grad for p in model.parameters()):
        raise InvalidInputError(
            f"{target} has no parameter to train; give it one, or model.requires_grad_(True) if all of them are frozen"
        )
    was_training = model.training
    found = _run(model, target, shape)
    model.train(was_training)
    shown = list(found.shape) if isinstance(found, torch.Tensor) else f"a {type(found).__name__}"
    if shown != [2, num_classes]:
        raise InvalidInputError(
            f"{target} gives {shown} for a batch of two; expected [2, {num_classes}], a number for each of the "
            f"{num_classes} classes. Let its last layer have {num_classes} outputs: it is told so as num_classes"
        )


def _take_shape(model: nn.Module, target: str, shape: tuple[int, ...]) -> None:
    """Run a network once whose layers learn their sizes from the first input."""
    _run(model, target, shape)
    model.train()


def _run(model: nn.Module, target: str, shape: tuple[int, ...]) -> Any:
    """The output for a batch of two, in eval mode."""
    try:
        with torch.no_grad():
            return model.eval()(torch.zeros(2, *shape))
    except Exception as error:
        raise InvalidInputError(
            f"{target} does not take inputs of shape [n, {', '.join(map(str, shape))}]: {located(error)}. It is told "
            "the shape of an input as input_shape"
        ) from error
