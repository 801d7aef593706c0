"""Compressed LoRAs in a batch: the tokens of transformers with what they stand for merged in, on pages taken once."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from zweave.adapters.compression.compress import compress
from zweave.adapters.compression.compressed import CompressedLoras
from zweave.adapters.compression.compressed_file import load_compressed, save_compressed
from zweave.adapters.lora import Lora, LoraPair
from zweave.checkpoint import Checkpoint
from zweave.engine import Engine
from zweave.errors import ZweaveError
from zweave.evaluation import ExpertMethod
from zweave.experts import Expert
from zweave.experts.mixture import Mixture
from zweave.request import Request
from zweave.text.prompt_template import PromptTemplate

from ..greedy_answers import NEW, PROMPTS, answers, greedy

NAMES = ("one", "two", "three")


def random_lora(shapes: dict[str, tuple[int, int]], seed: int, rank: int = 3) -> Lora:
    generator = torch.Generator().manual_seed(seed)
    modules = [module for module in shapes if seed != 2 or module.endswith(("q_proj", "down_proj"))]
    return Lora(
        {
            module: LoraPair(
                torch.randn(rank, shapes[module][1], generator=generator),
                torch.randn(shapes[module][0], rank, generator=generator),
                0.03,
            )
            for module in modules
        }
    )


@pytest.fixture
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", vocab_size=96)


@pytest.fixture
def file(model: Path, tmp_path: Path) -> Callable[..., Path]:
    """`file(variant, ...)`: three adapters in a file."""
    checkpoint = Checkpoint(model)
    shapes = checkpoint.adapted_shapes()

    def make(variant: str = "diagonal", rank: int = 5, lora_rank: int = 3, **options: Any) -> Path:
        loras = {name: random_lora(shapes, seed, lora_rank) for seed, name in enumerate(NAMES, 1)}
        found = compress(
            loras, shapes, rank=rank, variant=variant, base_digest=checkpoint.digest(), **options
        )
        save_compressed(found, tmp_path / "many.safetensors")
        return tmp_path / "many.safetensors"

    return make


def add(merged: Any, compressed: CompressedLoras, name: str, weight: float) -> None:
    """W += weight U C V, multiplied out in float64."""
    index = [adapter.name for adapter in compressed.adapters].index(name)
    for module, pair in compressed.lora(index).pairs.items():
        merged.get_submodule(module).weight.data += weight * (pair.b.double() @ pair.a.double()).float()


@pytest.mark.parametrize(("variant", "clusters"), [("diagonal", 2), ("full", 1)], ids=["diagonal", "full"])
def test_a_mixed_batch_gives_the_tokens_of_merged_weights(
    variant: str,
    clusters: int,
    model: Path,
    file: Callable[..., Path],
    tiny_engine: Callable[..., Engine],
    random_expert: Callable[..., Expert],
    merged_model: Callable[..., Any],
) -> None:
    engine = tiny_engine(prefix_cache=False)
    path = file(variant, clusters=clusters)
    assert engine.load_adapters(path) == list(NAMES)
    shapes = engine.model.config.adapted_shapes()
    plain = random_lora(shapes, 7)
    engine.load_expert("plain", plain)
    a = random_expert(shapes, seed=1)
    ones = Expert({module: torch.ones_like(z) for module, z in a.z.items()})
    compressed = load_compressed(path)
    mixtures: list[Any] = [
        "one",
        None,
        "two",
        {"one": 0.5, "three": -1.5},
        {"three": 0.7, "a": 0.4},
        {"two": 0.6, "plain": 0.8},
        "a",
        {"one": 1.0, "two": 1.0, "plain": -0.5, "a": 0.1},
    ]
    together = answers(engine, mixtures)
    for mixture, prompt, tokens in zip(mixtures, PROMPTS, together, strict=False):
        parts = {mixture: 1.0} if isinstance(mixture, str) else mixture or {}
        # Where an expert adapts a matrix, a LoRA beside it counts as z = 1.
        experts = {name: a if name == "a" else ones for name in parts}
        merged = merged_model(model, experts, parts if "a" in parts else None)
        for name, weight in parts.items():
            if name == "plain":
                for module, pair in plain.pairs.items():
                    merged.get_submodule(module).weight.data += weight * pair.scaling * pair.b @ pair.a
            elif name != "a":
                add(merged, compressed, name, weight)
        assert tokens == greedy(merged, prompt), mixture
    assert len({tuple(tokens) for tokens in together}) == len(together)


def test_adapters_of_a_cluster_share_the_pages_of_its_basis(
    file: Callable[..., Path], tiny_engine: Callable[..., Engine]
) -> None:
    roomy, tight = tiny_engine(prefix_cache=False), tiny_engine(prefix_cache=False, lora_components=16)
    path = file(rank=9)
    for engine in (roomy, tight):
        engine.load_adapters(path)
    mixtures = ["one", "two", "three", {"one": 0.5, "two": 0.25, "three": 2.0}]
    slots = [tight.bank.acquire(Mixture.parse(mixture)) for mixture in mixtures]
    assert len(set(slots)) == 4
    tight.load_expert("plain", random_lora(tight.model.config.adapted_shapes(), 7))
    # Slots have the only page as long as one of them is in use.
    for slot in slots:
        assert tight.bank.try_acquire(Mixture.parse("plain")) is None
        tight.bank.release(slot)
    tight.bank.release(tight.bank.acquire(Mixture.parse("plain")))
    assert answers(tight, mixtures) == answers(roomy, mixtures)


@pytest.mark.parametrize("variant", ["diagonal", "full"])
def test_a_basis_that_was_evicted_is_read_again_if_its_file_is_the_same(
    variant: str,
    file: Callable[..., Path],
    tiny_engine: Callable[..., Engine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("zweave.experts.lora_store.PACKED_BYTES", 0)
    engine = tiny_engine(prefix_cache=False, lora_components=16)
    engine.load_adapters(file(variant))
    first = answers(engine, ["one", "two", "three"])
    engine.load_expert("plain", random_lora(engine.model.config.adapted_shapes(), 7))
    answers(engine, ["plain"])
    assert answers(engine, ["one", "two", "three"]) == first
    answers(engine, ["plain"])
    for changed in (variant, "full" if variant == "diagonal" else "diagonal"):
        file(changed, rank=2)
        (result,) = engine.generate([Request(PROMPTS[0], expert="one", max_tokens=1)], on_error="result")
        assert result.error is not None and "changed since it was loaded" in result.error


def test_what_cannot_be_loaded_is_told_in_one_line_and_nothing_is_loaded(
    file: Callable[..., Path],
    tiny_engine: Callable[..., Engine],
    tiny_model: Callable[..., Path],
    tmp_path: Path,
) -> None:
    engine = tiny_engine(lora_components=16)
    before, path = engine.experts(), file(rank=100, lora_rank=7)
    with pytest.raises(
        ZweaveError, match="holds compressed LoRAs, each with a name of its own: load them all"
    ):
        engine.load_expert("x", path)
    with pytest.raises(ZweaveError, match="there is no such file"):
        engine.load_adapters(tmp_path / "none")
    with pytest.raises(ZweaveError, match="have 32 components and the engine keeps 16: give it more"):
        engine.load_adapters(path)
    with pytest.raises(ZweaveError, match="is a LoRA, "):
        tiny_engine(lora_components=0).load_adapters(path)
    with pytest.raises(ZweaveError, match="trained for other weights"):
        Engine(tiny_model("llama"), kv_tokens=64).load_adapters(path)
    assert engine.experts() == before


def test_an_answer_in_bfloat16_does_not_depend_on_the_batch(
    file: Callable[..., Path], tiny_engine: Callable[..., Engine]
) -> None:
    engine = tiny_engine("bfloat16", prefix_cache=False)
    engine.load_adapters(file())
    experts: list[Any] = [
        "one",
        None,
        "two",
        {"one": 0.3, "b": 0.6},
        "three",
        "late",
        {"one": 1.0, "two": -1.0},
    ]
    together = answers(engine, experts)
    for prompt, expert, tokens in zip(PROMPTS, experts, together, strict=False):
        (alone,) = engine.generate(Request(prompt, expert=expert, max_tokens=NEW, ignore_eos=True))
        assert alone.token_ids == tokens


@pytest.mark.parametrize("variant", ["diagonal", "full"])
def test_an_adapter_is_read_as_the_lora_that_it_stands_for(
    variant: str, file: Callable[..., Path], tiny_engine: Callable[..., Engine]
) -> None:
    engine, path = tiny_engine(), file(variant)
    entries, compressed = engine.bank.load_adapters(path), load_compressed(path)
    for index, entry in enumerate(entries):
        wanted, found = compressed.lora(index).pairs, entry.read().pairs
        assert found.keys() == wanted.keys()
        for module, pair in wanted.items():
            torch.testing.assert_close(found[module].b @ found[module].a, pair.b @ pair.a)
        numbers = sum(pair.a.numel() + pair.b.numel() for pair in wanted.values())
        assert ExpertMethod("", engine, entry.name).parameters == numbers
    assert len(entries[1].read().pairs) < len(entries[0].read().pairs)


def test_a_file_that_is_loaded_again_serves_no_stale_keys(
    file: Callable[..., Path], tiny_engine: Callable[..., Engine]
) -> None:
    engine = tiny_engine()
    for rank in (5, 1):
        path = file(rank=rank)
        engine.load_adapters(path)
        fresh = tiny_engine()
        fresh.load_adapters(path)
        assert answers(engine, ["one", "two"]) == answers(fresh, ["one", "two"])


@pytest.mark.parametrize("variant", ["diagonal", "full"])
def test_what_an_adapter_says_of_itself_is_kept(
    variant: str, model: Path, tiny_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    engine, shapes = tiny_engine(), Checkpoint(model).adapted_shapes()
    upper = {module: shape for module, shape in shapes.items() if "layers.1." in module}
    loras = {
        "always": random_lora(shapes, 1),
        "late": replace(
            random_lora(upper, 3),
            scope="after_prompt",
            description="of the upper layer",
            prompt_template=PromptTemplate("Say {text}!", "So"),
        ),
        "activated": replace(random_lora(shapes, 4), scope="after_prompt", invocation_tokens=(7, 9)),
    }
    save_compressed(compress(loras, shapes, rank=9, variant=variant), tmp_path / "many")
    entries = engine.bank.load_adapters(tmp_path / "many")
    said = ("scope", "first_layer", "description", "invocation_tokens", "prompt_template")
    for entry, lora in zip(entries, loras.values(), strict=True):
        wanted = [getattr(lora, name) for name in said]
        assert (
            [getattr(entry, name) for name in said]
            == [getattr(entry.read(), name) for name in said]
            == wanted
        )
    assert len({entry.digest for entry in entries}) == 3
    with pytest.raises(ZweaveError, match=r"does not hold the tokens that activate 'activated': \[7, 9\]"):
        engine.check(Request([20, 21], expert="activated"))
