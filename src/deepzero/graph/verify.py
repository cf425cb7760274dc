"""The second guard: at start, a handful of coordinates is compared with the sequential oracle.

Both sides run in float64, where rounding cannot be mistaken for a fault; models that do not run in float64 are compared
in their own dtype against the rounding of the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from deepzero.errors import VerificationError
from deepzero.graph.forward import graph_inputs, run
from deepzero.graph.program import Program
from deepzero.graph.propagate import loss_differences
from deepzero.objective import NetworkObjective, device_of, mean_loss, split_batch
from deepzero.probes import CoordinatePerturbations
from deepzero.randomness import derive_seed, seeded_scope

SAMPLES = 6


def verify(
    program: Program,
    objective: NetworkObjective,
    batch: tuple[Any, ...],
    perturbations: CoordinatePerturbations,
    offset: float,
    seed: int,
    *,
    widen: bool,
) -> None:
    """Compare propagated loss differences with those of full forwards on a few random coordinates.

    In float64 if ``widen`` (there is memory for it), else in the model's own dtype.

    Raises:
        VerificationError: they disagree.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "verify"))
    chosen = torch.randperm(len(perturbations), generator=generator)[:SAMPLES].tolist()
    for dtype in (torch.float64, None) if widen else (None,):
        try:
            expected, loss = _oracle(objective, batch, perturbations, chosen, offset, seed, dtype)
            found = _propagated(program, objective, batch, perturbations, chosen, offset, seed, dtype)
        except RuntimeError:
            if dtype is None:
                raise
            continue
        _compare(expected, found, loss, dtype, [perturbations.describe(k) for k in chosen])
        return


def _oracle(
    objective: NetworkObjective,
    batch: tuple[Any, ...],
    perturbations: CoordinatePerturbations,
    chosen: Sequence[int],
    offset: float,
    seed: int,
    dtype: torch.dtype | None,
) -> tuple[Float64[Tensor, " chosen"], Float64[Tensor, ""]]:
    x, y = split_batch(_cast(batch, dtype))
    parameters = _cast(dict(objective.parameters()), dtype)
    frozen = _cast({n: p.detach() for n, p in objective.model.named_parameters() if not p.requires_grad}, dtype)

    def loss(moved: dict[str, Tensor]) -> Float64[Tensor, ""]:
        buffers = {name: b.clone() for name, b in _cast(dict(objective.model.named_buffers()), dtype).items()}
        with torch.no_grad(), seeded_scope(seed, device_of(parameters)):
            output = objective.call({**moved, **frozen, **buffers}, x)
            return mean_loss(objective.loss, output, y)

    base = loss(parameters)
    losses = [loss(perturbations.displace(parameters, k, offset)) for k in chosen]
    return torch.stack(losses) - base, base


def _propagated(
    program: Program,
    objective: NetworkObjective,
    batch: tuple[Any, ...],
    perturbations: CoordinatePerturbations,
    chosen: Sequence[int],
    offset: float,
    seed: int,
    dtype: torch.dtype | None,
) -> Float64[Tensor, " chosen"]:
    inputs = graph_inputs(program.graph, objective, batch, dtype)
    values = run(program.graph, inputs, keep=program.kept, seed=seed, device=device_of(objective.parameters()))
    found = []
    for k in chosen:
        name, index = perturbations.locate(k)
        found.append(loss_differences(program.cones[name], values, program.graph.output, torch.tensor([index]), offset))
        for value in values.values():
            value.memo.clear()
    return torch.cat(found)


def _cast(values: Any, dtype: torch.dtype | None) -> Any:
    def cast(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.detach().to(dtype) if floating and dtype is not None else value

    return torch.utils._pytree.tree_map(cast, values)


def _compare(
    expected: Float64[Tensor, " chosen"],
    found: Float64[Tensor, " chosen"],
    loss: Float64[Tensor, ""],
    dtype: torch.dtype | None,
    names: list[str],
) -> None:
    noise = 1e-11 if dtype == torch.float64 else 1e-4
    relative = 1e-6 if dtype == torch.float64 else 0.1
    tolerance = noise * (1 + loss.abs()) + relative * expected.abs().max()
    wrong = (found.to(expected.device) - expected).abs() > tolerance
    if bool(wrong.any()):
        rows = [
            f"  {name}: propagated {f:.6e}, full forward {e:.6e}"
            for name, f, e, w in zip(names, found.tolist(), expected.tolist(), wrong.tolist(), strict=True)
            if w
        ]
        raise VerificationError(
            "difference propagation disagrees with the sequential oracle:\n" + "\n".join(rows) + "\n"
            "Either the model is not a deterministic function of its parameters (run `deepzero doctor`), or a "
            "difference rule is wrong (please report it). evaluator=dz.SequentialEvaluator() is safe in both cases"
        )
