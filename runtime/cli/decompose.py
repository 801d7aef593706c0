"""`zweave decompose`: factors a model's adapted matrices, once, into the cache."""

import argparse
import json
import time
from typing import Any

from ..checkpoint.checkpoint import resolve_model
from ..decomposition.decomposition import decompose
from ..options.arguments import positive_number, positive_whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="pulled name, directory or GGUF file")
    parser.add_argument("--force", action="store_true", help="do it again even if it was done")
    parser.add_argument(
        "--memory",
        type=positive_number,
        metavar="GiB",
        help="for the matrices under way (2, or what the largest needs)",
    )
    parser.add_argument(
        "--workers", type=positive_whole, metavar="N", help="matrices at once (as many as there are cores)"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    checkpoint = resolve_model(args.model)
    memory = None if args.memory is None else int(args.memory * (1 << 30))
    start = time.perf_counter()
    found = decompose(checkpoint, workers=args.workers, memory=memory, force=args.force)
    size = sum(matrix.size for matrix in found.matrices.values())
    figures: dict[str, Any] = {
        "digest": found.digest,
        "matrices": len(found.names),
        "seconds": round(time.perf_counter() - start, 2),
        "max_error": max(found.errors),
        "mean_error": sum(found.errors) / len(found.errors),
        "bytes": size,
        "directory": str(found.directory),
    }
    if args.json:
        print(json.dumps(figures))
    else:
        print(f"digest    {figures['digest']}")
        print(f"matrices  {figures['matrices']}, {size / 1e6:.0f} MB in {figures['directory']}")
        print(f"time      {figures['seconds']:.2f} s")
        print(
            f"error     {figures['max_error']:.1e} at most, {figures['mean_error']:.1e} on average (relative)"
        )
    return 0
