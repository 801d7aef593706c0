"""`zweave serve`: an OpenAI-compatible server for the base model and any number of experts."""

import argparse
from pathlib import Path

from ...names import DEFAULT_MODEL
from ...options.arguments import positive_number, positive_whole
from ...options.engine_options import add_dispatcher_option, add_engine_options
from ...options.file_options import generator
from ..parser import Deferred


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", default=DEFAULT_MODEL, help="pulled name, directory or GGUF file (%(default)s)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="(%(default)s)")
    parser.add_argument(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help="clients must send one of the keys, and those of different keys share no cache; repeatable "
        "(or ZWEAVE_API_KEY; without: everybody may ask)",
    )
    parser.add_argument(
        "--admin-key",
        metavar="KEY",
        help="whoever sends it may load and unload experts (or ZWEAVE_ADMIN_KEY; without: nobody)",
    )
    parser.add_argument(
        "--experts",
        type=Path,
        metavar="DIR",
        help="NAME.safetensors there, or the LoRA in the directory NAME, is loaded when NAME is asked for",
    )
    parser.add_argument(
        "--served-model-name", metavar="NAME", help="name of the base model, beside base (that of the model)"
    )
    parser.add_argument(
        "--alias",
        action="append",
        default=[],
        metavar="NAME=EXPERT|NAME=A:0.7+B:0.3",
        help="a further model name for an expert or a mixture; repeatable",
    )
    parser.add_argument(
        "--max-waiting",
        type=positive_whole,
        default=512,
        metavar="N",
        help="requests taken up at once, more get status 429 (%(default)s)",
    )
    parser.add_argument(
        "--request-timeout",
        type=positive_number,
        default=600.0,
        metavar="S",
        help="seconds that a request may take (%(default)s)",
    )
    parser.add_argument(
        "--drain-timeout",
        type=positive_number,
        default=30.0,
        metavar="S",
        help="seconds that unfinished requests have after SIGTERM (%(default)s)",
    )
    parser.add_argument(
        "--max-body-mb", type=positive_whole, default=8, metavar="N", help="MiB of a body (%(default)s)"
    )
    parser.add_argument(
        "--generator",
        type=generator,
        metavar="FILE",
        help='makes the expert of "describe:TEXT" in place of a model\'s name: whoever may ask may describe; a file, '
        f"or {DEFAULT_MODEL} for the one that comes with zweave (docs/describe.md)",
    )
    add_dispatcher_option(parser)
    add_engine_options(parser, model=False)
    parser.set_defaults(run=Deferred("serve", ("--dispatcher",)))
