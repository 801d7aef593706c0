"""Requests of every kind on tiny models, in engines of every kind."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

from digests import of_result, of_tensors, serve
from models import TINY, VOCABULARY, randn, tiny_engine, tiny_experts
from surroundings import threads_at_once

from zweave import AsyncEngine, Engine, Request, Sampling, ZweaveError

PROMPT = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9, 32, 38, 46, 26, 4, 33, 8, 32, 7, 9]
CHOICES: list[Any] = [
    None,
    "a",
    {"a": 0.5, "b": 0.5},
    "late",
    "tail",
    {"b": [1.2, -0.3, 0.7]},
    "leading",
    "sum",
    {"a": 2.0, "late": -1.0},
    "last",
    "sparse",
    "weak",
    None,
    "tail-late",
    "queries",
    {"tail": 0.5, "tail-late": [0.25, 1.0, 1.5]},
]
SAMPLINGS = [
    Sampling(),
    Sampling(1.0, seed=1),
    Sampling(),
    Sampling(0.7, top_k=5, seed=2),
    Sampling(1.5, top_p=0.9, seed=2**63),
    Sampling(),
    Sampling(1.0, top_k=20, top_p=0.95, min_p=0.05, seed=3),
]
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "chunked": {"max_batch_tokens": 5, "max_sequences": 5},
    "preempted": {"kv_tokens": 60, "slots": 4},
    "without prefix cache": {"prefix_cache": False, "block_size": 6},
    "one slot": {"slots": 1, "max_batch_tokens": 24, "max_sequences": 6},
    "batch planner": {"batch_invariant": False},
}
# Bytes and max_error with which matrices keep their factors alone, int8, int4, or few components.
MEMORY = {
    "float32": [(201523, 0.0), (176332, 0.02), (151142, 0.9), (113356, 0.9)],
    "bfloat16": [(100761, 0.0), (75571, 0.9), (62976, 0.9)],
}


def cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    for dtype in ("float32", "bfloat16"):
        for name, options in OPTIONS.items():
            yield f"{dtype}/{name}", partial(twice, "llama", dtype, options)
        for name in TINY:
            if name != "llama":
                yield f"{dtype}/{name}", partial(twice, name, dtype, {"max_batch_tokens": 64})
        for memory, error in MEMORY[dtype]:
            options = {"max_memory": memory, "max_error": error}
            yield f"{dtype}/{memory} bytes", partial(twice, "llama", dtype, options)
        for case in (merged, conversations, kinds_of_reuse, cancelled, replaced, ends, refused, pooled):
            yield f"{dtype}/{case.__name__.replace('_', ' ')}", partial(case, dtype)
    yield "async", concurrent


def traffic(count: int) -> list[Request]:
    """Requests that begin alike in many ways, under everything that an engine can compute."""
    tails = ((randn("tails", count, 12).abs() * 40).long() % VOCABULARY).tolist()
    return [
        Request(
            (PROMPT * 2)[: 3 * i % 40] + tails[i][: 1 + i % 4],
            expert=CHOICES[i % len(CHOICES)],
            max_tokens=1 + i % 9,
            ignore_eos=i % 8 != 3,
            logprobs=VOCABULARY if i % 6 else None,
            sampling=SAMPLINGS[i % len(SAMPLINGS)],
            salt=(None, None, "tenant")[i % 3],
            score=(5, 90, 5) if i % 10 == 4 else (),
            kv_reuse="approximate" if i % 5 == 4 else "exact",
        )
        for i in range(count)
    ]


def twice(model: str, dtype: str, options: dict[str, Any]) -> Any:
    """A mixed batch, and once more from the back, when much of it is in the cache."""
    engine, requests = tiny_engine(model, dtype, **options), traffic(48)
    return [serve(engine, requests), serve(engine, requests[::-1])]


def merged(dtype: str) -> Any:
    """One expert after the other in such use that its weights are merged, in a budget for one."""
    engine = tiny_engine("llama", dtype, batch_invariant=False, merge_memory=100_000, prefix_cache=False)
    found = []
    with threads_at_once():
        for name in ("a", {"a": 0.5, "b": 0.5}, "a", "tail"):
            requests = [
                Request(PROMPT * 6 + [i], expert=name, max_tokens=4, logprobs=VOCABULARY) for i in range(8)
            ]
            others = [
                Request(PROMPT[i:], expert=c, max_tokens=9) for i, c in enumerate((None, "b", None, "late"))
            ]
            found.append(serve(engine, [*requests, *others]))
    return found


def conversations(dtype: str) -> Any:
    """Three turns each under some experts; the turns of all in one batch."""
    engine = tiny_engine("llama", dtype, kv_tokens=1024)
    experts = [None, "a", {"a": 0.5, "late": 0.25}, "tail", "late", "tail-late"]
    messages: list[list[dict[str, str]]] = [[] for _ in experts]
    turns = []
    for turn in range(3):
        for one in messages:
            one.append({"role": "user", "content": f"turn {turn} of a talk"})
        requests = [
            Request(messages=list(one), expert=expert, max_tokens=7, logprobs=VOCABULARY, ignore_eos=True)
            for one, expert in zip(messages, experts, strict=True)
        ]
        turns.append(serve(engine, requests))
        for one, result in zip(messages, turns[-1]["results"], strict=True):
            one.append({"role": "assistant", "content": result["text"]})
    # The last turn of the assistant is continued.
    return [*turns, serve(engine, [Request(messages=one, expert="a", max_tokens=3) for one in messages])]


def kinds_of_reuse(dtype: str) -> Any:
    """One request after the other, each of which finds something else in the cache."""
    engine = tiny_engine("llama", dtype)
    chat = engine.tokenizer.chat([{"role": "user", "content": "ab cd ef gh ij"}])
    asked: list[tuple[list[int], Any, dict[str, Any]]] = [
        (chat, None, {}),
        (chat, None, {}),
        (chat, "tail", {}),
        (chat, "tail", {}),
        (chat, "late", {}),
        (chat, "late", {}),
        (chat, "last", {}),
        (chat, {"late": 0.5, "last": 0.5}, {}),
        (chat, "tail-late", {}),
        (chat, "b", {"kv_reuse": "approximate"}),
        (chat, "b", {}),
        (chat, "b", {"salt": "tenant"}),
        (chat, "b", {"salt": "tenant"}),
        (chat[:-4], "b", {}),
        ([*chat[:13], 5, 6, 7, 8], "late", {}),
        ([*chat, 5, 6], None, {}),
    ]
    return [
        serve(engine, [Request(prompt, expert=expert, max_tokens=6, ignore_eos=True, logprobs=96, **fields)])
        for prompt, expert, fields in asked
    ]


def cancelled(dtype: str) -> Any:
    """Requests that end early, amid their prompts and answers, and others that had shared theirs."""
    engine = tiny_engine("llama", dtype, max_batch_tokens=8, max_sequences=8)
    return serve(engine, traffic(16), cancel={0: 0, 3: 1, 6: 2, 8: 5, 9: 9})


def replaced(dtype: str) -> Any:
    """Experts that are replaced and unloaded under way."""
    engine, experts = tiny_engine("llama", dtype), tiny_experts("llama")
    requests = [
        Request(PROMPT, expert=name, max_tokens=8, logprobs=96) for name in ("a", "late", "tail", "b")
    ]
    found = [serve(engine, requests)]
    stream = engine.stream(requests[0])
    next(stream)
    engine.load_expert("a", experts["b"])
    found.append([of_result(delta.result) for delta in stream if delta.result])
    engine.load_expert("late", experts["last"])
    engine.unload_expert("tail")
    found.append(serve(engine, [requests[0], requests[1], requests[3]]))
    engine.load_expert("tail", experts["tail"])
    return [*found, serve(engine, requests), engine.experts()]


def ends(dtype: str) -> Any:
    """Answers that end by stop strings, the end token, max_tokens and the context's end."""
    engine = tiny_engine("llama", dtype, kv_tokens=48)
    (free,) = engine.generate(Request(PROMPT, max_tokens=20, ignore_eos=True, sampling=Sampling(1.0, seed=1)))
    stops = ["", "", free.text[3:5] or "x", [free.text[6:7] or "x", "never"]]
    requests = [
        Request(
            PROMPT,
            max_tokens=(5, 1000, 20, 20)[i],
            stop=stop or None,
            ignore_eos=i < 2,
            sampling=Sampling(1.0, seed=1),
        )
        for i, stop in enumerate(stops)
    ]
    seeds = [Request(PROMPT[:3], max_tokens=20, sampling=Sampling(3.0, seed=seed)) for seed in range(12)]
    return [serve(engine, requests), serve(engine, seeds)]


