"""`zweave trace`: the timeline of a request stream, as a Chrome trace and a picture.

Requests arrive one after the other; passes, experts, reuse and the cache's blocks are written down step by step. Open
the trace in ui.perfetto.dev. Without --input the demo's prompts come twice, the second time from the cache.
"""

import argparse
import json
import time
from collections import deque
from collections.abc import Sequence

from ..engine.engine import Engine
from ..errors import ZweaveError
from ..io.atomic_write import write_text
from ..options.engine_options import check_named, load_named, open_engine, stderr
from ..request import Request
from ..trace.plot import save_png
from ..trace.timeline import Timeline
from .demo import EXAMPLES
from .request_lines import json_request, located, numbered, open_text, shown_prompt

_SHOWN = 40


def run(args: argparse.Namespace) -> int:
    lines = _requests(args)
    for where, _, request in lines:
        with located(where):
            check_named(args, [request.named_expert, request.named_fallback, request.template])
    engine = open_engine(args)
    for where, _, request in lines:
        with located(where):
            load_named(engine, [request.named_expert, request.named_fallback, request.template])
            engine.check(request)
    timeline = record(engine, [(shown, request) for _, shown, request in lines], args.interval)
    write_text(args.output, json.dumps(timeline.chrome()))
    if args.png is not None:
        save_png(timeline, args.png)
    results = [line.result for line in timeline.lines.values() if line.result is not None]
    prompt = sum(result.prompt_tokens for result in results)
    reused = sum(result.reused_tokens for result in results)
    resumed = sum(result.resumed_tokens for result in results)
    stderr.print(
        f"{len(results)} requests in {len(timeline.steps)} steps; of {prompt} prompt tokens {reused} were reused "
        f"and {resumed} resumed. Written: {args.output}{f', {args.png}' if args.png else ''}"
    )
    return 0


def record(engine: Engine, requests: Sequence[tuple[str, Request]], interval: float) -> Timeline:
    """Serves requests, each with a text to show for it, and returns their timeline.

    interval: seconds between two arrivals.
    """
    timeline = Timeline()
    engine.observer = timeline
    try:
        start = time.perf_counter()
        due = deque((start + index * interval, request) for index, request in enumerate(requests))
        while due or engine.has_work:
            while due and due[0][0] <= time.perf_counter():
                arrived, (shown, request) = due.popleft()
                timeline.arrive(engine.add(request), arrived, shown)
            if not engine.has_work:
                time.sleep(max(0.0, due[0][0] - time.perf_counter()))
                continue
            for delta in engine.step():
                if delta.result is not None:
                    timeline.finish(delta.request_id, time.perf_counter(), delta.result)
    finally:
        engine.observer = None
    return timeline


def _requests(args: argparse.Namespace) -> list[tuple[str, str, Request]]:
    """Requests, where they stand and what to show of them: of the file, or the demo's, whose experts a dispatcher
    chooses if there is one.
    """
    if args.input is None:
        auto = "auto" if args.dispatcher else None
        return [
            ("the demo", _cut(example.shown), example.request(auto or example.expert))
            for example in EXAMPLES * 2
        ]
    found = []
    with open_text(args.input, "r") as lines:
        for where, line in numbered(lines, args.input):
            with located(where):
                request = json_request(line, {})
            found.append((where, _cut(shown_prompt(request)), request))
    if not found:
        raise ZweaveError(f"{args.input} holds no request")
    return found


def _cut(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _SHOWN else f"{words[: _SHOWN - 1]}…"
