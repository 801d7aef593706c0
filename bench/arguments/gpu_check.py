"""Are the kernels of a GPU right? Each on random shapes in bfloat16 against float64, eager and replayed with new slots.

Nothing is timed. Small enough for `PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck
zweave bench gpu-check --cases 1 --eager`: graphs need the cache, in whose middle no overrun is seen.
"""

import argparse

from zweave.options.arguments import positive_number, positive_whole

from .gpu_device import add_device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cases", type=positive_whole, default=12, help="shapes of each kernel (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of shapes and numbers (%(default)s)")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="(%(default)s)")
    parser.add_argument("--eager", action="store_true", help="replay no graphs")
    parser.add_argument(
        "--stop-after",
        type=positive_number,
        default=float("inf"),
        metavar="SECONDS",
        help="begin no further shape after so long (no limit)",
    )
    add_device(parser)
