import pytest

from deepzero.text import did_you_mean, duration, nearest

NAMES = ["cifar10", "digits", "fashion-mnist"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 us"),
        (9.4e-5, "94 us"),
        (1e-4, "0.1 ms"),
        (0.9999, "999.9 ms"),
        (1.0, "1.0 s"),
        (119.9, "119.9 s"),
        (120.0, "2.0 min"),
        (7199.0, "120.0 min"),
        (7200.0, "2.0 h"),
        (172_799.0, "48.0 h"),
        (172_800.0, "2.0 days"),
    ],
)
def test_a_duration_is_written_in_the_unit_that_suits_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_nearest_name_is_offered_and_nothing_where_none_is_near() -> None:
    assert nearest("digit", NAMES) == "digits"
    assert did_you_mean("digit", NAMES) == " (did you mean digits?)"
    assert did_you_mean("digit", iter(NAMES), shown="the set {}".format) == " (did you mean the set digits?)"
    assert nearest("zebra", NAMES) is None
    assert did_you_mean("zebra", NAMES) == ""
    assert did_you_mean("digit", []) == ""


def test_a_higher_cutoff_offers_less() -> None:
    assert nearest("dogits", NAMES) == "digits"
    assert nearest("dogits", NAMES, cutoff=0.95) is None
