"""How long does a training step take, against one that rebuilds the weights?"""

import argparse
import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zweave.checkpoint.module_name import LINEARS, linear_of
from zweave.experts import Support
from zweave.train.forward import TreeCache, hidden_states
from zweave.train.svf import adapt
from zweave.train.token_tree import TokenTree

from ..harness.harness import Outcome, Provider, find, measure, ratio
from ..harness.options import pace
from ..harness.report import Column, Report, Row
from ..serving.fixtures import Fixtures

# Relative distance of a gradient. Activations are rounded to bfloat16 through 30 layers and back: transformers' own
# gradient is .05 to .09 off. A thirtieth of the gradient's square left out, a layer's share, would be .18.
GRADIENT_LIMITS = {torch.bfloat16: 0.15, torch.float32: 1e-3}
COLUMNS = (
    Column("provider", "provider"),
    Column("tokens", "tokens", "d"),
    Column("seconds", "ms a step", ".0f", 1e3),
    Column("vs_recomposed", "x rebuilt weights", ".2f"),
    Column("error", "gradient's error", ".4f"),
)
Batch = list[list[int]]


class RecomposedLinear(nn.Module):
    """y = (U diag(sigma z) Vt) x + b with the matrix made anew, z in float32."""

    def __init__(self, u: Tensor, sigma: Tensor, vt: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.ones_like(sigma, dtype=torch.float32))
        self.u, self.sigma, self.vt, self.bias = u, sigma.float(), vt, bias

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.u * (self.sigma * self.z).to(self.u.dtype)) @ self.vt
        return F.linear(x, weight, self.bias)


def run(args: argparse.Namespace) -> Report:
    fixtures = Fixtures(args.model, args.dtype)
    batch = make_batch(args.batch, args.prompt, fixtures.config.vocab_size)
    outcomes = measure(_providers(fixtures, batch), pace(args))
    base = find(outcomes, "rebuilt weights")
    title = f"A training step of {args.batch} prompts of about {args.prompt} tokens in {args.dtype}"
    return Report("train", title, COLUMNS, [_row(outcome, batch, base) for outcome in outcomes])


def make_batch(prompts: int, length: int, vocabulary: int, seed: int = 0) -> Batch:
    """Random prompts of 3/4 to 5/4 of a length that begin alike, as those of a task do: a tenth of the length."""
    random = torch.Generator().manual_seed(seed)

    def draw(count: int) -> list[int]:
        return torch.randint(0, vocabulary, (count,), generator=random).tolist()

    head = draw(max(1, length // 10))
    spread = [length * 3 // 4 + (length // 2) * i // max(1, prompts - 1) for i in range(prompts)]
    return [head + draw(max(1, count - len(head))) for count in spread]


def recompose(model: nn.Module, fixtures: Fixtures) -> dict[str, RecomposedLinear]:
    """Replaces the adapted linears by rebuilt ones; nothing else wants a gradient."""
    model.requires_grad_(False)
    found = {}
    for name, linear in list(model.named_modules()):
        if isinstance(linear, nn.Linear) and linear_of(name) in LINEARS:
            u, sigma, vt = fixtures.decomposition.factors(name)
            bias = linear.bias
            found[name] = RecomposedLinear(u.to(linear.weight.dtype), sigma, vt.to(linear.weight.dtype), bias)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, found[name])
    return found


def tree_score(model: nn.Module, batch: Batch) -> Callable[[], Tensor]:
    """The sum of the scores of the last tokens, by our forward pass."""

    def score() -> Tensor:
        tree = TokenTree()
        leaves = [tree.add(prompt) for prompt in batch]
        return scored(model, hidden_states(model, tree, leaves, TreeCache()))

    return score


def padded_score(model: Any, batch: Batch) -> Callable[[], Tensor]:
    """The same by transformers'; prompts are padded on the right."""
    longest = max(map(len, batch))
    ids = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in batch])
    mask = torch.tensor([[1] * len(prompt) + [0] * (longest - len(prompt)) for prompt in batch])
    last = torch.tensor([len(prompt) - 1 for prompt in batch])

    def score() -> Tensor:
        hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return scored(model, hidden[torch.arange(len(batch)), last])

    return score


def scored(model: nn.Module, hidden: Tensor) -> Tensor:
    """A loss of hidden states [prompts, hidden]."""
    log_policy = model.get_submodule("lm_head")(hidden).float().log_softmax(-1)
    return log_policy[:, :6].sum()


def _providers(fixtures: Fixtures, batch: Batch) -> list[Provider]:
    float32 = Fixtures(str(fixtures.checkpoint.directory), "float32").transformers
    linears = recompose(float32, fixtures)
    padded_score(float32, batch)().backward()
    truth = {name: linear.z.grad for name, linear in linears.items() if linear.z.grad is not None}

    def provider(name: str, score: Callable[[], Tensor], learnt: dict[str, Any]) -> Provider:
        def step() -> None:
            for linear in learnt.values():
                linear.z.grad = None
            score().backward()

        def error() -> float:
            step()
            found = torch.cat([linear.z.grad for linear in learnt.values() if linear.z.grad is not None])
            wanted = torch.cat([truth[key][: len(linear.z)] for key, linear in learnt.items()])
            return (torch.linalg.vector_norm(found - wanted) / torch.linalg.vector_norm(wanted)).item()

        return Provider(name, [step], error, GRADIENT_LIMITS[fixtures.torch_dtype])

    providers = []
    for name, support in (("zweave", "full"), ("zweave, leading:R/8", "leading:R/8")):
        model = copy.deepcopy(fixtures.transformers)
        learnt = adapt(model, fixtures.decomposition.factors, support=Support.parse(support))
        providers.append(provider(name, tree_score(model, batch), learnt))
    model = copy.deepcopy(fixtures.transformers)
    rebuilt = recompose(model, fixtures)
    providers.append(provider("rebuilt weights", tree_score(model, batch), rebuilt))
    providers.append(provider("rebuilt weights, transformers", padded_score(model, batch), rebuilt))
    return providers


def _row(outcome: Outcome, batch: Batch, base: Outcome | None) -> Row:
    return outcome.row() | {
        "tokens": sum(map(len, batch)),
        "vs_recomposed": ratio(base, outcome),
    }
