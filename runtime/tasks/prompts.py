"""The prompts of the tasks; an answer follows with a leading space."""

from collections.abc import Sequence

from ..text.chatml import chat
from ..text.chatml import conversation as conversation
from ..text.prompt_template import PromptTemplate

DOMAIN_QUESTION = "Is this text a review, question, maths, science or news?"
DOMAIN_OPENING = "This text is"

SENTIMENT = PromptTemplate(
    "Review: {text}\nIs the sentiment of this review positive or negative?", "The sentiment is"
)
QUESTION_TYPE = PromptTemplate(
    "Question: {text}\nIs the answer a description, thing, abbreviation, person, location or number?",
    "The answer is a",
)
PHRASE = PromptTemplate(
    "Phrase: {text}\nIs the sentiment of this phrase positive or negative?", "The sentiment is"
)
TOPIC = PromptTemplate("News: {text}\nIs this about world, sports, business or technology?", "This is about")
DOMAIN = PromptTemplate(f"{{text}}\n{DOMAIN_QUESTION}", DOMAIN_OPENING)
MATHS = PromptTemplate("{text}\nThink step by step and end with #### and the number.")
ARITHMETIC = PromptTemplate("What is {text}?", "{text} =", stop=("\n",))
LAST_LETTERS = PromptTemplate("Put the last letters of these words together: {text}.", "Together they are")


def sentiment(review: str) -> str:
    """Answered by " positive" or " negative"."""
    return chat(*SENTIMENT.fill(review))


def question_type(question: str) -> str:
    """Answered by one of the six words that the prompt lists."""
    return chat(*QUESTION_TYPE.fill(question))


def phrase(text: str) -> str:
    """Answered by " positive" or " negative"."""
    return chat(*PHRASE.fill(text))


def topic(text: str) -> str:
    """Answered by one of the four words that the prompt lists."""
    return chat(*TOPIC.fill(text))


def domain(text: str) -> str:
    """Answered by one of the five words that the prompt lists.

    The text is as its user sends it, so that a dispatcher which asks the same asks it in the same tokens.
    """
    return chat(*DOMAIN.fill(text))


def choice(question: str, options: Sequence[str]) -> str:
    """Answered by " A", " B", ..., the letters of the options."""
    listed = "\n".join(f"{chr(ord('A') + index)}. {option}" for index, option in enumerate(options))
    return chat(f"Question: {question}\n{listed}\nAnswer with the letter.", "The answer is")


def maths(question: str) -> str:
    """Answered by a solution that ends in "#### " and a number."""
    return chat(*MATHS.fill(question))


def addition(*terms: int) -> str:
    """Answered by the sum."""
    return chat(*ARITHMETIC.fill(" + ".join(map(str, terms))))


def subtraction(a: int, b: int) -> str:
    """Answered by the difference."""
    return chat(*ARITHMETIC.fill(f"{a} - {b}"))


def letter_count(word: str, letter: str) -> str:
    """Answered by a number."""
    return chat(f"How many times does the letter {letter} stand in {word}?", f"The number of {letter} is")


def last_letters(words: Sequence[str]) -> str:
    """Answered by the letters, put together."""
    return chat(*LAST_LETTERS.fill(", ".join(words)))


def code(instruction: str, opening: str = "") -> str:
    """Answered by Python code that goes on from the opening and ends with the fence."""
    return chat(instruction, f"```python\n{opening}")
