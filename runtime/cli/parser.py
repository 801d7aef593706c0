"""The argument parser: the command that is named adds its arguments, the others only their line of help."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ..options.file_options import check_input, check_named_expert, check_output, destination
from ..version import __version__

# Each is a module of `arguments`, whose `add_arguments(parser)` also names what runs it.
COMMANDS = {
    "demo": "see a mixed batch at work",
    "pull": "get a model into the cache",
    "decompose": "factor a model's matrices into the cache",
    "quantize": "refit a model's factors to few bits, and measure what that costs",
    "expert": "work with expert files",
    "generate": "answer prompts as one batch",
    "chat": "talk to the model",
    "serve": "answer over HTTP, as OpenAI's API does",
    "train": "teach an expert a task",
    "describe": "make an expert of a description",
    "train-describe": "teach a generator to make experts of descriptions",
    "eval": "how well tasks are answered",
    "plan": "show which weights stay resident and what each mode costs",
    "trace": "the timeline of a request stream",
    "vllm-export": "write an expert as an adapter for vLLM",
    "bench": "measure, beside what others do",
}


@dataclass(frozen=True, slots=True)
class Deferred:
    """Runs a command by the function `run` of a module of this package, which is imported when it is needed.

    inputs: arguments that name a file to read, - for standard input.
    outputs: arguments that name a file to write.
    """

    module: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    def check(self, args: argparse.Namespace) -> None:
        """Raises ZweaveError for a file that is not there, --load's among them, or that must not be written."""
        for option in self.inputs:
            check_input(option, getattr(args, destination(option)))
        for item in getattr(args, "load", ()):
            check_named_expert("--load", item)
        for option in self.outputs:
            check_output(args, option, getattr(args, destination(option)), getattr(args, "resume", False))

    def load(self) -> Callable[[argparse.Namespace], int]:
        """The function."""
        run: Callable[[argparse.Namespace], int] = import_module(f".{self.module}", __package__).run
        return run

    def __call__(self, args: argparse.Namespace) -> int:
        self.check(args)
        return self.load()(args)


def make_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser for a command line; a parsed command is run by `args.run(args)`.

    Only the arguments of the command in `argv` are imported, and what runs it when they have been checked: most load
    torch, which takes seconds.
    """
    parser = argparse.ArgumentParser(
        prog="zweave", description="Serve one resident language model to many differently adapted prompts."
    )
    parser.add_argument("--version", action="version", version=f"zweave {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    command = next((word for word in argv if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        if name == command:
            module = import_module(f".arguments.{name.replace('-', '_')}", __package__)
            add_command(subparsers, name, summary, module)
        else:
            subparsers.add_parser(name, help=summary)
    return parser


def add_command(subparsers: Any, name: str, summary: str, module: Any) -> argparse.ArgumentParser:
    """Adds a command with the description and the arguments of its module."""
    parser: argparse.ArgumentParser = subparsers.add_parser(name, help=summary, description=module.__doc__)
    module.add_arguments(parser)
    return parser
