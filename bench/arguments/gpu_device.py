"""The option of where a bench of GPU kernels runs."""

import argparse


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        default="cuda",
        choices=["cuda", "reference"],
        help="reference: PyTorch in the place of kernels, on a CPU, to try the bench (%(default)s)",
    )
