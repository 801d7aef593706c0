"""The prompts of the tasks; an answer follows with a leading space."""

from collections.abc import Mapping, Sequence

DOMAIN_QUESTION = "Is this text a review, question, maths, science or news?"
DOMAIN_OPENING = "This text is"


def chat(user: str, opening: str = "") -> str:
    """A user's turn in ChatML without a system message, and the first words of the assistant's."""
    return f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n{opening}"


def conversation(messages: Sequence[Mapping[str, str]]) -> str:
    """Messages of {"role", "content"} in ChatML as they are; the answer continues a last message of the assistant."""
    *before, last = messages
    opening = last["content"] if last["role"] == "assistant" else ""
    turns = before if last["role"] == "assistant" else messages
    written = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns)
    return f"{written}<|im_start|>assistant\n{opening}"


def sentiment(review: str) -> str:
    """Answered by " positive" or " negative"."""
    return chat(
        f"Review: {review}\nIs the sentiment of this review positive or negative?", "The sentiment is"
    )


def question_type(question: str) -> str:
    """Answered by one of the six words that the prompt lists."""
    choices = "a description, thing, abbreviation, person, location or number"
    return chat(f"Question: {question}\nIs the answer {choices}?", "The answer is a")


def phrase(text: str) -> str:
    """Answered by " positive" or " negative"."""
    return chat(f"Phrase: {text}\nIs the sentiment of this phrase positive or negative?", "The sentiment is")


def topic(text: str) -> str:
    """Answered by one of the four words that the prompt lists."""
    return chat(f"News: {text}\nIs this about world, sports, business or technology?", "This is about")


def domain(text: str) -> str:
    """Answered by one of the five words that the prompt lists.

    The text is as its user sends it, so that a dispatcher which asks the same asks it in the same tokens.
    """
    return chat(f"{text}\n{DOMAIN_QUESTION}", DOMAIN_OPENING)


def choice(question: str, options: Sequence[str]) -> str:
    """Answered by " A", " B", ..., the letters of the options."""
    listed = "\n".join(f"{chr(ord('A') + index)}. {option}" for index, option in enumerate(options))
    return chat(f"Question: {question}\n{listed}\nAnswer with the letter.", "The answer is")


def maths(question: str) -> str:
    """Answered by a solution that ends in "#### " and a number."""
    return chat(f"{question}\nThink step by step and end with #### and the number.")


def addition(*terms: int) -> str:
    """Answered by the sum."""
    written = " + ".join(map(str, terms))
    return chat(f"What is {written}?", f"{written} =")


def subtraction(a: int, b: int) -> str:
    """Answered by the difference."""
    return chat(f"What is {a} - {b}?", f"{a} - {b} =")


def letter_count(word: str, letter: str) -> str:
    """Answered by a number."""
    return chat(f"How many times does the letter {letter} stand in {word}?", f"The number of {letter} is")


def last_letters(words: Sequence[str]) -> str:
    """Answered by the letters, put together."""
    listed = ", ".join(words)
    return chat(f"Put the last letters of these words together: {listed}.", "Together they are")


def code(instruction: str, opening: str = "") -> str:
    """Answered by Python code that goes on from the opening and ends with the fence."""
    return chat(instruction, f"```python\n{opening}")
