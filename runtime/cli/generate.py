"""`zweave generate`: answers prompts from arguments, a file or standard input as one batch."""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from zweave.cli.engine_options import add_engine_options, load_named, open_engine, parse_expert, stderr
from zweave.engine import Engine
from zweave.errors import ZweaveError
from zweave.request import Request, Result, Sampling

REQUEST_KEYS = {field.name for field in dataclasses.fields(Request)}


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("generate", help="answer prompts as one batch", description=__doc__)
    parser.add_argument("prompts", nargs="*", metavar="PROMPT")
    parser.add_argument("--input", metavar="FILE", help="a prompt a line, - for standard input; see --jsonl")
    parser.add_argument(
        "--jsonl",
        action="store_true",
        help="input lines are JSON objects with the fields of a Request (prompt or messages, expert, "
        "max_tokens, sampling, ...) and results are written as JSON lines with their index, as they finish",
    )
    parser.add_argument("--output", metavar="FILE", help="write results there instead of standard output")
    parser.add_argument("--expert", metavar="NAME|NAME=WEIGHT,...", help="for prompts that name none")
    parser.add_argument("--chat", action="store_true", help="put plain prompts into the chat template")
    parser.add_argument("--max-tokens", type=int, default=256, help="(%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="(%(default)s, greedy)")
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--min-p", type=float, default=0.0)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="repeatable")
    parser.add_argument(
        "--logprobs", type=int, metavar="N", help="log-probabilities of the N likeliest; JSONL only"
    )
    add_engine_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    requests = list(_read_requests(args))
    if not requests:
        raise ZweaveError("no prompt given: pass one as an argument, or --input FILE")
    with ExitStack() as stack:
        output = stack.enter_context(_open(args.output, "w")) if args.output else sys.stdout
        engine = open_engine(args)
        load_named(engine, (request.expert for request in requests))
        if len(requests) == 1 and not args.jsonl:
            _stream_one(engine, requests[0], output)
        else:
            _run_all(engine, requests, output, args.jsonl)
    return 0


def _read_requests(args: argparse.Namespace) -> Iterator[Request]:
    defaults = {
        "expert": parse_expert(args.expert),
        "max_tokens": args.max_tokens,
        "stop": args.stop,
        "logprobs": args.logprobs,
        "sampling": Sampling(args.temperature, args.top_k, args.top_p, args.min_p, args.seed),
    }
    for prompt in args.prompts:
        yield _plain_request(prompt, args.chat, defaults)
    if args.input is None:
        return
    with ExitStack() as stack:
        lines = sys.stdin if args.input == "-" else stack.enter_context(_open(args.input, "r"))
        for number, line in enumerate(_checked_lines(lines, args.input), 1):
            if args.jsonl:
                yield _json_request(line, f"{args.input}, line {number}", defaults)
            else:
                yield _plain_request(line, args.chat, defaults)


def _checked_lines(lines: Iterable[str], source: str) -> Iterator[str]:
    try:
        yield from (line.rstrip("\n") for line in lines if line.strip())
    except UnicodeDecodeError as error:
        raise ZweaveError(f"{source} is not UTF-8 text: {error.reason} at byte {error.start}") from None


def _plain_request(prompt: str, chat: bool, defaults: dict[str, Any]) -> Request:
    if chat:
        return Request(messages=[{"role": "user", "content": prompt}], **defaults)
    return Request(prompt, **defaults)


def _json_request(line: str, where: str, defaults: dict[str, Any]) -> Request:
    try:
        fields = json.loads(line)
        if not isinstance(fields, dict):
            raise ZweaveError("a line must be a JSON object")
        unknown = fields.keys() - REQUEST_KEYS
        if unknown:
            raise ZweaveError(f"unknown field {sorted(unknown)[0]!r}: use {', '.join(sorted(REQUEST_KEYS))}")
        if "sampling" in fields:
            if not isinstance(fields["sampling"], dict):
                raise ZweaveError('sampling must be an object such as {"temperature": 0.7, "seed": 1}')
            fields["sampling"] = Sampling(**fields["sampling"])
        return Request(**{**defaults, **fields})
    except json.JSONDecodeError as error:
        raise ZweaveError(f"{where}: not JSON: {error}") from None
    except (ZweaveError, TypeError) as error:
        raise ZweaveError(f"{where}: {error}") from None


def _open(path: str, mode: str) -> IO[str]:
    try:
        return Path(path).open(mode, encoding="utf-8")
    except OSError as error:
        raise ZweaveError(f"cannot open {path}: {error.strerror}") from None


def _stream_one(engine: Engine, request: Request, output: IO[str]) -> None:
    start = time.perf_counter()
    tokens = 0
    for delta in engine.stream(request):
        output.write(delta.text)
        output.flush()
        tokens += len(delta.token_ids)
    output.write("\n")
    _print_speed(1, tokens, time.perf_counter() - start)


def _run_all(engine: Engine, requests: list[Request], output: IO[str], as_json: bool) -> None:
    start = time.perf_counter()
    results: dict[int, Result] = {}
    columns = (TextColumn("generating"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr, transient=True) as progress:
        task = progress.add_task("", total=len(requests))
        for index, result in engine.run(requests):
            results[index] = result
            progress.advance(task)
            if as_json:
                output.write(
                    json.dumps({"index": index, **dataclasses.asdict(result)}, ensure_ascii=False) + "\n"
                )
                output.flush()
    if not as_json:
        for index, request in enumerate(requests):
            prompt = request.messages[-1]["content"] if request.messages else request.prompt
            output.write(f"> {prompt}\n{results[index].text}\n\n")
    tokens = sum(len(result.token_ids) for result in results.values())
    _print_speed(len(requests), tokens, time.perf_counter() - start)


def _print_speed(requests: int, tokens: int, seconds: float) -> None:
    stderr.print(
        f"{requests} request{'s' * (requests != 1)}, {tokens} tokens in {seconds:.2f} s: "
        f"{tokens / seconds:.0f} tokens/s"
    )
