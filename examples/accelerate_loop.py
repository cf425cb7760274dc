r"""
In a loop with Accelerate
=========================

A plain PyTorch loop that Hugging Face Accelerate starts on any number of processes. Accelerate gives the processes and
the device, and keeps the checkpoint; what the processes divide is not the batch but the *queries* of every step. The
weights have the same bits on one process and on many.

.. code-block:: bash

    python accelerate_loop.py
    torchrun --standalone --nproc-per-node 2 accelerate_loop.py

On a CPU ``torchrun`` starts the processes, which Accelerate then joins: ``accelerate launch --cpu --num_processes 2``
starts one process alone, unless it is told to go through MPI.
"""

# %%
# Who does what
# -------------
# - **Every process gets the same batches**: the loader is not given to ``accelerator.prepare``, which would hand each
#   process another part of them.
# - **The model stays as it is**: ``prepare_model(..., evaluation_mode=True)`` moves it to the device and into the
#   checkpoint, and leaves out the wrapper that averages gradients while autograd computes them. There is nothing to
#   average: every process holds the whole estimate.
# - **The estimator divides the queries**: ``dz.DistributedEvaluator`` over a ``dz.Team`` of Accelerate's processes.
#   Only loss differences travel, 8 bytes a query.
# - ``register_for_checkpointing(zo)`` adds the estimator's counters to what ``save_state`` writes.

import hashlib
import logging
import tempfile

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import deepzero as dz
from deepzero.data import BatchLoader, load_digits

try:
    import accelerate
except ImportError:
    accelerate = None  # the last lines say so

logging.getLogger("accelerate").setLevel(logging.WARNING)  # not each file that it writes
STEPS, CHECKPOINT = 16, 8


def new_network():
    """The same first weights in every process."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 10))
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.uniform_(parameter, -0.125, 0.125, generator=generator)
    return network


def batches():
    """An epoch, in the same order in every process."""
    train_set, _ = load_digits()
    images, labels = BatchLoader(train_set, batch_size=len(train_set)).batch(0, 0)
    order = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(images, labels), batch_size=64, shuffle=True, drop_last=True, generator=order)


# %%
# The loop
# --------
# A loop as it is with Accelerate, but for the model, which keeps its shape, and the loader, which is not divided.


def train(folder, *, resume=False):
    """Some steps on digits, from the first one or from the checkpoint in the middle; network, estimator and losses."""
    accelerator = accelerate.Accelerator(cpu=True)  # leave out cpu=True where there are GPUs
    team = dz.Team(accelerator.process_index, accelerator.num_processes, device=accelerator.device)
    network = accelerator.prepare_model(new_network(), evaluation_mode=True)
    evaluator = dz.DistributedEvaluator(dz.PropagationEvaluator(), team)
    zo = dz.CGE(network, loss=F.cross_entropy, step_size=1e-3, evaluator=evaluator)
    optimizer = accelerator.prepare_optimizer(torch.optim.Adam(network.parameters(), lr=1e-2))
    accelerator.register_for_checkpointing(zo)
    if resume:
        accelerator.load_state(folder)
    losses = []
    for step, (x, y) in enumerate(batches()):
        if step < zo.step or step >= STEPS:
            continue
        optimizer.zero_grad()
        losses.append(float(zo.backward(x.to(accelerator.device), y.to(accelerator.device))))
        optimizer.step()
        if zo.step == CHECKPOINT and not resume:
            accelerator.save_state(folder)
    return network, zo, losses


# %%
# The whole way, and from the checkpoint
# --------------------------------------


def digest(network):
    """A few characters that stand for the bits of all weights."""
    data = b"".join(p.detach().cpu().numpy().tobytes() for p in network.parameters())
    return hashlib.sha256(data).hexdigest()[:12]


def main():
    """Train, resume, compare."""
    accelerator = accelerate.Accelerator(cpu=True)
    with tempfile.TemporaryDirectory() as own:
        (folder,) = accelerate.utils.broadcast_object_list([own])  # rank 0's, for all processes
        network, zo, losses = train(folder)
        accelerator.wait_for_everyone()
        resumed, again, _ = train(folder, resume=True)
        accelerator.wait_for_everyone()
    accelerator.print(f"{accelerator.num_processes} processes, {zo.step} steps, {zo.queries:,} queries")
    accelerator.print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, weights {digest(network)}")
    accelerator.print(f"from the checkpoint: weights {digest(resumed)}")
    assert digest(resumed) == digest(network)
    assert again.queries == zo.queries
    assert losses[-1] < 0.8 * losses[0]
    accelerator.end_training()


if accelerate is None:
    print("accelerate is not installed (pip install accelerate): there is nothing to show")
else:
    main()
