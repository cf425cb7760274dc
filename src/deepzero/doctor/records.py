"""What the doctor finds, part by part: frozen records of plain values."""

from __future__ import annotations

from dataclasses import dataclass, field

LEVELS = ("error", "warning", "note", "good")


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


@dataclass(frozen=True)
class Determinism:
    """Whether the objective gives the same loss twice.

    Attributes:
        loss: the loss at the current parameters; None if it is not finite.
        mode: ``train``, ``eval`` or ``mixed``; None for a black box.
        repeatable: whether evaluations with the same seed agree bitwise.
        noise: standard deviation of the loss over evaluations with the same seed.
        depends_on_seed: whether another seed gives another loss, as dropout does; harmless, since all queries of a step
            share one seed.
        slope_noise: standard deviation that ``noise`` causes in each slope at the configured step size.
        relative_slope_noise: the same in units of the root mean square of the slopes; None if that is 0 or
            drowns in the noise.
    """

    loss: float | None
    mode: str | None
    repeatable: bool
    noise: float
    depends_on_seed: bool
    slope_noise: float = 0.0
    relative_slope_noise: float | None = None


@dataclass(frozen=True)
class Operations:
    """How differences travel through the network.

    Attributes:
        rules: operations behind some parameter that a difference rule serves, with their number in the graph.
        fallbacks: operations behind some parameter that the generic fallback serves, with their number: they have no
            rule, or their rule does not cover the arguments that they have here.
        behind_fallbacks: part of the trainable coordinates with a fallback on their way to the loss.
        run_again: by parameter, why its queries run the operations behind it again instead of following differences.
        behind_run_again: part of the trainable coordinates for which that is so.
        problem: why differences cannot be propagated at all; None if they can.
        instead: the evaluator that answers all queries then, if the estimator itself changes over to it.
    """

    rules: dict[str, int]
    fallbacks: dict[str, int]
    behind_fallbacks: float = 0.0
    run_again: dict[str, str] = field(default_factory=dict)
    behind_run_again: float = 0.0
    problem: str | None = None
    instead: str | None = None


@dataclass(frozen=True)
class Point:
    """One step size of a sweep.

    Attributes:
        step_size: the step size.
        error: relative error of the slopes in the Euclidean norm; None if a loss was not finite, or if the step
            vanishes when it is added to a parameter.
        zeros: part of the slopes that are exactly 0.
        felt: whether the step moves every parameter that it is added to.
    """

    step_size: float
    error: float | None
    zeros: float
    felt: bool = True


@dataclass(frozen=True)
class Curve:
    """Error against step size for one evaluator and one stencil, steps increasing."""

    evaluator: str
    stencil: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Sweep:
    """Estimates at many step sizes.

    Attributes:
        reference: what the errors are measured against: ``float64 autograd``, ``autograd`` or ``neighbouring steps``.
        uncertainty: relative uncertainty of the reference itself; 0 for autograd.
        samples: directions that were queried at every step size.
        curves: one for each evaluator and stencil.
        noise_floor: by evaluator, the root mean square error of a loss difference at the smallest step, in units of the
            loss: a difference below it is noise.
        autograd_disagrees: autograd exists, but at no step size do function values agree with it.
        flat_below: step size below which many slopes are exactly 0 that are not at the largest step, since the loss has
            flat pieces and jumps; None if it has none.
    """

    reference: str
    uncertainty: float
    samples: int
    curves: tuple[Curve, ...]
    noise_floor: dict[str, float]
    autograd_disagrees: bool = False
    flat_below: float | None = None

    def curve(self, evaluator: str, stencil: str) -> Curve:
        """The curve of one evaluator and stencil."""
        return next(c for c in self.curves if (c.evaluator, c.stencil) == (evaluator, stencil))


@dataclass(frozen=True)
class StepChoice:
    """The recommended step size.

    Attributes:
        evaluator: the evaluator it is for.
        stencil: the stencil it is for.
        step_size: recommended step size, the middle of the flat part of the error curve.
        low: smallest step size of the flat part.
        high: largest step size of the flat part.
        error: relative error at ``step_size``.
        configured: the step size that was asked about.
        configured_error: relative error there, None if a loss was not finite.
        felt: whether the configured step moves every parameter that it is added to.
        reason: the choice explained.
        samples: coordinates or directions behind the two errors.
        plain_error: relative error at ``step_size`` of a plain difference of two losses, as an evaluator without
            propagation has it; None where such differences are what is used.
        as_good: whether the configured step is as good as the recommended one: its error is at most a tenth, or twice
            the recommended step's. A step along an estimate with relative error :math:`\\varepsilon` lowers the loss,
            to first order, by at least :math:`1 - \\varepsilon` of what one along the gradient does.
    """

    evaluator: str
    stencil: str
    step_size: float
    low: float
    high: float
    error: float
    configured: float
    configured_error: float | None
    felt: bool
    reason: str
    samples: int = 0
    plain_error: float | None = None
    as_good: bool = False


