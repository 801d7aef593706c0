"""An engine on the grid that a model came on: the tokens of the plain weights, whatever shares the batch."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor

from zweave import Engine, Expert, Request, ZweaveError
from zweave.checkpoint import Checkpoint, ModelConfig
from zweave.checkpoint.gguf.grid_file import GridBlocks, write_grids
from zweave.decomposition import decompose
from zweave.experts import Mixture
from zweave.kernels import LinearMode, Quantized, dequantize, quantize

CHOICES: list[Any] = [None, "leading", "a", "b", {"a": 0.5, "leading": 0.25}]
KINDS = ("Q4_0", "Q4_1", "Q8_0")


@pytest.fixture(scope="module")
def model(
    tiny_model: Callable[..., Path], to_grid: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, bool], Path]:
    """`model(kind, is_tied)`: a random Llama on a grid, of 128 components at most."""
    made: dict[tuple[str, bool], Path] = {}

    def make(kind: str, is_tied: bool = True) -> Path:
        if (kind, is_tied) not in made:
            source = tiny_model(
                "llama",
                vocab_size=96,
                hidden_size=128,
                intermediate_size=160,
                tie_word_embeddings=is_tied,
            )
            kind_of = mixed_kind if kind == "mixed" else lambda name: kind
            made[kind, is_tied] = to_grid(source, tmp_path_factory.mktemp("grid") / kind, kind_of)
        return made[kind, is_tied]

    return make


@pytest.fixture(scope="module")
def make_engine(random_expert: Callable[..., Expert]) -> Callable[..., Engine]:
    """An engine with the experts "a" and "b", without limits, and "leading", of sixteen components a matrix."""

    def make(directory: Path, dtype: str = "float32", weights: str = "grid", **options: Any) -> Engine:
        engine = Engine(directory, dtype=dtype, weights=weights, **{"kv_tokens": 1024, **options})
        shapes = ModelConfig.from_directory(directory).adapted_shapes()
        for seed, (name, kept) in enumerate({"a": 128, "b": 128, "leading": 16}.items()):
            expert = random_expert(shapes, seed)
            # Trained experts change this little.
            z = {module: 1 + 0.1 * (z - 1) * (torch.arange(len(z)) < kept) for module, z in expert.z.items()}
            engine.load_expert(name, replace(expert, z=z))
        return engine

    return make


def asked(prompt: list[int], choice: Any, max_tokens: int = 24) -> Request:
    return Request(prompt, expert=choice, max_tokens=max_tokens, ignore_eos=True, logprobs=1)


def prompts(count: int) -> list[list[int]]:
    random = Random(0)
    return [[random.randrange(3, 90) for _ in range(random.randrange(1, 40))] for _ in range(count)]


@pytest.mark.parametrize(
    ("kind", "is_tied"),
    [
        ("Q4_1", True),
        *(pytest.param(kind, tied, marks=pytest.mark.slow) for kind in KINDS for tied in (True, False)),
    ],
)
def test_float32_gives_what_the_plain_weights_give(
    kind: str,
    is_tied: bool,
    model: Callable[..., Path],
    make_engine: Callable[..., Engine],
    prompt_logits: Callable[..., list[Tensor]],
) -> None:
    directory = model(kind, is_tied)
    engine, plain = make_engine(directory), make_engine(directory, weights="auto")
    requests = [asked(prompt, CHOICES[i % len(CHOICES)]) for i, prompt in enumerate(prompts(10))]
    results = engine.generate(requests)[:: len(CHOICES)]
    for one, other in zip(results, plain.generate(requests[:: len(CHOICES)]), strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprobs[-1].logprob == pytest.approx(other.logprobs[-1].logprob, abs=1e-4)
    # What int4 costs an expert is less than what the expert changes.
    cases = [(list(range(3, 60)), choice) for choice in CHOICES]
    served, wanted = prompt_logits(engine, cases), prompt_logits(plain, cases)
    torch.testing.assert_close(served[0], wanted[0], rtol=1e-4, atol=1e-4)
    for one, other in zip(served[1:], wanted[1:], strict=True):
        assert (one - other).norm() < 0.8 * (other - wanted[0]).norm()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_bits_alone_and_in_many_batches(
    dtype: str, model: Callable[..., Path], make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(model("Q4_1"), dtype, max_batch_tokens=64, prefix_cache=False)
    requests = [asked(prompt, CHOICES[i % len(CHOICES)], 8) for i, prompt in enumerate(prompts(20))]
    together = engine.generate(requests)
    assert len({tuple(result.token_ids) for result in together}) > 10
    for index in (0, 1, 2, 4, 11, 18):
        assert engine.generate(requests[index]) == [together[index]]
    # A batch of experts of few components alone, whose other components are then not read.
    some = [request for request in requests if request.expert == "leading"]
    assert engine.generate(some) == [r for r, q in zip(together, requests, strict=True) if q in some]


def test_what_has_no_grid_is_told_in_one_line(
    tiny_model: Callable[..., Path], model: Callable[..., Path]
) -> None:
    with pytest.raises(ZweaveError, match=r"has no matrix on a grid \(Q4_0, .*: take weights='auto'; or, if"):
        Engine(tiny_model("llama"), weights="grid")
    with pytest.raises(ZweaveError, match="weights must be one of auto, grid, refit, not 'int4'"):
        Engine(model("Q4_1"), weights="int4")
    with pytest.raises(
        ZweaveError, match=r"max_memory allows 0\.0 MiB .* the least that would do is 0\.4: allow more"
    ):
        Engine(model("Q4_1"), weights="grid", max_memory=1000)


@pytest.mark.slow
def test_a_matrix_beside_the_grid_keeps_all_forms(
    model: Callable[..., Path], make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    """As in files whose types differ from matrix to matrix."""
    directory = shutil.copytree(model("Q4_1"), tmp_path / "mixed")
    kinds = Checkpoint(directory).grid_kinds
    stored = load_file(directory / "model.grids")
    kept = [name for name in kinds if "down_proj" not in name and "embed" not in name]
    write_grids(directory, [GridBlocks(n, "Q4_1", stored[n].shape, lambda n=n: stored[n]) for n in kept])
    requests = [asked(prompt, None) for prompt in prompts(4)]
    engine, whole = make_engine(directory), make_engine(model("Q4_1"))
    for one, other in zip(engine.generate(requests), whole.generate(requests), strict=True):
        assert one.token_ids == other.token_ids
    assert len(engine.generate(asked([5, 9, 40], "a"))[0].token_ids) == 24


@torch.inference_mode()
def tokens_of_deltas(
    directory: Path, expert: Expert | None, prompts: list[list[int]], in_int8: bool
) -> list[list[int]]:
    """What transformers' model answers, the expert's delta added to its weights, by factors in int8 or exact ones."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    factors = decompose(Checkpoint(directory))
    for module, z in (expert.z if expert else {}).items():
        u, sigma, vt = factors.factors(module)
        if in_int8:
            u, vt = (dequantize(quantize(part.float().contiguous(), "int8")) for part in (u, vt))
        model.get_submodule(module).weight += (u * (sigma * (z - 1))) @ vt
    answers = []
    for prompt in prompts:
        tokens = list(prompt)
        for _ in range(24):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        answers.append(tokens[len(prompt) :])
    return answers


