"""Fields as pictures: panels side by side as PNG or SVG, and an animation of them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deepzero.extras import required_for
from deepzero.report.figures import Picture
from deepzero.report.svg import STYLE

with required_for("a picture of a flow"):
    import matplotlib
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas
    from PIL import Image, ImageDraw

COLORMAP = "RdBu_r"
WIDTH, HEIGHT = 7.2, 2.2  # inches
DPI = 110
FRAME_MS = 120
PANEL, GAP, LINE = 240, 10, 14  # pixels of an animation

Fields = Mapping[str, np.ndarray[Any, Any]]
"""Name of a panel -> ``[x, y]``, drawn with y to the right."""


def panels(fields: Fields, *, title: str, limit: float | None = None) -> Canvas:
    """Fields side by side over one scale of colours, symmetric about 0.

    Args:
        fields: of equal shapes.
        title: above them.
        limit: of the colours; by default the largest value of the last field.
    """
    most = limit if limit is not None else float(np.nanmax(np.abs(list(fields.values())[-1]))) or 1.0
    with matplotlib.style.context(["default", STYLE]):
        canvas = Canvas(figsize=(WIDTH, HEIGHT), layout="constrained")
        FigureCanvasAgg(canvas)
        canvas.suptitle(title, fontsize=9, x=0.01, ha="left")
        for axes, (name, field) in zip(canvas.subplots(1, len(fields), squeeze=False)[0], fields.items(), strict=True):
            image = axes.imshow(field, cmap=COLORMAP, vmin=-most, vmax=most, origin="lower", interpolation="nearest")
            axes.set_title(name, fontsize=9)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.grid(False)
        canvas.colorbar(image, ax=canvas.axes, shrink=0.8, label="vorticity")
    return canvas


def png(canvas: Canvas) -> bytes:
    """A drawing as a PNG file."""
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def svg(canvas: Canvas) -> bytes:
    """A drawing as an SVG file."""
    buffer = io.BytesIO()
    with matplotlib.style.context(["default", STYLE]):
        canvas.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return buffer.getvalue()


def animation(frames: Sequence[Fields], titles: Sequence[str]) -> bytes:
    """Panels side by side, one moment after the other, as a GIF file over one scale of colours.

    Args:
        frames: fields of equal shapes.
        titles: of each moment.
    """
    most = max(float(np.nanmax(np.abs(list(fields.values())[-1]))) for fields in frames) or 1.0
    drawn = [_frame(fields, title, most) for fields, title in zip(frames, titles, strict=True)]
    buffer = io.BytesIO()
    drawn[0].save(buffer, format="GIF", save_all=True, append_images=drawn[1:], duration=FRAME_MS, loop=0)
    return buffer.getvalue()


def _frame(fields: Fields, title: str, most: float) -> Image.Image:
    """One moment: colours by hand, which is many times faster than a drawing for each."""
    colors = matplotlib.colormaps[COLORMAP]
    height, width = next(iter(fields.values())).shape
    scale = max(1, PANEL // width)
    canvas = Image.new("RGB", (len(fields) * (scale * width + GAP) + GAP, scale * height + 3 * LINE), "white")
    words = ImageDraw.Draw(canvas)
    words.text((GAP, 2), title, fill="black")
    for k, (name, field) in enumerate(fields.items()):
        shades = colors((field[::-1] / most + 1) / 2, bytes=True)[..., :3]
        panel = Image.fromarray(np.ascontiguousarray(shades)).resize(
            (scale * width, scale * height), Image.Resampling.NEAREST
        )
        left = GAP + k * (scale * width + GAP)
        words.text((left, LINE + 2), name, fill="black")
        canvas.paste(panel, (left, 2 * LINE + 4))
    return canvas.convert("P", palette=Image.Palette.ADAPTIVE, colors=64)


def embedded(data: bytes, *, title: str, kind: str) -> Picture:
    """A picture that a page carries inside itself.

    Args:
        data: of the file.
        title: of the picture.
        kind: ``png``, ``gif`` or ``svg+xml``.
    """
    return Picture(title=title, source=f"data:image/{kind};base64,{base64.b64encode(data).decode()}")
