"""Requests whose expert a dispatcher finds: every strategy, on a tiny model, in several engines."""

import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from digests import serve
from models import VOCABULARY, randn, random_z, ranks, tiny, tiny_engine

from zweave import Dispatch, Engine, Expert, Request, Sampling, ZweaveError
from zweave.dispatch import (
    Dispatcher,
    FixedDispatcher,
    HiddenDispatcher,
    PromptDispatcher,
    ReadScores,
    ReadState,
    Routes,
    few_shot,
    load_dispatcher,
)

try:
    from zweave.dispatch import EarlyClassifier
except ImportError:
    from zweave.early_classifier import EarlyClassifier

ALWAYS = {"x": "a", "y": "b", "z": None}
AFTER = {"x": "tail", "y": {"tail": 0.5}, "z": None}
LATE = {"x": "late", "y": "last", "z": {"late": 0.5, "last": 0.5}}
MIXED = {"x": "a", "y": "tail-late", "z": {"a": 0.5, "b": [0.5, 1.5, 1.0]}}
STORY = "the quick brown fox jumps over a lazy dog and runs away from it at once"
WORDS = STORY.split()


def cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    for dtype in ("float32", "bfloat16"):
        for name, make in STRATEGIES.items():
            yield f"{dtype}/{name}", partial(strategies, dtype, make)
        for case in (blocking, failing, files, interrupted, turns):
            yield f"{dtype}/{case.__name__}", partial(case, dtype)


def classifier(layer: int = 1, hidden: int = 32) -> EarlyClassifier:
    """Random, and far enough from even that prompts fall into all of its classes."""
    weight = 3 * randn(f"classifier {layer}", 3, hidden)
    return EarlyClassifier(("x", "y", "z"), layer, weight - weight.mean(), torch.zeros(3))


def hidden(experts: dict[str, Any], layer: int = 1, **fields: Any) -> HiddenDispatcher:
    return HiddenDispatcher(classifier(layer), Routes(experts, **fields))


def asking(experts: dict[str, Any], **fields: Any) -> PromptDispatcher:
    return PromptDispatcher(Routes(experts), "x, y or z?", "It is", **fields)


STRATEGIES: dict[str, Callable[[], list[Dispatcher]]] = {
    "fixed": lambda: [
        FixedDispatcher("a", "label", 0.5),
        FixedDispatcher(None),
        FixedDispatcher({"a": 0.5, "b": 0.5}),
    ],
    "hidden, always": lambda: [hidden(ALWAYS), hidden(ALWAYS, 2), hidden(ALWAYS, soft=True)],
    "hidden, after the prompt": lambda: [hidden(AFTER), hidden(AFTER, 3), hidden(AFTER, threshold=0.9)],
    "hidden, late": lambda: [hidden(LATE), hidden(LATE, 2), hidden(LATE, soft=True)],
    "hidden, mixed": lambda: [hidden(MIXED), hidden(MIXED, 2)],
    "prompt": lambda: [asking(AFTER), asking(LATE), asking(ALWAYS, expert="late")],
    "prompt, instruction first": lambda: [
        asking(MIXED, instruction_first=True, text_tokens=9),
        asking(ALWAYS),
    ],
    "all": lambda: [hidden(AFTER), asking(MIXED), FixedDispatcher("a"), hidden(ALWAYS), hidden(LATE, 2)],
}


