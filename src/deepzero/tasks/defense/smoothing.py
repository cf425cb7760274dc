"""Randomized smoothing: the answer of a classifier under Gaussian noise, and the radius within which it is certain.

The smoothed classifier :math:`g(x) = \\arg\\max_c P[f(x + \\varepsilon) = c]` with
:math:`\\varepsilon \\sim N(0, \\sigma^2 I)` answers the same on the whole ball of radius

.. math:: R = \\sigma\\, \\Phi^{-1}(\\underline{p_A})

around x, where :math:`\\underline{p_A} > 1/2` is a lower bound of the probability of its answer. Cohen, Rosenfeld and
Kolter, "Certified Adversarial Robustness via Randomized Smoothing" (ICML 2019): CERTIFY and PREDICT are their
procedures, with exact (Clopper-Pearson) bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from deepzero import validation
from deepzero.errors import InvalidInputError
from deepzero.extras import required_for
from deepzero.randomness import derive_seed

DRAWN = 1000
"""Samples whose noise is drawn at a time, whatever the size of a call: so it does not depend on that."""
ABSTAIN = -1
"""The answer of a smoothed classifier that is not sure enough."""
ALMOST_CERTAIN = 1 - 1e-9
"""A probability beyond which no number of samples is worth naming."""


def _statistics() -> Any:
    """The module ``scipy.stats``.

    Raises:
        MissingPackageError: SciPy is not installed.
    """
    with required_for("a certified radius"):
        from scipy import stats  # noqa: PLC0415 - optional
    return stats


def lower_bound(hits: int, trials: int, alpha: float) -> float:
    """One-sided Clopper-Pearson bound: a probability that is below the true one with confidence ``1 - alpha``.

    Example:
        >>> f"{lower_bound(10_000, 10_000, 0.001):.6f}"  # 0.001 ** (1 / 10000)
        '0.999309'
        >>> lower_bound(0, 10, 0.001)
        0.0
    """
    return float(_statistics().beta.ppf(alpha, hits, trials - hits + 1)) if hits else 0.0


def radius_of(probability: float, sigma: float) -> float:
    """:math:`\\sigma \\Phi^{-1}(p)`; 0 for probabilities up to one half.

    Example:
        >>> round(radius_of(0.9772499, 0.5), 4)  # two standard deviations
        1.0
    """
    return sigma * float(_statistics().norm.ppf(probability)) if probability > 0.5 else 0.0


def largest_radius(sigma: float, trials: int, alpha: float) -> float:
    """The radius that is certified if all of the samples agree: no image can have more.

    Example:
        >>> [round(largest_radius(1.0, n, 0.001), 3) for n in (100, 1_000, 10_000, 100_000)]
        [1.5, 2.463, 3.199, 3.811]
    """
    return radius_of(lower_bound(trials, trials, alpha), sigma)


def require_reachable(radii: Iterable[float], sigma: float, trials: int, alpha: float) -> None:
    """Raise unless some outcome of the sampling can certify every one of ``radii``.

    Raises:
        InvalidInputError: a radius is out of reach; the message says how many samples, or which sigma, it needs.
    """
    largest, most = max(radii, default=0.0), largest_radius(sigma, trials, alpha)
    if largest < most:
        return
    bound = _statistics().norm.cdf(largest / sigma)
    needed = alpha_power(bound, alpha) if bound < ALMOST_CERTAIN else None
    advice = "take a smaller radius" if needed is None else f"take N={needed:,} or more (--trials {needed})"
    if most <= 0:
        raise InvalidInputError(
            f"nothing can be certified with N={trials:,} samples at alpha={alpha:g}, even if all agree; {advice}"
        )
    raise InvalidInputError(
        f"a radius of {largest:g} cannot be certified with sigma={sigma:g}, N={trials:,} and alpha={alpha:g}: even if "
        f"all samples agree, the bound ends at {most:.3f}; {advice}, or sigma={largest / (most / sigma):.2f} or more"
    )


def alpha_power(probability: float, alpha: float) -> int:
    """The smallest n with ``alpha ** (1 / n) > probability``.

    Example:
        >>> from scipy.stats import norm
        >>> alpha_power(norm.cdf(0.75 / 0.25), 0.001)
        5114
    """
    return math.floor(math.log(alpha) / math.log(probability)) + 1


@dataclass(frozen=True)
class Certificate:
    """The certain answer for one image.

    Attributes:
        answer: the class, or :data:`ABSTAIN`.
        radius: within which the smoothed classifier gives that answer; 0 if it abstains.
        hits: samples that gave the answer.
        trials: samples.
        bound: lower bound of the probability of the answer.
    """

    answer: int
    radius: float
    hits: int
    trials: int
    bound: float


@dataclass(frozen=True)
class Smoothed:
    """A classifier under Gaussian noise.

    Attributes:
        scores: images ``[n, *image]`` to scores ``[n, classes]``.
        sigma: standard deviation of the noise.
        classes: number of them.
        batch: most images of one call.
        seed: of the noise; an image's noise is a function of the seed and the image's number.

    Example:
        >>> halves = Smoothed(lambda x: torch.stack([-x[:, 0], x[:, 0]], dim=1), sigma=0.5, classes=2)
        >>> found = halves.certify(torch.tensor([0.6]), number=0, trials=1000)
        >>> found.answer, found.radius < 0.6  # the true distance to the boundary
        (1, True)
    """

    scores: Callable[[Float[Tensor, "n ..."]], Float[Tensor, "n classes"]]
    sigma: float
    classes: int
    batch: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        validation.positive("sigma", self.sigma, hint="0.25")
        validation.count("classes", self.classes, minimum=2)
        validation.count("batch", self.batch)

    def counts(self, image: Float[Tensor, ...], samples: int, seed: int) -> Int64[Tensor, " classes"]:
        """Answers of each class among ``samples`` noisy copies of an image."""
        generator = torch.Generator().manual_seed(seed)
        found = torch.zeros(self.classes, dtype=torch.int64)
        for start in range(0, samples, DRAWN):
            count = min(DRAWN, samples - start)
            noise = torch.randn((count, *image.shape), generator=generator, dtype=torch.float32).to(image)
            for some in torch.split(noise, self.batch):
                with torch.no_grad():
                    answers = self.scores(image.unsqueeze(0) + self.sigma * some).argmax(1).cpu()
                found += torch.bincount(answers, minlength=self.classes)
        return found

    def certify(
        self, image: Float[Tensor, ...], *, number: int, trials: int, first: int = 100, alpha: float = 0.001
    ) -> Certificate:
        """CERTIFY: the answer is guessed from ``first`` samples, and tested on ``trials`` others."""
        guess = int(self.counts(image, first, derive_seed(self.seed, "guess", number)).argmax())
        hits = int(self.counts(image, trials, derive_seed(self.seed, "certify", number))[guess])
        bound = lower_bound(hits, trials, alpha)
        if bound <= 0.5:
            return Certificate(ABSTAIN, 0.0, hits, trials, bound)
        return Certificate(guess, radius_of(bound, self.sigma), hits, trials, bound)

    def predict(self, image: Float[Tensor, ...], *, number: int, trials: int, alpha: float = 0.001) -> int:
        """PREDICT: the most frequent answer, if it is the most probable one with confidence ``1 - alpha``."""
        counts = self.counts(image, trials, derive_seed(self.seed, "predict", number))
        (first, second), (answer, _) = ([int(v) for v in part] for part in counts.topk(2))
        if _statistics().binomtest(first, first + second, 0.5).pvalue > alpha:
            return ABSTAIN
        return answer


def certified_accuracy(
    certificates: Sequence[Certificate], labels: Sequence[int], radii: Sequence[float]
) -> list[float]:
    """The share of images that are answered rightly on a ball of each radius.

    Example:
        >>> some = [Certificate(1, 0.6, 99, 100, 0.9), Certificate(0, 0.2, 60, 100, 0.6)]
        >>> certified_accuracy(some, [1, 1], [0.0, 0.5, 0.7])
        [0.5, 0.5, 0.0]
    """
    right = [c.radius if c.answer == label else -1.0 for c, label in zip(certificates, labels, strict=True)]
    return [sum(own >= radius for own in right) / len(right) for radius in radii]
