"""Prompts and answers as token ids, for whatever chat template a model has."""

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile

from ..errors import ZweaveError
from ..text.chatml import conversation_ids, parse_chat, parse_conversation
from ..text.prompt_template import PLACE, PromptTemplate
from ..text.tokenizer import Tokenizer
from .task import Sample, Task

_SPACE = re.compile(r"\s")


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Token ids of a sample's prompt: one in ChatML as `conversation_ids` renders it for the model.

    Any other text is taken as it stands, as the engine takes it.
    """
    messages = parse_conversation(prompt)
    return conversation_ids(tokenizer, messages) if messages else tokenizer.encode(prompt)


def expert_template(
    task: Task, samples: Sequence[Sample], tokenizer: Tokenizer | None = None
) -> PromptTemplate:
    """The template of an expert that learns a task: the words around its texts, and how its answers end.

    A task that names no words, as one from a JSONL file, has those with which all its prompts begin and end.
    tokenizer: the model's, without which labels are taken for one token each.
    """
    words = task.template or _shared_words([sample.prompt for sample in samples])
    longest = answer_limit(tokenizer, task) if tokenizer else task.max_tokens
    return replace(words, labels=task.labels, max_tokens=longest, stop=(*words.stop, *task.stop))


def _shared_words(prompts: Sequence[str]) -> PromptTemplate:
    """The words of the user's turns, if all prompts are chats with one opening; of whole prompts, if none is a chat."""
    chats = [parse_chat(prompt) for prompt in prompts]
    openings = {found and found[1] for found in chats}
    if openings == {None}:
        return PromptTemplate(_around(prompts), chat=False)
    if len(openings) != 1:
        return PromptTemplate(chat=False)
    return PromptTemplate(_around([found[0] for found in chats if found]), openings.pop() or "")


def _around(texts: Sequence[str]) -> str:
    """The whole words that all texts begin and end with, and a place for what is between them."""
    shared = _beginning(texts)
    before = shared[: len(shared) - len(_SPACE.split(shared)[-1])]
    rests = [text[len(before) :] for text in texts]
    shared = _beginning([rest[::-1] for rest in rests])[::-1]
    after = shared[len(_SPACE.split(shared)[0]) :]
    written = f"{before}{PLACE}{after}"
    # Texts that are all the same, or with nothing between the words, tell no words.
    is_sure = len(set(texts)) > 1 and min(map(len, rests)) > len(after) and written.count(PLACE) == 1
    return written if is_sure else PLACE


def _beginning(texts: Sequence[str]) -> str:
    """What all texts begin with: what the first and the last of them in order have in common."""
    pairs = zip(min(texts), max(texts), strict=False)
    return "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def answer_ids(tokenizer: Tokenizer, answer: str) -> list[int]:
    """Token ids of an answer where it follows a word.

    Some tokenizers put a space before whatever text they are given: only what comes after a word counts.
    """
    before, whole = (tokenizer.encode(text, special=False) for text in ("is", f"is{answer}"))
    if whole[: len(before)] == before:
        return whole[len(before) :]
    return tokenizer.encode(answer, special=False)


def label_tokens(tokenizer: Tokenizer, task: Task) -> list[list[int]]:
    """Token ids of each of a task's labels; ZweaveError when two have the same, or one an end token."""
    found = [answer_ids(tokenizer, label) for label in task.labels]
    if not all(found):
        raise ZweaveError(f"a label of {task.name} has no tokens for this model")
    for label, ids in zip(task.labels, found, strict=True):
        if set(ids) & set(tokenizer.eos_ids):
            raise ZweaveError(
                f"the label {label!r} of {task.name} holds an end token of this model, which no answer can hold: "
                "take another"
            )
    if len(set(map(tuple, found))) != len(found):
        raise ZweaveError(f"two labels of {task.name} are the same tokens for this model")
    return found


def target_tokens(tokenizer: Tokenizer, task: Task, answers: Sequence[str]) -> list[list[int]]:
    """The tokens that a model learns to say for each answer.

    The end token is one of them, but where all labels are one token: those are read without going on.
    """
    end = [] if _has_short_labels(tokenizer, task) else list(tokenizer.eos_ids)[:1]
    return [answer_ids(tokenizer, answer) + end for answer in answers]


def answer_limit(tokenizer: Tokenizer, task: Task) -> int:
    """The most tokens of an answer, its end token included: what its longest label takes, or `max_tokens`."""
    if _has_short_labels(tokenizer, task):
        return task.max_tokens
    return max([task.max_tokens, *(len(answer_ids(tokenizer, label)) + 1 for label in task.labels)])


def _has_short_labels(tokenizer: Tokenizer, task: Task) -> bool:
    return bool(task.labels) and all(len(ids) == 1 for ids in label_tokens(tokenizer, task))
