"""Advice in words: the meaning of each finding for a run, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deepzero.doctor.determinism import modules_of
from deepzero.doctor.step_choice import AS_GOOD, StepChoice, repeats_for
from deepzero.doctor.sweep import PROPAGATION, Sweep
from deepzero.objective import Objective, parameters_of

if TYPE_CHECKING:
    from deepzero.doctor.diagnosis import Diagnosis

LEVELS = ("error", "warning", "note", "good")
SERIOUS = AS_GOOD
"""Relative noise from which on a warning is due."""
UNEVEN = 3.0
"""Times the median, from which on a query is slow."""
ENOUGH_STEPS = 30
"""Steps without which a run along whole gradients gets nowhere."""
GENERATORS = {
    "numpy": "NumPy's global generator",
    "python": "Python's global generator",
    "torch": "PyTorch's global generator",
}
ALIGNED = 0.9
"""Cosine to autograd from which on an estimate is a gradient."""
MODES_MATTER = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


@dataclass(frozen=True)
class Finding:
    """One piece of advice, in words.

    Attributes:
        level: ``error`` (a run cannot work), ``warning`` (it will suffer), ``note``, or ``good``.
        text: what was found and what to do about it.
        short: the same in a few words, for the verdict; empty where the verdict does not need it.
    """

    level: str
    text: str
    short: str = ""


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
        yield _noise(found) if found.queries is None else _noise_of_black_box(found)
    if result.depends_on_seed:
        yield Finding(
            "note", "the loss draws random numbers (dropout and the like); harmless: all queries of a step share them"
        )


def _noise(found: Diagnosis) -> Finding:
    result = found.determinism
    share = result.relative_slope_noise
    size = "" if share is None else f", {share:.0%} of the slopes' own size"
    small = share is not None and share < SERIOUS
    return Finding(
        "note" if small else "warning",
        f"the objective is not deterministic: losses at one seed scatter by {result.noise:.1e}, which "
        f"puts noise of {result.slope_noise:.1e} into every slope{size}. Draw from torch's global generator, "
        "which is seeded for each query, or pass fixed random numbers in; else raise the step size",
        "" if small else f"the loss is noisy (sd {result.noise:.0e})",
    )


def _noise_of_black_box(found: Diagnosis) -> Finding:
    result, choice = found.determinism, found.step
    share = result.relative_slope_noise
    noisy = f"the loss is noisy (sd {result.noise:.0e})"
    if share is None or choice is None:
        return Finding(
            "error",
            f"the loss is noisy: at the same parameters it scatters by {result.noise:.1e}, and no step that was "
            "tried makes slopes rise above that. Take larger steps, or repeat queries (dz.minimize has repeats=...)",
            f"{noisy}, and no step that was tried tells a slope from it: larger steps, or repeat queries",
        )
    larger = choice.step_size > choice.configured
    mend = f"raise the step to {choice.step_size:.1g}" if larger else "repeat queries"
    if larger and choice.error > SERIOUS:
        mend += f" and repeat each query {repeats_for(choice)} times"
    elif not larger:
        mend += f" ({repeats_for(choice)} times each)"
    if found.queries is not None and found.queries.reseeded:
        mend = f"seed {_named(found.queries.drawn)} in the function, or {mend}"
    level = "error" if share >= 1 else "warning" if share >= SERIOUS else "note"
    return Finding(
        level,
        f"the loss is noisy: at the same parameters it scatters by {result.noise:.1e}, which puts noise of "
        f"{result.slope_noise:.1e} into every slope at the step {choice.configured:.1e}, "
        f"{_times(share)} the slopes' own size. "
        + ("That is little" if level == "note" else f"To have little of it, {mend}"),
        "" if level == "note" else f"{noisy}: {mend}",
    )


def _queries(found: Diagnosis) -> Iterator[Finding]:
    result = found.queries
    if result is None:
        return
    if result.failures:
        yield Finding(
            "warning",
            f"the black box failed at {len(result.failures)} of {result.queries} queries, first at "
            f"{result.failures[0]}",
            f"the black box fails at some points ({len(result.failures)} of {result.queries})",
        )
    if result.drawn:
        names = _named(result.drawn)
        if result.reseeded:
            yield Finding(
                "warning",
                f"the noise comes from {names}: seed that at the beginning of the function from a fixed number, and "
                "all queries see the same random numbers, so the noise is gone from their differences",
            )
        else:
            yield Finding("note", f"the function draws from {names}")
    if result.drift:
        yield Finding(
            "warning",
            f"the loss depends on what was asked before: the same parameters gave another loss, by {result.drift:.1e}, "
            "after other points had been asked. The function keeps something (a warm start, a counter, a cache): reset "
            "it in every call, or take steps whose differences are much larger",
            f"the loss depends on what was asked before (by {result.drift:.0e})",
        )
    if result.slowest > UNEVEN * result.seconds and result.slowest > 1.0:
        yield Finding(
            "note",
            f"queries take from {result.fastest:.2g} s to {result.slowest:.2g} s: with several workers, the slow ones "
            "decide how long a step takes",
        )
    if result.sendable:
        yield Finding(
            "note",
            f"the function cannot be sent to other processes ({result.sendable}): define it at the top level of a "
            "module to use a process pool; threads work as they are",
        )


def _method(found: Diagnosis) -> Iterator[Finding]:
    if found.run is None or found.forecast is None:
        return
    every, some = found.run.methods
    comparison = (
        f"cge takes {every.queries:,} queries a step, rge with {some.directions} directions {some.queries:,} at a "
        f"cosine of about {some.cosine:.2f}"
    )
    if every.steps >= ENOUGH_STEPS:
        why = f"{every.steps:,} steps of it fit in as many queries as this run has, each along the whole gradient"
        yield Finding("note", f"take cge: {why} ({comparison})")
    else:
        why = f"only {every.steps:,} steps of cge fit in as many queries as this run has, but {some.steps:,} of rge"
        yield Finding("note", f"take rge: {why} ({comparison})")


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
    sweep, choice = found.sweep, found.step
    if sweep is None:
        return
    flat_below = sweep.flat_below
    if flat_below is not None:
        yield Finding(
            "warning",
            "the loss has flat pieces and jumps (sign, rounding, arg max, low precision): at steps below "
            f"{flat_below:.1e} most slopes are exactly 0, and autograd sees no more. Only steps from there on train it",
            f"the loss is flat below steps of {flat_below:.1e}",
        )
    elif choice is None:
        if _is_flat(sweep):
            return
        if found.determinism.repeatable or found.queries is None:
            yield Finding(
                "warning",
                "no step size gives slopes that can be trusted: the differences are mostly noise",
                "no step size gives slopes that can be trusted",
            )
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
    elif choice.as_good:
        yield _good_step(choice, choice.configured_error)
    else:
        yield _bad_step(choice, choice.configured_error)


def _good_step(choice: StepChoice, error: float) -> Finding:
    text = f"step size {choice.configured:.1e}: relative error {error:.1e}"
    if not choice.low <= choice.configured <= choice.high:
        text += (
            f", at the recommended {choice.step_size:.1e} {choice.error:.1e}; no matter, since a step of training "
            f"loses at most {error:.1%} of its descent by it"
        )
        if choice.plain_error is not None and choice.plain_error > 2 * error:
            text += f", and by plain differences the recommended step would have {choice.plain_error:.1e}"
    return Finding("good", text)


def _bad_step(choice: StepChoice, error: float) -> Finding:
    small = choice.configured < choice.low
    why = (
        "too small: rounding and noise win"
        if small
        else "too large: curvature wins, the estimate is a smoothed gradient"
    )
    plain = ""
    if choice.plain_error is not None and choice.plain_error > max(SERIOUS, 2 * choice.error):
        plain = f" (by propagated differences only: by plain ones {choice.plain_error:.1e})"
    return Finding(
        "warning",
        f"step size {choice.configured:.1e} is {why}, relative error {error:.1e}; "
        f"{choice.step_size:.1e} has {choice.error:.1e}{plain}",
        f"the step {choice.configured:.1e} is too {'small' if small else 'large'}: use {choice.step_size:.1e}, whose "
        f"error is {choice.error:.1e}",
    )


def _gradients(found: Diagnosis) -> Iterator[Finding]:
    check, trusted = found.gradients, found.sweep is not None and not found.sweep.autograd_disagrees
    if check is None:
        if found.sweep is not None and _is_flat(found.sweep):
            yield Finding(
                "warning",
                f"none of the {found.sweep.samples} directions that were tried changes the loss, at any step; they are "
                "few of many: allow more queries (max_queries), or look at the function",
                "none of the few directions that were tried changes the loss",
            )
        return
    if check.cosine is not None and trusted and check.cosine < ALIGNED:
        yield _misaligned(check.cosine, check.expected_cosine)
    if all(layer.zeros == 1 for layer in check.layers):
        yield _nothing_changes(found.sweep)
        return
    dead = [f"{layer.name} ({layer.zeros:.0%})" for layer in check.layers if layer.zeros >= 0.5]
    if dead:
        more = f" and {len(dead) - 8} more" if len(dead) > 8 else ""
        yield Finding(
            "note",
            f"dead coordinates, whose perturbation leaves the loss exactly as it is: {', '.join(dead[:8])}{more} of "
            "those tried"
            + (
                ". ReLUs that never fire do that, biases in front of a norm, and steps that are rounded away"
                if found.queries is None
                else ""
            ),
        )


def _nothing_changes(sweep: Sweep | None) -> Finding:
    if sweep is not None and sweep.flat_below is not None:
        return Finding(
            "error",
            "no coordinate that was tried changes the loss at the configured step: there is nothing to train by; raise "
            f"it to {sweep.flat_below:.1e} at least",
            f"the loss is flat at this step: raise it to {sweep.flat_below:.1e} at least",
        )
    return Finding("error", "no coordinate that was tried changes the loss: there is nothing to train by")


def _is_flat(sweep: Sweep) -> bool:
    """True if no query of a sweep gave another loss."""
    return all(point.zeros == 1 for curve in sweep.curves for point in curve.points)


def _named(generators: Iterable[str]) -> str:
    return " and ".join(GENERATORS[name] for name in generators)


def _times(share: float) -> str:
    return f"{share:.0%} of" if share < 10 else f"{share:,.0f} times"


def _misaligned(cosine: float, expected: float | None) -> Finding:
    if expected is None:
        what = "correct what else is reported here first, the step size above all"
    else:
        what = f"{expected:.2f} is what so few random directions reach; use more queries, or cge"
    return Finding(
        "warning", f"the estimate's cosine to autograd is {cosine:.2f}: {what}", f"its cosine is {cosine:.2f}"
    )


def _trial(found: Diagnosis) -> Iterator[Finding]:
    trial = found.trial
    if trial is None:
        return
    moved = f"a plain step of {trial.learning_rate:g} along the estimate takes the loss from {trial.before:.4g} to "
    if trial.after is None or trial.after > trial.before:
        after = "a value that is not finite" if trial.after is None else f"{trial.after:.4g}"
        yield Finding(
            "warning",
            f"{moved}{after}: the learning rate is too large for the start; lower it or warm up longer",
            f"the learning rate {trial.learning_rate:g} raises the loss",
        )
    else:
        yield Finding("good", f"{moved}{trial.after:.4g}")


def _values(found: Diagnosis, objective: Objective, batch: tuple[Any, ...]) -> Iterator[Finding]:
    if found.determinism.loss is not None:
        return
    named = {f"parameter {name}": p for name, p in parameters_of(objective).items()}
    for model in modules_of(objective)[:1]:
        named |= {f"buffer {name}": b for name, b in model.named_buffers()}
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
    if choice is None or choice.evaluator == PROPAGATION:
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
    if found.determinism.mode == "train":
        return
    modules = [type(m).__name__ for m in modules_of(objective) if isinstance(m, MODES_MATTER) and not m.training]
    if modules:
        yield Finding(
            "note",
            f"{', '.join(sorted(set(modules)))} in eval mode: as meant for fine-tuning, else call model.train() first",
        )


RULES: tuple[Callable[[Diagnosis], Iterator[Finding]], ...] = (
    _failure,
    _determinism,
    _queries,
    _operations,
    _autograd,
    _step,
    _gradients,
    _trial,
    _method,
)
