"""The default model under its bundled experts."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from digests import of_tensors, serve
from dispatched import EarlyClassifier
from models import bundled, randn, smollm2_engine

from zweave import Request, Sampling, prompts
from zweave.dispatch import HiddenDispatcher, PromptDispatcher, Routes

MIXTURES: list[Any] = [
    {"sst2": 0.5, "trec": 0.5},
    {"sst2": [0.5] * 10 + [0.25] * 20, "trec": [0.25] * 10 + [0.5] * 20, "addition": 0.25},
    {"sst2-after-prompt": 0.7, "addition-after-prompt": 0.3},
    {"sst2-late": 0.5, "trec-middle": 1.0},
]
SAMPLINGS = [Sampling(1.0, seed=7), Sampling(0.8, top_k=40, top_p=0.9, min_p=0.02, seed=8)]
TEXTS = (
    prompts.sentiment("a gorgeous , witty , seductive movie ."),
    prompts.question_type("What is the capital of Yugoslavia ?"),
    prompts.addition(47, 38),
    prompts.domain("The stock market fell by three percent on Tuesday."),
)
KEPT_MEMORY = {  # Bytes and max_error: int8 beside few components, and int4.
    "float32": [(740_081_664, 0.05)],
    "bfloat16": [(264_314_880, 0.05), (317_177_856, 0.15)],
}


def cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    for dtype in ("float32", "bfloat16"):
        yield f"{dtype}/chunked and preempted", partial(cramped, dtype)
        for memory, error in KEPT_MEMORY[dtype]:
            yield f"{dtype}/{memory} bytes", partial(limited, dtype, memory, error)
        yield f"{dtype}/batch planner", partial(planned, dtype)
        yield f"{dtype}/dispatched", partial(dispatched, dtype)


def on_two_threads() -> Iterator[tuple[str, Callable[[], Any]]]:
    for dtype in ("float32", "bfloat16"):
        yield f"{dtype}/mixed", partial(mixed, dtype)


def experts() -> list[Any]:
    return [None, *bundled(), "sst2-late", "trec-middle", *MIXTURES]


def traffic(choices: list[Any], tokens: int = 4) -> list[Request]:
    """A text for each expert, most of them greedy, and all of them with the log-probabilities of 100 tokens."""
    return [
        Request(
            TEXTS[i % len(TEXTS)],
            expert=choice,
            max_tokens=tokens,
            logprobs=100,
            sampling=SAMPLINGS[i // 5 % 2] if i % 5 == 4 else Sampling(),
            score=(5, 900, 30000) if i % 6 == 5 else (),
            ignore_eos=True,
        )
        for i, choice in enumerate(choices)
    ]


def mixed(dtype: str) -> Any:
    """Every expert beside every other, then their next turns and what else finds something in the cache."""
    engine = smollm2_engine(dtype)
    first = serve(engine, traffic(experts()))
    turns = [
        Request(
            messages=[
                {"role": "user", "content": "Tell me of the sea."},
                {"role": "assistant", "content": result["text"]},
                {"role": "user", "content": "And of the moon?"},
            ],
            expert=expert,
            max_tokens=4,
            logprobs=100,
            stop=[" is", "\n"],
        )
        for expert, result in list(zip(experts(), first["results"], strict=True))[::3]
    ]
    others = [
        Request(TEXTS[i % 4], expert=expert, max_tokens=3, logprobs=100, **fields)
        for i, (expert, fields) in enumerate(
            [
                ("trec", {"kv_reuse": "approximate"}),
                ("sst2", {"salt": "tenant"}),
                ("sst2-late", {}),
                ("trec-middle", {}),
                ("domains", {"kv_reuse": "approximate"}),
                ("addition-after-prompt", {}),
            ]
        )
    ]
    prompt_ids = [engine.tokenizer.encode(text) for text in TEXTS[:2]]
    states = engine.pooled_states(prompt_ids, [3, 12])
    return [first, serve(engine, turns), serve(engine, others), of_tensors(states)]


def cramped(dtype: str) -> Any:
    """Prompts in small pieces, and fewer places for keys and values than the requests take together."""
    engine = smollm2_engine(dtype, max_batch_tokens=32, max_sequences=8, kv_tokens=240, slots=5)
    licence = (Path(__file__).parents[2] / "LICENSE").read_text()
    long = Request(engine.tokenizer.encode(licence)[:120], expert="sst2", max_tokens=3, logprobs=100)
    return serve(engine, [long, *traffic(experts()[::3], tokens=20)])


def limited(dtype: str, memory: int, error: float) -> Any:
    """Matrices that keep less than all."""
    engine = smollm2_engine(dtype, max_memory=memory, max_error=error)
    return serve(engine, traffic([None, "sst2", "trec-leading", "sst2-leading", MIXTURES[2]]))


def planned(dtype: str) -> Any:
    """Ways that are chosen for a batch: few tokens of many kinds, then many of one."""
    engine = smollm2_engine(dtype, batch_invariant=False)
    return [
        serve(engine, traffic([None, "sst2", "trec-leading", "domains"])),
        serve(engine, traffic([None, None, None, "trec"])),
    ]


def dispatched(dtype: str) -> Any:
    """A first pass that asks, one that reads an early state, and one that ends below an expert's first layer."""
    engine = smollm2_engine(dtype)
    routes = Routes(
        {" review": "sst2", " question": "trec", " maths": "addition-after-prompt", " news": None}
    )
    asking = PromptDispatcher(routes, prompts.DOMAIN_QUESTION, prompts.DOMAIN_OPENING, expert="domains")
    weight = randn("classifier", 2, 576)
    classifier = EarlyClassifier(("x", "y"), 8, weight - weight.mean(), torch.zeros(2))
    dispatchers = [
        asking.calibrated(engine, ["N/A", "some text"]),
        HiddenDispatcher(classifier, Routes({"x": "sst2-after-prompt", "y": "trec-after-prompt"})),
        HiddenDispatcher(classifier, Routes({"x": "sst2-late", "y": "trec-middle"}, soft=True)),
    ]
    texts = ("a dull film", "Who wrote this ?", "What is 3 + 4?")
    return serve(
        engine,
        [
            Request(
                messages=[{"role": "user", "content": text}],
                expert="auto",
                dispatcher=dispatcher,
                max_tokens=3,
                logprobs=100,
            )
            for text in texts
            for dispatcher in dispatchers
        ],
    )
