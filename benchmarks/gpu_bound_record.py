"""Count what a query of ResNet-20 moves and computes on an H100, without one: the table of the page "Speed".

    python benchmarks/gpu_bound_record.py

Writes benchmarks/records/gpu-bound.json; ``python benchmarks/speed_page.py`` then fills the page. A test counts some
chunks again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from deepzero.files import replace_file, to_json
from deepzero.measure.cases import problem
from deepzero.measure.gpu_bound import Count, bound

RECORD = Path(__file__).parent / "records" / "gpu-bound.json"
SETTINGS: dict[str, Any] = {"name": "resnet20", "batch": 512, "sparsity": 0.9}
WAYS: dict[str, tuple[torch.dtype | None, int | None]] = {
    "float32": (None, None),
    "float32 without cuDNN": (None, 64),
    "float16": (torch.float16, None),
}
"""Name of a way -> storage of differences, and input channels up to which a product in TF32 is Triton's."""


def main() -> None:
    """Count all ways."""
    count = Count(problem(**SETTINGS))
    sizes = count.sizes()
    chunks = {name: count.chunks(storage, sizes, narrow=narrow) for name, (storage, narrow) in WAYS.items()}
    ways = {name: bound(count.task, found) for name, found in chunks.items()}
    replace_file(RECORD, to_json({"settings": SETTINGS, "ways": ways}))


if __name__ == "__main__":
    main()
