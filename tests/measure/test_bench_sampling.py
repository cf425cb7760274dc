import itertools
from collections import Counter

import pytest
import torch

from deepzero.coordinates import Coordinates
from deepzero.measure.timed_part import in_full_chunks, one_of_each, shuffled

WHOLE = Coordinates({"a": torch.arange(0, 200, 2), "b": torch.arange(3)})
CHUNKS = {"a": 8, "b": 8}


def test_a_stretch_of_all_coordinates_holds_each_once():
    stream = list(itertools.islice(shuffled(WHOLE, seed=1), 206))
    assert stream[:103] == stream[103:]
    assert Counter(name for name, _ in stream[:103]) == {"a": 100, "b": 3}
    assert {index for name, index in stream if name == "a"} == set(range(0, 200, 2))
    assert stream[:103] != list(itertools.islice(shuffled(WHOLE, seed=2), 103))


def test_a_part_is_made_of_chunks_of_the_whole():
    part = in_full_chunks(WHOLE, CHUNKS, 0.4, seed=3)
    chunks = {tuple(WHOLE["a"][start : start + 8].tolist()) for start in range(0, 100, 8)}
    drawn = part["a"].tolist()
    assert len(drawn) == 5 * 8 or len(drawn) == 4 * 8 + 4
    assert all(tuple(drawn[start : start + 8]) in chunks for start in range(0, len(drawn), 8))
    assert part["b"].tolist() == [0, 1, 2]
    assert drawn != in_full_chunks(WHOLE, CHUNKS, 0.4, seed=4)["a"].tolist()


@pytest.mark.parametrize(("fraction", "least", "count"), [(1.0, 1, 100), (1e-9, 1, 8), (1e-9, 2, 16), (1e-9, 99, 100)])
def test_sizes_of_a_part(fraction, least, count):
    part = in_full_chunks(WHOLE, {"a": 10 if count == 100 else 8, "b": 1}, fraction, seed=0, least=least)
    assert part["a"].numel() in (count, count - 4)


def test_one_of_each_is_spread_over_the_network():
    many = Coordinates({f"p{i}": torch.arange(5) for i in range(10)})
    assert one_of_each(many, 100, seed=0).count == 10
    assert one_of_each(many, 5, seed=0).names == ["p0", "p2", "p4", "p6", "p8"]
