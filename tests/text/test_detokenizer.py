import pytest
from hypothesis import given
from hypothesis import strategies as st

from zweave.text.detokenizer import StopChecker


class Letters:
    """Stands for a detokeniser: a token is the code of a letter, # that of the special token <end>."""

    def add(self, token_id: int) -> str:
        return "" if self.special_text(token_id) else chr(token_id)

    def special_text(self, token_id: int) -> str:
        return {ord("#"): "<end>"}.get(token_id, "")

    def finish(self) -> str:
        return ""


def run(text: str, stops: tuple[str, ...], **options: object) -> tuple[str, bool]:
    """What is shown of the whole text, piece by piece, and whether it was stopped."""
    stream = StopChecker(Letters(), stops, **options)
    shown = ""
    for letter in text:
        piece, stopped = stream.add(ord(letter))
        shown += piece
        assert stream.shown == shown
        if stopped:
            return shown, True
    return shown + stream.finish(), False


def test_text_before_the_stop_string_is_shown_and_nothing_of_it() -> None:
    assert run("one END two", ("END",)) == ("one ", True)


def test_what_only_looked_like_a_stop_string_is_shown_in_the_end() -> None:
    assert run("one EN", ("END",)) == ("one EN", False)
    assert run("EENND", ("END",)) == ("EENND", False)


def test_overlapping_stop_strings() -> None:
    assert run("xaab", ("ab", "aac")) == ("xa", True)


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one#two", "<end>", ("one", True)),
        ("one#\ntwo", "<end>\n", ("one", True)),
        ("one\n#two", "\n<end>", ("one", True)),
        ("one#two", "<end>\n", ("onetwo", False)),
        ("a#b#", "<end>c", ("ab", False)),
        ("one<end>two", "<end>", ("one", True)),
    ],
)
def test_a_stop_string_may_hold_a_special_token(text: str, stop: str, expected: tuple[str, bool]) -> None:
    assert run(text, (stop,)) == expected


@given(
    st.text("ab", max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=3), max_size=2),
    st.integers(0, 6),
    st.booleans(),
)
def test_equals_a_search_after_every_letter(
    text: str, stops: list[str], min_tokens: int, shows_stop: bool
) -> None:
    wanted = (text, False)
    for end in range(min_tokens + 1, len(text) + 1):
        found = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if found:
            wanted = (text[: end if shows_stop else min(found)], True)
            break
    assert run(text, tuple(stops), min_tokens=min_tokens, shows_stop=shows_stop) == wanted


def test_a_special_token_of_a_stop_string_is_not_shown_with_it() -> None:
    assert run("one#two", ("e<end>t",), shows_stop=True) == ("onet", True)
