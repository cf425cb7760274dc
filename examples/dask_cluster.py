r"""
The same service, asked from a Dask cluster
===========================================

Queries of a black box are independent, so they can be made by any number of machines. Here the clients of a scoring
service are the workers of a Dask cluster. If one of them is lost, Dask gives its queries to another. The numbers are
those of a loop on one machine.
"""

# %%
# The service
# -----------
# It gives the error of a filter for its eight coefficients, on this machine's loopback interface, and counts a key that
# it has seen before only once.

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import Request, urlopen

import matplotlib.pyplot as plt
import numpy as np
import torch
from distributed import Client, LocalCluster

import deepzero as dz

TAPS, TIME, STEPS = 8, np.arange(64), 24
SIGNAL = np.sin(2 * np.pi * TIME / 16)
NOISY = SIGNAL + 0.5 * np.random.default_rng(0).normal(size=TIME.size)


def score(taps):
    """Mean squared error of the filtered signal."""
    return float(np.mean((np.convolve(NOISY, taps, mode="same") - SIGNAL) ** 2))


billed = set()


class Handler(BaseHTTPRequestHandler):
    """``POST /`` with a JSON list of coefficients."""

    def do_POST(self):
        """Answer and bill."""
        taps = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        billed.add(self.headers["Idempotency-Key"])
        body = json.dumps(score(taps)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        """Quiet."""


# %%
# The black box
# -------------
# What a worker runs. ``url`` is handed to ``zo.backward`` and reaches the function as its second argument.


def ask(params, url):
    """One request."""
    body, headers = json.dumps(params["taps"].tolist()).encode(), {"Idempotency-Key": dz.query_key()}
    with urlopen(Request(url, body, headers), timeout=10) as answer:
        return json.load(answer)


def on_this_machine(params):
    """What ``ask`` returns, without a service: for the comparison."""
    return score(params["taps"])


def train(make_estimator, fn, *batch, **options):
    """Scores by step."""
    box = dz.BlackBox(fn, {"taps": np.eye(TAPS)[TAPS // 2]})
    zo = make_estimator(box, **options)
    optimizer = torch.optim.Adam(box.parameters(), lr=0.05)
    scores = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        scores.append(zo.backward(*batch).item())
        optimizer.step()
    return scores


def cge(box, **options):
    """Every coefficient, one by one: 9 requests a step."""
    return dz.CGE(box, step_size=1e-3, **options)


def rge(box, **options):
    """Four random directions, both ways: 9 requests a step."""
    return dz.RGE(box, step_size=1e-2, queries=4, stencil=dz.CENTRAL, seed=0, **options)


# %%
# Training
# --------
# ``client.get_executor()`` is all that a cluster needs to offer. To keep this page quick, the two workers of this
# cluster share a process; with ``Client("tcp://scheduler:8786")`` in place of it they are anywhere.

service = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=service.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{service.server_address[1]}"

with (
    LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
    Client(cluster) as client,
):
    found = {
        "CGE": train(cge, ask, url, executor=client.get_executor(pure=False)),
        "RGE": train(rge, ask, url, executor=client.get_executor(pure=False)),
    }
service.shutdown()
service.server_close()

# %%
# The result
# ----------
# A loop finds the same bits.

expected = {"CGE": train(cge, on_this_machine), "RGE": train(rge, on_this_machine)}
for name, scores in found.items():
    print(f"{name}: error {scores[0]:.3f} -> {scores[-1]:.3f}; as in a loop: {scores == expected[name]}")
    plt.semilogy(9 * np.arange(STEPS), scores, label=name)
print(f"{len(billed)} queries billed")
plt.xlabel("queries")
plt.ylabel("mean squared error")
plt.legend()
plt.show()

assert found == expected
assert len(billed) <= 2 * 9 * STEPS