@dataclass(frozen=True)
class LayerCheck:
    """The estimate of one parameter at the configured step size.

    Attributes:
        name: of the parameter.
        samples: coordinates looked at.
        zeros: part of them whose estimate is exactly 0.
        norm: Euclidean norm of the estimate on them; None if a loss was not finite.
        cosine: to autograd on them; None without autograd, where one of the two is 0, or of one
            coordinate.
        relative_error: to autograd on them; None without autograd, or where autograd is 0.
    """

    name: str
    samples: int
    zeros: float
    norm: float | None
    cosine: float | None
    relative_error: float | None


@dataclass(frozen=True)
class GradientCheck:
    """The estimate at the configured step size, parameter by parameter.

    Attributes:
        reference: ``float64 autograd``, ``autograd``, or None where it does not exist.
        cosine: of the whole estimate, in which a parameter counts by its coordinates, not by how many were looked at.
        relative_error: likewise.
        layers: one for each parameter with a coordinate.
        expected_cosine: for random directions what they reach on average, :math:`\\sqrt{q / (d + q + 1)}`.
    """

    reference: str | None
    cosine: float | None
    relative_error: float | None
    layers: tuple[LayerCheck, ...]
    expected_cosine: float | None = None


@dataclass(frozen=True)
class LoopCosts:
    """What a training loop does beside its estimates.

    Attributes:
        steps_per_epoch: steps of an epoch.
        step_overhead: seconds beside the estimate in a step: the batch, the optimizer.
        epoch_overhead: seconds beside the steps in an epoch: the look at the validation split.
        epochs: epochs of the run.
        startup: seconds before the first step: scores and ratios.
    """

    steps_per_epoch: int
    step_overhead: float = 0.0
    epoch_overhead: float = 0.0
    epochs: int = 1
    startup: float = 0.0


@dataclass(frozen=True)
class QueryCheck:
    """What a query of a black box is like.

    Attributes:
        queries: made by the examination.
        max_queries: it might have made.
        seconds: median of a query.
        fastest: of all queries but the first.
        slowest: likewise.
        first: seconds of the first query, which may load or compile what the others find ready.
        repeats: queries at the same point behind the noise.
        noise_uncertainty: relative standard deviation of the noise that was found, :math:`1/\\sqrt{2(n-1)}`.
        rounding: standard deviation of the noise between points that are close together, in units of the loss; None
            where queries at the same point differ already.
        drawn: global random number generators that queries draw from: ``numpy``, ``python``, ``torch``.
        reseeded: whether seeding them before each query makes the answers repeat; None where they repeat anyway.
        drift: by how much the loss at the parameters as they are had changed after all other queries, where it should
            not have; None where it is noisy anyway.
        sendable: whether the function can be sent to other processes; why not, if it cannot.
        failures: queries that raised an error, in words.
    """

    queries: int
    max_queries: int
    seconds: float
    fastest: float
    slowest: float
    first: float
    repeats: int
    noise_uncertainty: float
    rounding: float | None
    drawn: tuple[str, ...]
    reseeded: bool | None
    drift: float | None
    sendable: str
    failures: tuple[str, ...]


@dataclass(frozen=True)
class MethodCost:
    """What a way to choose directions takes and gives.

    Attributes:
        method: ``cge`` or ``rge``.
        directions: of a step.
        queries: of a step.
        steps: that the queries of the run allow.
        cosine: to the gradient, as far as the number of directions decides it: 1 for all coordinates, on average
            :math:`\\sqrt{q / (d + q + 1)}` for random ones.
    """

    method: str
    directions: int
    queries: int
    steps: int
    cosine: float


@dataclass(frozen=True)
class RunCost:
    """What a run of so many steps takes.

    Attributes:
        steps: of the run.
        queries: of all steps.
        seconds: of all queries, on as many workers as the estimator has.
        price: of all queries; None without a price per query.
        methods: what coordinates and random directions make of as many queries.
    """

    steps: int
    queries: int
    seconds: float
    price: float | None = None
    methods: tuple[MethodCost, ...] = ()


@dataclass(frozen=True)
class LayerTime:
    """Seconds that the queries of one parameter take in a step."""

    name: str
    coordinates: int
    seconds: float


@dataclass(frozen=True)
class Forecast:
    """What a step and an epoch will take.

    Attributes:
        queries: function values of a step, the base included.
        seconds_per_step: seconds of an estimate.
        method: how that was found: ``timed`` (whole estimates), ``cost table`` or ``one query``.
        base_seconds: seconds of the base forward.
        layers: seconds by parameter, the longest first, by the cost table or in proportion to the queries.
        memory: bytes that an estimate takes beyond model and batch; None if the evaluator has no plan of memory.
        memory_budget: bytes that it may take.
        loop: what the loop does besides.
        seconds_per_epoch: seconds of an epoch, the loop included; None without ``loop``.
    """

    queries: int
    seconds_per_step: float
    method: str
    base_seconds: float
    layers: tuple[LayerTime, ...]
    memory: int | None = None
    memory_budget: int | None = None
    loop: LoopCosts | None = None
    seconds_per_epoch: float | None = None


@dataclass(frozen=True)
class Trial:
    """One plain gradient step along the estimate at the peak learning rate.

    Attributes:
        learning_rate: the learning rate.
        before: the loss.
        after: the loss on the same batch after the step; None if it is not finite.
    """

    learning_rate: float
    before: float
    after: float | None
