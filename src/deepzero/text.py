"""Words for people: durations, and the name that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable

NEAR = 0.6
"""Similarity from which a known name is offered in place of an unknown one, as :mod:`difflib` measures it."""

UNITS = ((172_800, 86_400, "days"), (7200, 3600, "h"), (120, 60, "min"), (1, 1, "s"), (1e-4, 1e-3, "ms"))
"""From how many seconds on a unit is used, its seconds, and its name."""


def duration(seconds: float) -> str:
    """A time in the unit that suits it.

    Example:
        >>> [duration(value) for value in (2e-5, 0.0123, 75, 600, 7500, 400_000)]
        ['20 us', '12.3 ms', '75.0 s', '10.0 min', '2.1 h', '4.6 days']
    """
    for least, size, unit in UNITS:
        if seconds >= least:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds * 1e6:.0f} us"


def nearest(word: str, known: Iterable[str], *, cutoff: float = NEAR) -> str | None:
    """The known name that is most like ``word``; None if none is like it.

    Example:
        >>> nearest("cifar", ["cifar10", "digits"]), nearest("xyz", ["cifar10", "digits"])
        ('cifar10', None)
    """
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)), None)


def did_you_mean(word: str, known: Iterable[str], *, shown: Callable[[str], object] = str, cutoff: float = NEAR) -> str:
    """A remark to put behind an unknown name: empty if no known one is like it.

    Args:
        word: the unknown name.
        known: the names that there are.
        shown: the written form of a name.
        cutoff: least similarity, in [0, 1].

    Example:
        >>> did_you_mean("cifar", ["cifar10", "digits"]), did_you_mean("cifar", ["cifar10"], shown=repr)
        (' (did you mean cifar10?)', " (did you mean 'cifar10'?)")
        >>> did_you_mean("xyz", ["cifar10"])
        ''
    """
    guess = nearest(word, known, cutoff=cutoff)
    return "" if guess is None else f" (did you mean {shown(guess)}?)"


def one_line(error: object, most: int = 300) -> str:
    """The text of another library's error for a message of ours: on one line, and cut where it is long.

    Example:
        >>> one_line(ValueError("no\\n  sense"))
        'no sense'
    """
    words = " ".join("".join(letter if letter.isprintable() else " " for letter in str(error)).split())
    return words if len(words) <= most else f"{words[:most]}..."
