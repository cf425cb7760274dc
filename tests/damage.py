"""Damages of files, each a function of a seed: cut, flipped, lengthened, nested, of other kinds, in place of a folder."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deepzero.errors import DeepZeroError

Damage = Callable[[Path, random.Random], None]

DEEP = 100_000
WRONG: tuple[Any, ...] = (None, True, -1, 0, 10**30, 1e300, "", "a\0b", "../../x", [], {}, [[[]]], {"a": {}}, [None])
"""Values of kinds that are seldom expected, to stand in JSON."""


def cut(path: Path, draw: random.Random) -> None:
    """A file that ends too early."""
    data = path.read_bytes()
    path.write_bytes(data[: draw.randrange(max(len(data), 1))])


def flipped(path: Path, draw: random.Random) -> None:
    """A bit that has changed, or several."""
    data = bytearray(path.read_bytes())
    for _ in range(draw.choice((1, 1, 8)) if data else 0):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def flipped_early(path: Path, draw: random.Random) -> None:
    """A bit of the first hundred bytes, in which headers are."""
    data = bytearray(path.read_bytes())
    if data:
        data[draw.randrange(min(len(data), 100))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def lengthened(path: Path, draw: random.Random) -> None:
    """Bytes behind the end."""
    with path.open("ab") as file:
        file.write(draw.randbytes(draw.choice((1, 7, 4096))))


def zeroed(path: Path, draw: random.Random) -> None:
    """A page of zeros, as a disk leaves it that lost one."""
    data = bytearray(path.read_bytes())
    start = draw.randrange(max(len(data), 1))
    data[start : start + 512] = bytes(len(data[start : start + 512]))
    path.write_bytes(data)


def shuffled(path: Path, draw: random.Random) -> None:
    """Bytes of another kind of file altogether."""
    path.write_bytes(draw.randbytes(draw.choice((1, 100, 5000))))


def emptied(path: Path, _draw: random.Random) -> None:
    """No byte."""
    path.write_bytes(b"")


def taken(path: Path, _draw: random.Random) -> None:
    """No file."""
    path.unlink()


def replaced_by_a_folder(path: Path, _draw: random.Random) -> None:
    """A folder of that name."""
    path.unlink()
    path.mkdir()


def nested(path: Path, draw: random.Random) -> None:
    """Lists or objects too deep for a parser that calls itself, or for what comes after it."""
    depth = draw.choice((80, 400, DEEP))
    opened, closed = draw.choice((("[", "]"), ('{"a":', "}")))
    path.write_text(opened * depth + ("0" if opened == "[" else "{}") + closed * depth)


BYTES: tuple[Damage, ...] = (
    cut,
    cut,
    flipped,
    flipped,
    flipped_early,
    lengthened,
    zeroed,
    shuffled,
    emptied,
    taken,
    replaced_by_a_folder,
    nested,
)
"""Damages of any file."""


def of_a_wrong_kind(path: Path, draw: random.Random) -> None:
    """A value in JSON, somewhere, in place of another one; the syntax stays right."""
    lines = path.read_text().splitlines() or ["null"]
    if path.suffix == ".jsonl":
        number = draw.randrange(len(lines))
        lines[number] = json.dumps(altered(json.loads(lines[number]), draw))
        path.write_text("\n".join(lines) + "\n")
    else:
        path.write_text(json.dumps(altered(json.loads("\n".join(lines)), draw)))


def altered(value: Any, draw: random.Random) -> Any:
    """A copy with one value, at any depth, of another kind, or without a key."""
    places = list(_places(value))
    holder, key = draw.choice(places) if places else (None, None)
    if holder is None or draw.random() < 0.05:
        return draw.choice(WRONG)
    if isinstance(holder, dict) and draw.random() < 0.3:
        del holder[key]
    elif isinstance(holder[key], dict) and draw.random() < 0.3:
        holder[key] = {**holder[key], "another": draw.choice(WRONG)}
    else:
        holder[key] = draw.choice(WRONG)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in entries:
        yield value, key
        yield from _places(item)


def number_too_large(path: Path, draw: random.Random) -> None:
    """A number that no float holds, or one that takes long to read, in place of one in the text."""
    text = path.read_text()
    places = [k for k, letter in enumerate(text) if letter.isdigit()]
    if places:
        k = draw.choice(places)
        text = text[:k] + draw.choice(("1e999", "9" * 30, "9" * 5000, "NaN", "-Infinity")) + text[k + 1 :]
    path.write_text(text)


TEXTS: tuple[Damage, ...] = (*BYTES, *(of_a_wrong_kind,) * 6, number_too_large, number_too_large)
"""Damages of JSON: those of any file, and such as a person or a program with bad intentions makes."""


def kinds_for(path: Path) -> tuple[Damage, ...]:
    """The damages that make sense for a file."""
    return TEXTS if path.suffix in (".json", ".jsonl") else BYTES


def damaged(path: Path, seed: int) -> str:
    """Damage a file; the name of what was done to it."""
    draw = random.Random(seed)
    damage = draw.choice(kinds_for(path))
    damage(path, draw)
    return f"{damage.__name__}, seed {seed}"


def copy_with_damage(folder: Path, name: str, seed: int, to: Path) -> str:
    """A fresh copy of a folder in which one file is damaged; what was done."""
    if to.exists():
        shutil.rmtree(to)
    shutil.copytree(folder, to)
    return f"{name}: {damaged(to / name, seed)}"


def outcome(read: Callable[[], Any]) -> str:
    """``"read"``, or the message of the one kind of error that a reader may raise; anything else goes on."""
    try:
        read()
    except DeepZeroError as error:
        return str(error) or "an error without words"
    return "read"
