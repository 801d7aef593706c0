import asyncio
from collections.abc import Callable

import pytest

from zweave import AsyncEngine, Engine, Request, ZweaveError

PROMPTS = [[3, 14, 15], [9, 26, 5, 35], [8], [9, 7, 9, 32, 38]]


@pytest.fixture
def engine(tiny_engine: Callable[..., Engine]) -> Engine:
    return tiny_engine()


def requests(max_tokens: int = 12) -> list[Request]:
    return [
        Request(prompt, expert=expert, max_tokens=max_tokens, ignore_eos=True, logprobs=3)
        for prompt, expert in zip(PROMPTS, (None, "a", "b", {"a": 0.5, "b": 0.5}), strict=True)
    ]


def test_concurrent_requests_equal_a_sync_batch(engine: Engine) -> None:
    wanted = engine.generate(requests())

    async def main() -> list:
        async with AsyncEngine(engine) as serving:
            return await asyncio.gather(*(serving.generate(request) for request in requests()))

    assert asyncio.run(main()) == wanted


def test_stream_gives_the_answer_piece_by_piece(engine: Engine) -> None:
    wanted = engine.generate(requests()[1])[0]

    async def main() -> list:
        async with AsyncEngine(engine) as serving:
            return [delta async for delta in serving.stream(requests()[1])]

    deltas = asyncio.run(main())
    assert "".join(delta.text for delta in deltas) == wanted.text
    assert deltas[-1].result == wanted
    assert len(deltas) == len(wanted.token_ids)


def test_a_cancelled_task_frees_its_request_and_leaves_others_alone(engine: Engine) -> None:
    wanted = engine.generate(requests(40)[0])[0]

    async def main() -> None:
        async with AsyncEngine(engine) as serving:
            doomed = asyncio.create_task(serving.generate(requests(400)[1]))
            other = asyncio.create_task(serving.generate(requests(40)[0]))
            await asyncio.sleep(0.02)
            doomed.cancel()
            with pytest.raises(asyncio.CancelledError):
                await doomed
            assert await other == wanted

    asyncio.run(main())
    engine.step()
    assert not engine.has_work


def test_leaving_a_stream_early_cancels_the_request(engine: Engine) -> None:
    async def main() -> None:
        async with AsyncEngine(engine) as serving:
            stream = serving.stream(requests(400)[0])
            await anext(stream)
            await stream.aclose()
            assert (await serving.generate(requests(2)[1])).finish_reason == "length"
            assert not engine.has_work

    asyncio.run(main())


def test_a_bad_request_fails_alone(engine: Engine) -> None:
    async def main() -> None:
        async with AsyncEngine(engine) as serving:
            good = asyncio.create_task(serving.generate(requests()[0]))
            with pytest.raises(ZweaveError, match="nobody"):
                await serving.generate(Request([1], expert="nobody"))
            assert len((await good).token_ids) == 12

    asyncio.run(main())


def test_a_failing_engine_fails_its_requests_and_takes_no_more(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("the machine is on fire")

    async def main() -> None:
        monkeypatch.setattr(engine, "step", fail)
        async with AsyncEngine(engine) as serving:
            with pytest.raises(RuntimeError, match="on fire"):
                await serving.generate(requests()[0])
            with pytest.raises(ZweaveError, match="closed"):
                await serving.generate(requests()[0])

    asyncio.run(main())


def test_closing_ends_requests_with_an_error(engine: Engine) -> None:
    async def main() -> None:
        serving = AsyncEngine(engine)
        task = asyncio.create_task(serving.generate(requests(400)[0]))
        await asyncio.sleep(0.02)
        await serving.close()
        with pytest.raises(ZweaveError, match="closed"):
            await task
        with pytest.raises(ZweaveError, match="closed"):
            await serving.generate(requests()[0])

    asyncio.run(main())
