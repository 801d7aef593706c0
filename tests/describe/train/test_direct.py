"""Experts that are learnt side by side: each its own task, and the same bits after an interruption."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from zweave.describe.train.direct import DirectRecipe, DirectTraining, right_answers
from zweave.describe.train.rows import Row, RowModel
from zweave.errors import ZweaveError
from zweave.tasks.task import Sample, Splits, Task

QUICK = DirectRecipe(steps=10, rows=4, lr=0.05)


@pytest.fixture(scope="module")
def model(row_model: Callable[..., RowModel]) -> RowModel:
    return row_model()


def begun(
    model: RowModel, chats: list[Task], recipe: DirectRecipe, state: Path | None = None
) -> DirectTraining:
    return DirectTraining(model, chats, [task.read(None).train for task in chats], recipe, state)


@pytest.mark.slow
def test_each_expert_learns_its_own_task(model: RowModel, chats: list[Task]):
    samples = chats[0].read(None).train
    swapped = [Sample(s.prompt, {" a": " b", " b": " a"}[s.answer]) for s in samples]
    tasks = [chats[0], replace(chats[0], name="swapped", read=lambda data: Splits(swapped, swapped))]
    training = begun(model, tasks, replace(QUICK, steps=60, lr=0.05))
    losses = [training.advance() for _ in range(60)]
    assert training.is_done and losses[-1] < 0.4 * losses[0]
    rows = [Row(task, sample, slot) for slot, task in enumerate(tasks) for sample in task.read(None).train]
    crossed = [replace(row, slot=1 - row.slot) for row in rows]
    own, other = (model.scored(some, training.z()).log_probs.view(2, 4) for some in (rows, crossed))
    assert (own.mean(1) > other.mean(1) + 0.2).all()


def test_right_answers_do_not_depend_on_the_passes(model: RowModel, chats: list[Task]):
    task, samples = chats[0], chats[0].read(None).train
    z = {name: torch.ones(1, rank) for name, rank in model.ranks.items()}
    assert right_answers(model, task, samples * 10, z) == right_answers(model, task, samples, z) * 10


def test_an_expert_is_what_it_is_alone(model: RowModel, chats: list[Task]):
    together, alone = begun(model, chats, QUICK), begun(model, chats[:1], QUICK)
    for training in (together, alone):
        for _ in range(3):
            training.advance()
    torch.testing.assert_close(together.flat[0], alone.flat[0], rtol=0, atol=1e-3)


def test_an_interrupted_training_ends_in_the_same_bits(
    model: RowModel, row_model: Callable[..., RowModel], chats: list[Task], tmp_path: Path
):
    whole = begun(model, chats, QUICK)
    while not whole.is_done:
        whole.advance()
    cut = begun(model, chats, QUICK, tmp_path / "cut.state")
    for _ in range(7):
        cut.advance()
    resumed = begun(row_model(), chats, QUICK, tmp_path / "cut.state")
    assert resumed.step == 5
    while not resumed.is_done:
        resumed.advance()
    assert torch.equal(whole.flat, resumed.flat)


def test_the_state_of_another_training_is_named(
    model: RowModel, row_model: Callable[..., RowModel], chats: list[Task], tmp_path: Path
):
    path = tmp_path / "a.state"
    training = begun(model, chats, QUICK, path)
    for _ in range(5):
        training.advance()
    with pytest.raises(ZweaveError, match="is of another training"):
        begun(model, chats, replace(QUICK, seed=1), path)
    with pytest.raises(ZweaveError, match="is of another training"):
        begun(row_model(1), chats, QUICK, path)
    with pytest.raises(ZweaveError, match="is of another training"):
        DirectTraining(model, chats, [task.read(None).train[:2] for task in chats], QUICK, path)
    path.write_bytes(b"no state")
    with pytest.raises(ZweaveError, match="cannot be gone on from"):
        begun(model, chats, QUICK, path)
