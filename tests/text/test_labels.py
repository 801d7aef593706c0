"""The label that an answer says."""

import pytest

from zweave.text.labels import label_said

LABELS = (" positive", " very positive", " not enough information", " C", " 1")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (" very positive", " very positive"),
        ("very positive.\nReview: dull", " very positive"),
        (" positive, and more", " positive"),
        (" not enough information to say", " not enough information"),
        (" not enough", None),
        (" positively", None),
        (" positive_one", None),
        (" C++", None),
        (" 1.5", None),
        (" it is positive", None),
        ("", None),
    ],
)
def test_an_answer_says_the_longest_label_that_it_begins_with(answer: str, expected: str | None) -> None:
    assert label_said(answer, LABELS) == expected


def test_the_longer_of_two_labels_that_begin_alike_is_said() -> None:
    assert label_said("no idea", ("no", "no idea")) == "no idea"
    assert label_said("no ideas", ("no", "no idea")) == "no"
