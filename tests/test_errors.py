"""What an error's one line quotes of others, and the checks that say what was given instead."""

import pytest

from zweave.errors import ZweaveError, one_line, shortened
from zweave.validation import check_flag, check_integer, is_number


def test_an_error_in_one_line() -> None:
    assert one_line(ValueError("no\n  idea")) == "no idea"
    assert one_line(ValueError("no\n  idea"), with_type=True) == "ValueError: no idea"
    assert one_line(ValueError()) == one_line(ValueError(), with_type=True) == "ValueError"
    assert len(one_line(ValueError("x" * 1000))) == 200


def test_a_value_cut_short() -> None:
    assert shortened("short") == "'short'"
    assert shortened("x" * 100) == "'" + "x" * 36 + "..."
    assert shortened([10**5000]) == "a number of more than 4300 digits"


@pytest.mark.parametrize("value", [0, True, 1.0, "1", None])
def test_what_is_no_integer_of_at_least_one(value: object) -> None:
    check_integer("rank", 1, least=1)
    with pytest.raises(ZweaveError, match=rf"^rank must be an integer of at least 1, not {value!r}$"):
        check_integer("rank", value, least=1)


def test_what_is_no_flag() -> None:
    check_flag("soft", False)
    with pytest.raises(ZweaveError, match=r"^soft must be True or False, not 1$"):
        check_flag("soft", 1)


@pytest.mark.parametrize("value", [True, float("inf"), float("nan"), 10**400, "1"])
def test_what_is_no_number(value: object) -> None:
    assert is_number(1) and is_number(0.5)
    assert not is_number(value)
