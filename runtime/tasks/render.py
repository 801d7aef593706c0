"""Prompts and answers as token ids, for whatever chat template a model has."""

import re

from ..errors import ZweaveError
from ..text.tokenizer import Tokenizer
from .task import Task

# What `prompts.chat` and `prompts.conversation` write.
_ROLES = "system|user|assistant"
_TURN = re.compile(
    rf"<\|im_start\|>(?P<role>{_ROLES})\n(?P<content>.*?)<\|im_end\|>\n(?=<\|im_start\|>(?:{_ROLES})\n)",
    re.DOTALL,
)
_OPENING = re.compile(r"<\|im_start\|>assistant\n(?P<opening>.*)", re.DOTALL)


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Token ids of a sample's prompt.

    Models of ChatML take a prompt of `prompts.chat` or `prompts.conversation` as it stands. Another chat template
    renders it, with the opening as an assistant's message to be continued; a model without a chat template gets the
    bare words. Any other text is taken as it stands, as the engine takes it.
    """
    messages, opening = _conversation(prompt)
    if not messages:
        return tokenizer.encode(prompt)
    if len(tokenizer.encode("<|im_start|>", special=False)) == 1:
        return tokenizer.encode(prompt, special=False)
    if not tokenizer.assistant_header:
        return tokenizer.encode("\n".join([*(message["content"] for message in messages), opening]))
    if opening:
        messages.append({"role": "assistant", "content": opening})
    return tokenizer.chat(messages)


def _conversation(prompt: str) -> tuple[list[dict[str, str]], str]:
    """The messages of a prompt in ChatML and the opening of its answer; no messages for any other text."""
    messages, end = [], 0
    while turn := _TURN.match(prompt, end):
        messages.append(turn.groupdict())
        end = turn.end()
    opening = _OPENING.fullmatch(prompt, end)
    return (messages, opening["opening"]) if opening else ([], "")


def answer_ids(tokenizer: Tokenizer, answer: str) -> list[int]:
    """Token ids of an answer where it follows a word.

    Some tokenizers put a space before whatever text they are given: only what comes after a word counts.
    """
    before, whole = (tokenizer.encode(text, special=False) for text in ("is", f"is{answer}"))
    if whole[: len(before)] == before:
        return whole[len(before) :]
    return tokenizer.encode(answer, special=False)


def label_ids(tokenizer: Tokenizer, task: Task) -> list[int]:
    """Token ids of a task's labels; ZweaveError when a label is not one token of its own."""
    found = []
    for label in task.labels:
        ids = answer_ids(tokenizer, label)
        if len(ids) != 1:
            raise ZweaveError(
                f"the label {label!r} of {task.name} is {len(ids)} tokens, it must be one: "
                "take others, or leave the labels out, and answers are generated"
            )
        found.append(ids[0])
    if len(set(found)) != len(found):
        raise ZweaveError(f"two labels of {task.name} are the same token for this model")
    return found
