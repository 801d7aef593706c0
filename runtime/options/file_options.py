"""Files that a command reads and writes: the one rule on what it may write over."""

import argparse
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ..describe.bundled import generator_file
from ..errors import ZweaveError
from ..names import BUNDLED_EXPERTS, DEFAULT_MODEL

# Arguments that name a model, whose directory holds files that are read.
_MODELS = ("model", "from_model", "to_model")


def add_overwrite_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there already")


def destination(option: str) -> str:
    """The attribute that an argument is parsed into."""
    return option.lstrip("-").replace("-", "_")


def check_input(option: str, path: str | Path | None) -> None:
    """Raises ZweaveError for a file that is not there; None and - name none."""
    if path is None or str(path) == "-" or Path(path).exists():
        return
    raise ZweaveError(f"{option}: there is no file {path}")


def check_named_expert(option: str, text: str) -> None:
    """Raises ZweaveError unless a text is NAME=PATH of what is there or comes with zweave, or a file of names."""
    name, separator, path = text.partition("=")
    if not separator and os.path.isfile(text):
        return
    if not (separator and name and path):
        raise ZweaveError(f"{option} takes NAME=PATH, not {text!r}")
    if path not in BUNDLED_EXPERTS:
        check_input(option, path)


def generator(text: str) -> Path:
    """The file of a generator, or of one that comes with zweave; the type of an option."""
    try:
        return generator_file(text)
    except ZweaveError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_generator_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--generator",
        type=generator,
        default=DEFAULT_MODEL,
        metavar="FILE",
        help="of zweave train-describe, or the one that comes with zweave (%(default)s)",
    )


def check_output(
    args: argparse.Namespace, option: str, path: str | Path | None, is_continued: bool = False
) -> None:
    """Raises ZweaveError unless a command may write a file; called before it does anything else.

    A file that another argument names is refused, whatever name or link leads to it, and so is a model's. An existing
    file needs --overwrite. What is no regular file, such as /dev/null, may be written.

    option: the argument that named it, as the user wrote it.
    path: None names none.
    is_continued: the file was begun by the same command, which goes on with it.
    """
    if path is None:
        return
    path = Path(path)
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ZweaveError(f"{option}: there is no directory {folder}")
    if path.is_dir():
        raise ZweaveError(f"{option}: {path} is a directory: give a file name")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise ZweaveError(f"{option}: {path} cannot be written: permission denied")
    for other, named in _named(args, option):
        if _is_same(path, named):
            raise ZweaveError(
                f"{option}: {path} is {named}, which the same command takes as {other}: give another file to write"
            )
        if other in _MODELS and path.exists() and _is_same(folder, named):
            raise ZweaveError(
                f"{option}: {path} is there already, in the directory of the model: give another"
            )
    if path.is_file() and not (is_continued or args.overwrite):
        raise ZweaveError(
            f"{option}: {path} is there already: give another name, or --overwrite to replace it"
        )


def _named(args: argparse.Namespace, option: str) -> Iterator[tuple[str, Path]]:
    """What the other arguments may name: whole values, and the parts of NAME=FILE,FILE."""
    for name, value in vars(args).items():
        for item in value if isinstance(value, list) else [value]:
            if name == destination(option) or not isinstance(item, str | Path):
                continue
            yield from ((name, Path(text)) for text in {str(item), *re.split("[=,]", str(item))} if text)


def _is_same(path: Path, other: Path) -> bool:
    try:
        if path.exists():
            return other.exists() and path.samefile(other)
        return path.resolve() == other.resolve()
    # A prompt is no path: too long, or with characters that no name has.
    except (OSError, ValueError):
        return False
