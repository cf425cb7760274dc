"""Compiles the programs of graph/cuda for an H100, which takes no GPU, and prints what spills registers: a program of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from deepzero.graph.cuda import triton_attention, triton_convolution, triton_normalization, triton_rows, triton_windows

H100 = GPUTarget("cuda", 90, 32)
CONVOLUTION = {"KH": 3, "KW": 3, "SH": 1, "SW": 1, "PH": 1, "PW": 1, "DH": 1, "DW": 1}
NUMBERS = {
    "channels": "*i64",
    "features": "*i64",
    "first": "*i64",
    "second": "*i64",
    "chosen": "*i64",
    "labels": "*i64",
}
SIZES = {"rows", "keys", "inner", "features", "C", "O", "pixels", "width", "n"}
"""Numbers that are multiples of 16, as in a ResNet: Triton compiles anew for others."""
COUNTS = SIZES | {"units", "H", "W", "HO", "WO", "tiles", "count"}

DOT = {**CONVOLUTION, "BLOCK": 128, "PRECISION": "tf32"}
CHANNEL = {**CONVOLUTION, "GROUP": 16, "TF32": True}
HALF = {"x": "*fp16", "taps": "*fp16", "d": "*fp16", "extra": "*fp16", "out": "*fp16"}
TILE = {"BLOCK": 256, "BC": 16, "GROUP": 16}
HEADS = {"DQ": True, "DK": True, "DV": True, "BL": 16}
ROWS = {"OWN": 1, "R": 8, "BW": 128}
PROGRAMS: list[tuple[Any, dict[str, Any], dict[str, str]]] = [
    *((triton_convolution.convolve_dense, {**DOT, "BC": c, "NC": n, "BO": o, "SUMMED": g > 1, "GROUP": g}, types)
      for c, n, o, types in ((16, 1, 16, {}), (16, 1, 64, {}), (32, 1, 32, {}), (16, 1, 16, HALF), (64, 1, 64, HALF)) for g in (1, 16)),
    *((triton_convolution.convolve_channel, {**CHANNEL, "BLOCK": 2048 // o, "BO": o, "OUTCOME": made}, {"scale": "fp32", "out": out})
      for o, made, out in ((16, 0, "*fp16"), (16, 1, "*fp32"), (16, 2, "*fp16"), (64, 1, "*fp32"), (64, 2, "*fp32"))),
    (triton_normalization.dense_sums, {**TILE, "BLOCK": 512}, {"d": "*fp16"}),
    (triton_normalization.dense_relu, {**TILE, "EXTRA": 1, "TF32": False}, {**HALF, "scale": "fp32"}),
    (triton_normalization.dense_relu, {**TILE, "EXTRA": 2, "TF32": True}, {"scale": "fp32"}),
    (triton_normalization.coefficients, {"OWN": True, "BT": 64, "BATCHES": 16, "BC": 1}, {"residue": "*fp64"}),
    (triton_normalization.channel_sums, {"BLOCK": 4096}, {}),
    (triton_normalization.channel_relu, {"BLOCK": 4096}, {}),
    (triton_windows.shifted_slices, {"SH": 1, "SW": 1, "DH": 1, "DW": 1, "BLOCK": 1024}, {}),
    (triton_windows.window_maxima, {**CONVOLUTION, "OWN": False, "BLOCK": 64, "BC": 16}, {}),
    (triton_rows.activation, {"FUNCTION": triton_rows.GELU.value, "OWN": 0, "BLOCK": 1024}, {"slope": "fp32"}),
    (triton_rows.normalize, {**ROWS, "MEAN": True}, {"eps": "fp32"}),
    (triton_rows.softmax, {**ROWS, "LOG": False}, {}),
    (triton_rows.label_losses, ROWS, {}),
    *((triton_attention.attention, {**HEADS, "BE": e, "BF": e, "BS": s, "PRECISION": how},
       {"factor": "fp32", "features": "i32"}) for e, s, how in ((64, 64, "ieee"), (64, 64, "tf32"), (128, 32, "ieee"))),
]  # fmt: skip


def spills(program: Any, constants: dict[str, Any], types: dict[str, str]) -> int:
    """Bytes of registers that the program for an H100 keeps in memory."""

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        plain = "i32" if name in COUNTS else "fp32" if name in {"unit", "extra_unit"} else "*fp32"
        return types.get(name) or NUMBERS.get(name) or plain

    signature = {name: kind(name) for name in program.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, k) in enumerate(signature.items())
        if k[0] == "*" or (k == "i32" and name in SIZES)
    }
    compiled = triton.compile(ASTSource(program, signature, constants, aligned), target=H100)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "program.ptx")
        source.write_text(compiled.asm["ptx"])
        command = [get_ptxas(90).path, "-v", "--gpu-name=sm_90a", str(source), "-o", str(Path(folder, "out"))]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return sum(int(n) for n in re.findall(r"(\d+) bytes spill stores", said))


if __name__ == "__main__":
    found = [(program.__name__, spills(program, constants, types)) for program, constants, types in PROGRAMS]
    sys.stdout.write(json.dumps(found))
