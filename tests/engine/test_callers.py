"""Who calls an engine, and how: threads, forked children, streams side by side, bad requests among good ones."""

import asyncio
import itertools
import os
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch

from zweave import AsyncEngine, Engine, Request, Sampling, ZweaveError
from zweave.request import Result
from zweave.trace.step import StepTrace

PROMPT = [3, 14, 15, 9, 26]


@pytest.fixture(scope="module")
def engine(tiny_engine: Callable[..., Engine]) -> Engine:
    return tiny_engine(kv_tokens=256)


def request(max_tokens: int = 6, **fields: object) -> Request:
    return Request(PROMPT, max_tokens=max_tokens, ignore_eos=True, **fields)


def in_a_thread(function: Callable[[], object]) -> list[object]:
    """What a function returns or raises in a thread of its own."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(function())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    return outcome


CALLS: dict[str, Callable[[Engine], object]] = {
    "generate": lambda engine: engine.generate(request()),
    "run": lambda engine: list(engine.run([request()])),
    "stream": lambda engine: list(engine.stream(request())),
    "add": lambda engine: engine.add(request()),
    "step": lambda engine: engine.step(),
    "pooled_states": lambda engine: engine.pooled_states([PROMPT], [1]),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_second_thread_is_refused_while_a_call_runs(engine: Engine, name: str) -> None:
    wanted = engine.generate(request())
    seen: list[object] = []

    def from_another_thread(_: StepTrace) -> None:
        engine.observer = None
        seen.extend(in_a_thread(lambda: CALLS[name](engine)))

    engine.observer = from_another_thread
    assert engine.generate(request()) == wanted
    assert isinstance(seen[0], ZweaveError) and "AsyncEngine" in str(seen[0])
    assert "\n" not in str(seen[0]) and not engine.has_work
    assert in_a_thread(lambda: engine.generate(request())) == [wanted], "between calls any thread may call"


def test_any_thread_may_load_look_and_cancel(engine: Engine) -> None:
    expert = engine.bank.registered("a").read()

    def meanwhile(_: StepTrace) -> None:
        engine.observer = None

        def work() -> str:
            engine.load_expert("another", expert)
            engine.unload_expert("another")
            engine.check(request(expert="a"))
            engine.stats()
            engine.cancel(cancelled)
            return "done"

        assert in_a_thread(work) == ["done"]

    engine.observer = meanwhile
    cancelled = engine.add(request(50))
    engine.generate(request(3))
    results = [delta.result for delta in engine.step() if delta.result]
    assert [result.finish_reason for result in results] == ["cancelled"]
    assert not engine.has_work


def test_a_stream_left_half_read_locks_nobody_out(engine: Engine) -> None:
    wanted = engine.generate(request(20))[0]
    stream = engine.stream(request(20))
    first = next(stream)
    assert in_a_thread(lambda: engine.generate(request(20))) == [[wanted]]
    assert [first, *stream][-1].result == wanted


def test_a_stream_whose_reader_is_refused_ends_its_request(engine: Engine) -> None:
    stream = engine.stream(request(20))
    next(stream)
    seen: list[object] = []

    def read_on(_: StepTrace) -> None:
        engine.observer = None
        seen.extend(in_a_thread(lambda: next(stream)))

    engine.observer = read_on
    engine.generate(request(3))
    assert isinstance(seen[0], ZweaveError)
    assert engine.step() == [] and not engine.has_work


def test_streams_side_by_side_lose_nothing(engine: Engine) -> None:
    wanted = [engine.generate(request(count))[0] for count in (9, 5)]
    streams = [engine.stream(request(count)) for count in (9, 5)]
    tokens: list[list[int]] = [[], []]
    results: list[Result | None] = [None, None]
    while None in results:
        for index, stream in enumerate(streams):
            for delta in itertools.islice(stream, 1):
                tokens[index] += delta.token_ids
                results[index] = delta.result
    assert results == wanted and tokens == [result.token_ids for result in wanted]


def test_an_engine_that_an_async_engine_serves_is_not_called_directly(engine: Engine) -> None:
    async def main() -> None:
        async with AsyncEngine(engine) as serving:
            await serving.generate(request(2))
            with pytest.raises(ZweaveError, match="AsyncEngine"):
                engine.generate(request())
            with pytest.raises(ZweaveError, match="another thread is using this engine"):
                AsyncEngine(engine)
            assert (await serving.generate(request(2))).finish_reason == "length"

    asyncio.run(main())
    assert len(engine.generate(request())[0].token_ids) == 6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("name", [*CALLS, "new", "async"])
def test_a_forked_child_is_told_to_spawn(engine: Engine, name: str) -> None:
    calls = CALLS | {
        "new": lambda engine: Engine("nothing is read"),
        "async": lambda engine: asyncio.run(AsyncEngine(engine).generate(request())),
    }
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            calls[name](engine)
        except BaseException as error:
            os.write(writer, f"{type(error).__name__} {error}".encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    told = os.read(reader, 1000).decode()
    os.close(reader)
    assert told.startswith("ZweaveError") and "get_context('spawn')" in told


def test_a_bad_request_is_named_by_its_index(engine: Engine) -> None:
    long = Request([5] * 600)
    with pytest.raises(
        ZweaveError, match=r"^request 1: the prompt has 600 tokens.*most 255.*kv_tokens \(--kv-tokens\)"
    ):
        engine.generate([request(), long, request()])
    with pytest.raises(ZweaveError, match=r"^the prompt has 600 tokens"):
        engine.generate(long)
    with pytest.raises(ZweaveError, match=r"^request 0: there is no expert 'none'"):
        list(engine.run([request(expert="none"), request()]))
    assert not engine.has_work


def test_a_bad_request_may_fail_alone(engine: Engine) -> None:
    wanted = engine.generate([request(), request(expert="a")])
    bad = [Request([5] * 600), request(expert="none")]
    found = engine.generate([bad[0], request(), bad[1], request(expert="a")], on_error="result")
    assert [found[1], found[3]] == wanted
    assert [result.finish_reason for result in found] == ["error", "length", "error", "length"]
    assert "600 tokens" in (found[0].error or "") and "'none'" in (found[2].error or "")
    assert found[2].expert == "none" and found[2].token_ids == []
    with pytest.raises(ZweaveError, match="on_error"):
        engine.generate(request(), on_error="skip")


def test_a_prompt_too_long_for_the_model_says_so(tiny_engine: Callable[..., Engine]) -> None:
    with pytest.raises(
        ZweaveError, match=r"513 tokens, and this model takes at most 511: .*max_model_len .* 513"
    ):
        tiny_engine(kv_tokens=1024).generate(Request([5] * 513))
    with pytest.raises(
        ZweaveError, match=r"64 tokens, and this model takes at most 39: .*max_model_len .* 64"
    ):
        tiny_engine(kv_tokens=1024, max_model_len=40).generate(Request([5] * 64))


@pytest.mark.parametrize("library", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_numbers_of_other_libraries(engine: Engine, library: Callable[[object], object]) -> None:
    plain = Request(
        PROMPT,
        expert={"a": [0.5, 0.25]},
        max_tokens=4,
        logprobs=2,
        score=[3, 4],
        sampling=Sampling(temperature=0.5, top_k=5, top_p=0.75, min_p=0.0, seed=7),
    )
    sampling = Sampling(
        temperature=library(0.5), top_k=library(5), top_p=library(0.75), min_p=library(0), seed=library(7)
    )
    arrays = Request(
        library(PROMPT),
        expert={"a": library([0.5, 0.25])},
        max_tokens=library(4),
        logprobs=library(2),
        score=library([3, 4]),
        sampling=sampling,
    )
    scalars = Request(
        list(library(PROMPT)),
        expert={"a": list(library([0.5, 0.25]))},
        max_tokens=library([4])[0],
        logprobs=2,
        score=tuple(library([3, 4])),
        sampling=sampling,
    )
    assert arrays.mixture == scalars.mixture == plain.mixture
    assert type(arrays.max_tokens) is int and type(sampling.temperature) is float
    assert engine.generate(arrays) == engine.generate(scalars) == engine.generate(plain)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": np.array([[3, 4]])}, r"shape \[1, 2\]: give one row"),
        ({"prompt": torch.tensor([[3, 4]])}, r"shape \[1, 2\]: give one row"),
        ({"prompt": np.array(3)}, "prompt must be text or a list of token ids"),
        ({"prompt": np.array([], dtype=np.int64)}, "empty"),
        ({"prompt": [3], "max_tokens": np.float64(2)}, "max_tokens"),
        ({"prompt": [3], "max_tokens": np.array([2])}, "max_tokens"),
        ({"prompt": [3], "max_tokens": torch.tensor([2])}, "max_tokens"),
        ({"prompt": [3], "max_tokens": torch.tensor(True)}, "max_tokens"),
        ({"prompt": [3], "max_tokens": np.True_}, "max_tokens"),
    ],
    ids=str,
)
def test_what_is_no_number_in_other_libraries(fields: dict, message: str) -> None:
    with pytest.raises(ZweaveError, match=message):
        Request(**fields)
    for bad in (
        np.float32("nan"),
        torch.tensor(float("inf")),
        np.array([0.5]),
        torch.tensor(1j),
        np.str_("1"),
    ):
        with pytest.raises(ZweaveError, match="temperature"):
            Sampling(temperature=bad)


@pytest.mark.parametrize(
    "tokens", [np.array([1.5, 2.0]), [np.float32(1)], [True], torch.tensor([True])], ids=str
)
def test_token_ids_are_integers(engine: Engine, tokens: object) -> None:
    with pytest.raises(ZweaveError, match="token ids must be integers from 0 to 95"):
        engine.generate(Request(tokens))
