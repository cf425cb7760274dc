"""Fields as pictures: panels, animations, and what a page and a record make of them."""

from __future__ import annotations

import base64
import io
import xml.etree.ElementTree as ET

import numpy as np
from PIL import Image

from deepzero.report import Document, Picture, page
from deepzero.report.pictures import Fields, animation, embedded, panels, png, svg

RISING = np.linspace(-1, 1, 8 * 16).reshape(8, 16)


def fields(sign: float = 1.0) -> Fields:
    return {"source": 0 * RISING, "corrected": sign * RISING, "reference": RISING}


def test_panels_as_files() -> None:
    canvas = panels(fields(), title="vorticity, step 7")
    assert len(canvas.axes) == 4  # three panels and the scale
    assert [axes.get_title() for axes in canvas.axes[:3]] == ["source", "corrected", "reference"]
    assert all(axes.images[0].get_clim() == (-1.0, 1.0) for axes in canvas.axes[:3])
    assert canvas.axes[1].images[0].origin == "lower"
    image = Image.open(io.BytesIO(png(canvas)))
    assert image.format == "PNG"
    assert image.width > 2 * image.height
    root = ET.fromstring(svg(canvas))
    assert root.tag.endswith("svg")
    assert sum(element.tag.endswith("image") for element in root.iter()) >= 3


def test_the_same_fields_give_the_same_bytes() -> None:
    assert png(panels(fields(), title="a")) == png(panels(fields(), title="a"))
    assert png(panels(fields(), title="a")) != png(panels(fields(-1.0), title="a"))
    assert animation([fields()], ["a"]) == animation([fields()], ["a"])


def test_an_animation_has_a_frame_for_each_moment_over_one_scale() -> None:
    weak = {name: 0.1 * field for name, field in fields().items()}
    film = Image.open(io.BytesIO(animation([weak, fields()], ["step 1", "step 2"])))
    assert film.format == "GIF"
    assert film.n_frames == 2
    film.seek(0)
    first = np.asarray(film.convert("RGB")).astype(float)
    film.seek(1)
    second = np.asarray(film.convert("RGB")).astype(float)
    middle = first.shape[0] // 2
    assert abs(first[middle] - 255).max() < abs(second[middle] - 255).max()  # paler where the field is weaker
    right = second[2 * 14 + 8, -30]  # the top row of the reference: the largest values, red
    assert right[0] > right[2] + 50


def test_a_field_of_zeros_can_be_drawn() -> None:
    nothing = {name: 0 * field for name, field in fields().items()}
    assert png(panels(nothing, title="still")).startswith(b"\x89PNG")
    assert animation([nothing], ["still"]).startswith(b"GIF")


def test_a_page_and_a_record_carry_pictures() -> None:
    picture = embedded(b"bytes", title='flow <1> & "2"', kind="png")
    assert base64.b64decode(picture.source.partition(",")[2]) == b"bytes"
    document = Document(title="Run", pictures=[picture])
    text = page([document], title="Run")
    assert f'<img src="{picture.source}" alt="flow &lt;1&gt; &amp; &quot;2&quot;">' in text
    assert "<figcaption>flow &lt;1&gt; &amp; &quot;2&quot;</figcaption>" in text
    assert Document.from_dict(document.as_dict()).pictures == [picture]
    older = document.as_dict()
    del older["pictures"]
    assert list(Document.from_dict(older).pictures) == []
    assert Picture(title="a", source="b") != picture
