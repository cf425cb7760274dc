"""How long a call takes, on any device."""

from __future__ import annotations

import time
from collections.abc import Callable

from deepzero.evaluators.costs import wait_for_devices


def seconds_of(function: Callable[[], object]) -> float:
    """Wall seconds until all that a call has asked of the device is done."""
    wait_for_devices()
    start = time.perf_counter()
    function()
    wait_for_devices()
    return time.perf_counter() - start
