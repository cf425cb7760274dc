r"""
An external program in another process: ngspice
===============================================

A filter on a bench has been measured, and the values of its components are wanted. The model of the filter is a netlist
for ngspice, a circuit simulator that one starts with a file and that writes another one. Every query is such a run, in
a process of its own. Such programs crash and hang now and then; a policy makes those runs again.
"""

# %%
# The program
# -----------
# A coil with its resistance feeds a capacitor and a known load. The logarithms of the three unknown values go into the
# netlist, and the voltages at the load and at the coil come back, by frequency. A row is a set of components: here
# logarithms of the values over 10 ohm, 1 mH and 1 µF. A run that takes too long is ended, which frees its thread.

import logging
import shutil
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import deepzero as dz

NOMINAL = np.array([10.0, 1e-3, 1e-6])  # ohm, henry, farad
LOAD = 50.0
FIRST, LAST, A_DECADE = 100.0, 100e3, 8

NETLIST = """* a low-pass filter
V1 in 0 DC 0 AC 1
R1 in coil {0:.15e}
L1 coil out {1:.15e}
C1 out 0 {2:.15e}
R2 out 0 {load}
.control
set wr_singlescale
set numdgt=15
ac dec {a_decade} {first} {last}
wrdata response.txt v(out) v(coil)
.endc
.end
"""


def simulate(components):
    """``[frequencies, 5]``: frequency in Hz, and real and imaginary part of both voltages."""
    netlist = NETLIST.format(*components, load=LOAD, a_decade=A_DECADE, first=FIRST, last=LAST)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "filter.cir").write_text(netlist)
        command = ["ngspice", "-b", "filter.cir"]
        subprocess.run(command, cwd=folder, timeout=10, capture_output=True, stdin=subprocess.DEVNULL, check=False)
        return np.loadtxt(Path(folder, "response.txt"))


def filters(rows):
    """Voltages of filters, one a row: real and imaginary parts at the load, then at the coil."""
    return np.stack([simulate(NOMINAL * np.exp(row))[:, 1:].T.ravel() for row in rows])


# %%
# The bench
# ---------
# In place of a measurement there are the transfer functions of components that the fit does not see,
#
# .. math:: H_\text{load} = \frac{Z}{R + i \omega L + Z}, \quad H_\text{coil} = 1 - \frac{R}{R + i \omega L + Z},
#           \qquad Z = \frac{1}{i \omega C + 1 / R_\text{load}}
#
# They are written in PyTorch, so that they can also say what the exact gradient is.

HIDDEN = torch.tensor([0.5, -0.3, 0.4], dtype=torch.float64)
START = torch.zeros(3, dtype=torch.float64)


def transfer(rows, frequencies):
    """The same as :func:`filters`, by the formula."""
    resistance, inductance, capacitance = (torch.from_numpy(NOMINAL) * rows.exp()).T.unsqueeze(-1)
    omega = 2j * np.pi * frequencies
    behind = 1 / (omega * capacitance + 1 / LOAD)
    whole = resistance + omega * inductance + behind
    load, coil = behind / whole, 1 - resistance / whole
    return torch.cat([load.real, load.imag, coil.real, coil.imag], dim=-1)


class Filter(nn.Module):
    """Logarithms of three components to voltages by frequency."""

    def __init__(self, response):
        super().__init__()
        self.components, self.response = nn.Parameter(START.clone()), response

    def forward(self):
        """``[1, 4 frequencies]``."""
        return self.response(self.components[None])


# %%
# Crashes and hangs
# -----------------
# To see that, two of the runs fail when they are made for the first time: the one with a larger resistance crashes, and
# the one with a larger inductance hangs.

STEP = 1e-3  # of a logarithm: a component moves by a thousandth


class Fragile:
    """:func:`filters`, with a crash and a hang."""

    def __init__(self):
        self.runs, self.lock, self.released = 0, threading.Lock(), threading.Event()
        self.faults = {(1, 0, 0): self.crash, (0, 1, 0): self.hang}

    def crash(self):
        """What a program that died looks like from here."""
        raise RuntimeError("ngspice ended with a segmentation fault")

    def hang(self):
        """Until somebody ends it."""
        self.released.wait(60)

    def __call__(self, rows):
        """Answer, crash or hang."""
        with self.lock:
            self.runs += 1
            fault = self.faults.pop(tuple(np.round(rows[0] / STEP)), None)
        if fault is not None:
            fault()
        return filters(rows)