def mixed_kind(name: str) -> str | None:
    """Matrices of one input have several types, and some are on no grid at all."""
    if "k_proj" in name or "layers.1.mlp" in name:
        return None
    return "Q8_0" if "v_proj" in name or "up_proj" in name else "Q4_0" if "o_proj" in name else "Q4_1"


def stacks_of(linear: Any) -> tuple[Any, ...]:
    """Of one format each."""
    return getattr(linear, "parts", (linear,))


@pytest.mark.parametrize(
    ("kind", "library_from", "in_int8"),
    [
        ("mixed", 129, False),
        ("mixed", 129, True),
        pytest.param("mixed", 12, False, marks=pytest.mark.slow),
        pytest.param("mixed", 12, True, marks=pytest.mark.slow),
        *(pytest.param(kind, 129, False, marks=pytest.mark.slow) for kind in KINDS),
    ],
)
def test_steps_of_a_gpu_give_the_tokens_of_the_grid_and_its_deltas(
    kind: str,
    library_from: int,
    in_int8: bool,
    model: Callable[..., Path],
    make_engine: Callable[..., Engine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("zweave.engine.gpu.build.LIBRARY_FROM", library_from)
    directory = model(kind, False)
    # Enough for deltas in int8 alone.
    options = {"max_memory": 1_000_000} if in_int8 else {}
    engine = make_engine(directory, device="reference", max_batch_tokens=64, **options)
    gates = [stack for layer in engine.model.layers for stack in stacks_of(layer.gate_up)]
    assert {isinstance(stack.leading.u[0], Quantized) for stack in gates} == {in_int8}
    asked_for: dict[Any, list[list[int]]] = {None: prompts(2), "a": prompts(4)[2:], "leading": prompts(1)}
    requests = [asked(prompt, choice) for choice, given in asked_for.items() for prompt in given]
    found = [result.token_ids for result in engine.generate(requests)]
    wanted = []
    for choice, given in asked_for.items():
        expert = engine.bank.expert(choice) if choice else None
        wanted += tokens_of_deltas(directory, expert, given, in_int8)
    assert found == wanted


def test_base_tokens_have_the_same_bits_in_either_mode_of_a_step(
    model: Callable[..., Path], make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(model("mixed", False), "bfloat16", device="reference", batch_invariant=True)
    draw = torch.Generator().manual_seed(0)
    slot = torch.tensor([0, engine.bank.acquire(Mixture.parse("a")), 0], dtype=torch.int32)
    for layer in engine.model.layers:
        for linear in (layer.qkv, layer.o, layer.gate_up, layer.down):
            x = torch.randn(3, stacks_of(linear)[0].dense.parts[0].shape[1], generator=draw).bfloat16()
            alone, beside = (linear(x, slot, mode) for mode in (LinearMode.DENSE, LinearMode.DELTA))
            assert torch.equal(alone[slot == 0], beside[slot == 0])
            assert not torch.equal(alone[1], beside[1])
