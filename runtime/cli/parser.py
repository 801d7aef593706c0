"""The argument parser: every command adds its own part."""

import argparse
from importlib.metadata import version

from . import bench, chat, decompose, demo, eval, expert, generate, plan, pull, trace, train, vllm_export

COMMANDS = (demo, pull, decompose, expert, generate, chat, train, eval, plan, trace, vllm_export, bench)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; a parsed command is run by `args.run(args)`."""
    parser = argparse.ArgumentParser(
        prog="zweave", description="Serve one resident language model to many differently adapted prompts."
    )
    parser.add_argument("--version", action="version", version=f"zweave {version('zweave')}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser
