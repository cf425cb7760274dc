r"""
A SciPy function
================

``dz.minimize`` takes and returns what ``scipy.optimize.minimize`` does. Here both minimize the same functions, and
both are asked how often they called them.
"""

# %%
# What you have
# -------------
# Rosenbrock's valley in ten dimensions, with bounds; and the same with a little noise on top, as a measurement has.

import matplotlib.pyplot as plt
import numpy as np
import scipy.optimize
from scipy.optimize import rosen

import deepzero as dz

start = np.zeros(10)
random = np.random.default_rng(0)


def measured(x):
    """The bottom of a bowl at 0.5, measured with an error."""
    return float(np.sum((x - 0.5) ** 2)) + 0.01 * random.standard_normal()


# %%
# What you write
# --------------
# For a noisy function, say how often each point is to be measured; steps then follow from the noise.

# [your lines]
history = []
ours = dz.minimize(rosen, start, bounds=(-2.0, 2.0), callback=lambda found: history.append((found.nfev, found.fun)))
theirs = scipy.optimize.minimize(rosen, start, bounds=[(-2.0, 2.0)] * 10, method="L-BFGS-B")

noisy = dz.minimize(measured, start, repeats=4, lr=0.05, max_queries=8_000)
naive = scipy.optimize.minimize(measured, start, method="L-BFGS-B")
# [end]

# %%
# Without noise
# -------------
# Central differences call the function twice as often as SciPy's one-sided ones, and come nearer.

for name, found in {"deepzero": ours, "SciPy": theirs}.items():
    print(f"{name:8} error {abs(found.x - 1).max():.1e} after {found.nfev:,} calls: {found.message}")

assert abs(ours.x - 1).max() < 1e-4
assert abs(ours.x - theirs.x).max() < 1e-3

plt.figure(figsize=(6, 3.5), layout="constrained")
plt.semilogy(*zip(*history, strict=True), "o-")
plt.xlabel("calls")
plt.ylabel("Rosenbrock's function")
plt.show()

# %%
# With noise
# ----------
# Differences over SciPy's step of 1e-8 see nothing but noise.

for name, found in {"deepzero": noisy, "SciPy": naive}.items():
    print(f"{name:8} error {abs(found.x - 0.5).max():.3f} after {found.nfev:,} calls: {found.message}")
print(f"found: {noisy.fun:.4f} ± {noisy.standard_error:.4f}")

assert abs(noisy.x - 0.5).max() < 0.05
assert abs(naive.x - 0.5).max() > 0.2
