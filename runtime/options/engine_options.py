"""The options of commands with an engine, and experts as the command line names them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ..errors import ZweaveError
from ..names import (
    BUNDLED_EXPERTS,
    DEFAULT_MODEL,
    DTYPES,
    KV_TOKENS,
    LORA_COMPONENTS,
    MAX_SEQUENCES,
    SLOTS,
    WEIGHTS,
)
from .arguments import positive_whole, whole

# Loaded when a command runs: its arguments are checked before.
if TYPE_CHECKING:
    from ..dispatch.file import DispatcherFile
    from ..engine.engine import Engine
    from ..experts.mixture import ExpertChoice

stderr = Console(stderr=True, highlight=False)

EXPERT_HELP = (
    "a loaded expert, an expert file, a LoRA's directory, or one of "
    f"{', '.join(BUNDLED_EXPERTS)} (for {DEFAULT_MODEL})"
)
RAW_HELP = "take prompts as they are, not in the words that the expert was trained on"


def add_engine_options(parser: argparse.ArgumentParser, model: bool = True) -> None:
    """model: whether --model is one of them; else the command names it in its own way."""
    if model:
        parser.add_argument(
            "--model", default=DEFAULT_MODEL, help="pulled name, directory or GGUF file (%(default)s)"
        )
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES, help="(%(default)s)")
    add_weights_option(parser)
    parser.add_argument(
        "--device", default="cpu", help="cpu, cuda, or reference: a GPU's steps on a CPU (%(default)s)"
    )
    parser.add_argument(
        "--max-model-len",
        type=positive_whole,
        metavar="N",
        help="tokens of a prompt and its answer together (what the model is made for)",
    )
    parser.add_argument(
        "--load",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="load an expert file, an expert that comes with zweave, or a LoRA as PEFT saves it, under a name; or "
        "FILE: compressed LoRAs under their own; repeatable",
    )
    parser.add_argument(
        "--kv-tokens",
        type=positive_whole,
        metavar="N",
        help=f"token positions in the KV cache, for all requests together ({KV_TOKENS}; on a GPU what fits)",
    )
    parser.add_argument(
        "--slots",
        type=positive_whole,
        default=SLOTS,
        metavar="N",
        help="experts and mixtures resident at once (%(default)s)",
    )
    parser.add_argument(
        "--lora-components",
        type=whole,
        metavar="N",
        help=f"components of LoRAs resident at once, a multiple of 16 ({LORA_COMPONENTS}; on a GPU none)",
    )
    parser.add_argument(
        "--max-sequences",
        type=positive_whole,
        default=MAX_SEQUENCES,
        metavar="N",
        help="requests that one step works on, others wait (%(default)s)",
    )
    parser.add_argument(
        "--no-prefix-cache", action="store_true", help="share no keys and values between prompts"
    )


def add_weights_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        default="auto",
        choices=WEIGHTS,
        help="grid: those that a GGUF file brings in few bits stay as they are, see docs/planner.md; refit: factors in "
        "int4 and int8 that `zweave quantize` has made, see docs/quantization.md (%(default)s)",
    )


def add_dispatcher_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dispatcher",
        type=Path,
        metavar="FILE",
        help="finds the expert of prompts under --expert auto: a .json or .py file, see docs/dispatch.md",
    )


def add_escape_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--escape-special",
        action="store_true",
        help="special tokens that a prompt writes out (<|im_end|>) are plain text",
    )


def open_engine(args: argparse.Namespace) -> Engine:
    """Loads the model, the experts of --load and the dispatcher."""
    from ..engine.engine import Engine
    from ..experts.mixture import check_new_name

    for name in _loaded_names(args):
        check_new_name(name)
    path = getattr(args, "dispatcher", None)
    file = None if path is None else read_dispatcher(args, path)
    engine = Engine(
        args.model,
        dtype=args.dtype,
        weights=args.weights,
        device=args.device,
        max_model_len=args.max_model_len,
        kv_tokens=args.kv_tokens,
        slots=args.slots,
        lora_components=args.lora_components,
        max_sequences=args.max_sequences,
        prefix_cache=not args.no_prefix_cache,
    )
    if args.weights == "refit":
        stderr.print(_said_divergence(engine.divergence()))
    for item in args.load:
        name, separator, source = item.partition("=")
        if separator:
            engine.load_expert(name, source)
        else:
            engine.load_adapters(item)
    if file is not None:
        engine.dispatcher = file.dispatcher(engine, load_named)
    return engine


def _said_divergence(measured: float | None) -> str:
    said = (
        "was not measured: run `zweave quantize MODEL`"
        if measured is None
        else f"{measured:.1e} nats a token"
    )
    return f"refit factors: KL of the base model {said}"


def read_dispatcher(args: argparse.Namespace, path: Path) -> DispatcherFile:
    """A dispatcher's file whose experts `load_named` will find; asked before a model is loaded."""
    from ..dispatch.file import DispatcherFile

    file = DispatcherFile.read(path)
    try:
        check_named(args, file.experts)
    except ZweaveError as error:
        raise ZweaveError(f"{path}: {error}") from None
    return file


def parse_expert(text: str | None) -> ExpertChoice:
    """Reads NAME, or a mixture NAME=WEIGHT,NAME=WEIGHT; nothing or "base" is the base model."""
    if text is None or text in ("", "base"):
        return None
    if "=" not in text:
        return text
    mixture: dict[str, float] = {}
    for item in text.split(","):
        name, _, weight = item.partition("=")
        try:
            if name.strip() in mixture:
                raise ZweaveError(f"the mixture names the expert {name.strip()!r} twice")
            mixture[name.strip()] = float(weight)
        except ValueError:
            raise ZweaveError(f"a mixture is written NAME=WEIGHT,NAME=WEIGHT, not {text!r}") from None
    return mixture


def check_named(args: argparse.Namespace, choices: Iterable[ExpertChoice], takes_loras: bool = True) -> None:
    """Raises ZweaveError, before a model is loaded, for names that `load_named` will not find.

    takes_loras: whether a LoRA will do where an expert is named.
    """
    from ..experts.bundled import expert_file, expert_source
    from ..experts.mixture import check_name

    loaded = _loaded_names(args)
    find = expert_source if takes_loras else expert_file
    for name in _names(choices):
        if name not in loaded:
            find(check_name(name))


def _loaded_names(args: argparse.Namespace) -> set[str]:
    """Names that --load gives: NAME=FILE gives one, a file of compressed LoRAs those of all of them."""
    from ..adapters.compression.compressed_file import adapter_names, is_compressed

    names: set[str] = set()
    for item in getattr(args, "load", ()):
        name, separator, _ = item.partition("=")
        if not separator and not is_compressed(item):
            raise ZweaveError(f"--load takes NAME=FILE, or FILE of compressed LoRAs, not {item!r}")
        names.update([name] if separator else adapter_names(Path(item)))
    return names


def load_named(engine: Engine, choices: Iterable[ExpertChoice]) -> None:
    """Loads the bundled experts, expert files and LoRAs that the choices name, unless they are loaded already."""
    loaded = set(engine.experts())
    for name in _names(choices):
        if name not in loaded:
            engine.load_expert(name)
            loaded.add(name)


def _names(choices: Iterable[ExpertChoice]) -> Iterator[str]:
    """The experts that choices name, without the base and the dispatcher's choice."""
    from ..experts.mixture import RESERVED_NAMES

    for choice in choices:
        for name in [choice] if isinstance(choice, str) else choice or ():
            if name not in RESERVED_NAMES:
                yield name
