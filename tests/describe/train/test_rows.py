"""Rows under experts of their own: as a model with merged weights, and with gradients that are right."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from zweave.checkpoint.module_name import layer_of
from zweave.describe.train.rows import Row, RowModel
from zweave.errors import ZweaveError
from zweave.tasks.render import target_tokens
from zweave.tasks.task import Task
from zweave.text.chatml import chat
from zweave.train import Recipe, open_policy
from zweave.train.objective import label_log_probs


@pytest.fixture(scope="module")
def model(row_model: Callable[..., RowModel]) -> RowModel:
    return row_model()


def random_z(model: RowModel, slots: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 1 + 0.2 * torch.randn(slots, rank, generator=generator) for name, rank in model.ranks.items()
    }


def rows_of(chats: list[Task], slots: int) -> list[Row]:
    samples = [(task, sample) for task in chats for sample in task.read(None).train]
    return [Row(task, sample, index % slots) for index, (task, sample) in enumerate(samples)]


def test_a_row_is_what_the_trainer_computes_under_its_expert(
    model: RowModel, chats: list[Task], tiny_model: Callable[..., Path]
):
    z, rows = random_z(model, 3), rows_of(chats, 3)
    found = model.scored(rows, z)
    policy = open_policy(str(tiny_model("llama")), Recipe(scope="after_prompt"), torch.float32)
    for index, row in enumerate(rows):
        policy.adapter.load_state(
            {"z": [part[row.slot] for part in z.values()], "kept": [torch.ones(1) for _ in z]}
        )
        tokens = target_tokens(policy.tokenizer, row.task, [row.sample.answer])
        with torch.no_grad():
            wanted, is_greedy = label_log_probs(policy, policy.prefill([row.sample.prompt]), tokens)
        torch.testing.assert_close(found.log_probs[index], wanted[0, 0], rtol=1e-4, atol=1e-4)
        assert found.is_greedy[index] == is_greedy[0, 0]


def test_the_base_answers_without_experts(model: RowModel, chats: list[Task]):
    rows = rows_of(chats, 1)
    ones = {name: torch.ones(1, rank) for name, rank in model.ranks.items()}
    base, found = model.scored(rows, {}), model.scored(rows, ones)
    torch.testing.assert_close(base.log_probs, found.log_probs, rtol=1e-4, atol=1e-4)


def test_a_row_does_not_depend_on_its_neighbours(model: RowModel, chats: list[Task]):
    z, rows = random_z(model, 4), rows_of(chats, 4)
    together = model.scored(rows, z).log_probs
    alone = torch.cat([model.scored([row], z).log_probs for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    # The same text twice, under two experts.
    twice = model.scored([rows[0], Row(rows[0].task, rows[0].sample, 1)], z).log_probs
    torch.testing.assert_close(twice[0], together[0], rtol=1e-4, atol=1e-5)
    assert abs(twice[0] - twice[1]) > 1e-3


def test_gradients_match_finite_differences(model: RowModel, chats: list[Task]):
    z, rows = random_z(model, 2), rows_of(chats, 2)
    for part in z.values():
        part.requires_grad_()
    model.scored(rows, z).log_probs.sum().backward()
    generator = torch.Generator().manual_seed(1)
    for name in list(z)[:: max(1, len(z) // 5)]:
        direction = torch.randn(z[name].shape, generator=generator)
        ends = []
        for sign in (1, -1):
            moved = {
                n: part.detach() + (sign * 1e-2 * direction if n == name else 0) for n, part in z.items()
            }
            ends.append(model.scored(rows, moved).log_probs.double().sum())
        slope = (z[name].grad * direction).sum().double()
        torch.testing.assert_close((ends[0] - ends[1]) / 2e-2, slope, rtol=2e-2, atol=2e-3)


def test_a_prompt_is_computed_once(row_model: Callable[..., RowModel], chats: list[Task]):
    model = row_model()
    labelled = rows_of(chats[:1], 1)
    model.scored(labelled, {})
    assert len(model.prompts) == 4
    model.scored(labelled, {})
    assert len(model.prompts) == 4
    # Before answers of several tokens again: their states below the experts' layers are kept, too.
    model.scored(rows_of(chats, 1), {})
    assert len(model.prompts) == 8


def test_layers_below_the_experts_are_computed_once(
    model: RowModel, chats: list[Task], tiny_model: Callable[..., Path]
):
    cut = RowModel.open(str(tiny_model("llama")), torch.float32, first_layer=1)
    z, rows = random_z(model, 3), rows_of(chats, 3)
    upper = {name: part for name, part in z.items() if layer_of(name) >= 1}
    assert list(cut.ranks) == list(upper) and len(upper) < len(z)
    whole = {name: part if name in upper else torch.ones_like(part) for name, part in z.items()}
    found, wanted = cut.scored(rows, upper).log_probs, model.scored(rows, whole).log_probs
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert (found - model.scored(rows, z).log_probs).abs().max() > 1e-3


def test_a_layer_that_is_not_there_is_told(tiny_model: Callable[..., Path]):
    with pytest.raises(ZweaveError, match="first_layer 9: the model has layers 0 to"):
        RowModel.open(str(tiny_model("llama")), torch.float32, first_layer=9)


def test_first_tokens_are_those_of_the_model_with_merged_weights(
    model: RowModel, tiny_model: Callable[..., Path]
):
    z, prompts, slots = random_z(model, 2), [chat("x y"), chat("zz", "So"), chat("x y")], [0, 1, 1]
    found = model.first_tokens(prompts, slots, z)
    policy = open_policy(str(tiny_model("llama")), Recipe(scope="after_prompt"), torch.float32)
    for row, prompt, slot in zip(found, prompts, slots, strict=True):
        policy.adapter.load_state(
            {"z": [part[slot] for part in z.values()], "kept": [torch.ones(1) for _ in z]}
        )
        tree = policy.prefill([prompt])
        with torch.no_grad():
            logits = policy.logits(policy.hidden(tree, [len(tree.tree) - 1]))[0]
        torch.testing.assert_close(row, logits.float().log_softmax(-1), rtol=1e-4, atol=1e-4)