def refused(dtype: str) -> Any:
    """What cannot be served, alone and beside what can."""
    engine = tiny_engine("llama", dtype, slots=2)
    wrong: list[dict[str, Any]] = [
        {"prompt": PROMPT, "expert": "nobody"},
        {"prompt": PROMPT, "expert": "auto"},
        {"prompt": PROMPT, "expert": {"a": [1.0]}},
        {"prompt": PROMPT, "expert": {"a": 0.5, "tail": 0.5}},
        {"prompt": PROMPT, "expert": {"a": 0.5, "sum": 0.5}},
        {"prompt": [96]},
        {"prompt": [1] * 600},
        {"prompt": PROMPT, "score": [96]},
    ]
    found: list[Any] = []
    for fields in wrong:
        try:
            engine.check(Request(**fields))
            found.append(None)
        except ZweaveError as error:
            found.append(str(error))
    broken = Request(PROMPT, expert={"a": 1e30}, max_tokens=4)
    return [*found, serve(engine, [broken, *traffic(6)])]


def pooled(dtype: str) -> Any:
    """Mean states of prompts of many lengths, of layers in any order."""
    engine = tiny_engine("llama", dtype, max_batch_tokens=9, max_sequences=9)
    prompts = [PROMPT[:n] for n in (1, 2, 9, 21)]
    states = engine.pooled_states(prompts, [2, 1, 3])
    return [of_tensors(states), asdict(engine.stats())]


def concurrent() -> Any:
    """Requests of coroutines. Which of them share a step is not known, so nothing of the way is kept."""

    async def gather(engine: Engine) -> list[Any]:
        async with AsyncEngine(engine) as serving:
            return await asyncio.gather(*(serving.generate(request) for request in traffic(12)))

    results = asyncio.run(gather(tiny_engine("llama", "float32")))
    return [{k: v for k, v in of_result(result).items() if k != "reuse"} for result in results]
