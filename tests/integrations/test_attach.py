"""Experts attached to transformers' models: rows of one batch against separately merged weights."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zweave.decomposition import Decomposition
from zweave.errors import ZweaveError
from zweave.experts import Expert
from zweave.io.progress import silent

pytest.importorskip("transformers")

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline
from transformers.pytorch_utils import Conv1D

from zweave.integrations.transformers import Attached, attach

ARCHITECTURES = ["llama", "gpt2", "opt", "gpt_neox", "qwen2", "phi"]
CHOICES = [None, "a", "b", {"a": 0.5, "b": 0.25}, "a", None]
# Log-probabilities of float32, sums in another order.
LIMIT = 5e-4


def build(architecture: str, seed: int = 0, **changes: object) -> Any:
    """A random model of two layers that has neither directory nor ties."""
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 96,
        "max_position_embeddings": 128,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if architecture != "gpt2":
        sizes["intermediate_size"] = 48
    if architecture == "opt":
        sizes |= {"ffn_dim": 48, "word_embed_proj_dim": 32}
        del sizes["intermediate_size"]
    if architecture in ("llama", "qwen2"):
        sizes["num_key_value_heads"] = 2
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **{**sizes, **changes}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = name.endswith("weight") and ("norm" in name or ".ln_" in name)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.25 + is_norm)
    return model.eval()


def attached_with(model: Any, random_expert: Callable[..., Expert]) -> tuple[Attached, dict[str, Expert]]:
    """Attaches two random experts, "a" and "b"; b renormalises nothing and adapts the last layer alone."""
    attached = attach(model, progress=silent)
    matrices = Decomposition.open(attached.base_digest).matrices
    shapes = {name: matrix.shape for name, matrix in matrices.items()}
    experts = {"a": random_expert(shapes, seed=1), "b": random_expert(shapes, seed=2, first_layer=1)}
    for name, expert in experts.items():
        attached.load(name, expert)
    return attached, experts


def few_components(expert: Expert) -> Expert:
    """The same, in the leading components alone."""
    z = {
        name: torch.cat([z[: len(z) // 8], torch.ones(len(z) - len(z) // 8)]) for name, z in expert.z.items()
    }
    return Expert(z, support="leading:R/8")


def merged(model: Any, digest: str, experts: Mapping[str, Expert], choice: object) -> Any:
    """A copy of a model that is not attached, with W' = U diag(sigma * z) V^T for its weights."""
    model, decomposition = copy.deepcopy(model), Decomposition.open(digest)
    mixture = {choice: 1.0} if isinstance(choice, str) else dict(choice or {})
    for name in decomposition.names:
        if not any(name in experts[part].z for part in mixture):
            continue
        u, sigma, vt = (part.double() for part in decomposition.factors(name))
        z = sum(
            alpha * experts[part].z.get(name, torch.ones(len(sigma))).double()
            for part, alpha in mixture.items()
        )
        module = model.get_submodule(name)
        weight = (u * (sigma * z)) @ vt
        module.weight.data.copy_(weight.T if isinstance(module, Conv1D) else weight)
    return model


