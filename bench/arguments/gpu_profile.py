"""Why are the slowest kernels slow?

Takes, of what `bench gpu` measured, our kernels that are furthest from their roof, and runs each under Nsight Compute
(`ncu`): shares of the peak of memory, L2 and SMs, and what warps wait for.
"""

import argparse
from pathlib import Path

from zweave.options.arguments import positive_number, positive_whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results", type=Path, required=True, metavar="DIR", help="where `bench gpu --out` wrote"
    )
    parser.add_argument("--kernels", type=positive_whole, default=3, help="how many (%(default)s)")
    parser.add_argument(
        "--limit",
        type=positive_number,
        default=60.0,
        metavar="SECONDS",
        help="that each may take (%(default)s)",
    )
