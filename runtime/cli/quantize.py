"""`zweave quantize`: a model's factors in few bits, refit with calibration text, into the cache."""

import argparse
import json
import time
from typing import Any

from ..checkpoint.checkpoint import resolve_model
from ..experts.expert import Expert
from ..quantization.calibration import SHIPPED
from ..quantization.quantize import quantize_model


def run(args: argparse.Namespace) -> int:
    experts = {name: Expert.load(name) for name in args.expert}
    checkpoint = resolve_model(args.model)
    start = time.perf_counter()
    found, divergences = quantize_model(checkpoint, experts, args.text or SHIPPED, args.force)
    errors = found.errors
    weights = 2 * sum(rows * columns for rows, columns in checkpoint.adapted_shapes().values())
    worst = max(errors, key=lambda module: errors[module])
    figures: dict[str, Any] = {
        "digest": found.index["digest"],
        "matrices": len(errors),
        "seconds": round(time.perf_counter() - start, 2),
        "bytes": found.nbytes,
        "of_bfloat16": found.nbytes / weights,
        "max_error": errors[worst],
        "worst": worst,
        "mean_error": sum(errors.values()) / len(errors),
        "kl": divergences,
        "directory": str(found.directory),
    }
    if args.json:
        print(json.dumps(figures))
        return 0
    print(f"matrices  {len(errors)}, {found.nbytes / 1e6:.0f} MB in {found.directory}")
    print(f"bytes     {figures['of_bfloat16']:.3f} of W in bfloat16")
    print(f"time      {figures['seconds']:.2f} s")
    print(
        f"error     {errors[worst]:.1e} at most ({worst}), {figures['mean_error']:.1e} on average (of outputs)"
    )
    for name, divergence in divergences.items():
        print(f"KL        {divergence:.2e} nats a token, {name}")
    return 0
