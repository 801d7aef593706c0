"""`zweave generate`: answers prompts from arguments, a file or standard input as one batch."""

import argparse
from typing import get_args

from ...names import KVReuse
from ...options.arguments import positive_whole, whole
from ...options.engine_options import (
    EXPERT_HELP,
    RAW_HELP,
    add_dispatcher_option,
    add_engine_options,
    add_escape_option,
)
from ...options.file_options import add_overwrite_option
from ..parser import Deferred


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
    add_overwrite_option(parser)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="answer what has no result in --output yet, the same input given",
    )
    parser.add_argument(
        "--on-error",
        choices=("stop", "line"),
        default="stop",
        help="line: a wrong line of the input gets its error as its result, the others are answered (%(default)s)",
    )
    parser.add_argument("--expert", metavar="NAME|NAME=WEIGHT,...|auto", help=EXPERT_HELP)
    parser.add_argument("--chat", action="store_true", help="put plain prompts into the chat template")
    words = parser.add_mutually_exclusive_group()
    words.add_argument("--raw", action="store_true", help=RAW_HELP)
    words.add_argument(
        "--template", metavar="NAME", help="put prompts into this expert's words, not --expert's own"
    )
    parser.add_argument("--n", type=positive_whole, default=1, help="answers to each prompt (%(default)s)")
    parser.add_argument("--max-tokens", type=positive_whole, default=256, help="(%(default)s)")
    _add_sampling(parser)
    parser.add_argument(
        "--kv-reuse",
        choices=get_args(KVReuse),
        default="exact",
        help="approximate: prompts are left to the base, whatever the expert (docs/kv_cache.md); (%(default)s)",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--json-schema", metavar="FILE", help="answers are JSON of this schema (docs/structured.md)"
    )
    form.add_argument("--regex", metavar="PATTERN", help="answers match this regular expression as a whole")
    _add_ends(parser)
    parser.add_argument(
        "--add-special-tokens",
        action=argparse.BooleanOptionalAction,
        help="what the tokenizer puts around a text, such as a begin token (prompts: yes, messages: no)",
    )
    add_escape_option(parser)
    parser.add_argument(
        "--logprobs", type=int, metavar="N", help="log-probabilities of the N likeliest; JSONL only"
    )
    parser.add_argument(
        "--prompt-logprobs", type=int, metavar="N", help="the same of the prompt's tokens; JSONL only"
    )
    add_dispatcher_option(parser)
    add_engine_options(parser)
    parser.set_defaults(run=Deferred("generate", ("--input", "--dispatcher", "--json-schema"), ("--output",)))


def _bias(text: str) -> tuple[str, float]:
    """A token id, checked with the request, and its bias."""
    token_id, _, bias = text.partition("=")
    try:
        return token_id, float(bias)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be ID=BIAS, such as 42=-100, not {text!r}") from None


def _add_ends(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="repeatable")
    parser.add_argument(
        "--stop-token-ids",
        action="append",
        type=whole,
        default=[],
        metavar="ID",
        help="end an answer at this token, too; repeatable",
    )
    parser.add_argument(
        "--include-stop-str-in-output", action="store_true", help="the text ends with the stop, not before it"
    )
    parser.add_argument(
        "--min-tokens",
        type=whole,
        default=0,
        help="do not end an answer in so many first tokens (%(default)s)",
    )
    parser.add_argument(
        "--skip-special-tokens",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="leave special tokens out of the text (yes)",
    )


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--temperature", type=float, default=0.0, help="(%(default)s, greedy)")
    parser.add_argument("--top-k", type=whole, default=0, help="sample among the K likeliest tokens; 0: all")
    parser.add_argument(
        "--top-p", type=float, default=1.0, help="sample among the likeliest that make up P; 1: all"
    )
    parser.add_argument(
        "--min-p", type=float, default=0.0, help="sample tokens at least P times as likely as the best"
    )
    parser.add_argument(
        "--logit-bias",
        action="append",
        type=_bias,
        default=[],
        metavar="ID=BIAS",
        help="add this, -100 to 100, to a token's logit; repeatable",
    )
    parser.add_argument(
        "--bad-words", action="append", default=[], metavar="TEXT", help="never generate this; repeatable"
    )
    parser.add_argument("--seed", type=whole, help="makes sampling repeatable")
    parser.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        help="above 1: tokens of prompt and answer become less likely (%(default)s)",
    )
    parser.add_argument(
        "--presence-penalty", type=float, default=0.0, help="-2 to 2, on the answer's tokens (%(default)s)"
    )
    parser.add_argument(
        "--frequency-penalty", type=float, default=0.0, help="the same, each time one comes (%(default)s)"
    )
