"""Logits of a whole prompt: those of transformers with merged weights, whatever else the engine does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from zweave import Engine, Request, ZweaveError
from zweave.checkpoint import ModelConfig
from zweave.experts import Expert

PROMPT = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9, 32, 38, 46, 26, 4]


@pytest.mark.parametrize("choice", [None, "a", "late", {"a": 0.5, "b": 0.25}], ids=str)
def test_those_of_transformers(
    choice: Any,
    tiny_engine: Callable[..., Engine],
    tiny_model: Callable[..., Path],
    random_expert: Callable[..., Expert],
    merged_logits: Callable[..., Tensor],
) -> None:
    engine, directory = tiny_engine(), tiny_model("llama", vocab_size=96)
    shapes = ModelConfig.from_directory(directory).adapted_shapes()
    experts = {name: random_expert(shapes, seed=seed) for seed, name in enumerate("ab", 1)}
    experts["late"] = random_expert(shapes, seed=3, first_layer=1)
    # What is cached of the same prompt does not shorten it.
    engine.generate(Request(PROMPT, expert=choice, max_tokens=2))
    found = engine.prompt_logits(PROMPT, choice)
    torch.testing.assert_close(found, merged_logits(directory, experts, choice, PROMPT), rtol=1e-4, atol=1e-4)
    assert torch.equal(engine.prompt_logits(PROMPT, choice), found)


def test_blocks_and_slots_are_given_back(tiny_engine: Callable[..., Engine]) -> None:
    engine = tiny_engine(slots=1)
    free = engine._blocks.num_available
    for choice in ("a", "b", None, "a"):
        engine.prompt_logits(PROMPT, choice)
    assert engine._blocks.num_available == free and engine.bank.slots_in_use == 0


def test_what_cannot_be_is_told_in_one_line(tiny_engine: Callable[..., Engine]) -> None:
    engine = tiny_engine(kv_tokens=32)
    for wrong, words in (((PROMPT, "none"), "none"), (([], None), "prompt"), (([96], None), "96")):
        with pytest.raises(ZweaveError, match=words):
            engine.prompt_logits(*wrong)
    engine.add(Request(PROMPT * 1, max_tokens=14, ignore_eos=True))
    engine.step()
    taken = engine._blocks.take_blocks(engine._blocks.num_available - 1)
    with pytest.raises(ZweaveError, match="the cache is taken by other requests"):
        engine.prompt_logits(PROMPT)
    engine._blocks.return_blocks(taken)
    assert engine.prompt_logits(PROMPT).shape == (len(PROMPT), 96)