def prompts(rows: int, length: int = 9) -> Tensor:
    return torch.randint(3, 96, (rows, length), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def log_probabilities(model: Any, tokens: Tensor, **options: object) -> Tensor:
    return model(tokens, **options).logits.log_softmax(-1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_mixed_batch_equals_separately_merged_weights(architecture, random_expert):
    model = build(architecture)
    plain = copy.deepcopy(model)
    attached, experts = attached_with(model, random_expert)
    experts["few"] = few_components(experts["a"])
    attached.load("few", experts["few"])
    choices = [*CHOICES, "few"]
    tokens = prompts(len(choices))
    with attached.use(choices):
        found = log_probabilities(model, tokens)
        answers = model.generate(tokens, max_new_tokens=12, do_sample=False)
    for row, choice in enumerate(choices):
        truth = merged(plain, attached.base_digest, experts, choice)
        alone = tokens[row : row + 1]
        assert (log_probabilities(truth, alone) - found[row]).abs().max() < LIMIT
        expected = truth.generate(alone, max_new_tokens=12, do_sample=False)[0]
        torch.testing.assert_close(answers[row, : len(expected)], expected)
    # Otherwise the comparison would say nothing.
    assert (found[1] - log_probabilities(plain, tokens[1:2])[0]).abs().max() > 0.1


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_detach_puts_everything_back(architecture, random_expert):
    model = build(architecture)
    modules, state = dict(model.named_modules()), copy.deepcopy(model.state_dict())
    tokens = prompts(3)
    before = model(tokens).logits
    attached, _ = attached_with(model, random_expert)
    attached.learn("new")
    with attached.use(["a", None, "b"]):
        assert not torch.equal(model(tokens).logits, before)
    attached.detach()
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert list(state) == list(model.state_dict())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model(tokens).logits, before)
    with pytest.raises(ZweaveError, match="detached"), attached.use("a"):
        pass
    attach(model, progress=silent).detach()


@torch.no_grad()
def test_a_row_does_not_depend_on_its_neighbours_experts(random_expert):
    model = build("llama")
    attached, _ = attached_with(model, random_expert)
    tokens = prompts(4)
    base = model(tokens).logits
    with attached.use([None, "a", {"a": 0.3, "b": 0.3}, None]):
        mixed = model(tokens).logits
    assert torch.equal(mixed[0], base[0]) and torch.equal(mixed[3], base[3])
    with attached.use("a"):
        torch.testing.assert_close(model(tokens).logits[1], mixed[1])
    assert torch.equal(model(tokens).logits, base)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(side, random_expert):
    model = build("llama")
    attached, _ = attached_with(model, random_expert)
    tokens, lengths = prompts(3), (9, 4, 6)
    names = ["a", None, "b"]
    ids, mask = torch.zeros(3, 9, dtype=torch.int64), torch.zeros(3, 9, dtype=torch.int64)
    for row, length in enumerate(lengths):
        place = slice(9 - length, 9) if side == "left" else slice(length)
        ids[row, place], mask[row, place] = tokens[row, :length], 1
    position = (mask.cumsum(1) - 1).clamp(min=0)
    with attached.use(names):
        found = log_probabilities(model, ids, attention_mask=mask, position_ids=position)
    for row, length in enumerate(lengths):
        with attached.use(names[row]):
            alone = log_probabilities(model, tokens[row : row + 1, :length])[0]
        assert (found[row][mask[row] == 1] - alone).abs().max() < LIMIT


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2},
        {"cache_implementation": "static"},
        {"use_cache": False},
        {"prompt_lookup_num_tokens": 2},
    ],
    ids=str,
)
def test_generation_modes(options, random_expert):
    model = build("llama")
    plain = copy.deepcopy(model)
    attached, experts = attached_with(model, random_expert)
    names = ["a"] if "prompt_lookup_num_tokens" in options else ["a", None, "b"]
    tokens = prompts(len(names))
    options |= {"max_new_tokens": 8, "do_sample": False}
    with attached.use(names):
        answers = model.generate(tokens, **options)
    each = options.get("num_return_sequences", 1)
    for row, name in enumerate(names):
        truth = merged(plain, attached.base_digest, experts, name)
        expected = truth.generate(tokens[row : row + 1], **options)
        found = answers[row * each : (row + 1) * each, : expected.shape[1]]
        torch.testing.assert_close(found, expected)


def test_pipeline(tiny_model, random_expert):
    directory = tiny_model("llama")
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(directory),
        AutoTokenizer.from_pretrained(directory),
    )
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    attached, _ = attached_with(model, random_expert)
    generate = pipeline("text-generation", model=model, tokenizer=tokenizer)
    options = {"max_new_tokens": 5, "do_sample": False, "return_full_text": False}
    texts = ["Hello there", "What is 2 + 3?", "Review: dull"]
    with attached.use(["a", None, "b"]):
        together = generate(texts, batch_size=3, **options)
    for text, name, found in zip(texts, ["a", None, "b"], together, strict=True):
        with attached.use(name):
            assert generate(text, **options) == found
    with attached.use("a"):
        assert generate(texts[1], **options) != together[1]


