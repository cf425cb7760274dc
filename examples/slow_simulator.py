r"""
A slow simulator in eight processes, with a budget
==================================================

Every call of your simulator takes a while, you have several cores, and only so many calls to spend. Calls are
independent, so ``workers=8`` makes eight at a time. ``max_queries`` is never exceeded. And every answer is kept in a
journal: a script that is killed and started again pays for none of them twice.
"""

# %%
# The simulator
# -------------
# It stands in a file of its own, as worker processes import it. This one drops a ball through air and says how far it
# lands from a target; it sleeps for 20 ms, as a simulator that computes would take them.

import importlib
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import deepzero as dz

SIMULATOR = '''
"""A throw through air."""

import math
import os
import time
from pathlib import Path

LOG = Path(__file__).with_name("calls.txt")


def miss(throw):
    """Squared distance to a target 40 m away and 10 m up, in m^2; throw: speed / (m/s) and angle / rad."""
    with LOG.open("a") as log:
        log.write(f"{os.getpid()}\\n")
    time.sleep(0.02)
    speed, angle = throw
    x, y, vx, vy = 0.0, 0.0, speed * math.cos(angle), speed * math.sin(angle)
    while vx > 0 and x < 40.0:
        drag = 0.01 * math.hypot(vx, vy)
        step = min(0.005, (40.0 - x) / vx)
        x, y = x + step * vx, y + step * vy
        vx, vy = vx - step * drag * vx, vy - step * (9.81 + drag * vy)
        if y < -100.0:
            break
    return (x - 40.0) ** 2 + (y - 10.0) ** 2 + 0.01 * speed**2  # and gently, please
'''

# %%
# What you write
# --------------
# The simulator takes an array and returns a number.


def minimized(miss, folder):
    """The throw that misses least."""
    # [your lines]
    return dz.minimize(
        miss,
        np.array([20.0, 1.2]),
        bounds=[(5.0, 60.0), (0.1, 1.5)],
        max_queries=150,
        workers=8,
        journal=folder / "answers.sqlite",
    )
    # [end]


# %%
# Run it
# ------
# Everything that a script does with processes stands behind ``if __name__ == "__main__":``, because every worker
# imports the script, too. The second call is what happens after a crash: the journal has all the answers.


def main():
    """Minimize twice, and count."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "simulator.py").write_text(SIMULATOR)
        sys.path.insert(0, temporary)  # workers look there, too
        miss = importlib.import_module("simulator").miss

        start = time.perf_counter()
        found = minimized(miss, folder)
        calls = (folder / "calls.txt").read_text().split()
        print(f"speed {found.x[0]:.2f} m/s, angle {found.x[1]:.3f} rad: cost {found.fun:.2f}; {found.message}")
        print(f"{found.nfev} queries in {len(set(calls))} processes, {time.perf_counter() - start:.1f} s")

        start = time.perf_counter()
        again = minimized(miss, folder)
        further = len((folder / "calls.txt").read_text().split()) - len(calls)
        print(f"again: cost {again.fun:.2f}, {further} further calls, {time.perf_counter() - start:.1f} s")

        assert found.fun < 0.1 * miss([20.0, 1.2])
        assert len(calls) <= found.nfev <= 150
        assert len(set(calls)) > 2
        assert again.fun == found.fun
        assert further == 0


if __name__ == "__main__":
    main()
