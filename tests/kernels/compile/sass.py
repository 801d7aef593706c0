"""What a compiled kernel's machine code does in its loops, as nvdisasm lists it."""

import re
import subprocess
from pathlib import Path

from zweave.kernels.triton.optional_triton import triton

LABEL, BRANCH, STACK = (
    re.compile(r"^(\.L\w+):"),
    re.compile(r"\bBRA `\((\.L\w+)\)"),
    re.compile(r"\b(STL|LDL)\b"),
)


def listing(tool: str, *arguments: str | Path) -> str:
    """What one of the tools that Triton brings prints of a binary."""
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    return subprocess.check_output([folder / tool, *arguments], text=True)


def stack_accesses_in_loops(cubin: Path) -> int:
    """How many instructions of the innermost loops store to the stack or load from it."""
    return count_in_loops(listing("nvdisasm", "-c", cubin))


def count_in_loops(code: str) -> int:
    """The same of a listing: a loop is what lies between a label and a later branch to it."""
    lines = code.splitlines()
    begins = {match[1]: i for i, line in enumerate(lines) if (match := LABEL.match(line))}
    loops = [
        (begins[match[1]], i)
        for i, line in enumerate(lines)
        if (match := BRANCH.search(line)) and begins.get(match[1], i) < i
    ]
    inner = [
        loop
        for loop in loops
        if not any(other != loop and loop[0] <= other[0] and other[1] <= loop[1] for other in loops)
    ]
    return sum(bool(STACK.search(line)) for begin, end in inner for line in lines[begin:end])
