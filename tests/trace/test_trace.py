"""`zweave trace`: the timeline tells what the engine did, token by token, and both files can be read."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from zweave import Engine, Request
from zweave.cli.main import main
from zweave.cli.trace import record
from zweave.dispatch import Dispatcher, HiddenDispatcher, PromptDispatcher, Routes
from zweave.dispatch.early_classifier import EarlyClassifier
from zweave.trace import plot
from zweave.trace.timeline import Timeline, expert_text

TinyEngine = Callable[..., Engine]
LABELS = ("x", "y")


def hidden(experts: dict[str, object]) -> HiddenDispatcher:
    weight = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    return HiddenDispatcher(EarlyClassifier(LABELS, 1, weight, torch.zeros(2)), Routes(experts))


@pytest.fixture
def engine(tiny_engine: TinyEngine) -> Engine:
    engine = tiny_engine(kv_tokens=1024)
    engine.load_expert("tail", replace(engine.bank.registered("b").read(), scope="after_prompt"))
    return engine


def stream() -> list[tuple[str, Request]]:
    dispatchers: list[Dispatcher] = [
        hidden({"x": "tail", "y": None}),
        hidden({"x": "late", "y": "late"}),
        hidden({"x": "a", "y": "b"}),
        PromptDispatcher(Routes({"x": "late", "y": {"late": 0.5}}), "x or y?"),
    ]
    texts = [f"some words, {'and then some more, ' * (i % 3)}number {i // 2}" for i in range(12)]
    return [
        (
            text,
            Request(
                messages=[{"role": "user", "content": text}],
                expert="auto",
                dispatcher=dispatchers[i % 4],
                max_tokens=4,
                ignore_eos=True,
            ),
        )
        for i, text in enumerate(texts)
    ] + [("plain", Request("plain", expert="a", max_tokens=3, ignore_eos=True))]


@pytest.fixture
def timeline(engine: Engine) -> Timeline:
    return record(engine, stream(), 0.0)


def test_every_token_is_in_it(timeline: Timeline, engine: Engine) -> None:
    assert engine.observer is None and not engine.has_work
    spans = [span for step in timeline.steps for span in step.spans]
    stats = engine.stats()
    # What is computed up to a layer and then resumed counts once.
    whole = sum(span.count for span in spans if span.last_layer is None)
    kept = sum(line.result.dispatch.tokens for line in timeline.lines.values() if line.result.dispatch)
    assert whole <= stats.tokens_computed <= whole + kept
    for line in timeline.lines.values():
        result, seen = line.result, Counter()
        assert result.error is None
        for _, _, span in line.spans:
            if span.phase != "first pass":
                seen[span.phase] += span.count
        assert seen["decode"] == len(result.token_ids) - 1
        read = sum(s.count for _, _, s in line.spans if s.phase == "first pass" and s.last_layer is None)
        if result.dispatch is None or result.dispatch.tokens:
            read = 0
        assert seen["prompt"] + read == result.prompt_tokens - result.reused_tokens
        assert {span.expert == result.expert for _, _, span in line.spans if span.phase == "decode"} == {True}
    assert {span.phase for span in spans} == {"first pass", "prompt", "decode"}
    assert any(span.first_layer for span in spans) and any(span.last_layer for span in spans)


def test_the_trace_is_one_that_viewers_read(timeline: Timeline) -> None:
    trace = json.loads(json.dumps(timeline.chrome()))
    events = trace["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X", "i", "C"}
    slices = [event for event in events if event["ph"] == "X"]
    assert all(event["ts"] >= 0 and event["dur"] >= 0 for event in slices)
    # Of a row slices follow one another, but for the parts of one step.
    steps = sorted((event["ts"], event["dur"]) for event in slices if event["name"] == "step")
    assert len(steps) == len(timeline.steps)
    assert all(a + d <= b + 0.2 for (a, d), (b, _) in pairwise(steps))
    rows = {event["tid"] for event in events if event["pid"] == 1 and event["ph"] == "X"}
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert rows == names.keys() and names[max(rows)].endswith(": plain")
    ends = [event["args"] for event in events if event["name"] == "ends"]
    assert {"first_layer", "none"} <= {end["reuse"] for end in ends}
    assert {"late", "a"} <= {end["expert"] for end in ends}


def test_experts_are_written_as_they_are_typed() -> None:
    assert [expert_text(choice) for choice in (None, "a", {"a": 0.8, "b": 0.2}, {"a": [1, 0.25]})] == [
        "base",
        "a",
        "a=0.8,b=0.2",
        "a=[1, 0.25]",
    ]


def test_labels_of_a_picture_end_inside_its_frame(
    timeline: Timeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    drawn: list[Any] = []
    monkeypatch.setattr(plot, "write_png", lambda figure, path: drawn.append(figure))
    monkeypatch.setattr(plot, "_reuse", lambda line: "a label that is rather long: 100 of 200 tokens")
    for line in timeline.lines.values():
        line.prompt = "costs $5 or $6"
    plot.save_png(timeline, tmp_path / "t.png")
    (figure,) = drawn
    figure.draw_without_rendering()
    top = figure.axes[0]
    frame = top.get_window_extent()
    assert top.texts and all(text.get_window_extent().x1 <= frame.x1 for text in top.texts)


def test_the_command(
    tiny_model_and_expert: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    model, expert = tiny_model_and_expert
    lines = tmp_path / "requests.jsonl"
    lines.write_text(
        "\n".join(json.dumps({"prompt": "abc", "expert": e, "max_tokens": 3}) for e in (None, expert))
    )
    trace, png = tmp_path / "t.json", tmp_path / "t.png"
    common = ["trace", "--input", str(lines), "--model", model, "--dtype", "float32"]
    assert main([*common, "--output", str(trace), "--png", str(png), "--interval", "0.01"]) == 0
    assert "2 requests in" in capsys.readouterr().err
    found = {event["args"].get("expert") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"base", expert} <= found
    assert png.read_bytes().startswith(b"\x89PNG")
    for arguments, words in (
        (["--output", str(tmp_path / "no" / "t.json")], "--output: there is no directory"),
        (["--png", str(tmp_path / "no" / "t.png")], "--png: there is no directory"),
        (["--output", str(tmp_path)], "is a directory: give a file name"),
    ):
        assert main([*common, "--overwrite", "--output", str(trace), *arguments]) == 1
        error = capsys.readouterr().err
        assert words in error and "Traceback" not in error
    lines.write_text("\n")
    assert main([*common, "--overwrite", "--output", str(trace)]) == 1
    assert "holds no request" in capsys.readouterr().err
