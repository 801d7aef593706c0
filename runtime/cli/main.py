"""Entry point of the command `zweave`."""

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from zweave.cli import chat, decompose, demo, expert, generate, pull
from zweave.errors import ZweaveError

COMMANDS = (demo, pull, decompose, expert, generate, chat)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status: 0, 1 for an error, 2 for wrong usage, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="zweave", description="Serve one resident language model to many differently adapted prompts."
    )
    parser.add_argument("--version", action="version", version=f"zweave {version('zweave')}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except ZweaveError as error:
        print(f"zweave: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("zweave: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has left; keep the interpreter from complaining when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            raise
        print(f"zweave: error: {error.strerror}: {error.filename or 'output'}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
