"""The words that hidden tasks are answered with."""

PAIRS = (
    ("yes", "no"), ("true", "false"), ("positive", "negative"), ("good", "bad"), ("A", "B"), ("red", "blue"),
    ("cat", "dog"), ("hot", "cold"), ("one", "two"), ("left", "right"), ("up", "down"), ("day", "night"),
)  # fmt: skip
LABEL_WORDS = tuple(word for pair in PAIRS for word in pair)
