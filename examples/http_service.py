r"""
A scoring service behind HTTP
=============================

Somebody runs a model and returns only a score: no weights, no gradients, and now and then no answer. Each request costs
something, so an answer that was paid for should never be lost, nor paid for twice. The service here runs on this
machine's loopback interface and fails on purpose; the client side is what one would write for a real one.
"""

# %%
# The service
# -----------
# The score is the error of a small filter, asked for by its eight coefficients. The service bills by the header
# ``Idempotency-Key``: a key that it has seen is answered again for nothing. One request in ten is refused with status
# 500, one in forty is billed and answered far too late, and one in forty is billed and dropped without an answer.

import json
import logging
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import matplotlib.pyplot as plt
import numpy as np
import torch

import deepzero as dz

TAPS, TIME = 8, np.arange(64)
SIGNAL = np.sin(2 * np.pi * TIME / 16)
NOISY = SIGNAL + 0.5 * np.random.default_rng(0).normal(size=TIME.size)


def score(taps):
    """Mean squared error of the filtered signal."""
    return float(np.mean((np.convolve(NOISY, taps, mode="same") - SIGNAL) ** 2))


class Service(ThreadingHTTPServer):
    """Scores, bills and faults."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.billed, self.requests, self.faults = {}, 0, {"refused": 0, "slow": 0, "dropped": 0}
        self.draw = np.random.default_rng(1)

    def fault(self):
        """What goes wrong with this request, if anything."""
        with self.lock:
            self.requests += 1
            kinds = ["refused", "slow", "dropped", None]
            kind = self.draw.choice(kinds, p=[0.1, 0.025, 0.025, 0.85])
            if kind is not None:
                self.faults[kind] += 1
            return kind

    def bill(self, key, taps):
        """The score, charged once a key."""
        with self.lock:
            return self.billed.setdefault(key, score(taps))


class Handler(BaseHTTPRequestHandler):
    """``POST /score`` with a JSON list of coefficients."""

    def do_POST(self):
        """Answer, or fail."""
        taps = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = self.server.fault()
        if fault == "refused":
            self.send_error(500)
            return
        value = self.server.bill(self.headers["Idempotency-Key"], taps)
        if fault == "dropped":
            self.close_connection = True
            return
        if fault == "slow":
            time.sleep(0.5)
        body = json.dumps({"score": value}).encode()
        try:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            pass  # the client has given up

    def log_message(self, *words):
        """Quiet."""


service = Service()
threading.Thread(target=service.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{service.server_address[1]}/score"

# %%
# The black box
# -------------
# A function that asks the service. It raises whatever goes wrong, and it passes the key of the query on: the same query
# has the same key when it is made again. Its own timeout frees the thread; a thread cannot be killed from outside.

client = httpx.Client(timeout=0.15)
for name in ("httpx", "deepzero"):
    logging.getLogger(name).setLevel(logging.WARNING)  # otherwise a line for every request and every retry


def ask(params):
    """One request."""
    headers = {"Idempotency-Key": dz.query_key()}
    answer = client.post(url, json=params["taps"].tolist(), headers=headers)
    return answer.raise_for_status().json()["score"]


# %%
# Training
# --------
# Four requests in flight, at most 400 a second, and up to eight more tries for one that failed. Every answer is in the
# journal before it is used.

policy = dz.QueryPolicy(retries=8, backoff=0.01, in_flight=4, per_second=400)


def train(make_estimator, journal, steps):
    """Scores by step, and the coefficients."""
    box = dz.BlackBox(ask, {"taps": np.eye(TAPS)[TAPS // 2]})
    with ThreadPoolExecutor(4) as pool, dz.QueryJournal(journal) as kept:
        zo = make_estimator(box, executor=pool, policy=policy, journal=kept)
        optimizer = torch.optim.Adam(box.parameters(), lr=0.05)
        scores = []
        for _ in range(steps):
            optimizer.zero_grad()
            scores.append(zo.backward().item())
            optimizer.step()
    return scores, box.values["taps"]


def cge(box, **options):
    """Every coefficient, one by one: 9 requests a step."""
    return dz.CGE(box, step_size=1e-3, **options)


def rge(box, **options):
    """Two random directions, both ways: 5 requests a step."""
    return dz.RGE(box, step_size=1e-2, queries=2, stencil=dz.CENTRAL, seed=0, **options)


folder = tempfile.TemporaryDirectory()
runs = {}
for name, make, steps in (("CGE", cge, 30), ("RGE", rge, 54)):
    runs[name] = train(make, Path(folder.name) / f"{name}.sqlite", steps)
    print(f"{name}: error {runs[name][0][0]:.3f} -> {runs[name][0][-1]:.3f} in {steps} steps")
print(f"{service.requests} requests, of which {service.faults}; {len(service.billed)} billed")

# %%
# Started again
# -------------
# A script that crashed is simply run again. Here the whole run is repeated: the journal answers every query, the
# service is not asked at all, and the coefficients are the same to the last bit.

asked = service.requests
again = train(cge, Path(folder.name) / "CGE.sqlite", 30)
print(f"{service.requests - asked} requests the second time")

fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.5), layout="constrained")
for name, queries in (("CGE", 9), ("RGE", 5)):
    scores = runs[name][0]
    left.semilogy(queries * np.arange(len(scores)), scores, label=name)
left.set(xlabel="queries", ylabel="mean squared error")
left.legend()
right.plot(TIME, NOISY, ".", color="tab:gray", label="given")
right.plot(TIME, np.convolve(NOISY, runs["CGE"][1], mode="same"), label="filtered")
right.plot(TIME, SIGNAL, "--", label="wanted")
right.set(xlabel="sample")
right.legend()
plt.show()

client.close()
service.shutdown()
service.server_close()
folder.cleanup()

assert np.array_equal(again[1], runs["CGE"][1])
assert service.requests == asked
assert len(service.billed) <= 30 * 9 + 54 * 5
assert all(scores[-1] < 0.6 * scores[0] for scores, _ in runs.values())
