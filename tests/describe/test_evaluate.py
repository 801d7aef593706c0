"""The evaluation of a generator: a description that is followed is ahead of every control."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from zweave.checkpoint import resolve_model
from zweave.describe import evaluate
from zweave.describe.describer import Describer
from zweave.describe.evaluate import DescribeEvaluation, conditions
from zweave.describe.generator import Generator, GeneratorConfig
from zweave.describe.generator_file import TrainedGenerator
from zweave.describe.tasks import hidden_tasks, split_levels
from zweave.describe.tasks.hidden_task import BARE
from zweave.describe.token_states import TokenStates
from zweave.describe.train.rows import Row, RowModel, Scored
from zweave.describe.trained_experts import TrainedExperts
from zweave.errors import ZweaveError
from zweave.experts import Expert
from zweave.io.progress import silent

NUMBERS = tuple(task for task in hidden_tasks() if task.sources == ("numbers",))


class Words:
    """An encoder that says which of two words a description holds."""

    name, width = "words", 3

    def encode(self, texts: Sequence[str]) -> TokenStates:
        found = [[["one" in text.split() or '"one"' in text, "two" in text, True]] for text in texts]
        return TokenStates(torch.tensor(found).float(), torch.ones(len(texts), 1, dtype=torch.bool))


@pytest.fixture(scope="module")
def evaluation(tiny_model: Callable[..., Path]) -> DescribeEvaluation:
    pytest.importorskip("transformers")
    directory = str(tiny_model("llama"))
    model = RowModel.open(directory, torch.float32)
    generator = Generator(GeneratorConfig(3, task=16, code=8), model.ranks).eval()
    known = torch.nn.functional.normalize(torch.ones(2, 3), dim=-1)
    trained = TrainedGenerator(
        generator, "words", resolve_model(directory).digest(), BARE, ["sum", "larger"], known, {"split": 0}
    )
    return DescribeEvaluation(model, Describer(trained, Words()), None, tasks=3, samples=4)


def test_every_level_has_its_conditions(evaluation: DescribeEvaluation, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(evaluate, "hidden_tasks", lambda: NUMBERS)
    asked: list[Row] = []
    scored = RowModel.scored

    def watched(self: RowModel, rows: Sequence[Row], z: dict[str, Tensor]) -> Scored:
        asked.extend(rows)
        return scored(self, rows, z)

    monkeypatch.setattr(RowModel, "scored", watched)
    found = evaluation.level("L2", silent)
    assert not evaluation.model.prompts
    names = [one.condition for one in found]
    assert names[:2] == ["base", "described in the prompt"]
    assert {"matched", "shuffled", "junk", "nearest description", "mean expert"} <= set(names)
    assert "reversed words" in names and all(0 <= one.accuracy <= 1 for one in found)
    assert all(row.sample.answer in row.task.labels for row in asked if row.task.labels)
    assert len({row.slot for row in asked}) == 2
    # No generator sees the description in its prompt.
    assert sum("?" in row.sample.prompt and "\nText:" in row.sample.prompt for row in asked) >= 12
    with pytest.raises(ZweaveError, match="no level 'L4': choose of L1, L2, L3"):
        evaluation.level("L4", silent)


def test_experts_that_were_trained_otherwise_are_conditions(
    evaluation: DescribeEvaluation, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(evaluate, "hidden_tasks", lambda: NUMBERS)
    seen = split_levels(NUMBERS).seen
    ones = {name: torch.ones(1, rank) for name, rank in evaluation.model.ranks.items()}
    base = Expert({name: part[0] for name, part in ones.items()}, description="one of two")
    known = replace(evaluation.describer.trained, known_tasks=[task.name for task in seen])
    beside = replace(
        evaluation,
        describer=Describer(known, Words()),
        tasks=2,
        samples=2,
        static=ones,
        trained=TrainedExperts({task.name: base for task in seen}),
    )
    found = {one.condition: one for one in beside.level("L1", silent)}
    # Ones change nothing.
    for name in ("static expert", "similarity mixture", "oracle"):
        assert found[name].accuracy == found["base"].accuracy and found[name].tasks == 2
    trained = replace(beside, static=None, trained=TrainedExperts({"sum-even-A-B": base}))
    names = [one.condition for one in trained.level("L3", silent)]
    assert not {"static expert", "similarity mixture", "oracle"} & set(names)


def test_conditions_are_means_over_tasks_and_paired():
    shares = [{"base": 0.0, "matched": 1.0}, {"base": 0.5, "matched": 0.5, "shuffled": 0.0}]
    base, matched, shuffled = conditions("L1", shares)
    assert (base.accuracy, base.behind, base.tasks) == (0.25, 0.5, 2)
    assert base.stderr == pytest.approx(0.25) and base.behind_stderr == pytest.approx(0.5)
    assert (matched.accuracy, matched.behind, matched.behind_stderr) == (0.75, 0.0, 0.0)
    assert (shuffled.accuracy, shuffled.behind, shuffled.stderr, shuffled.tasks) == (0.0, 0.5, 0.0, 1)
