"""Conversations in ChatML, as tasks write their prompts, and as token ids for whatever template a model has."""

import re
from collections.abc import Mapping, Sequence

from .tokenizer import Tokenizer

# What `chat` and `conversation` write.
_ROLES = "system|user|assistant"
_TURN = re.compile(
    rf"<\|im_start\|>(?P<role>{_ROLES})\n(?P<content>.*?)<\|im_end\|>\n(?=<\|im_start\|>(?:{_ROLES})\n)",
    re.DOTALL,
)
_OPENING = re.compile(r"<\|im_start\|>assistant\n(?P<opening>.*)", re.DOTALL)


def chat(user: str, opening: str = "") -> str:
    """A user's turn in ChatML without a system message, and the first words of the assistant's."""
    return conversation(_messages(user, opening))


def conversation(messages: Sequence[Mapping[str, str]]) -> str:
    """Messages of {"role", "content"} in ChatML as they are; the answer continues a last message of the assistant."""
    *before, last = messages
    opening = last["content"] if last["role"] == "assistant" else ""
    turns = before if last["role"] == "assistant" else messages
    written = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns)
    return f"{written}<|im_start|>assistant\n{opening}"


def parse_conversation(prompt: str) -> list[dict[str, str]]:
    """The messages that `conversation` wrote, with the answer's opening as the assistant's; none of any other text."""
    messages, end = [], 0
    while turn := _TURN.match(prompt, end):
        messages.append(turn.groupdict())
        end = turn.end()
    found = _OPENING.fullmatch(prompt, end)
    if not messages or found is None:
        return []
    opening = {"role": "assistant", "content": found["opening"]}
    return [*messages, opening] if found["opening"] else messages


def parse_chat(prompt: str) -> tuple[str, str] | None:
    """The user's words and the opening of a prompt that `chat` wrote; None for any other text."""
    messages = parse_conversation(prompt)
    opening = messages.pop()["content"] if messages and messages[-1]["role"] == "assistant" else ""
    return (messages[0]["content"], opening) if [turn["role"] for turn in messages] == ["user"] else None


def conversation_ids(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Token ids of messages, of which a last one of the assistant is continued.

    Models of ChatML get what `conversation` writes. Another chat template renders it; a model without a chat template
    gets the bare words.
    """
    if len(tokenizer.encode("<|im_start|>", special=False)) == 1:
        return tokenizer.encode(conversation(messages), special=False)
    if not tokenizer.assistant_header:
        is_open = messages[-1]["role"] != "assistant"
        return tokenizer.encode("\n".join([*(turn["content"] for turn in messages), *[""] * is_open]))
    return tokenizer.chat(messages)


def chat_ids(tokenizer: Tokenizer, user: str, opening: str = "") -> list[int]:
    """Token ids of a user's turn and the opening of its answer, see `conversation_ids`."""
    return conversation_ids(tokenizer, _messages(user, opening))


def _messages(user: str, opening: str) -> list[dict[str, str]]:
    turn = {"role": "user", "content": user}
    return [turn, {"role": "assistant", "content": opening}] if opening else [turn]
