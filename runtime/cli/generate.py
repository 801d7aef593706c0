"""`zweave generate`: answers prompts from arguments, a file or standard input as one batch."""

import argparse
import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..engine.engine import Engine
from ..errors import ZweaveError
from ..options.engine_options import (
    check_named,
    load_named,
    open_engine,
    parse_expert,
    stderr,
)
from ..request import Request, ResponseFormat, Result, Sampling
from .request_lines import json_request, located, numbered, open_text, plain_request, shown_prompt
from .result_lines import finished, open_results, request_digest, result_line


@dataclass(frozen=True, slots=True)
class Line:
    """A request and where it was written, or what is wrong there."""

    where: str
    request: Request | None
    error: str | None = None


def run(args: argparse.Namespace) -> int:
    path = None if args.output is None else Path(args.output)
    if args.resume and not (args.jsonl and path):
        raise ZweaveError("--resume goes on with the results in --output FILE, and needs --jsonl")
    lines = [_named(args, line) for line in _read_lines(args)]
    if not lines:
        raise ZweaveError("no prompt given: pass one as an argument, or --input FILE")
    digests = [request_digest(line.request) for line in lines]
    done = finished(path, digests) if args.resume and path else set()
    if len(done) == len(lines):
        stderr.print(f"all {len(lines)} results are there", highlight=False)
        return 0
    engine = open_engine(args)
    lines = [_checked(engine, line, args.on_error) for line in lines]
    todo = [index for index in range(len(lines)) if index not in done]
    with ExitStack() as stack:
        # Opened last: an error before it does not touch the results of an earlier run.
        output = stack.enter_context(open_results(path, args.resume)) if path else sys.stdout
        first = lines[0].request
        if len(lines) == 1 and not args.jsonl and first and first.n == 1:
            results = _stream_one(engine, first, output)
        else:
            results = _run_all(engine, lines, todo, output, digests if args.jsonl else None)
    errors = [(index, result.error) for index, result in sorted(results.items()) if result.error]
    for index, reason in errors:
        stderr.print(f"zweave: error: {lines[index].where}: {reason}", markup=False, soft_wrap=True)
    return 1 if errors else 0


def _read_lines(args: argparse.Namespace) -> Iterator[Line]:
    """The requests of the arguments and of --input; ZweaveError for a wrong one unless --on-error says otherwise."""
    defaults = {
        "expert": parse_expert(args.expert),
        "n": args.n,
        "max_tokens": args.max_tokens,
        "stop": args.stop,
        "stop_token_ids": args.stop_token_ids,
        "include_stop_str_in_output": args.include_stop_str_in_output,
        "min_tokens": args.min_tokens,
        "bad_words": args.bad_words,
        "skip_special_tokens": args.skip_special_tokens,
        "add_special_tokens": args.add_special_tokens,
        "escape_special": args.escape_special,
        "logprobs": args.logprobs,
        "prompt_logprobs": args.prompt_logprobs,
        "kv_reuse": args.kv_reuse,
        "template": args.template,
        "raw": args.raw,
        "response_format": _response_format(args),
        "sampling": Sampling(
            args.temperature,
            args.top_k,
            args.top_p,
            args.min_p,
            args.seed,
            args.repetition_penalty,
            args.presence_penalty,
            args.frequency_penalty,
            dict(args.logit_bias) or None,
        ),
    }
    Request("checks what is the same for all", **defaults)
    for number, prompt in enumerate(args.prompts, 1):
        where = f"prompt {number} of {len(args.prompts)}"
        yield _line(where, args.on_error, partial(plain_request, prompt, args.chat, defaults))
    if args.input is None:
        return
    with ExitStack() as stack:
        if args.input == "-":
            # JSON is UTF-8, whatever the terminal is.
            if args.jsonl and isinstance(sys.stdin, io.TextIOWrapper):
                sys.stdin.reconfigure(encoding="utf-8")
            texts, source = sys.stdin, "standard input"
        else:
            texts, source = stack.enter_context(open_text(args.input, "r")), args.input
        for where, text in numbered(texts, source):
            if args.jsonl:
                yield _line(where, args.on_error, partial(json_request, text, defaults))
            else:
                yield _line(where, args.on_error, partial(plain_request, text, args.chat, defaults))


