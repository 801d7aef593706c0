"""Attributes of pairs of short strings, such as "egg add", from a generator of reasoning-gym."""

from .attributes import Attribute

STRINGS = (
    Attribute(
        "same-pattern",
        ("strings",),
        (
            "both strings have the same pattern",
            "the two words are built alike",
            "the words repeat letters at the same places",
            "each letter of the first string stands for one of the second",
            "the strings are isomorphic",
            "the second word is the first one in other letters",
            "the letters of one word can be replaced to get the other",
        ),
        lambda text: text.label == 1,
    ),
)
