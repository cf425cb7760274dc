"""Whole optimizer steps on request, by the public interface alone: a child process of ``against_commit.py``.

It reads a folder with weights, batch and coordinates (``problem.safetensors``, ``problem.json``), says which package it
imported, and then makes as many steps as each line of its standard input asks for. The package may be an older one, so
it has a stopwatch of its own.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import deepzero as dz
from deepzero import models
from deepzero.coordinates import Coordinates


class Steps:
    """A model in training."""

    def __init__(self, folder: Path) -> None:
        request = json.loads((folder / "problem.json").read_text())
        torch.set_num_threads(request["threads"])
        tensors = load_file(folder / "problem.safetensors")
        self.batch = tensors.pop("batch.x"), tensors.pop("batch.y")
        self.model = models.build(request["model"], seed=0, **request["options"]).train()
        self.model.load_state_dict(tensors)
        self.estimator = dz.CGE(
            self.model,
            loss=F.cross_entropy,
            step_size=request["step_size"],
            sparsity=Coordinates({name: torch.tensor(indices) for name, indices in request["coordinates"].items()}),
            evaluator=dz.PropagationEvaluator() if request["evaluator"] == "propagation" else None,
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=request["learning_rate"])

    def make(self, count: int) -> dict[str, Any]:
        """Make ``count`` steps: wall and CPU seconds, queries, and the loss and gradient of the last step."""
        before, start, cpu = self.estimator.queries, time.perf_counter(), time.process_time()
        for _ in range(count):
            self.optimizer.zero_grad()
            loss = self.estimator.backward(*self.batch)
            self.optimizer.step()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        norms = {name: float(p.grad.double().norm()) for name, p in self.model.named_parameters() if p.grad is not None}
        queries = self.estimator.queries - before
        return {"seconds": seconds, "cpu": cpu, "queries": queries, "loss": float(loss), "norms": norms}


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    steps = Steps(Path(sys.argv[1]))
    print(json.dumps({"package": str(Path(dz.__file__).parent)}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(steps.make(int(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
