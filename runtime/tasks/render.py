"""Prompts and answers as token ids, for whatever chat template a model has."""

from collections.abc import Sequence
from dataclasses import replace

from ..errors import ZweaveError
from ..text.chatml import chat_ids, parse_chat
from ..text.prompt_template import PromptTemplate
from ..text.tokenizer import Tokenizer
from .task import Sample, Task


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Token ids of a sample's prompt: one of `prompts.chat` as `chat_ids` renders it for the model.

    Any other text is taken as it stands, as the engine takes it.
    """
    found = parse_chat(prompt)
    return tokenizer.encode(prompt) if found is None else chat_ids(tokenizer, *found)


def expert_template(task: Task, samples: Sequence[Sample]) -> PromptTemplate:
    """The template of an expert that learns a task: the words around its texts, and how its answers end.

    A task that names no words, as one from a JSONL file, has the whole user's turn as its text, if all its prompts are
    chats with one opening; otherwise the whole prompt.
    """
    words = task.template
    if words is None:
        chats = [parse_chat(sample.prompt) for sample in samples]
        openings = {None if found is None else found[1] for found in chats}
        opening = openings.pop() if len(openings) == 1 else None
        words = PromptTemplate(user=None) if opening is None else PromptTemplate(opening=opening)
    return replace(words, labels=task.labels, max_tokens=task.max_tokens, stop=(*words.stop, *task.stop))


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
            raise ZweaveError(f"the label {label!r} of {task.name} is {len(ids)} tokens, it must be one")
        found.append(ids[0])
    if len(set(found)) != len(found):
        raise ZweaveError(f"two labels of {task.name} are the same token for this model")
    return found
