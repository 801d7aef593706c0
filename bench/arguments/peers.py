"""How fast are other servers on the same requests, and our experts inside them?

16 requests of 64 prompt and 64 new tokens, greedy, whatever they say: by our engine, vLLM without and with LoRA, our
plugin in vLLM, transformers, our experts attached to it, and PEFT. Each runs in a process of its own, in the
environment that suits it, and they take turns. A reference model in float32 checks every answer first.
"""

import argparse

from zweave.options.arguments import positive_whole

from ..harness.options import add_model, add_pace

PEERS = (
    "zweave8",
    "vllm",
    "vllm-lora0",
    "vllm-lora8-r16",
    "vllm-zweave1",
    "vllm-zweave8",
    "vllm-zweave8-leading",
    "transformers",
    "transformers-zweave8",
    "transformers-zweave8-leading",
    "peft-lora8-r16",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    for name, value in (("requests", 16), ("prompt", 64), ("new", 64), ("experts", 8)):
        parser.add_argument(f"--{name}", type=positive_whole, default=value, help="(%(default)s)")
    parser.add_argument("--providers", help=f"of {', '.join(PEERS)} (all of them)")
    add_pace(parser, rounds=5)
