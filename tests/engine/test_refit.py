"""An engine that keeps refit factors alone: the tokens of a model with their products as weights."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from zweave import Engine, Expert, Request, ZweaveError
from zweave.adapters.lora import Lora, LoraPair
from zweave.checkpoint import Checkpoint
from zweave.decomposition import decompose
from zweave.decomposition.refit.quantized_model import QuantizedModel, index_file, matrix_file
from zweave.io.progress import silent
from zweave.quantization.quantize import quantize_model

CHOICES: list[Any] = [None, "a", "renormalised", "leading", "late", {"a": 0.5, "b": 0.25}]
SIZES = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96}


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A random Llama whose refit factors are in a cache of this module."""
    folder = tmp_path_factory.mktemp("refit")
    (folder / "text").write_text("".join(chr(97 + (i * i + i // 7) % 26) for i in range(600)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZWEAVE_CACHE", str(folder / "cache"))
        directory = tiny_model("llama", **SIZES)
        quantize_model(Checkpoint(directory), {}, folder / "text", progress=silent)
        yield directory


@pytest.fixture(scope="module")
def experts(model: Path, random_expert: Callable[..., Expert]) -> dict[str, Expert]:
    shapes = Checkpoint(model).adapted_shapes()
    made = {name: random_expert(shapes, seed) for seed, name in enumerate(("a", "b"))}
    made["renormalised"] = replace(made["b"], renormalise=True)
    leading = {module: torch.where(torch.arange(len(z)) < 16, z, 1.0) for module, z in made["a"].z.items()}
    made["leading"] = Expert(z=leading)
    made["late"] = random_expert(shapes, 3, first_layer=1)
    made["after"] = replace(random_expert(shapes, 4), scope="after_prompt")
    return made


@pytest.fixture(scope="module")
def make_engine(model: Path, experts: dict[str, Expert]) -> Callable[..., Engine]:
    def make(dtype: str = "float32", **options: Any) -> Engine:
        engine = Engine(model, dtype=dtype, **{"weights": "refit", "kv_tokens": 1024, **options})
        for name, expert in experts.items():
            engine.load_expert(name, expert)
        return engine

    return make


@pytest.fixture(scope="module")
def refit_model(model: Path, experts: dict[str, Expert]) -> Callable[..., Any]:
    """transformers' own model, its matrices those that the factors stand for under an expert or mixture."""
    from transformers import AutoModelForCausalLM

    def make(choice: Any, lora: Lora | None = None) -> Any:
        found = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
        factors, checkpoint = decompose(Checkpoint(model)), Checkpoint(model)
        refit = QuantizedModel.open(checkpoint)
        mixture = {choice: 1.0} if isinstance(choice, str) else dict(choice or {})
        for module, shape in checkpoint.adapted_shapes().items():
            sigma, ones = factors.sigma(module).double(), torch.ones(min(shape), dtype=torch.float64)
            # A LoRA counts as an expert whose z are 1.
            parts = [(w, experts[n].z if n in experts else {}) for n, w in mixture.items()] or [(1.0, {})]
            z = sum((w * each.get(module, ones).double() for w, each in parts), 0 * ones)
            if choice == "renormalised":
                z = z * sigma.sum() / (sigma * z).sum()
            weight = refit.matrix(module).merged(z)
            if lora is not None:
                pair = lora.pairs[module]
                weight += pair.scaling * pair.b.double() @ pair.a.double()
            found.get_submodule(module).weight.data.copy_(weight)
        return found.eval()

    return make


def asked(prompt: list[int], choice: Any, max_tokens: int = 24) -> Request:
    return Request(prompt, expert=choice, max_tokens=max_tokens, ignore_eos=True, logprobs=1)


def prompts(count: int) -> list[list[int]]:
    random = Random(0)
    return [[random.randrange(3, 90) for _ in range(random.randrange(1, 40))] for _ in range(count)]


@torch.inference_mode()
def greedy(model: Any, prompt: list[int], count: int = 24) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_float32_gives_the_tokens_of_the_factors(
    make_engine: Callable[..., Engine],
    refit_model: Callable[..., Any],
    prompt_logits: Callable[..., list[Tensor]],
) -> None:
    engine = make_engine()
    requests = [asked(prompt, choice) for choice, prompt in zip(CHOICES, prompts(len(CHOICES)), strict=True)]
    results = engine.generate(requests)
    tokens = list(range(3, 60))
    served = prompt_logits(engine, [(tokens, choice) for choice in CHOICES])
    for choice, request, result, logits in zip(CHOICES, requests, results, served, strict=True):
        reference = refit_model(choice)
        assert result.token_ids == greedy(reference, request.prompt)
        with torch.inference_mode():
            wanted = reference(torch.tensor([tokens])).logits[0]
        torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "library_from", [129, pytest.param(12, marks=pytest.mark.slow)], ids=["", "by library"]
)
def test_steps_of_a_gpu_give_the_tokens_of_the_factors(
    library_from: int,
    make_engine: Callable[..., Engine],
    refit_model: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("zweave.engine.gpu.build.LIBRARY_FROM", library_from)
    engine = make_engine(device="reference", max_batch_tokens=64)
    requests = [
        asked(prompt, choice, 12) for choice, prompt in zip(CHOICES, prompts(len(CHOICES)), strict=True)
    ]
    for request, result in zip(requests, engine.generate(requests), strict=True):
        assert result.token_ids == greedy(refit_model(request.expert), request.prompt, 12)
    assert all(stack.dense is None for layer in engine.model.layers for stack in stacks_of(layer))


def stacks_of(layer: Any) -> list[Any]:
    """Its stacks of one format each."""
    linears = (layer.qkv, layer.o, layer.gate_up, layer.down)
    return [stack for linear in linears for stack in getattr(linear, "parts", (linear,))]


def test_a_lora_beside_them(
    model: Path, make_engine: Callable[..., Engine], refit_model: Callable[..., Any]
) -> None:
    draw = torch.Generator().manual_seed(7)
    pairs = {
        module: LoraPair(torch.randn(4, N, generator=draw) / 8, torch.randn(M, 4, generator=draw) / 8, 1.0)
        for module, (M, N) in Checkpoint(model).adapted_shapes().items()
    }
    engine, prompt = make_engine(), prompts(1)[0]
    engine.load_expert("lora", Lora(pairs))
    mine, mixed = engine.generate([asked(prompt, choice) for choice in ("lora", {"lora": 0.5, "a": 0.5})])
    assert mine.token_ids == greedy(refit_model(None, Lora(pairs)), prompt)
    half = {module: replace(pair, scaling=0.5) for module, pair in pairs.items()}
    assert mixed.token_ids == greedy(refit_model({"lora": 0.5, "a": 0.5}, Lora(half)), prompt)


def test_an_expert_after_the_prompt_acts_on_its_end(
    make_engine: Callable[..., Engine], refit_model: Callable[..., Any]
) -> None:
    """The prompt's keys and values are the base model's."""
    engine, prompt = make_engine(), prompts(1)[0]
    (result,) = engine.generate(asked(prompt, "after"))
    base, adapted = refit_model(None), refit_model("after")
    with torch.inference_mode():
        cache, tokens = base(torch.tensor([prompt[:-1]]), use_cache=True).past_key_values, prompt[-1:]
        for _ in result.token_ids:
            logits = adapted(torch.tensor([tokens[-1:]]), past_key_values=cache, use_cache=True).logits
            tokens.append(int(logits[0, -1].argmax()))
    assert result.token_ids == tokens[1:]
    assert result.token_ids != greedy(adapted, prompt)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_bits_alone_and_in_many_batches(dtype: str, make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(dtype, max_batch_tokens=64, prefix_cache=False)
    requests = [asked(prompt, CHOICES[i % len(CHOICES)], 8) for i, prompt in enumerate(prompts(18))]
    together = engine.generate(requests)
    assert len({tuple(result.token_ids) for result in together}) > 10
    for index in (0, 1, 2, 4, 11, 17):
        assert engine.generate(requests[index]) == [together[index]]


def test_the_factors_are_all_that_stays(model: Path, make_engine: Callable[..., Engine]) -> None:
    layers = make_engine("bfloat16").model.decoder.layers
    linears = [
        getattr(layer, name) for layer in layers for name in ("q", "k", "v", "o", "gate", "up", "down")
    ]
    kept = [weight for each in linears for weight in (each.dense, each.vt, each.u) if weight is not None]
    assert all(weight.dtype == torch.uint8 for weight in kept) and len(kept) == 2 * len(linears)
    whole = sum(2 * M * N for M, N in Checkpoint(model).adapted_shapes().values())
    assert sum(weight.data.nbytes for weight in kept) < 0.85 * whole


def test_what_cannot_be_is_told_in_one_line(
    model: Path, tiny_model: Callable[..., Path], tmp_path: Path, make_engine: Callable[..., Engine]
) -> None:
    with pytest.raises(ZweaveError, match="has no refit factors: run `zweave quantize MODEL`, or take"):
        Engine(tiny_model("llama"), weights="refit")
    for options, words in (
        ({"batch_invariant": False, "merge_memory": 1 << 20}, "merge_memory is not for weights='refit'"),
        ({"max_memory": 1000}, r"max_memory allows 0\.0 MiB .* the least that would do is 0\.1: allow more"),
    ):
        with pytest.raises(ZweaveError, match=words):
            make_engine(**options)
    assert make_engine(max_memory=1 << 20, batch_invariant=False).generate(asked([3, 4], "a"))


@pytest.mark.parametrize("change", [{"digest": "0" * 64}, {"format": "zweave-refit-1"}, {"matrices": {}}])
def test_an_index_of_something_else(
    change: dict[str, Any], model: Path, make_engine: Callable[..., Engine]
) -> None:
    path = index_file(QuantizedModel.open(Checkpoint(model)).directory)
    before = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(before) | change))
        with pytest.raises(ZweaveError, match=r"index.json is damaged: run `zweave quantize MODEL --force`"):
            make_engine()
    finally:
        path.write_text(before)


def test_the_kl_that_was_measured(model: Path, make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    assert engine.divergence() == QuantizedModel.open(Checkpoint(model)).divergence() > 0
    assert engine.divergence("a") is None
    assert make_engine(weights="auto").divergence() is None
    with pytest.raises(ZweaveError, match="none"):
        engine.divergence("none")


@pytest.mark.parametrize("damage", [b"", b"{", "other matrix", "not finite"])
def test_damaged_factors(
    damage: Any, model: Path, make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = QuantizedModel.open(Checkpoint(model))
    names = [f"model.layers.1.mlp.{name}_proj" for name in ("up", "down")]
    path, before = matrix_file(entry.directory, names[0]), matrix_file(entry.directory, names[0]).read_bytes()
    other = matrix_file(entry.directory, names[1]).read_bytes()
    poisoned = bytearray(before)
    at = 8 + int.from_bytes(before[:8], "little")
    poisoned[at : at + 8192] = b"\xff" * min(8192, len(before) - at)
    try:
        path.write_bytes({"other matrix": other, "not finite": bytes(poisoned)}.get(damage, damage))
        with pytest.raises(ZweaveError, match="run `zweave quantize MODEL --force`") as caught:
            make_engine()
        assert "\n" not in str(caught.value) and names[0] in str(caught.value)
    finally:
        path.write_bytes(before)
