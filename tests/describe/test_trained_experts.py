"""Experts that were trained directly: an oracle for a task, and mixtures by how alike descriptions are."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from zweave.describe.describer import Describer
from zweave.describe.encoders import Encoder
from zweave.describe.generator_file import TrainedGenerator
from zweave.describe.trained_experts import TrainedExperts, load_static
from zweave.errors import ZweaveError
from zweave.experts import Expert


def an_expert(trained: TrainedGenerator, task: str, description: str, value: float) -> Expert:
    ranks = trained.generator.ranks
    return Expert(
        z={
            name: torch.full((rank,), value) for name, rank in list(ranks.items())[: 3 if value < 1 else None]
        },
        base_digest=trained.base_digest,
        scope="after_prompt",
        description=description,
        training={"task": f"hidden:{task}"},
    )


@pytest.fixture
def folder(trained: TrainedGenerator, tmp_path: Path) -> Path:
    for task, said, value in (
        ("good", "is it good", 0.5),
        ("long", "how long", 1.5),
        ("new", "is it new", 1.25),
    ):
        an_expert(trained, task, said, value).save(tmp_path / f"{task}.safetensors")
    replace(an_expert(trained, "x", "", 1.5), training={}).save(tmp_path / "other.safetensors")
    return tmp_path


def test_an_oracle_is_the_tasks_own(folder: Path, trained: TrainedGenerator):
    found = TrainedExperts.load(folder, trained.base_digest)
    assert sorted(found.experts) == ["good", "long", "new"]
    oracle = found.of("new")
    assert oracle is not None and all((part == 1.25).all() and len(part) == 1 for part in oracle.values())
    assert found.of("old") is None


def test_known_tasks_are_mixed_by_how_alike_they_are_described(
    folder: Path, trained: TrainedGenerator, letters: Encoder
):
    found, describer = TrainedExperts.load(folder, trained.base_digest), Describer(trained, letters)
    mixed = found.mixed(["is it good", "how long", "is it long"], describer)
    names = list(trained.generator.ranks)
    assert mixed is not None and set(mixed) == set(names)
    first, last = mixed[names[0]], mixed[names[-1]]
    near = letters.encode(["is it good", "how long"]).mean()
    alike = float(near[0] @ near[1])
    share = 1 / (1 + torch.exp(torch.tensor((alike - 1) / 0.05)))
    torch.testing.assert_close(first[0], (0.5 * share + 1.5 * (1 - share)).expand(first.shape[1]))
    # A matrix that an expert leaves alone counts as 1; "new" is not known to the generator and never mixed.
    torch.testing.assert_close(last[1], (share * 1.5 + (1 - share) * 1).expand(last.shape[1]))
    assert first[1].mean() > first[2].mean() > first[0].mean()
    few = TrainedExperts({"new": found.experts["new"]})
    assert few.mixed(["is it new"], describer) is None


def test_what_cannot_be_compared_is_told(folder: Path, trained: TrainedGenerator, tmp_path: Path):
    with pytest.raises(ZweaveError, match="trained for other weights"):
        TrainedExperts.load(folder, "0" * 64)
    path = folder / "good.safetensors"
    assert load_static(path, trained.base_digest).training["task"] == "hidden:good"
    with pytest.raises(ZweaveError, match="no expert of zweave train-describe --static for this model"):
        load_static(path, "0" * 64)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ZweaveError, match="holds no experts of hidden tasks: run zweave bench hidden-tasks"):
        TrainedExperts.load(tmp_path / "empty", trained.base_digest)
