"""What `zweave train` wrote beside a LoRA decides when it acts, and in which words it is asked."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from zweave.adapters.lora_record import LoraRecord
from zweave.adapters.peft_directory import read_peft
from zweave.engine import Engine
from zweave.errors import ZweaveError
from zweave.request import Request
from zweave.text import PromptTemplate

TEMPLATE = PromptTemplate(user="Say {text}!", opening="So", labels=(" yes", " no"), max_tokens=5)


def write(directory: Path, **fields: Any) -> None:
    (directory / "zweave.json").write_text(json.dumps(fields))


def test_a_trained_lora_is_served_by_its_record(
    save_lora: Callable[..., Any], tiny_engine: Callable[..., Engine]
) -> None:
    directory, _ = save_lora("one", 1, r=4)
    engine = tiny_engine()
    template = {
        "version": 1,
        "user": "Say {text}!",
        "opening": "So",
        "labels": [" yes", " no"],
        "max_tokens": 5,
    }
    write(directory, scope="always", description="mine", training={"steps": 2}, prompt_template=template)
    engine.load_expert("one", directory)
    entry = engine.bank.registered("one")
    assert (entry.scope, entry.description, entry.prompt_template) == ("always", "mine", TEMPLATE)
    (asked,) = engine.generate(Request("it", expert="one", max_tokens=12, ignore_eos=True))
    assert asked.asked == "Say it!\nSo" and len(asked.token_ids) == 5
    ids = TEMPLATE.ids(engine.tokenizer, "it")
    (whole,) = engine.generate(Request(ids, expert="one", max_tokens=5, ignore_eos=True))
    assert asked.token_ids == whole.token_ids


def test_scope_after_prompt_spares_the_prompt(
    save_lora: Callable[..., Any], tiny_engine: Callable[..., Engine]
) -> None:
    directory, adapted = save_lora("one", 1, r=4, merge=False)
    engine = tiny_engine()
    engine.load_expert("always", directory)
    engine.load_expert("in_memory", replace(read_peft(directory), scope="after_prompt"))
    write(directory, scope="after_prompt")
    engine.load_expert("late", directory)
    late, in_memory = map(engine.bank.registered, ("late", "in_memory"))
    assert late.scope == "after_prompt" and late.digest == in_memory.digest
    prompt = list(range(3, 40))
    assert engine.generate(Request(prompt, max_tokens=1))[0].reused_tokens == 0
    told = engine.generate(Request(prompt, expert="late", max_tokens=8, ignore_eos=True))[0]
    # The prompt has no header: the LoRA acts on its last token, and the keys before that are the base model's.
    assert told.reused_tokens >= 32 and told.token_ids == greedy_from(adapted, prompt, len(prompt) - 1, 8)
    always = engine.generate(Request(prompt, expert="always", max_tokens=8, ignore_eos=True))[0]
    assert not always.reused_tokens and always.token_ids != told.token_ids
    with pytest.raises(ZweaveError, match="the scope of the one is 'always', of the other 'after_prompt'"):
        engine.generate(Request(prompt, expert={"always": 1.0, "late": 1.0}))


@torch.inference_mode()
def greedy_from(adapted: Any, prompt: list[int], start: int, count: int) -> list[int]:
    """PEFT's answer where the adapter is off before a position."""
    with adapted.disable_adapter():
        cache = adapted(torch.tensor([prompt[:start]]), use_cache=True).past_key_values
    tokens, fed = [], prompt[start:]
    for _ in range(count):
        step = adapted(torch.tensor([fed]), past_key_values=cache, use_cache=True)
        fed = [int(step.logits[0, -1].argmax())]
        tokens += fed
    return tokens


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "is not a JSON object"),
        ("{", "is not a JSON object"),
        ("\x80", "is not a JSON object"),
        ("{}", "its scope must be one of always, after_prompt, not None"),
        ('{"scope": "sometimes"}', "not 'sometimes'"),
        ('{"scope": "always", "description": 1}', "its description is no text"),
        ('{"scope": "always", "training": []}', "its training is not a JSON object"),
        ('{"scope": "always", "prompt_template": {"version": 9}}', "version is 9"),
        ('{"scope": "always", "prompt_template": "Say {text}"}', "template is not a JSON object"),
    ],
)
def test_a_damaged_record_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "zweave.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ZweaveError) as refused:
        LoraRecord.read(tmp_path)
    told = str(refused.value)
    assert words in told and told.startswith("zweave.json ") and "\n" not in told
