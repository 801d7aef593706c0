"""`zweave decompose`: factors a model's adapted matrices, once, into the cache."""

import argparse
import json
import time
from typing import Any

from ..checkpoint.checkpoint import resolve_model
from ..decomposition.decomposition import decompose


def run(args: argparse.Namespace) -> int:
    checkpoint = resolve_model(args.model)
    memory = None if args.memory is None else int(args.memory * (1 << 30))
    start = time.perf_counter()
    found = decompose(checkpoint, workers=args.workers, memory=memory, force=args.force, device=args.device)
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