def test_a_model_without_its_head_has_the_same_names(tiny_model, random_expert):
    directory = tiny_model("llama")
    model, bare = AutoModelForCausalLM.from_pretrained(directory), AutoModel.from_pretrained(directory)
    attached, experts = attached_with(model, random_expert)
    under = attach(bare, experts)
    assert under.base_digest == attached.base_digest
    tokens = prompts(2)
    with torch.no_grad(), attached.use(["a", None]), under.use(["a", None]):
        assert torch.equal(bare(tokens).last_hidden_state, model.model(tokens).last_hidden_state)


def test_renormalised_experts_and_weights_by_layer(random_expert):
    model = build("llama")
    plain = copy.deepcopy(model)
    attached, experts = attached_with(model, random_expert)
    a, decomposition = experts["a"], Decomposition.open(attached.base_digest)
    attached.load("renormalised", Expert(a.z, renormalise=True))
    z = {}
    for name, values in a.z.items():
        sigma = decomposition.sigma(name)
        z[name] = values * sigma.sum() / (sigma * values).sum()
    by_layer = {n: v * (0.5 if ".layers.0." in n else 0.75) for n, v in a.z.items()}
    truths = {"r": Expert(z), "l": Expert(by_layer)}
    tokens = prompts(2)
    with attached.use(["renormalised", {"a": [0.5, 0.75]}]):
        found = log_probabilities(model, tokens)
    for row, name in enumerate(truths):
        truth = merged(plain, attached.base_digest, truths, name)
        assert (log_probabilities(truth, tokens[row : row + 1])[0] - found[row]).abs().max() < LIMIT


def test_modules_that_stand_in_two_places_are_attached_in_both(random_expert):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            shared = nn.Linear(8, 8)
            self.layers = nn.ModuleList([nn.ModuleDict({"up": shared}), nn.ModuleDict({"up": shared})])

        def forward(self, x: Tensor) -> Tensor:
            return self.layers[1]["up"](self.layers[0]["up"](x))

    model = Twice()
    attached = attach(model, progress=silent)
    assert model.layers[0]["up"] is model.layers[1]["up"]
    attached.load("a", random_expert({"layers.0.up": (8, 8)}, seed=0))
    x = torch.randn(2, 3, 8)
    with torch.no_grad(), attached.use("a"):
        adapted = model(x)
    attached.detach()
    assert model.layers[0]["up"] is model.layers[1]["up"] and type(model.layers[0]["up"]) is nn.Linear
    assert not torch.allclose(model(x), adapted)


def test_only_the_named_linears(random_expert):
    model = build("gpt2")
    attached = attach(model, targets=["mlp.c_fc", "c_attn"], progress=silent)
    names = Decomposition.open(attached.base_digest).names
    assert names == [
        f"transformer.h.{layer}.{end}" for layer in (0, 1) for end in ("attn.c_attn", "mlp.c_fc")
    ]
    assert type(model.transformer.h[0].mlp.c_proj) is Conv1D


def test_bfloat16_and_autocast(random_expert):
    model = build("llama").bfloat16()
    plain = copy.deepcopy(model).float()
    attached, experts = attached_with(model, random_expert)
    tokens = prompts(2)
    with attached.use(["a", None]):
        found = log_probabilities(model, tokens)
    for row, name in enumerate(["a", None]):
        truth = log_probabilities(merged(plain, attached.base_digest, experts, name), tokens[row : row + 1])[
            0
        ]
        assert (truth.exp() * (truth - found[row].float())).sum(-1).mean() < 0.02
    whole = build("llama")
    attached, _ = attached_with(whole, random_expert)
    with attached.use("a"), torch.no_grad():
        exact = whole(tokens).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = whole(tokens).logits
    assert (rounded.float() - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_a_copy_of_the_model_is_independent(random_expert):
    model = build("llama")
    attached, _ = attached_with(model, random_expert)
    tokens = prompts(2)
    twin = copy.deepcopy(model)
    with torch.no_grad(), attached.use("a"):
        assert not torch.equal(twin(tokens).logits, model(tokens).logits)
    with torch.no_grad():
        assert torch.equal(twin(tokens).logits, model(tokens).logits)
