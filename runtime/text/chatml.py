"""A user's turn and the opening of its answer: in ChatML, and as token ids for whatever template a model has."""

import re

from .tokenizer import Tokenizer

_CHAT = re.compile(
    r"<\|im_start\|>user\n(?P<user>.*)<\|im_end\|>\n<\|im_start\|>assistant\n(?P<opening>.*)", re.DOTALL
)


def chat(user: str, opening: str = "") -> str:
    """A user's turn in ChatML without a system message, and the first words of the assistant's."""
    return f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n{opening}"


def parse_chat(prompt: str) -> tuple[str, str] | None:
    """The user's words and the opening of a prompt that `chat` wrote; None for any other text."""
    found = _CHAT.fullmatch(prompt)
    return None if found is None else (found["user"], found["opening"])


def chat_ids(tokenizer: Tokenizer, user: str, opening: str = "") -> list[int]:
    """Token ids of a user's turn and the opening of its answer.

    Models of ChatML get what `chat` writes. Another chat template renders it, with the opening as an assistant's
    message to be continued; a model without a chat template gets the bare words.
    """
    if len(tokenizer.encode("<|im_start|>", special=False)) == 1:
        return tokenizer.encode(chat(user, opening), special=False)
    if not tokenizer.assistant_header:
        return tokenizer.encode(f"{user}\n{opening}")
    messages = [{"role": "user", "content": user}]
    if opening:
        messages.append({"role": "assistant", "content": opening})
    return tokenizer.chat(messages)
