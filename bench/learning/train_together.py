"""Steps of several trainings with one pass for all, against a pass each."""

import argparse
import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zweave.experts import Support
from zweave.train.forward import Part, TreeCache, hidden_states, joint_hidden_states
from zweave.train.joint.twins import twins
from zweave.train.svf import Packs, adapt
from zweave.train.token_tree import TokenTree

from ..harness.harness import Outcome, Provider, find, measure, ratio
from ..harness.options import pace
from ..harness.report import Column, Report, Row
from ..serving.fixtures import Fixtures
from .train import Batch, make_batch, scored

COLUMNS = (
    Column("provider", "provider"),
    Column("tokens", "tokens", "d"),
    Column("seconds", "ms for a step of each", ".0f", 1e3),
    Column("vs_alone", "x alone", ".2f"),
    Column("error", "gradients' difference", ".4f"),
)


def run(args: argparse.Namespace) -> Report:
    fixtures = Fixtures(args.model, args.dtype)
    batches = [
        make_batch(args.batch, args.prompt, fixtures.config.vocab_size, seed)
        for seed in range(args.trainings)
    ]
    outcomes = []
    for support in ("full", "leading:R/8"):
        outcomes += measure(_providers(fixtures, batches, support), pace(args))
    title = (
        f"{args.trainings} trainings of {args.batch} prompts of about {args.prompt} tokens in {args.dtype}"
    )
    return Report(
        "train-together", title, COLUMNS, [_row(outcome, outcomes, batches) for outcome in outcomes]
    )


def _providers(fixtures: Fixtures, batches: Sequence[Batch], support: str) -> list[Provider]:
    packs: Packs = {}
    models = twins(copy.deepcopy(fixtures.transformers), len(batches))
    learnt = [
        adapt(model, fixtures.decomposition.factors, support=Support.parse(support), packs=packs)
        for model in models
    ]
    random = torch.Generator().manual_seed(0)
    linears = [linear for each in learnt for linear in each.values()]
    for linear in linears:
        linear.z.data += 0.1 * torch.randn(linear.z.shape, generator=random)

    def gradients(step: Callable[[], None]) -> Tensor:
        for linear in linears:
            linear.z.grad = None
        step()
        return torch.cat([linear.z.grad for linear in linears if linear.z.grad is not None])

    def alone() -> None:
        for model, batch in zip(models, batches, strict=True):
            tree, leaves = _tree(batch)
            scored(model, hidden_states(model, tree, leaves, TreeCache())).backward()

    def together() -> None:
        parts = [
            Part(model, *_tree(batch), TreeCache()) for model, batch in zip(models, batches, strict=True)
        ]
        hidden = joint_hidden_states(parts)
        torch.autograd.backward([scored(model, states) for model, states in zip(models, hidden, strict=True)])

    truth = gradients(alone)

    def provider(name: str, step: Callable[[], None]) -> Provider:
        def error() -> float:
            return (gradients(step) - truth).abs().max().item()

        return Provider(name, [lambda: gradients(step)], error, 0.0, labels={"support": support})

    return [provider(f"alone, {support}", alone), provider(f"together, {support}", together)]


def _tree(batch: Batch) -> tuple[TokenTree, list[int]]:
    tree = TokenTree()
    return tree, [tree.add(prompt) for prompt in batch]


def _row(outcome: Outcome, outcomes: Sequence[Outcome], batches: Sequence[Batch]) -> Row:
    support = outcome.provider.labels["support"]
    base = find(outcomes, f"alone, {support}", support=support)
    return outcome.row() | {
        "tokens": sum(len(prompt) for batch in batches for prompt in batch),
        "vs_alone": ratio(base, outcome),
    }
