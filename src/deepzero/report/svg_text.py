"""From matplotlib's SVG file to one that may stand, with others, inside a page."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

NAMESPACE = "http://www.w3.org/2000/svg"
FONTS = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', Verdana, Arial, sans-serif"

_REFERENCE = re.compile(r"#([\w-]+)")
_FONT = re.compile(r"font: [^;]*?([\d.]+px)[^;]*")
_FAMILY = re.compile(r"font-family: [^;]*;? ?")


def cleaned(text: str, *, title: str, prefix: str) -> str:
    """The SVG without declarations, style sheets and unused identifiers, and with a title for screen readers.

    Args:
        text: an SVG file of matplotlib.
        title: what the picture shows.
        prefix: put before each identifier, so that those of several pictures differ.
    """
    root = ET.fromstring(text)
    for element in root.iter():
        _without_namespaces(element)
    _drop(root, "metadata")
    for definitions in root.findall("defs"):
        _drop(definitions, "style")
    used = {name for element in root.iter() for value in element.attrib.values() for name in _REFERENCE.findall(value)}
    for element in root.iter():
        _rename(element, used, prefix)
    head = ET.Element("title")
    head.text = title
    root.insert(0, head)
    root.attrib = {"xmlns": NAMESPACE, "role": "img", "stroke-linejoin": "round", "font-family": FONTS, **root.attrib}
    root.attrib.pop("version", None)
    return ET.tostring(root, encoding="unicode") + "\n"


def _drop(parent: ET.Element, tag: str) -> None:
    for child in parent.findall(tag):
        parent.remove(child)


def _without_namespaces(element: ET.Element) -> None:
    """``svg:path`` -> ``path`` and ``xlink:href`` -> ``href``, as HTML and SVG 2 have them."""
    element.tag = element.tag.rpartition("}")[2]
    element.attrib = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}


def _rename(element: ET.Element, used: set[str], prefix: str) -> None:
    attributes = element.attrib
    name = attributes.pop("id", None)
    if name == "series":
        attributes["class"] = "series"
    if name in used:
        attributes["id"] = f"{prefix}-{name}"
    for key in ("href", "clip-path"):
        if key in attributes:
            attributes[key] = attributes[key].replace("#", f"#{prefix}-")
    if "style" in attributes:
        attributes["style"] = _FAMILY.sub("", _FONT.sub(r"font-size: \1", attributes["style"]))
