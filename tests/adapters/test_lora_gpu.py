"""LoRAs under the engine of a GPU, its steps by references: the CPU engine's tokens."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from zweave.engine import Engine
from zweave.errors import ZweaveError
from zweave.request import Request

CHOICES = [None, "a", "one", "two", "three", "invoked", {"one": 0.5, "a": 0.5}, {"two": 0.25, "three": -1.0}]
INVOCATION = [7, 8]
QKV = ["q_proj", "k_proj", "v_proj"]


@pytest.fixture
def engines(save_lora: Callable[..., Any], tiny_engine: Callable[..., Engine]) -> Callable[..., list[Engine]]:
    """Engines of a CPU and of a GPU, with LoRAs of one to two pages; all of them do not fit at once."""
    directories = {
        "one": save_lora("one", 1, merge=False, r=8)[0],
        "two": save_lora("two", 2, merge=False, r=20, target_modules=["q_proj", "v_proj", "down_proj"])[0],
        "three": save_lora("three", 3, merge=False, r=4, target_modules=QKV, layers_to_transform=[1])[0],
        "invoked": save_lora("invoked", 4, merge=False, alora_invocation_tokens=INVOCATION)[0],
    }

    def make(**options: Any) -> list[Engine]:
        made = []
        for device in ("cpu", "reference"):
            engine = tiny_engine(device=device, lora_components=64, **options)
            for name, directory in directories.items():
                engine.load_expert(name, directory)
            made.append(engine)
        return made

    return make


def trace(seed: int, count: int) -> list[Request]:
    """Requests of all kinds and lengths, some of which begin alike."""
    choose = random.Random(seed)
    prefix = [choose.randrange(9, 90) for _ in range(40)]
    requests = []
    for _ in range(count):
        expert = choose.choice(CHOICES)
        prompt = prefix[: choose.randrange(1, 40)] + [choose.randrange(9, 90) for _ in range(8)]
        prompt += INVOCATION if expert == "invoked" else []
        new = choose.randrange(1, 12)
        requests.append(Request(prompt, expert=expert, max_tokens=new, ignore_eos=True))
    return requests


@pytest.mark.parametrize(
    "options",
    [{}, {"batch_invariant": True, "max_sequences": 3, "max_batch_tokens": 16}],
    ids=["fast", "batch invariant, small steps"],
)
def test_mixed_batches_have_the_tokens_of_the_cpu_engine(
    options: dict[str, Any], engines: Callable[..., list[Engine]]
) -> None:
    requests = trace(len(options), 24)
    by_engine = [[result.token_ids for result in engine.generate(requests)] for engine in engines(**options)]
    assert by_engine[0] == by_engine[1]
    alone = {tuple(tokens) for tokens in by_engine[0]}
    assert len(alone) > 12


def test_adapters_change_what_a_gpu_says(engines: Callable[..., list[Engine]]) -> None:
    _, engine = engines()
    prompt = [*range(10, 40), *INVOCATION]
    requests = [Request(prompt, expert=expert, max_tokens=12, ignore_eos=True) for expert in CHOICES]
    answers = [result.token_ids for result in engine.generate(requests)]
    assert len({tuple(answer) for answer in answers}) == len(CHOICES)


def test_a_gpu_keeps_no_components_unless_it_is_told_to(
    save_lora: Callable[..., Any], tiny_engine: Callable[..., Engine]
) -> None:
    directory, _ = save_lora("one", 1, merge=False)
    with pytest.raises(ZweaveError, match="give it lora_components"):
        tiny_engine(device="reference").load_expert("one", directory)
