"""Times for people to read."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """A time in a unit that suits it.

    Example:
        >>> duration(0.0123), duration(75), duration(7500), duration(400_000)
        ('12.3 ms', '75.0 s', '2.1 h', '4.6 days')
    """
    if seconds < 1e-4:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    for limit, unit, name in ((600, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds / 86_400:.1f} days"
