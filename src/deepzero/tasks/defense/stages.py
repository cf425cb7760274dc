"""One stage of a defense: a network trained by the loop of all runs, in a folder of its own, resumable."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from deepzero.tasks.defense.config import StageConfig
from deepzero.tasks.defense.parts import NoisyBatches
from deepzero.training import JsonLines, ProgressBar, RunFolder, StopRequest, Trainer, TrainingConfig
from deepzero.training.metrics import Sink
from deepzero.training.run_folder import RECORD
from deepzero.training.sources import GradientSource
from deepzero.training.state import snapshot


def trained(
    folder: Path,
    settings: Mapping[str, Any],
    *,
    model: nn.Module,
    kept: nn.Module,
    source: GradientSource,
    batches: NoisyBatches,
    stage: StageConfig,
    stop: StopRequest,
    console: Console | None = None,
) -> str | None:
    """Train ``model`` in ``folder``, or go on with it there; a stage that is done only gives its weights.

    Args:
        folder: of the stage.
        settings: JSON-able; a folder with other ones is refused.
        model: what is trained, with all that its gradient needs.
        kept: the part whose weights are the result.
        source: of the gradient.
        batches: of one epoch, which is the whole stage.
        stage: of training.
        stop: ends it early.
        console: where to show progress.

    Returns:
        Why it stopped early; None if it is done. A stage whose queries are spent is done.
    """
    config = {**settings, "stage": asdict(stage)}
    there = (folder / RECORD).exists()
    run = RunFolder.reopen(folder, config=config) if there else RunFolder.create(folder, config=config, notes={})
    if run.summary is not None:
        kept.load_state_dict(run.read_weights())
        return None
    store = run.checkpoints()
    checkpoint = store.load().checkpoint if store.paths() else None
    training = TrainingConfig(
        epochs=1, learning_rate=stage.learning_rate, schedule=stage.schedule, warmup_epochs=0.0, weight_decay=0.0
    )
    with ExitStack() as stack:
        metrics = JsonLines(run.metrics, start=checkpoint.state["metrics_bytes"] if checkpoint else 0)
        stack.callback(metrics.close)
        trainer = Trainer(
            model=model,
            optimizer=torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=stage.learning_rate),
            source=source,
            batches=batches,
            validate=None,
            config=training,
            store=store,
            metrics=metrics,
        )
        if checkpoint is not None:
            trainer.restore(checkpoint)
        sinks: list[Sink] = []
        if console is not None:
            sinks.append(ProgressBar(total=trainer.total_steps, done=trainer.step, console=console))
            stack.callback(sinks[0].close)
        trainer.sinks = sinks
        reason = trainer.fit(stop)
        if reason is not None and reason == stop.reason:
            return reason
        run.write_weights(snapshot(kept))
        run.write(
            "summary.json",
            {
                "steps": trainer.step,
                "queries": trainer.queries,
                "seconds": round(trainer.elapsed(), 3),
                "ended": reason,
                "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            },
        )
    return None