def traffic(count: int, dispatchers: list[Dispatcher]) -> list[Request]:
    """Prompts that begin alike, each for a dispatcher, every fourth under an expert that it names."""
    picks = (randn("words", count, 5).abs() * 20).long() % len(WORDS)
    requests = []
    for i in range(count):
        text = " ".join((WORDS * 2)[: i % 11] + [WORDS[j] for j in picks[i][: 1 + i % 5].tolist()])
        auto = i % 4 != 3
        requests.append(
            Request(
                messages=chat(text),
                expert="auto" if auto else (None, "a", "tail")[i // 4 % 3],
                dispatcher=dispatchers[i % len(dispatchers)] if auto else None,
                max_tokens=1 + i % 6,
                ignore_eos=True,
                logprobs=VOCABULARY,
                sampling=Sampling(temperature=float(i % 3 == 2), seed=i),
                salt=(None, "tenant")[i % 7 == 6],
                kv_reuse=("exact", "approximate")[i % 9 == 8],
            )
        )
    return requests


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def strategies(dtype: str, make: Callable[[], list[Dispatcher]]) -> Any:
    """The same traffic in several engines; in the first of them twice."""
    requests = traffic(24, make())
    engine = tiny_engine("llama", dtype, kv_tokens=1024)
    found = [serve(engine, requests), serve(engine, requests[::-1])]
    for options in (
        {"prefix_cache": False},
        {"max_batch_tokens": 24, "max_sequences": 8, "kv_tokens": 160, "slots": 3},
    ):
        found.append(serve(tiny_engine("llama", dtype, **{"kv_tokens": 1024, **options}), requests))
    return found


class Chosen:
    """A user's dispatcher. look: what it asks for. choose: the mixture for what it saw."""

    def __init__(self, look: Any, choose: Callable[[Any], Any], blocking: bool = True) -> None:
        self._look, self._choose, self.blocking = look, choose, blocking

    def look(self, prompt: Any) -> Any:
        return self._look

    def choose(self, prompt: Any, seen: Any) -> Any:
        return self._choose(seen)


LOOKS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "nothing": (None, lambda seen: Dispatch(mixture="a")),
    "scores": (
        ReadScores([5, 6, 7, 8], [9, 10], "b"),
        lambda s: Dispatch("x", {}, "tail" if s[0] > s[1] else "a"),
    ),
    "state": (ReadState(2), lambda seen: Dispatch("y", {"y": 1.0}, "a" if seen[0] > 0 else "b", 0.25)),
    "state of late": (ReadState(1, ("late", "last")), lambda seen: Dispatch(mixture="late")),
    "state of a": (ReadState(2, ("a",)), lambda seen: Dispatch(mixture="a" if seen[1] > 0 else None)),
}


def blocking(dtype: str) -> Any:
    """Dispatchers on threads of their own: one request at a time, so that what shares a step is known."""
    engine = tiny_engine("llama", dtype, dispatch_timeout=60.0)
    return {
        f"{name}, {text}": serve(
            engine,
            [
                Request(
                    messages=chat(text), expert="auto", dispatcher=Chosen(*look), max_tokens=4, logprobs=96
                )
            ],
        )
        for name, look in LOOKS.items()
        for text in ("a first text", "a first text", "another one")
    }


def failing(dtype: str) -> Any:
    """Dispatchers that fail, beside requests that do not care, under both policies."""

    def broken(seen: Any) -> Any:
        raise ValueError("no\nidea")

    dispatchers = [
        Chosen(None, broken, blocking=False),
        FixedDispatcher("nobody"),
        FixedDispatcher({"a": 0.5, "tail": 0.5}),
        Chosen(None, lambda seen: "a", blocking=False),
        Chosen("up", lambda seen: Dispatch(), blocking=False),
        Chosen(ReadState(9), lambda seen: Dispatch(), blocking=False),
        Chosen(ReadScores([1, 999], [1]), lambda seen: Dispatch(), blocking=False),
        Chosen(ReadScores([1], [1], {"a": 1e30}), lambda seen: Dispatch(), blocking=False),
        HiddenDispatcher(classifier(1, hidden=5), Routes(AFTER)),
    ]
    requests = [
        Request(messages=chat("a b c"), expert="auto", dispatcher=d, max_tokens=3) for d in dispatchers
    ]
    requests += [Request(messages=chat("a b c"), expert=expert, max_tokens=3) for expert in ("a", None)]
    return {
        policy: serve(tiny_engine("llama", dtype, on_dispatch_error=policy), requests)
        for policy in ("base", "error")
    }


