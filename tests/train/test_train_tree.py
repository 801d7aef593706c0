"""Token trees: attention a branch at a time, and the forward pass against transformers and the engine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from zweave import Engine, Request
from zweave.checkpoint import Checkpoint
from zweave.experts import Expert
from zweave.train import Recipe, open_policy
from zweave.train.forward import TreeCache, hidden_states
from zweave.train.run import load_model
from zweave.train.token_tree import TokenTree
from zweave.train.tree_attention import Layout, tree_attention

pytest.importorskip("transformers")
SEQUENCES = ([1, 5, 9, 9], [1, 5, 9, 4, 8, 8], [1, 5], [1, 5, 31, 32], [1, 5, 9, 4, 7], [1, 5, 9, 9])
APART = ([3], [4, 4, 4, 4, 4], [5, 5])
FORESTS = {"a trunk": SEQUENCES, "no trunk": APART, "one path": ([7, 8, 9],), "one node": ([7],)}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZWEAVE_CACHE", str(tmp_path / "cache"))


def grown(sequences: Any) -> tuple[TokenTree, list[int]]:
    tree = TokenTree()
    return tree, [tree.add(tokens) for tokens in sequences]


def test_equal_beginnings_are_the_same_nodes() -> None:
    tree, leaves = grown(SEQUENCES)
    assert len(tree) == 10 and leaves[0] == leaves[5] and leaves[2] == 1
    assert [tree.tokens[node] for node in tree.path(leaves[4])] == [1, 5, 9, 4, 7]
    assert tree.trunk() == [0, 1] and tree.branches() == [[2, 3, 4, 5, 6, 9], [7, 8]]


def test_a_sealed_tree_shares_only_what_is_added_after() -> None:
    tree = TokenTree()
    end = tree.add([1, 2])
    tree.add([3], end)
    tree.seal()
    assert tree.add([3], end) == 3 and tree.add([3], end) == 3


def dense_attention(q: Tensor, k: Tensor, v: Tensor, tree: TokenTree, start: int) -> Tensor:
    """Node by node, over its own path."""
    groups = k.shape[1]
    rows = []
    for i in range(start, len(tree)):
        path = tree.path(i)
        heads = []
        for head in range(q.shape[1]):
            group = head * groups // q.shape[1]
            scores = (k[path, group] @ q[i - start, head]) * q.shape[2] ** -0.5
            heads.append(scores.softmax(0) @ v[path, group])
        rows.append(torch.stack(heads))
    return torch.stack(rows)


@pytest.mark.parametrize("sequences", FORESTS.values(), ids=FORESTS)
@pytest.mark.parametrize("cached", [0, 1, 2, 5])
def test_attention_and_its_gradient_are_those_of_each_path(sequences: Any, cached: int) -> None:
    tree, _ = grown(sequences)
    if cached >= len(tree):
        pytest.skip("nothing is new")
    random = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(n, heads, 8, generator=random, dtype=torch.float64, requires_grad=True)
        for n, heads in ((len(tree) - cached, 6), (len(tree), 3), (len(tree), 3))
    )
    layout = Layout.of(tree, cached)
    expected = dense_attention(q, k, v, tree, cached)
    found = tree_attention(q, k, v, layout)
    # The scores of the op are rounded to float32.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    target = torch.randn(expected.shape, generator=random, dtype=torch.float64)
    slopes = zip(
        torch.autograd.grad(found, (q, k, v), target),
        torch.autograd.grad(expected, (q, k, v), target),
        strict=True,
    )
    for part, (one, other) in zip("qkv", slopes, strict=True):
        new = 0 if part == "q" else cached
        torch.testing.assert_close(one[new:], other[new:], rtol=1e-5, atol=1e-5)
        assert (one[:new] == 0).all()


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("cached", [False, True], ids=["one pass", "two passes"])
def test_a_tree_gives_each_sequence_what_it_gets_alone(
    tiny_model: Callable[..., Path], architecture: str, cached: bool
) -> None:
    model: Any = load_model(Checkpoint(tiny_model(architecture)), torch.float32)
    tree, past = TokenTree(), TreeCache()
    with torch.no_grad():
        leaves = []
        if cached:
            leaves = [tree.add(tokens) for tokens in SEQUENCES[:2]]
            first = hidden_states(model, tree, leaves, past, extend=True)
            tree.seal()
        new = [tree.add(tokens) for tokens in SEQUENCES[len(leaves) :]]
        hidden = hidden_states(model, tree, new, past)
        if cached:
            hidden = torch.cat([first, hidden])
        for row, tokens in zip(hidden, SEQUENCES, strict=True):
            expected = model(torch.tensor([tokens])).logits[0, -1]
            torch.testing.assert_close(model.lm_head(row), expected, rtol=1e-4, atol=1e-4)


CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\nIt is"
SERVED = {
    "always": Recipe(),
    "after the prompt": Recipe(scope="after_prompt"),
    "leading components": Recipe(support="leading:R/4"),
    "the last layer": Recipe(first_layer=1),
    "all of them": Recipe(support="leading:3", scope="after_prompt", first_layer=1),
}


@pytest.mark.parametrize("recipe", SERVED.values(), ids=SERVED)
def test_the_engine_serves_what_was_trained(
    tiny_model: Callable[..., Path], cache: None, tmp_path: Path, recipe: Recipe
) -> None:
    directory = str(tiny_model("llama"))
    policy: Any = open_policy(directory, recipe, torch.float32)
    random = torch.Generator().manual_seed(0)
    for z in policy.adapter.parameters():
        z.data.uniform_(0.6, 1.4, generator=random)
    policy.adapter.save(tmp_path / "it.safetensors", "", {})
    expert = Expert.load(tmp_path / "it.safetensors")
    assert (expert.support, expert.scope) == (recipe.support, recipe.scope)
    assert expert.first_layer == recipe.first_layer
    # The file holds z - 1 in half precision.
    for name, linear in policy.adapter.linears.items():
        linear.z.data.copy_(expert.z[name][: len(linear.z)])
    engine = Engine(directory, dtype="float32")
    engine.load_expert("it", expert)
    prompts = [CHAT.format(text) for text in ("ab", "abc", "zz top")]
    tree = policy.prefill(prompts)
    found = policy.logits(policy.hidden(tree, tree.leaves)).log_softmax(-1)
    requests = [Request(prompt, expert="it", max_tokens=1, logprobs=4) for prompt in prompts]
    for row, result in zip(found, engine.generate(requests), strict=True):
        for token, served in result.logprobs[0].top.items():
            assert row[token].item() == pytest.approx(served, abs=2e-3)


def test_below_its_first_layer_and_before_its_prompt_nothing_is_kept_for_a_gradient(
    tiny_model: Callable[..., Path], cache: None
) -> None:
    policy = open_policy(str(tiny_model("llama")), Recipe(first_layer=1, scope="after_prompt"), torch.float32)
    tree = policy.prefill([CHAT.format("abcdefgh")])
    assert tree.cache.length > 0 and not tree.cache.layers[0][0].requires_grad
    hidden = policy.hidden(tree, tree.leaves)
    names = [name for name, p in policy.model.named_parameters() if p.requires_grad]
    assert names and all(".layers.1." in name for name in names)
    hidden.sum().backward()
    assert all(p.grad is not None for p in policy.adapter.parameters())


def test_the_base_answers_within_its_context(tiny_model: Callable[..., Path], cache: None) -> None:
    policy = open_policy(str(tiny_model("llama")), Recipe(), torch.float32)
    tree = policy.prefill(["abc"])
    before = policy.hidden(tree, tree.leaves).detach()
    for z in policy.adapter.parameters():
        z.data.fill_(1.3)
    assert not torch.allclose(policy.hidden(tree, tree.leaves), before)
    with policy.adapter.base():
        torch.testing.assert_close(policy.hidden(tree, tree.leaves), before, rtol=1e-4, atol=1e-4)
