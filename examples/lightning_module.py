r"""
In a LightningModule
====================

Lightning runs the loop: epochs, loggers, checkpoints. With *manual optimization* the step is the module's own, so
``zo.backward(x, y)`` stands where ``self.manual_backward(loss)`` would. The estimator's counters travel in Lightning's
checkpoint, and a run that is resumed from it ends with the same bits.
"""

# %%
# The module
# ----------
# ``automatic_optimization = False`` gives the step to us. Two hooks put the estimator's state (its step, from which
# random directions and dropout masks follow, and its count of queries) into the checkpoint and take it out again.

import logging
import tempfile
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import deepzero as dz
from deepzero.data import BatchLoader, load_digits

try:
    import lightning
    from lightning import LightningModule
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.plugins.environments import LightningEnvironment
except ImportError:
    lightning, LightningModule = None, nn.Module  # the last lines say so

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # its hints on hardware and on workers
warnings.filterwarnings("ignore", module="lightning")


class Classifier(LightningModule):
    """Trained from function values, with dropout."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        generator = torch.Generator().manual_seed(0)
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 10))
        for parameter in self.network.parameters():
            nn.init.uniform_(parameter, -0.125, 0.125, generator=generator)
        self.zo = dz.CGE(self.network, loss=F.cross_entropy, step_size=1e-3)

    def configure_optimizers(self):
        """The network's parameters, as always."""
        return torch.optim.Adam(self.network.parameters(), lr=1e-2)

    def training_step(self, batch, index):
        """One step from function values."""
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = self.zo.backward(*batch)  # in place of self.manual_backward(loss)
        optimizer.step()
        self.log_dict({"loss": loss, "queries": float(self.zo.queries)})

    def validation_step(self, batch, index):
        """Accuracy on the test images."""
        x, y = batch
        self.log("accuracy", (self.network(x).argmax(1) == y).float().mean())

    def on_save_checkpoint(self, checkpoint):
        """Lightning's checkpoint keeps the estimator's counters."""
        checkpoint["estimator"] = self.zo.state_dict()

    def on_load_checkpoint(self, checkpoint):
        """They go on from there."""
        self.zo.load_state_dict(checkpoint["estimator"])


# %%
# The data
# --------
# Any ``DataLoader``. The order of an epoch should follow from its number, so that a resumed run sees it again:
# Lightning tells the number to a sampler that has ``set_epoch``, as ``DistributedSampler`` has, here for one process.


def tensors(dataset):
    """All images and labels of a data set."""
    return BatchLoader(dataset, batch_size=len(dataset)).batch(0, 0)


train_set, test_set = (TensorDataset(*tensors(dataset)) for dataset in load_digits())
order = DistributedSampler(train_set, num_replicas=1, rank=0, shuffle=True, seed=0)
train_batches = DataLoader(train_set, batch_size=128, sampler=order, drop_last=True)
test_batches = DataLoader(test_set, batch_size=len(test_set))

# %%
# Two epochs
# ----------
# One device: see the last section. ``save_last`` writes a checkpoint at the end of every epoch.


def fit(folder, *, epochs, resume=None):
    """Train in ``folder``; the module, and what was logged last."""
    module = Classifier()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        callbacks=[ModelCheckpoint(folder, save_last=True)],
        plugins=[LightningEnvironment()],  # no cluster is looked for
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, train_batches, test_batches, ckpt_path=resume)
    return module, {name: float(value) for name, value in trainer.callback_metrics.items()}


# %%
# Stopped after the first epoch, and resumed
# ------------------------------------------
# A new module in a new trainer goes on from the checkpoint, and comes to the same weights, bit for bit.


def main():
    """Two epochs at once, and one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        whole, metrics = fit(Path(folder, "whole"), epochs=2)
        print(f"test accuracy {metrics['accuracy']:.1%}, loss {metrics['loss']:.3f}, {whole.zo.queries:,} queries")
        fit(Path(folder, "parts"), epochs=1)
        resumed, again = fit(Path(folder, "parts"), epochs=2, resume=Path(folder, "parts", "last.ckpt"))
    weights = zip(whole.network.parameters(), resumed.network.parameters(), strict=True)
    same = all(torch.equal(a, b) for a, b in weights)
    print(f"the same bits after a resume: {same}; {resumed.zo.step} steps, {resumed.zo.queries:,} queries")
    assert same
    assert again == metrics
    assert resumed.zo.queries == whole.zo.queries
    assert metrics["accuracy"] > 0.7


if lightning is None:
    print("lightning is not installed (pip install lightning): there is nothing to show")
else:
    main()

# %%
# Several processes
# -----------------
# Keep ``devices=1``. Lightning's strategies for several devices (``ddp``) give every process another part of the batch
# and average gradients while autograd computes them; no autograd runs here, so nothing would be averaged, and the
# processes would come to hold different weights. To divide the *queries* of a step among processes, give all of them
# the same batches and the estimator a ``dz.DistributedEvaluator``, as :doc:`/gallery/examples/accelerate_loop` does.
