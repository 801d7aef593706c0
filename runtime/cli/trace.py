"""`zweave trace`: the timeline of a request stream, as a Chrome trace and a picture.

Requests arrive one after the other; passes, experts, reuse and the cache's blocks are written down step by step. Open
the trace in ui.perfetto.dev. Without --input the demo's prompts come twice, the second time from the cache.
"""

import argparse
import json
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from ..engine.engine import Engine
from ..errors import ZweaveError
from ..options.arguments import check_folder, number_from_zero
from ..options.engine_options import (
    add_dispatcher_option,
    add_engine_options,
    load_named,
    open_engine,
    stderr,
)
from ..request import Request
from ..trace.plot import save_png
from ..trace.timeline import Timeline
from .demo import EXAMPLES
from .request_lines import json_request, numbered, open_text, shown_prompt

_SHOWN = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", metavar="FILE", help="JSON lines with the fields of a Request")
    parser.add_argument("--output", type=Path, default=Path("trace.json"), help="Chrome trace (%(default)s)")
    parser.add_argument("--png", type=Path, metavar="FILE", help="a picture of it, too; needs matplotlib")
    parser.add_argument(
        "--interval",
        type=number_from_zero,
        default=0.02,
        metavar="SECONDS",
        help="between two arrivals; 0: all at once (%(default)s)",
    )
    add_dispatcher_option(parser)
    add_engine_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    check_folder("--output", args.output)
    if args.png is not None:
        check_folder("--png", args.png)
    requests = _requests(args)
    engine = open_engine(args)
    load_named(engine, (name for _, request in requests for name in (request.expert, request.template)))
    for _, request in requests:
        engine.check(request)
    timeline = record(engine, requests, args.interval)
    try:
        args.output.write_text(json.dumps(timeline.chrome()), encoding="utf-8")
    except OSError as error:
        raise ZweaveError(f"cannot write {args.output}: {error.strerror}") from None
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


def _requests(args: argparse.Namespace) -> list[tuple[str, Request]]:
    """The requests of the file, or the demo's, whose experts a dispatcher chooses if there is one."""
    if args.input is None:
        auto = "auto" if args.dispatcher else None
        return [(_cut(example.shown), example.request(auto or example.expert)) for example in EXAMPLES * 2]
    with open_text(args.input, "r") as lines:
        found = [json_request(line, where, {}) for where, line in numbered(lines, args.input)]
    if not found:
        raise ZweaveError(f"{args.input} holds no request")
    return [(_cut(shown_prompt(request)), request) for request in found]


def _cut(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _SHOWN else f"{words[: _SHOWN - 1]}…"
