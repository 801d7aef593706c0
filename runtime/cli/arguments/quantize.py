"""`zweave quantize`: a model's factors in few bits, refit with calibration text, into the cache."""

import argparse
from pathlib import Path

from ..parser import Deferred


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="pulled name, directory or GGUF file")
    parser.add_argument(
        "--expert", action="append", default=[], metavar="FILE", help="an expert to measure; may be repeated"
    )
    parser.add_argument(
        "--text",
        type=Path,
        metavar="FILE",
        help="to calibrate and measure with (a text that comes with zweave)",
    )
    parser.add_argument("--force", action="store_true", help="do it again even if it was done")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.set_defaults(run=Deferred("quantize", inputs=("text",)))
