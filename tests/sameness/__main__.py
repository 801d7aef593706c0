"""Records what the code computes, bit for bit, and compares it with a record made before a change.

    python tests/sameness record before.json
    python tests/sameness compare before.json

A record holds token ids, digests of logits and counters for every kind of request on the default model and on tiny
random ones, and of training, attached experts, commands and ops. It is compared on the machine that made it:
instruction sets and versions of PyTorch differ in the last bits.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attached
import commands
import dispatched
import ops
import served
import smollm2
import torch
import trained
from digests import first_difference, plain
from surroundings import surroundings

from zweave.kernels import cpu_isa

# Cases and threads. What waits for a second thread is slow on a machine that does something else too.
GROUPS = {
    "ops": (ops.cases, 2),
    "tiny": (served.cases, 1),
    "dispatch": (dispatched.cases, 1),
    "attach": (attached.cases, 1),
    "train": (trained.cases, 1),
    "commands": (commands.cases, 1),
    "smollm2": (smollm2.cases, 1),
    "threads": (smollm2.on_two_threads, 2),
}


def machine() -> dict[str, Any]:
    """What the last bits depend on beside the code."""
    return {"isa": cpu_isa(), "torch": torch.__version__}


def run(only: str) -> Iterator[tuple[str, Any]]:
    """Computes the cases whose names match and yields (name, value), with progress on standard error."""
    for group, (cases, threads) in GROUPS.items():
        torch.set_num_threads(threads)
        for name, compute in cases():
            full_name = f"{group}/{name}"
            if not re.search(only, full_name):
                continue
            start = time.monotonic()
            value = plain(compute())
            print(f"{time.monotonic() - start:6.1f} s  {full_name}", file=sys.stderr, flush=True)
            yield full_name, value


def record(path: Path, only: str) -> int:
    cases = dict(run(only))
    path.write_text(json.dumps({"machine": machine(), "cases": cases}, indent=0))
    print(f"{len(cases)} cases in {path}")
    return 0


def compare(path: Path, only: str) -> int:
    """Prints the first difference of each case; 1 if there are any."""
    before = json.loads(path.read_text())
    if before["machine"] != machine():
        print(f"recorded under {before['machine']}, and this is {machine()}")
        return 1
    wanted = {name: value for name, value in before["cases"].items() if re.search(only, name)}
    differ = 0
    for name, value in run(only):
        found = first_difference(wanted.pop(name, None), value)
        if found:
            differ += 1
            print(f"{name}: {found}", flush=True)
    for name in wanted:
        print(f"{name}: is gone")
    print(f"{differ + len(wanted)} cases differ" if differ or wanted else "no difference")
    return 1 if differ or wanted else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="sameness", description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=["record", "compare"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", default="", metavar="REGEX", help="the cases whose names match alone")
    arguments = parser.parse_args()
    with surroundings(arguments.only):
        return {"record": record, "compare": compare}[arguments.command](arguments.file, arguments.only)


if __name__ == "__main__":
    sys.exit(main())