# %%
# The black box
# -------------
# ``dz.Opaque`` sends each row to one of two threads, and the policy says what is tolerated: a run may take 1.5 seconds,
# and one that fails or is late is made again, up to three times. ``rows=1``: each run of the program is a call.


def black_box(program, pool):
    """The program as a layer."""
    policy = dz.QueryPolicy(timeout=1.5, retries=3, backoff=0.01)
    options = {"directions": "coordinates", "step_size": STEP, "rows": 1}
    return dz.Opaque(program, numpy=True, executor=pool, policy=policy, **options)


def gradient(response, measured):
    """Of the loss at the start."""
    model = Filter(response)
    (model() - measured).square().sum().backward()
    return model.components.grad


def check(measured, frequencies):
    """Two gradients by the black box, one of them with failures, and the exact one."""
    fragile = Fragile()
    with ThreadPoolExecutor(2) as pool:
        undisturbed = black_box(filters, pool)
        estimate = gradient(undisturbed, measured)
        disturbed = black_box(fragile, pool)
        log, told = logging.getLogger("deepzero"), logging.StreamHandler(sys.stdout)
        log.addHandler(told)
        log.setLevel(logging.INFO)  # every retry is a line
        again = gradient(disturbed, measured)
        log.setLevel(logging.WARNING)
        log.removeHandler(told)
        fragile.released.set()
    exact = gradient(lambda rows: transfer(rows, frequencies), measured)
    error = ((estimate - exact).norm() / exact.norm()).item()
    print(f"{undisturbed.queries} runs without failures, {fragile.runs} with a crash and a hang")
    print(f"the same gradient: {torch.equal(estimate, again)}; relative error {error:.1e}")
    return estimate, again, error


# %%
# The fit
# -------
# L-BFGS, as it comes with PyTorch. Each of its evaluations is a run of the filter itself and two along each component.


def fit(measured):
    """The fitted filter, the responses at the start and at the end, and the loss of every evaluation."""
    with ThreadPoolExecutor(2) as pool:
        model = Filter(black_box(filters, pool))
        optimizer = torch.optim.LBFGS(
            model.parameters(), max_iter=12, max_eval=14, tolerance_change=1e-10, line_search_fn="strong_wolfe"
        )
        losses = []

        def closure():
            optimizer.zero_grad()
            loss = (model() - measured).square().sum()
            loss.backward()
            losses.append(loss.item())
            return loss

        optimizer.step(closure)
        print(f"loss {losses[0]:.3g} -> {min(losses):.2g} with {model.response.queries} runs of ngspice")
    return model.components.detach(), losses


# %%
# The result
# ----------
# Where ngspice is not installed, nothing is run.


def main():
    """Measure, check, fit, look."""
    frequencies = torch.from_numpy(simulate(NOMINAL)[:, 0])
    measured = transfer(HIDDEN[None], frequencies)
    estimate, again, error = check(measured, frequencies)
    fitted, losses = fit(measured)
    for name, unit, nominal, value, hidden in zip("RLC", ("ohm", "H", "F"), NOMINAL, fitted, HIDDEN, strict=True):
        print(f"{name} = {nominal * value.exp():.4g} {unit}, on the bench {nominal * hidden.exp():.4g} {unit}")

    _, (left, right) = plt.subplots(1, 2, figsize=(8, 3.5), layout="constrained")
    left.semilogy(losses, "o-")
    left.set(xlabel="evaluation", ylabel="loss")
    for name, style, row in (("measured", "k.", HIDDEN), ("start", "--", START), ("fitted", "-", fitted)):
        real, imaginary = transfer(row[None], frequencies).reshape(4, -1)[:2]
        right.loglog(frequencies, torch.hypot(real, imaginary), style, label=name)
    right.set(xlabel="frequency, Hz", ylabel="voltage at the load, V")
    right.legend()
    plt.show()

    assert torch.equal(estimate, again)
    assert error < 1e-5
    assert torch.allclose(fitted, HIDDEN, atol=1e-3)


if shutil.which("ngspice") is None:
    print("there is no ngspice here (on Debian: apt-get install ngspice), so nothing is run")
else:
    main()