def files(dtype: str) -> Any:
    """Dispatchers from files of each strategy, calibrated where the strategy is, one of them the engine's own."""
    routes = {"x": "a", "y": {"tail": 0.5}, "z": None}
    prompt = {"strategy": "prompt", "experts": routes, "instruction": "x, y or z?", "opening": "It is"}
    written = {
        "prompt": prompt,
        "prompt, first": {
            **prompt,
            "instruction_first": True,
            "expert": "late",
            "text_tokens": 9,
            "threshold": 0.4,
        },
        "prompt, texts": {**prompt, "calibration": ["some text", "and other text"], "soft": False},
        "hidden": {
            "strategy": "hidden",
            "experts": {"x": "a", "y": "b"},
            "classifier": "c.safetensors",
            "soft": True,
        },
        "few-shot": {"strategy": "few-shot", "file": "found.safetensors"},
        "fixed": {"strategy": "fixed", "expert": {"a": 0.5, "b": [0.5, 0.25, 0.0]}},
        "files": {"strategy": "fixed", "expert": "found.safetensors"},
    }
    engine = tiny_engine("llama", dtype, kv_tokens=1024)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        classifier().save(folder / "c.safetensors")
        record = {"mixture": [], "search": {"task": "mine", "share": 0.75}}
        Expert(z=random_z(ranks(tiny("llama")), "found"), training=record).save(
            folder / "found.safetensors", half=True
        )
        (folder / "mine.py").write_text(
            "from zweave.dispatch import FixedDispatcher\ndispatcher = FixedDispatcher('b')\n"
        )
        for title, fields in written.items():
            (folder / f"{title}.json").write_text(json.dumps(fields))
        loaded: dict[str, Dispatcher] = {"few shot": few_shot(engine, folder / "found.safetensors")}
        for path in [*(folder / f"{title}.json" for title in written), folder / "mine.py"]:
            try:
                loaded[path.stem] = load_dispatcher(engine, path)
            except ZweaveError as error:
                found[path.stem] = str(error).replace(name, "")
        for title, dispatcher in loaded.items():
            engine.dispatcher = dispatcher
            texts = ("some words", "other words, and more", "some")
            requests = [Request(messages=chat(t), expert="auto", max_tokens=3, logprobs=96) for t in texts]
            found[title] = serve(engine, requests)
    return found


def interrupted(dtype: str) -> Any:
    """Requests that are cancelled in their first passes, and an expert that goes away between two passes."""
    looks = [None, ReadState(1), ReadScores([1, 2, 3, 4, 5, 6, 7], [5])]
    requests = [
        Request(
            list(range(3, 20)),
            expert="auto",
            dispatcher=Chosen(look, _always_a, blocking=False),
            max_tokens=4,
        )
        for look in looks
    ]
    options = {"max_batch_tokens": 4, "max_sequences": 4}
    found = [
        serve(
            tiny_engine("llama", dtype, **options),
            [*requests, Request([3, 4, 5], max_tokens=4)],
            {i: steps + i for i in range(3)},
        )
        for steps in range(3)
    ]
    engine = tiny_engine("llama", dtype, on_dispatch_error="base", **options)
    engine.add(requests[1])
    engine.step()
    engine.unload_expert("a")
    return [*found, _rest(engine)]


def _always_a(seen: Any) -> Dispatch:
    return Dispatch(mixture="a")


def _rest(engine: Engine) -> list[Any]:
    deltas = []
    while engine.has_work:
        deltas += engine.step()
    return [[delta.token_ids, delta.result and delta.result.finish_reason] for delta in deltas]


def turns(dtype: str) -> Any:
    """A conversation of which each turn is dispatched."""
    engine = tiny_engine("llama", dtype, kv_tokens=2048)
    messages: list[dict[str, str]] = []
    found = []
    for turn, dispatcher in enumerate((hidden(AFTER), asking(ALWAYS), hidden(LATE), hidden(AFTER, 2))):
        messages = [*messages, *chat(f"turn {turn} of a long talk")]
        request = Request(messages=messages, expert="auto", dispatcher=dispatcher, max_tokens=6, logprobs=96)
        found.append(serve(engine, [request]))
        messages = [*messages, {"role": "assistant", "content": found[-1]["results"][0].get("text") or "no"}]
    return found