def _response_format(args: argparse.Namespace) -> ResponseFormat | None:
    """The form of answers that the options ask for."""
    if args.regex is not None:
        return ResponseFormat(regex=args.regex)
    if args.json_schema is None:
        return None
    with located(args.json_schema), open_text(args.json_schema, "r") as file:
        try:
            return ResponseFormat(json_schema=file.read())
        except UnicodeDecodeError as error:
            raise ZweaveError(f"it is not UTF-8 text: {error.reason} at byte {error.start}") from None


def _line(where: str, on_error: str, make: Callable[[], Request]) -> Line:
    try:
        return Line(where, make())
    except ZweaveError as error:
        if on_error == "stop":
            raise ZweaveError(f"{where}: {error}") from None
        return Line(where, None, str(error))


def _named(args: argparse.Namespace, line: Line) -> Line:
    """The line, if its experts can be found; asked before the model loads."""
    request = line.request
    if request is None:
        return line

    def check() -> Request:
        check_named(args, [request.named_expert, request.named_fallback, request.template])
        return request

    return _line(line.where, args.on_error, check)


def _checked(engine: Engine, line: Line, on_error: str) -> Line:
    """The line, with its experts loaded, if the engine can serve it."""
    request = line.request
    if request is None:
        return line

    def check() -> Request:
        load_named(engine, [request.named_expert, request.named_fallback, request.template])
        engine.check(request)
        return request

    return _line(line.where, on_error, check)


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


def _run_all(
    engine: Engine,
    lines: Sequence[Line],
    todo: Sequence[int],
    output: IO[str],
    digests: Sequence[str | None] | None,
) -> dict[int, Result]:
    """Writes results as they finish: JSON lines in any order, plain text in the order of the prompts.

    todo: the indices of the lines that are to be answered.
    digests: of the lines' requests, for JSON; None for plain text.
    """
    start = time.perf_counter()
    results: dict[int, Result] = {}
    order = iter(todo)
    following = next(order, None)
    columns = (TextColumn("generating"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
        task = progress.add_task("", total=len(todo))
        for index, result in _answers(engine, lines, todo):
            results[index] = result
            progress.advance(task)
            if digests is not None:
                output.write(result_line(index, digests[index], result, output))
            while digests is None and following in results:
                output.write(_shown(lines[following], results[following]))
                following = next(order, None)
            output.flush()
    _print_speed(results, time.perf_counter() - start)
    return results


def _answers(engine: Engine, lines: Sequence[Line], todo: Sequence[int]) -> Iterator[tuple[int, Result]]:
    """The results of lines that are no requests, then those of the others as they finish."""
    good: list[tuple[int, Request]] = []
    for index in todo:
        request, error = lines[index].request, lines[index].error
        if request is None:
            yield index, Result("", [], None, None, "error", 0, error)
        else:
            good.append((index, request))
    for position, result in engine.run(request for _, request in good):
        yield good[position][0], result


def _shown(line: Line, result: Result) -> str:
    if line.request is None:
        return f"> {line.where}\nerror: {line.error}\n\n"
    answers = (
        result.text
        if result.samples is None
        else "\n\n".join(f"[{index}] {sample.text}" for index, sample in enumerate(result.samples))
    )
    return f"> {shown_prompt(line.request)}\n{answers}\n\n"


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
    answers = [answer for result in results.values() for answer in result.samples or [result]]
    tokens = sum(len(answer.token_ids) for answer in answers)
    stderr.print(
        f"{len(results)} request{'s' * (len(results) != 1)}, {tokens} tokens in {seconds:.2f} s: "
        f"{tokens / seconds:.0f} tokens/s"
    )
