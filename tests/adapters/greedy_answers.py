"""Greedy answers of an engine and of transformers to the same prompts."""

from collections.abc import Sequence
from typing import Any

import torch

from zweave.engine import Engine
from zweave.request import Request

NEW = 12
PROMPTS = [list(range(3 + index, 20 + 2 * index)) for index in range(9)]


def answers(
    engine: Engine, experts: Sequence[Any], prompts: Sequence[list[int]] = PROMPTS
) -> list[list[int]]:
    """NEW tokens for as many prompts as there are experts, in one batch."""
    requests = [
        Request(prompt, expert=expert, max_tokens=NEW, ignore_eos=True)
        for prompt, expert in zip(prompts, experts, strict=False)
    ]
    return [result.token_ids for result in engine.generate(requests)]


def greedy(model: Any, prompt: list[int]) -> list[int]:
    """The NEW tokens that transformers gives."""
    whole = model.generate(
        torch.tensor([prompt]), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, eos_token_id=None
    )
    return whole[0, len(prompt) :].tolist()
