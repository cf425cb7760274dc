"""Numbers at the axes, short and without markup."""

from __future__ import annotations

import math

from matplotlib.ticker import LogFormatter

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def tick(value: float) -> str:
    """A number as a tick is labelled.

    >>> [tick(v) for v in (0, 0.1 + 0.2, -2500, 1e6, 1e-3, 1e-5, 2e-7, 1e15)]
    ['0', '0.3', '-2.5k', '1M', '0.001', '10⁻⁵', '2×10⁻⁷', '10¹⁵']
    """
    size = abs(value)
    if size == 0:
        return "0"
    if not 0.9999e-3 <= size < 1e15:
        return _power(value)
    factor, unit = next(((f, u) for f, u in UNITS if size >= f * 0.99999), (1.0, ""))
    return f"{value / factor:.5g}{unit}"


class LogTicks(LogFormatter):
    """Labels between the powers of ten, where the axis is so short that it needs them.

    Args:
        crowded: whether there is room for a few of them only.
    """

    def __init__(self, *, crowded: bool = False) -> None:
        super().__init__()
        self._crowded = crowded

    def __call__(self, x: float, pos: int | None = None) -> str:
        """The label at ``x``, empty where there is to be none."""
        shown = bool(super().__call__(x, pos)) and not (self._crowded and self._is_between(x))
        return tick(x) if shown else ""

    def _is_between(self, x: float) -> bool:
        """Whether its neighbours are to have a label and it has not."""
        assert self.axis is not None
        low, high = sorted(self.axis.get_view_interval())
        decades = math.log10(high / low)
        digit = round(x / 10 ** math.floor(math.log10(x) + 1e-9))
        return decades > 0.3 and digit not in ((2, 3, 5) if decades < 0.7 else (2, 5))


def _power(value: float) -> str:
    exponent = math.floor(math.log10(abs(value)) + 1e-9)
    digits = f"{value / 10**exponent:.4g}"
    power = f"10{str(exponent).translate(SUPERSCRIPTS)}"
    return power if digits == "1" else f"-{power}" if digits == "-1" else f"{digits}\u00d7{power}"
