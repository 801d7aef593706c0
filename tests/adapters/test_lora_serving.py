"""LoRAs beside experts in one batch: the tokens of transformers with merged weights, the same bits in any company."""

import asyncio
import json
import threading
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from zweave.adapters.component_pool import ComponentPool
from zweave.adapters.lora import Lora, LoraPair
from zweave.adapters.peft_directory import read_peft
from zweave.checkpoint.module_name import layer_of
from zweave.engine import AsyncEngine, Engine
from zweave.errors import ZweaveError
from zweave.experts import Expert, lora_entry
from zweave.experts.byte_cache import ByteCache
from zweave.experts.lora_entry import LoraEntry
from zweave.experts.mixture import Mixture
from zweave.request import Request

from .greedy_answers import NEW, PROMPTS, answers, greedy


@pytest.mark.parametrize(
    "config",
    [
        {"r": 8, "lora_alpha": 16},
        {"r": 20, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj"]},
        {"r": 3, "use_rslora": True, "rank_pattern": {"k_proj": 17, "layers.1.mlp.up_proj": 1}},
        {
            "r": 4,
            "alpha_pattern": {"o_proj": 40, "q_proj": 1},
            "layers_to_transform": [1],
            "target_modules": ["o_proj", "q_proj", "up_proj"],
        },
    ],
    ids=["all", "q and v", "ranks", "alphas"],
)
def test_pefts_adapters_give_the_tokens_of_merged_weights(
    config: dict[str, Any], save_lora: Callable[..., Any], tiny_engine: Callable[..., Engine]
) -> None:
    directory, merged = save_lora("one", 1, **config)
    engine = tiny_engine(prefix_cache=False)
    base = answers(engine, [None] * 9)
    engine.load_expert("one", directory)
    mixed = answers(engine, ["one", None, "a"] * 3)
    assert mixed[::3] == [greedy(merged, prompt) for prompt in PROMPTS[::3]]
    assert mixed[1::3] == base[1::3] and mixed[::3] != base[::3]


def test_mixtures_are_the_same_linear_combination_as_among_experts(
    save_lora: Callable[..., Any],
    tiny_engine: Callable[..., Engine],
    tiny_model: Callable[..., Path],
    random_expert: Callable[..., Expert],
    merged_model: Callable[..., Any],
) -> None:
    saved = {name: save_lora(name, seed, r=4)[0] for name, seed in (("one", 1), ("two", 2))}
    engine = tiny_engine(prefix_cache=False)
    for name, directory in saved.items():
        engine.load_expert(name, directory)
    model = tiny_model("llama", vocab_size=96)
    a = random_expert(engine.model.config.adapted_shapes(), seed=1)
    # Where an expert adapts a matrix, a LoRA beside it counts as z = 1.
    as_experts = {"a": a} | {name: Expert({m: torch.ones_like(z) for m, z in a.z.items()}) for name in saved}
    mixtures = [{"one": 0.5, "two": -1.5}, {"one": 0.5, "a": 0.4}, {"one": [0.25, 2.0]}]
    for mixture, tokens in zip(mixtures, answers(engine, mixtures, [PROMPTS[0]] * 3), strict=True):
        merged = merged_model(model, as_experts, mixture if "a" in mixture else None)
        for name in mixture.keys() & saved.keys():
            add_lora(merged, saved[name], mixture[name])
        assert tokens == greedy(merged, PROMPTS[0]), mixture


def add_lora(model: Any, directory: Path, weight: float | list[float]) -> None:
    """W += weight alpha / r B A, with one weight or one a layer."""
    config = json.loads((directory / "adapter_config.json").read_text())
    tensors = load_file(directory / "adapter_model.safetensors")
    for key, a in tensors.items():
        if ".lora_A." in key:
            module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            scaled = weight[layer_of(module)] if isinstance(weight, list) else weight
            b = tensors[key.replace(".lora_A.", ".lora_B.")]
            model.get_submodule(module).weight.data += scaled * config["lora_alpha"] / config["r"] * (b @ a)


def test_loras_stand_beside_every_form_of_the_weights(
    save_lora: Callable[..., Any], tiny_engine: Callable[..., Engine]
) -> None:
    directory, merged = save_lora("one", 1, r=4)
    merging = {"batch_invariant": False, "merge_memory": 10**7}
    plain, small, merger = (
        tiny_engine(prefix_cache=False, **options) for options in ({}, {"max_memory": 70_000}, merging)
    )
    for engine in (plain, small, merger):
        engine.load_expert("one", directory)
        assert answers(engine, ["one"], PROMPTS[:1]) == [greedy(merged, PROMPTS[0])]
    # The weights of a mixture in steady use are merged; what a LoRA adds is not.
    mixture = [{"one": 0.5, "a": 0.5}] * 9
    wanted = answers(plain, mixture)
    for _ in range(6):
        assert answers(merger, mixture) == wanted
    assert merger._runner._merger.slots


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_answer_does_not_depend_on_the_batch(
    dtype: str, save_lora: Callable[..., Any], tiny_engine: Callable[..., Engine]
) -> None:
    (one, _), (two, _) = (save_lora(name, seed, r=r) for name, seed, r in (("one", 1, 4), ("two", 2, 33)))
    engine = tiny_engine(dtype, prefix_cache=False)
    engine.load_expert("one", one)
    engine.load_expert("two", two)
    experts = ["one", "two", "a", None, {"one": 0.3, "b": 0.6}, "two", "late", "one", "b"]
    together = answers(engine, experts)
    for prompt, expert, tokens in zip(PROMPTS, experts, together, strict=True):
        assert answers(engine, [expert], [prompt]) == [tokens]


def test_few_pages_make_requests_wait_and_none_gets_anothers(
    save_lora: Callable[..., Any], tiny_engine: Callable[..., Engine]
) -> None:
    saved = {f"l{seed}": save_lora(f"l{seed}", seed, r=16) for seed in range(5)}
    engine = tiny_engine(prefix_cache=False, lora_components=32)
    for name, (directory, _) in saved.items():
        engine.load_expert(name, directory)
    names = [*saved, *saved][:9]
    assert answers(engine, names) == [
        greedy(saved[name][1], prompt) for name, prompt in zip(names, PROMPTS, strict=True)
    ]
    with pytest.raises(ZweaveError, match="the adapters have 48 components and the engine keeps 32"):
        answers(engine, [{"l0": 1.0, "l1": 1.0, "l2": 1.0}], PROMPTS[:1])


def test_a_reloaded_name_serves_no_stale_keys(
    save_lora: Callable[..., Any], tiny_engine: Callable[..., Engine]
) -> None:
    (one, first), (two, second) = (save_lora(name, seed, r=4) for name, seed in (("one", 1), ("two", 2)))
    engine = tiny_engine()
    for directory, merged in ((one, first), (two, second), (one, first)):
        engine.load_expert("x", directory)
        assert answers(engine, ["x"], PROMPTS[:1]) == [greedy(merged, PROMPTS[0])]


def test_rescale_goes_on_under_another_lora_over_the_keys_of_the_first(
    save_lora: Callable[..., Any], tiny_engine: Callable[..., Engine]
) -> None:
    (one, first), (two, second) = (save_lora(name, seed, r=4) for name, seed in (("one", 1), ("two", 2)))
    engine = tiny_engine()
    engine.load_expert("one", one)
    engine.load_expert("two", two)
    told: list[int] = []
    for delta in engine.stream(Request(PROMPTS[0], expert="one", max_tokens=NEW, ignore_eos=True)):
        told += delta.token_ids
        if len(told) == 4:
            engine.rescale(delta.request_id, "two")
    expected, fed, cache = [], PROMPTS[0], None
    with torch.inference_mode():
        for index in range(NEW):
            model = first if index < 4 else second
            step = model(torch.tensor([fed]), past_key_values=cache, use_cache=True)
            fed, cache = [int(step.logits[0, -1].argmax())], step.past_key_values
            expected += fed
    assert told == expected != greedy(first, PROMPTS[0])


def test_an_activated_lora_spares_the_prompt_before_its_tokens(
    save_lora: Callable[..., Any], tiny_engine: Callable[..., Engine]
) -> None:
    directory, adapted = save_lora(
        "act", 1, merge=False, r=4, task_type="CAUSAL_LM", alora_invocation_tokens=[7, 9]
    )
    engine = tiny_engine()
    engine.load_expert("act", directory)
    prompt = [*range(20, 52), 7, 9, 30]
    base = engine.generate(Request(prompt, max_tokens=1))[0]
    assert not base.reused_tokens
    (result,) = engine.generate([Request(prompt, expert="act", max_tokens=NEW, ignore_eos=True)])
    assert result.reused_tokens >= 28
    assert result.token_ids == greedy(adapted, prompt)
    with pytest.raises(ZweaveError, match=r"does not hold the tokens that activate 'act': \[7, 9\]"):
        engine.generate(Request(prompt[:-2], expert="act"))


def test_the_engines_thread_reads_no_lora(
    save_lora: Callable[..., Any], tiny_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, merged = save_lora("one", 1)
    engine = tiny_engine(prefix_cache=False, lora_components=32)
    engine.load_expert("one", directory)
    # Others take its pages, and what was ready to be written is forgotten.
    for seed in (2, 3):
        other, _ = save_lora(f"other{seed}", seed, merge=False, r=16)
        engine.load_expert(f"other{seed}", other)
    answers(engine, ["other2", "other3"], PROMPTS[:2])
    engine.bank._loras._packed = ByteCache(1, 1024)
    assert [entry.name for entry in engine.bank.unread(Mixture.parse("one"))] == ["one"]
    engine.bank._loras._packed = ByteCache(1 << 30, 1024)
    readers, read = [], LoraEntry.read_basis

    def watched(entry: LoraEntry, *rest: Callable[[], None]) -> Lora:
        readers.append(threading.current_thread())
        return read(entry, *rest)

    monkeypatch.setattr(LoraEntry, "read_basis", watched)

    async def main() -> tuple[list[int], threading.Thread]:
        served = AsyncEngine(engine)
        request = Request(PROMPTS[0], expert="one", max_tokens=NEW, ignore_eos=True)
        tokens = (await served.generate(request)).token_ids
        thread = served._thread
        await served.close()
        return tokens, thread

    tokens, thread = asyncio.run(main())
    assert tokens == greedy(merged, PROMPTS[0])
    assert len(readers) == 1 and readers[0] is not thread


def test_whoever_loads_rests_between_reading_digest_and_order(
    save_lora: Callable[..., Any], tiny_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, _ = save_lora("one", 1, merge=False)
    engine, done = tiny_engine(), []
    for owner, piece in ((lora_entry, "read_peft"), (ComponentPool, "packed")):
        whole = getattr(owner, piece)
        monkeypatch.setattr(
            owner, piece, lambda *a, whole=whole, piece=piece: done.append(piece) or whole(*a)
        )
    digest = Lora.digest.fget
    monkeypatch.setattr(Lora, "digest", property(lambda lora: done.append("digest") or digest(lora)))
    monkeypatch.setattr(engine.bank.turns, "rest", lambda: done.append("rest"))
    engine.load_expert("one", directory)
    pieces = ["read_peft", "rest", "digest", "rest", "packed", "rest"]
    assert [piece for piece, _ in groupby(done)] == pieces
    # Again, for a request that comes when its components are gone.
    done.clear()
    engine.bank._loras._packed = ByteCache(1 << 30, 1024)
    engine.bank.prepare([engine.bank.registered("one")])
    assert [piece for piece, _ in groupby(done)] == pieces


def test_a_resident_lora_is_not_read_again(
    save_lora: Callable[..., Any], tiny_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, merged = save_lora("one", 1)
    engine = tiny_engine(prefix_cache=False)
    engine.load_expert("one", directory)
    engine.bank._loras._packed = ByteCache(1, 1024)
    monkeypatch.delattr(LoraEntry, "read_basis")
    assert answers(engine, ["one"], PROMPTS[:1]) == [greedy(merged, PROMPTS[0])]


def test_values_as_large_as_may_be_disturb_nobody_else(
    save_lora: Callable[..., Any], tiny_engine: Callable[..., Engine]
) -> None:
    directory, _ = save_lora("one", 1, merge=False)
    pairs = {
        module: LoraPair(pair.a / pair.a.abs().max() * 9e29, pair.b / pair.b.abs().max() * 9e29, 1.0)
        for module, pair in read_peft(directory).pairs.items()
    }
    engine = tiny_engine(prefix_cache=False)
    alone = answers(engine, [None] * 4)
    engine.load_expert("huge", Lora(pairs))
    requests = [
        Request(prompt, expert=name, max_tokens=NEW, ignore_eos=True)
        for prompt, name in zip(PROMPTS, [None, "huge", None, None], strict=False)
    ]
    results = engine.generate(requests, on_error="result")
    assert "logits are not finite" in str(results[1].error)
    assert [results[i].token_ids for i in (0, 2, 3)] == [alone[i] for i in (0, 2, 3)]
