"""`zweave generate`: answers prompts from arguments, a file or standard input as one batch."""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, get_args

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..engine.engine import Engine
from ..errors import ZweaveError
from ..options.engine_options import (
    EXPERT_HELP,
    RAW_HELP,
    add_dispatcher_option,
    add_engine_options,
    load_named,
    open_engine,
    parse_expert,
    stderr,
)
from ..request import KVReuse, Request, Result, Sampling
from .request_lines import json_request, numbered, open_text, plain_request, shown_prompt


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="text; see --chat and --raw")
    parser.add_argument("--input", metavar="FILE", help="a prompt a line, - for standard input; see --jsonl")
    parser.add_argument(
        "--jsonl",
        action="store_true",
        help="input lines are JSON objects with the fields of a Request (prompt or messages, expert, "
        "max_tokens, sampling, ...) and results are written as JSON lines with their index, as they finish",
    )
    parser.add_argument("--output", metavar="FILE", help="write results there instead of standard output")
    parser.add_argument("--expert", metavar="NAME|NAME=WEIGHT,...|auto", help=EXPERT_HELP)
    parser.add_argument("--chat", action="store_true", help="put plain prompts into the chat template")
    words = parser.add_mutually_exclusive_group()
    words.add_argument("--raw", action="store_true", help=RAW_HELP)
    words.add_argument(
        "--template", metavar="NAME", help="put prompts into this expert's words, not --expert's own"
    )
    parser.add_argument("--max-tokens", type=int, default=256, help="(%(default)s)")
    _add_sampling(parser)
    parser.add_argument(
        "--kv-reuse",
        choices=get_args(KVReuse),
        default="exact",
        help="approximate: prompts are left to the base, whatever the expert (docs/kv_cache.md); (%(default)s)",
    )
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="repeatable")
    parser.add_argument(
        "--logprobs", type=int, metavar="N", help="log-probabilities of the N likeliest; JSONL only"
    )
    add_dispatcher_option(parser)
    add_engine_options(parser)
    parser.set_defaults(run=run)


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--temperature", type=float, default=0.0, help="(%(default)s, greedy)")
    parser.add_argument("--top-k", type=int, default=0, help="sample among the K likeliest tokens; 0: all")
    parser.add_argument(
        "--top-p", type=float, default=1.0, help="sample among the likeliest that make up P; 1: all"
    )
    parser.add_argument(
        "--min-p", type=float, default=0.0, help="sample tokens at least P times as likely as the best"
    )
    parser.add_argument("--seed", type=int, help="makes sampling repeatable")


def run(args: argparse.Namespace) -> int:
    requests = list(_read_requests(args))
    if not requests:
        raise ZweaveError("no prompt given: pass one as an argument, or --input FILE")
    engine = open_engine(args)
    load_named(engine, (name for request in requests for name in (request.expert, request.template)))
    for number, request in enumerate(requests, 1):
        try:
            engine.check(request)
        except ZweaveError as error:
            where = f"prompt {number} of {len(requests)}: " if len(requests) > 1 else ""
            raise ZweaveError(f"{where}{error}") from None
    with ExitStack() as stack:
        # Opened last: an error before it does not touch the results of an earlier run.
        output = stack.enter_context(open_text(args.output, "w")) if args.output else sys.stdout
        if len(requests) == 1 and not args.jsonl:
            results = _stream_one(engine, requests[0], output)
        else:
            results = _run_all(engine, requests, output, args.jsonl)
    errors = [(index, result.error) for index, result in sorted(results.items()) if result.error]
    for index, reason in errors:
        stderr.print(f"zweave: error: request {index}: {reason}", markup=False, soft_wrap=True)
    return 1 if errors else 0


def _read_requests(args: argparse.Namespace) -> Iterator[Request]:
    defaults = {
        "expert": parse_expert(args.expert),
        "max_tokens": args.max_tokens,
        "stop": args.stop,
        "logprobs": args.logprobs,
        "kv_reuse": args.kv_reuse,
        "template": args.template,
        "raw": args.raw,
        "sampling": Sampling(args.temperature, args.top_k, args.top_p, args.min_p, args.seed),
    }
    for prompt in args.prompts:
        yield plain_request(prompt, args.chat, defaults)
    if args.input is None:
        return
    with ExitStack() as stack:
        lines = sys.stdin if args.input == "-" else stack.enter_context(open_text(args.input, "r"))
        source = "standard input" if args.input == "-" else args.input
        for where, line in numbered(lines, source):
            if args.jsonl:
                yield json_request(line, where, defaults)
            else:
                yield plain_request(line, args.chat, defaults)


def _stream_one(engine: Engine, request: Request, output: IO[str]) -> dict[int, Result]:
    start = time.perf_counter()
    results: dict[int, Result] = {}
    for delta in engine.stream(request):
        output.write(delta.text)
        output.flush()
        if delta.result is not None:
            results[0] = delta.result
    output.write("\n")
    _print_speed(results, time.perf_counter() - start)
    return results


def _run_all(engine: Engine, requests: list[Request], output: IO[str], as_json: bool) -> dict[int, Result]:
    """Writes results as they finish: JSON lines in any order, plain text in the order of the prompts."""
    start = time.perf_counter()
    results: dict[int, Result] = {}
    written = 0
    columns = (TextColumn("generating"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
        task = progress.add_task("", total=len(requests))
        for index, result in engine.run(requests):
            results[index] = result
            progress.advance(task)
            if as_json:
                line = {"index": index, **dataclasses.asdict(result)}
                output.write(json.dumps(line, ensure_ascii=False) + "\n")
            while not as_json and written in results:
                request = requests[written]
                output.write(f"> {shown_prompt(request)}\n{results[written].text}\n\n")
                written += 1
            output.flush()
    _print_speed(results, time.perf_counter() - start)
    return results


def _print_asked(results: dict[int, Result]) -> None:
    """Says which prompts were asked in their expert's words, and of a single one in which."""
    asked = [result.asked for result in results.values() if result.asked is not None]
    if asked:
        what = (
            " | ".join(asked[0].splitlines())
            if len(results) == 1
            else f"{len(asked)} of {len(results)} prompts"
        )
        stderr.print(f"asked in the expert's words (--raw: in yours): {what}", markup=False, soft_wrap=True)


def _print_speed(results: dict[int, Result], seconds: float) -> None:
    _print_asked(results)
    tokens = sum(len(result.token_ids) for result in results.values())
    stderr.print(
        f"{len(results)} request{'s' * (len(results) != 1)}, {tokens} tokens in {seconds:.2f} s: "
        f"{tokens / seconds:.0f} tokens/s"
    )
