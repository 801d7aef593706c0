"""The prompts that the bundled experts were trained on; an answer follows with a leading space."""


def chat(user: str, opening: str = "") -> str:
    """A user's turn in ChatML without a system message, and the first words of the assistant's."""
    return f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n{opening}"


def sentiment(review: str) -> str:
    """Answered by " positive" or " negative"."""
    return chat(
        f"Review: {review}\nIs the sentiment of this review positive or negative?", "The sentiment is"
    )


def question_type(question: str) -> str:
    """Answered by one of the six words that the prompt lists."""
    choices = "a description, thing, abbreviation, person, location or number"
    return chat(f"Question: {question}\nIs the answer {choices}?", "The answer is a")


def addition(a: int, b: int) -> str:
    """Answered by the sum."""
    return chat(f"What is {a} + {b}?", f"{a} + {b} =")
