"""Requests that describe their expert: as under the expert itself, each its own, and told where it cannot be."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from zweave.checkpoint import resolve_model
from zweave.describe import describer
from zweave.describe.generator import Generator, GeneratorConfig
from zweave.describe.generator_file import TrainedGenerator
from zweave.describe.tasks.hidden_task import BARE
from zweave.describe.token_states import TokenStates
from zweave.dispatch import FixedDispatcher
from zweave.engine import AsyncEngine, Engine, described
from zweave.errors import ZweaveError
from zweave.request import Description, Request


class Lengths:
    """An encoder that needs no weights."""

    name, width = "lengths", 8

    def encode(self, texts: list[str]) -> TokenStates:
        states = torch.nn.functional.one_hot(torch.tensor([[len(text) % 8] for text in texts]), 8).float()
        return TokenStates(states, torch.ones(len(texts), 1, dtype=torch.bool))


@pytest.fixture
def engine(tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """With a random generator."""
    directory = str(tiny_model("llama"))
    engine = Engine(directory, dtype="float32")
    ranks = {name: shape[0] for name, shape in engine.bank.tables.layout.shapes.items()}
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(8, task=16, code=8), ranks)
    torch.nn.init.normal_(generator.parts[0].basis)
    digest = resolve_model(directory).digest()
    trained = TrainedGenerator(generator, "lengths", digest, BARE, ["a"], torch.ones(1, 8))
    trained.save(tmp_path / "g.safetensors")
    monkeypatch.setattr(describer, "open_encoder", lambda name, model: Lengths())
    engine.load_generator(tmp_path / "g.safetensors")
    return engine


def asked(*experts: object) -> list[Request]:
    return [Request("some text", expert=expert, max_tokens=6, logprobs=2) for expert in experts]


def test_a_description_is_served_as_its_expert_is(engine: Engine, tmp_path: Path):
    engine.describe("yes if so").save(tmp_path / "e.safetensors", half=True)
    engine.load_expert("file", tmp_path / "e.safetensors")
    one, file, other, base = engine.generate(
        asked(Description("yes if so"), "file", Description("no if so, else yes"), None)
    )
    assert one.token_ids == file.token_ids and one.logprobs == file.logprobs
    assert one.logprobs != other.logprobs and one.logprobs != base.logprobs
    assert one.asked == "Text: some text\nThe answer is"


def test_the_oldest_are_forgotten_and_come_again(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(described, "_KEPT", 2)
    texts = ["a", "aa", "aaa", "a"]
    results = [engine.generate(asked(Description(text)))[0] for text in texts]
    assert results[0].logprobs == results[3].logprobs
    assert len([name for name in engine.experts() if name.startswith("described/")]) == 2


@pytest.mark.parametrize("text", ["", " ", 3, "x" * 2001, "\udc00"])
def test_what_is_no_description_disturbs_nothing_else(engine: Engine, text: object):
    with pytest.raises(ZweaveError) as raised:
        Description(text)
    assert "\n" not in str(raised.value)
    with pytest.raises(ZweaveError):
        engine.describe(text)
    assert engine.generate(asked(None))[0].error is None


def test_without_a_generator_it_is_told(tiny_model: Callable[..., Path]):
    engine = Engine(str(tiny_model("llama")), dtype="float32")
    with pytest.raises(ZweaveError, match="no generator to make experts of descriptions"):
        engine.generate(asked(Description("yes if so")))
    with pytest.raises(ZweaveError, match="no generator"):
        engine.describe("yes if so")
    with pytest.raises(ZweaveError, match="there is no generator"):
        engine.load_generator("/nowhere.safetensors")


def test_a_description_is_who_answers_where_a_dispatcher_is_unsure(engine: Engine):
    auto = Request("some text", expert="auto", dispatcher=FixedDispatcher(None), max_tokens=6, logprobs=2)
    described, unsure, base = engine.generate(
        [*asked(Description("yes if so")), replace(auto, fallback=Description("yes if so")), auto]
    )
    assert unsure.expert == described.expert and unsure.asked == described.asked
    assert unsure.logprobs == described.logprobs != base.logprobs


def test_what_is_far_from_all_that_it_knows_is_refused(engine: Engine):
    known = engine._described._describer
    known.trained.known.copy_(torch.nn.functional.one_hot(torch.tensor([1]), 8))
    known.trained.training["far"] = 0.5
    assert engine.generate(asked(Description("a")))[0].error is None
    with pytest.raises(ZweaveError, match=r"far from all .* \(nearest: a, cosine 0.00\)"):
        engine.generate(asked(Description("aa")))
    assert engine.generate(asked(None))[0].error is None


class Waiting(Lengths):
    """An encoder that takes until it may end, or 5 s.

    begun: set when it has been asked.
    ended: whether it was told to end each time.
    """

    def __init__(self) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()
        self.ended: list[bool] = []

    def encode(self, texts: list[str]) -> TokenStates:
        self.begun.set()
        self.ended.append(self.may_end.wait(5))
        return super().encode(texts)


@pytest.mark.parametrize(
    "who",
    [
        {"expert": Description("yes if so")},
        {"expert": "auto", "dispatcher": FixedDispatcher(None), "fallback": Description("yes if so")},
    ],
    ids=["expert", "fallback"],
)
def test_others_are_answered_while_an_expert_is_made(engine: Engine, who: dict[str, object]):
    encoder = engine._described._describer._encoder = Waiting()
    request = replace(asked(None)[0], **who)

    async def main() -> object:
        async with AsyncEngine(engine) as serving:
            described = asyncio.create_task(serving.generate(request))
            await asyncio.to_thread(encoder.begun.wait)
            await serving.generate(asked(None)[0])
            encoder.may_end.set()
            return await described

    answer = asyncio.run(main())
    assert encoder.ended == [True]
    assert answer.logprobs == engine.generate(asked(Description("yes if so")))[0].logprobs


def test_a_closed_engine_makes_no_expert(engine: Engine):
    encoder = engine._described._describer._encoder = Waiting()

    async def main() -> list[object]:
        serving = AsyncEngine(engine)
        tasks = [asyncio.create_task(serving.generate(one)) for one in asked(*map(Description, "ab"))]
        await asyncio.to_thread(encoder.begun.wait)
        await serving.close()
        encoder.may_end.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    errors = asyncio.run(main())
    assert [str(error).partition(":")[0] for error in errors] == ["the engine is closed"] * 2
    assert encoder.ended == [True]


def test_one_expert_is_made_at_a_time(engine: Engine):
    class Alone(Lengths):
        """Notes whether another thread is in it."""

        def __init__(self) -> None:
            self.lock, self.found = threading.Lock(), []

        def encode(self, texts: list[str]) -> TokenStates:
            self.found.append(self.lock.acquire(blocking=False))
            time.sleep(0.05)
            self.lock.release()
            return super().encode(texts)

    encoder = engine._described._describer._encoder = Alone()
    with ThreadPoolExecutor(4) as pool:
        made = [
            pool.submit(make, text) for make in (engine.describe, engine.load_description) for text in "ab"
        ]
    assert [future.exception() for future in made] == [None] * 4
    assert encoder.found == [True] * 2


def test_what_a_generator_makes_is_not_named_as_of_the_one_before(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    old = engine._described._describer
    key, digest = old.key, old.trained.digest
    other = TrainedGenerator.load(tmp_path / "g.safetensors")
    other.generator.parts[0].basis.data.neg_()
    other.save(tmp_path / "other.safetensors")
    loading = threading.Thread(target=engine.load_generator, args=(tmp_path / "other.safetensors",))

    def key_while_loading(description: Description) -> str:
        if loading.ident is None:
            loading.start()
            loading.join(0.3)
        return key(description)

    monkeypatch.setattr(old, "key", key_while_loading)
    first = engine.load_description("a")
    loading.join()
    second = engine.load_description("a")
    made = [engine.bank.expert(name).training["generator"] for name in (first, second)]
    assert made[0] == digest != made[1]
