"""Elementary functions of compiled loops against PyTorch in float64, over the whole range."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from numba import njit
from oracle import seeded
from torch import Tensor

from deepzero.graph.cpu import compilation, vector_math
from deepzero.graph.cpu import compiled_loops as loops

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": torch.exp, "expm1": torch.expm1, "log1p": torch.log1p, "sigmoid": lambda x: torch.exp(x.clamp(max=0)) / (1 + torch.exp(-x.abs())),
}  # fmt: skip
ULPS = {torch.float32: 3.0, torch.float64: 4.0}


def loop_over(name: str) -> Callable[[Tensor], Tensor]:
    function = getattr(vector_math, name)

    @njit(error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
    def loop(x: Any, out: Any) -> None:
        for i in range(x.size):
            out[i] = function(x[i])

    def apply(x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        loop(x.numpy(), out.numpy())
        return out

    apply.loop = loop  # type: ignore[attr-defined]
    return apply


def points(name: str, dtype: torch.dtype) -> Tensor:
    """All sizes down to denormal numbers, of both signs; the whole domain evenly; bounds, limits, and what is none."""
    info = torch.finfo(dtype)
    smallest = info.tiny * info.eps
    logs = torch.linspace(
        torch.tensor(smallest).double().log().item(), torch.tensor(info.max).double().log().item(), 20011
    )
    sizes = logs.double().exp().clamp(max=info.max)
    largest = 90.0 if dtype == torch.float32 else 711.0
    even = (torch.rand(100_000, generator=seeded(1), dtype=torch.float64) * 2.3 - 1.2) * largest
    near = torch.rand(50_000, generator=seeded(2), dtype=torch.float64) * 4 - 2
    special = torch.tensor(
        [0.0, -0.0, torch.inf, -torch.inf, torch.nan, info.max, -info.max, 88.72, 88.73, -1.0, -0.9999999]
    )
    return torch.cat([sizes, -sizes, even, near, special.double()]).to(dtype)


def exact(name: str, x: Tensor) -> Tensor:
    """In float64; for float64 arguments the best there is."""
    return FUNCTIONS[name](x.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_accurate_over_the_whole_range(name: str, dtype: torch.dtype) -> None:
    x = points(name, dtype)
    found, expected = loop_over(name)(x), exact(name, x)
    info = torch.finfo(dtype)
    limited = torch.where(expected.abs() > info.max, torch.sign(expected) * torch.inf, expected)
    assert torch.equal(found.isnan(), limited.isnan())
    assert torch.equal(found.isinf(), limited.to(dtype).isinf())
    finite = limited.to(dtype).isfinite()
    error = (found.double() - expected).abs()[finite]
    unit = info.eps * expected.abs()[finite].clamp(min=info.tiny)  # below it, the spacing of denormal numbers
    assert float((error / unit).max()) <= ULPS[dtype]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_loops_are_vectorised(name: str) -> None:
    """No call is left in the loop, and it works on vectors."""
    apply = loop_over(name)
    apply(torch.zeros(8))
    loop: Any = apply.loop  # type: ignore[attr-defined]
    code = loop.inspect_llvm(loop.signatures[0])
    assert "x float> @llvm.fma" in code or "fmul reassoc nsz contract <" in code or "fmul contract <" in code


def test_the_cache_on_the_disk_knows_all_sources() -> None:
    """numba by itself compiles again only where a loop's own file has changed."""
    assert loops.column_sums._cache._cache_file._source_stamp == compilation.STAMP
    assert len(compilation.STAMP) >= 4
