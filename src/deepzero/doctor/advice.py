"""Advice in words: what each finding means for a run, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deepzero.doctor.diagnosis import Diagnosis
from deepzero.doctor.records import LEVELS, Finding, StepChoice
from deepzero.objective import NetworkObjective, Objective, parameters_of

SERIOUS = 0.1
"""Relative errors and relative noise from which on a warning is due."""
ALIGNED = 0.9
"""Cosine to autograd from which on an estimate is a gradient."""
MODES_MATTER = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


def advise(found: Diagnosis, objective: Objective, batch: tuple[Any, ...]) -> tuple[Finding, ...]:
    """All findings, the most serious first."""
    findings = [finding for rule in RULES for finding in rule(found)]
    findings += [*_values(found, objective, batch), *_dtypes(found, objective), *_modes(found, objective)]
    return tuple(sorted(findings, key=lambda finding: LEVELS.index(finding.level)))


def _failure(found: Diagnosis) -> Iterator[Finding]:
    if found.failure is not None:
        yield Finding("error", found.failure)


def _determinism(found: Diagnosis) -> Iterator[Finding]:
    result = found.determinism
    if not result.repeatable and result.loss is not None:
        share = result.relative_slope_noise
        size = "" if share is None else f", {share:.0%} of the slopes' own size"
        yield Finding(
            "note" if share is not None and share < SERIOUS else "warning",
            f"the objective is not deterministic: losses at one seed scatter by {result.noise:.1e}, which "
            f"puts noise of {result.slope_noise:.1e} into every slope{size}. Draw from torch's global generator, "
            "which is seeded for each query, or pass fixed random numbers in; else raise the step size",
        )
    if result.depends_on_seed:
        yield Finding(
            "note", "the loss draws random numbers (dropout and the like); harmless: all queries of a step share them"
        )


def _operations(found: Diagnosis) -> Iterator[Finding]:
    result = found.operations
    if result is None:
        return
    if result.problem is not None and result.instead is not None:
        yield Finding(
            "warning",
            f"differences cannot be propagated, so queries are answered by full forwards ({result.instead}), which is "
            f"slower and as "
            f"exact as their rounding: {result.problem}",
        )
    elif result.problem is not None:
        yield Finding(
            "error",
            f"differences cannot be propagated, so what follows is of full forwards, one a query: {result.problem}",
        )
    if result.run_again:
        again, reason = list(result.run_again), next(iter(result.run_again.values()))
        more = f" and {len(again) - 4} more" if len(again) > 4 else ""
        yield Finding(
            "warning" if result.behind_run_again > 0.5 else "note",
            f"queries of {', '.join(again[:4])}{more} ({result.behind_run_again:.0%} of the coordinates) run "
            f"everything behind the "
            f"parameter again, which is right and slower: {reason}",
        )
    if result.fallbacks:
        share = result.behind_fallbacks
        names = ", ".join(result.fallbacks)
        yield Finding(
            "warning" if share > 0.5 else "note",
            f"{names}: no difference rule, or none for these arguments, so the generic fallback serves {share:.0%} of "
            "the coordinates: correct, but slower. A rule is a few lines (see CONTRIBUTING); or use an operation that "
            "has one",
        )


def _autograd(found: Diagnosis) -> Iterator[Finding]:
    if found.sweep is not None and found.sweep.autograd_disagrees and found.determinism.repeatable:
        yield Finding(
            "warning",
            "autograd exists, but at no step size do function values agree with it: a function with jumps, detach(), a "
            "straight-through or custom backward. Errors are therefore measured against neighbouring steps",
        )


def _step(found: Diagnosis) -> Iterator[Finding]:
    if found.sweep is None:
        return
    choice, flat_below = found.step, found.sweep.flat_below
    if flat_below is not None:
        yield Finding(
            "warning",
            "the loss has flat pieces and jumps (sign, rounding, arg max, low precision): at steps below "
            f"{flat_below:.1e} most slopes are exactly 0, and autograd sees no more. Only steps from there on train it",
        )
    elif choice is None:
        yield Finding("warning", "no step size gives slopes that can be trusted: the differences are mostly noise")
    elif not choice.felt:
        yield Finding(
            "error",
            f"the step size {choice.configured:.1e} vanishes when it is added to a parameter; use "
            f"{choice.step_size:.1e}",
        )
    elif choice.configured_error is None:
        yield Finding(
            "error", f"losses are not finite at the step size {choice.configured:.1e}; use {choice.step_size:.1e}"
        )
    elif choice.configured_error > max(SERIOUS, 2 * choice.error):
        yield _bad_step(choice)
    else:
        yield Finding(
            "good",
            f"step size {choice.configured:.1e}: relative error {choice.configured_error:.1e}"
            + (
                ""
                if choice.low <= choice.configured <= choice.high
                else f" ({choice.error:.1e} at {choice.step_size:.1e})"
            ),
        )


def _bad_step(choice: StepChoice) -> Finding:
    small = choice.configured < choice.low
    why = (
        "too small: rounding and noise win"
        if small
        else "too large: curvature wins, the estimate is a smoothed gradient"
    )
    return Finding(
        "warning",
        f"step size {choice.configured:.1e} is {why}, relative error {choice.configured_error:.1e}; "
        f"{choice.step_size:.1e} has {choice.error:.1e}",
    )


def _gradients(found: Diagnosis) -> Iterator[Finding]:
    check, trusted = found.gradients, found.sweep is not None and not found.sweep.autograd_disagrees
    if check is None:
        return
    if check.cosine is not None and trusted and check.cosine < ALIGNED:
        yield _misaligned(check.cosine, check.expected_cosine)
    if all(layer.zeros == 1 for layer in check.layers):
        yield Finding("error", "no coordinate that was tried changes the loss: there is nothing to train by")
        return
    dead = [f"{layer.name} ({layer.zeros:.0%})" for layer in check.layers if layer.zeros >= 0.5]
    if dead:
        more = f" and {len(dead) - 8} more" if len(dead) > 8 else ""
        yield Finding(
            "note",
            f"dead coordinates, whose perturbation leaves the loss exactly as it is: {', '.join(dead[:8])}{more} of "
            "those tried. ReLUs that never fire do that, biases in front of a norm, and steps that are rounded away",
        )


def _misaligned(cosine: float, expected: float | None) -> Finding:
    if expected is None:
        what = "correct what else is reported here first, the step size above all"
    else:
        what = f"{expected:.2f} is what so few random directions reach; use more queries, or cge"
    return Finding("warning", f"the estimate's cosine to autograd is {cosine:.2f}: {what}")


def _trial(found: Diagnosis) -> Iterator[Finding]:
    trial = found.trial
    if trial is None:
        return
    moved = f"a plain step of {trial.learning_rate:g} along the estimate takes the loss from {trial.before:.4g} to "
    if trial.after is None or trial.after > trial.before:
        after = "a value that is not finite" if trial.after is None else f"{trial.after:.4g}"
        yield Finding(
            "warning", f"{moved}{after}: the learning rate is too large for the start; lower it or warm up longer"
        )
    else:
        yield Finding("good", f"{moved}{trial.after:.4g}")


def _values(found: Diagnosis, objective: Objective, batch: tuple[Any, ...]) -> Iterator[Finding]:
    if found.determinism.loss is not None:
        return
    named = {f"parameter {name}": p for name, p in parameters_of(objective).items()}
    if isinstance(objective, NetworkObjective):
        named |= {f"buffer {name}": b for name, b in objective.model.named_buffers()}
    named |= {f"batch tensor {i}": t for i, t in enumerate(pytree.tree_leaves(batch)) if isinstance(t, Tensor)}
    culprits = [name for name, t in named.items() if t.is_floating_point() and not bool(t.isfinite().all())]
    cause = (
        f"not finite already: {', '.join(culprits[:8])}"
        if culprits
        else "parameters and batch are finite, so the model or the loss overflows, divides by 0 or takes log(0)"
    )
    yield Finding("error", f"the loss is not finite at the current parameters; {cause}")


def _dtypes(found: Diagnosis, objective: Objective) -> Iterator[Finding]:
    parameters = parameters_of(objective)
    half = sorted({str(p.dtype) for p in parameters.values() if torch.finfo(p.dtype).bits < 32})
    if half:
        yield Finding(
            "warning",
            f"parameters are {', '.join(half)}: updates and steps are rounded to 2 or 3 digits; keep them in float32",
        )
    choice = found.step
    if choice is None or choice.evaluator == "propagation":
        return
    lost = [
        name
        for name, p in parameters.items()
        if p.numel() and torch.finfo(p.dtype).eps * float(p.abs().max()) > choice.configured
    ]
    if lost:
        yield Finding(
            "warning",
            f"a step of {choice.configured:.1e} is rounded away when it is added to the largest entries of "
            f"{', '.join(lost[:8])}; use a larger step, float64, or dz.PropagationEvaluator, which never adds it",
        )


def _modes(found: Diagnosis, objective: Objective) -> Iterator[Finding]:
    if found.determinism.mode == "train" or not isinstance(objective, NetworkObjective):
        return
    modules = [type(m).__name__ for m in objective.model.modules() if isinstance(m, MODES_MATTER) and not m.training]
    if modules:
        yield Finding(
            "note",
            f"{', '.join(sorted(set(modules)))} in eval mode: as meant for fine-tuning, else call model.train() first",
        )


RULES: tuple[Callable[[Diagnosis], Iterator[Finding]], ...] = (
    _failure,
    _determinism,
    _operations,
    _autograd,
    _step,
    _gradients,
    _trial,
)
