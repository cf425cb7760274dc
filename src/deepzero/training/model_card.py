"""The model card of a run: what the network is, how it was trained, how to use it; as a README.md in its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from deepzero.files import replace_file
from deepzero.training.model_file import ModelFile
from deepzero.training.run_folder import RunFolder, writing

NAME = "README.md"
"""Where the Hugging Face hub looks for a card, too."""
SHOWN = 20
"""Classes that are listed."""


def write_card(folder: RunFolder, name: str, file: ModelFile, summary: Mapping[str, Any]) -> None:
    """Write the card of a finished run, in the form of Mitchell et al., 2019, "Model Cards for Model Reporting".

    What a program cannot know (intended use, biases of the data) stands there as a question to whoever publishes it.

    Args:
        folder: of the run.
        name: what the run is called.
        file: what goes in and comes out.
        summary: the run's result.
    """
    scores = {k: v for k, v in summary.items() if k.startswith(("test_", "validation_")) and v is not None}
    header = ["---", "library_name: deepzero", "tags:", "- zeroth-order-optimization", "- no-backpropagation", "---"]
    lines = [
        *header,
        "",
        f"# {name}",
        "",
        f"A network of {summary['parameters']:,} trainable parameters, trained from function values alone by deepzero "
        f"{summary['versions']['deepzero']}: {summary['steps']:,} steps, {summary['queries']:,} queries, "
        f"{summary['seconds']:,.0f} s.",
        "",
        "## Use",
        "",
        "```python",
        "import deepzero as dz",
        "",
        "run = dz.load_run(FOLDER)  # this folder; load only folders that you trust",
        f"run.{'predict(x)' if file.classes else 'outputs(x)'}",
        "```",
        "",
        *_inputs(file),
        "",
        "## Results",
        "",
        *(_table(scores) if scores else ["None were measured."]),
        "",
        "## Training",
        "",
        f"Weights of epoch {summary['selected_epoch'] + 1} of {summary['epochs']}"
        f"{', selected on validation data' if any(k.startswith('validation_') for k in scores) else ''}. Settings:",
        "",
        "```json",
        json.dumps(summary["config"], indent=2),
        "```",
        "",
        f"PyTorch {summary['versions']['torch']}, {summary['hardware']['gpu'] or summary['hardware']['cpu']}.",
        "",
        "## For whoever publishes it",
        "",
        "What is it meant for, and what not? Whose data are these, and whom do they leave out? Nothing says so yet.",
        "",
    ]
    with writing(folder.path / NAME):
        replace_file(folder.path / NAME, "\n".join(lines).encode())


def _table(scores: Mapping[str, float]) -> list[str]:
    rows = [f"| {name.replace('_', ' ')} | {value:.4g} |" for name, value in sorted(scores.items())]
    return ["| number | value |", "|---|---|", *rows]


def _inputs(file: ModelFile) -> list[str]:
    """What goes in, and what comes out."""
    lines = ["## Inputs and outputs", ""]
    if file.inputs is not None:
        shape = ", ".join(["n", *map(str, file.inputs["shape"])])
        lines.append(f"The network takes `[{shape}]`, {file.inputs['dtype']}.")
    if file.preprocessing is not None:
        lines.append("`predict` takes raw inputs; how they become those of the network stands in `model.json`.")
    if file.classes is not None:
        more = f", ... ({len(file.classes)} in all)" if len(file.classes) > SHOWN else ""
        lines.append(f"Classes: {', '.join(file.classes[:SHOWN])}{more}.")
    return lines
