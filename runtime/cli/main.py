"""Entry point of the command `zweave`."""

import io
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..errors import ZweaveError
from .parser import make_parser


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Within it a warning is printed as one line, without the place in the code."""

    def plain(message: Warning | str, *_: object, **__: object) -> str:
        return f"zweave: warning: {message}\n"

    before = warnings.formatwarning
    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = before


@_plain_warnings()
def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status: 0, 1 for an error, 2 for wrong usage, 130 for Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        _open_streams()
        # The command's module may load torch, which takes seconds and swallows some of the interrupts meanwhile.
        with _quit_on_interrupt():
            args = make_parser(argv).parse_args(argv)
            args.run.check(args)
            args.run.load()
        return args.run(args)
    except ZweaveError as error:
        print(f"zweave: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("zweave: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has left; keep the interpreter from complaining when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(
            f"zweave: error: {error.strerror or error}: {error.filename or 'output'}"[:300], file=sys.stderr
        )
        return 1


@contextmanager
def _quit_on_interrupt() -> Iterator[None]:
    """Within it Ctrl-C ends the process at once; nothing is open or half done yet."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, _quit)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _quit(*_: object) -> None:
    os.write(2, b"zweave: interrupted\n")
    os._exit(130)


def _open_streams() -> None:
    """Replaces closed standard streams, and writes text that a terminal cannot show as escapes.

    Raises ZweaveError if standard output is closed: Python would drop the results in silence.
    """
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115 (open as long as the process)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if sys.stdout is None:
        raise ZweaveError("standard output is closed: send it to a file, or to /dev/null")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
