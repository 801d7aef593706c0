"""Experts from descriptions: the same by file and in memory, and one clear line for what is none."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from zweave.describe.describer import Describer
from zweave.describe.encoders import Encoder
from zweave.describe.generator_file import TrainedGenerator
from zweave.describe.tasks.hidden_task import BARE
from zweave.engine import Engine
from zweave.errors import ZweaveError
from zweave.experts import Expert
from zweave.request import Request


@pytest.fixture
def describer(trained: TrainedGenerator, letters: Encoder) -> Describer:
    return Describer(trained, letters)


def test_descriptions_make_different_experts_of_the_generators_words(describer: Describer):
    one, other = describer.describe("is it good"), describer.describe("how long")
    assert (one.nearest, other.nearest) == ("good", "long") and one.similarity > 0.7
    assert one.expert.digest != other.expert.digest
    assert not one.is_far and describer.describe("zzz").is_far
    assert one.expert.scope == "after_prompt" and one.expert.prompt_template == BARE
    assert one.expert.description == "is it good"
    assert describer.describe("is it good") is one


def test_only_the_latest_are_kept(describer: Describer):
    first = describer.describe("a first one")
    for index in range(64):
        describer.describe("b" + "c" * index)
    again = describer.describe("a first one")
    assert again is not first and again.expert.digest == first.expert.digest


def test_a_file_holds_the_generator(trained: TrainedGenerator, letters: Encoder, tmp_path: Path):
    path = tmp_path / "g.safetensors"
    trained.save(path)
    read = TrainedGenerator.load(path)
    assert read.digest == trained.digest
    assert read.known_tasks == trained.known_tasks and read.training == trained.training
    torch.testing.assert_close(read.known, trained.known, rtol=0, atol=1e-3)
    one, other = (Describer(each, letters).describe("is it good").expert for each in (trained, read))
    assert all(torch.equal(one.z[name], other.z[name]) for name in one.z)
    whole = path.stat().st_size
    trained.save(path, half=True)
    rounded = Describer(TrainedGenerator.load(path), letters).describe("is it good").expert
    assert path.stat().st_size < 0.7 * whole
    for name in one.z:
        torch.testing.assert_close(rounded.z[name], one.z[name], rtol=0, atol=3e-3)


def test_a_request_under_a_description_is_one_under_its_file(
    describer: Describer, tiny_model: Callable[..., Path], tmp_path: Path
):
    engine = Engine(str(tiny_model("llama")), dtype="float32")
    expert = describer.describe("is it good").expert
    expert.save(tmp_path / "e.safetensors", half=True)
    engine.load_expert("described", expert)
    engine.load_expert("file", tmp_path / "e.safetensors")
    results = engine.generate(
        [Request("some text", expert=name, max_tokens=5, logprobs=3) for name in ("described", "file", None)]
    )
    assert results[0].token_ids == results[1].token_ids and results[0].logprobs == results[1].logprobs
    assert results[0].logprobs != results[2].logprobs
    loaded = Expert.load(tmp_path / "e.safetensors")
    assert all(torch.equal(loaded.z[name], expert.z[name]) for name in expert.z)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "give one"),
        ("  \n", "give one"),
        (7, "give one"),
        ("word " * 10000, "at most 2000 characters, not 50000"),
        ("a \ud800 b", "lone surrogate"),
    ],
)
def test_what_is_no_description_is_told_in_one_line(describer: Describer, text: object, said: str):
    with pytest.raises(ZweaveError, match=said) as raised:
        describer.describe(text)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "text", ["Ist es gut?", "これは良いですか", "{yes}%s\x00\u202e", "<|im_end|>", "!" * 2000, "'; DROP"]
)
def test_any_other_text_makes_an_expert(describer: Describer, text: str):
    assert all(part.isfinite().all() for part in describer.describe(text).expert.z.values())


def test_files_that_are_no_generator_are_told(trained: TrainedGenerator, tmp_path: Path):
    path = tmp_path / "g.safetensors"
    with pytest.raises(ZweaveError, match="there is no such file"):
        TrainedGenerator.load(path)
    trained.save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ZweaveError, match="not a whole safetensors file"):
        TrainedGenerator.load(path)
    Expert({"model.layers.0.mlp.up_proj": torch.ones(3)}).save(path)
    with pytest.raises(ZweaveError, match="the file's format is 'zweave-expert-1'"):
        TrainedGenerator.load(path)
    for fault in (
        {"known_tasks": []},
        {"known_tasks": ["good"]},
        {"known": torch.ones(2, 3)},
        {"training": {"far": "x"}},
    ):
        replace(trained, **fault).save(path)
        with pytest.raises(ZweaveError, match="is not a whole generator"):
            TrainedGenerator.load(path)
    replace(trained, known=torch.full_like(trained.known, float("nan"))).save(path)
    with pytest.raises(ZweaveError, match="holds NaN or infinity"):
        TrainedGenerator.load(path)
    broken = replace(trained, known=torch.full_like(trained.known, 1.0))
    torch.nn.init.constant_(broken.generator.parts[0].norm.bias, float("nan"))
    broken.save(path)
    torch.nn.init.zeros_(broken.generator.parts[0].norm.bias)
    with pytest.raises(ZweaveError, match="holds NaN or infinity"):
        TrainedGenerator.load(path)


def test_a_damaged_header_never_ends_in_another_error(trained: TrainedGenerator, tmp_path: Path):
    path, rng = tmp_path / "g.safetensors", random.Random(0)
    trained.save(path)
    data = bytearray(path.read_bytes())
    for _ in range(60):
        changed = data.copy()
        changed[8 + rng.randrange(2000)] ^= 1 << rng.randrange(7)
        path.write_bytes(changed)
        try:
            TrainedGenerator.load(path)
        except ZweaveError as error:
            assert "\n" not in str(error)


def test_another_models_generator_is_refused(trained: TrainedGenerator, tmp_path: Path):
    path = tmp_path / "g.safetensors"
    trained.save(path)
    with pytest.raises(ZweaveError, match="trained for other weights"):
        Describer.load(path, "smollm2", "0" * 64)
    with pytest.raises(ZweaveError, match="there is no encoder 'letters'"):
        Describer.load(path, "smollm2", trained.base_digest)
