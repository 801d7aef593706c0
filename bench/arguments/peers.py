"""How fast are other servers on the same requests, and our experts inside them?

16 requests of 64 prompt and 64 new tokens, greedy, whatever they say: by our engine under the base model, experts and
LoRAs, with the weights as they are and in few bits, vLLM without and with LoRA, our plugin in vLLM, transformers,
our experts attached to it, PEFT, and llama.cpp with the weights as they are and in its own formats. Each runs in a
process of its own, in the environment that suits it, and they take turns. A reference model in float32 checks every
answer first.
"""

import argparse

from zweave.options.arguments import positive_whole

from ..harness.options import add_model, add_pace, chosen

_EXPERTS = 8


def peer_names(experts: int) -> tuple[str, ...]:
    """All providers, some of which carry the number of experts in their name."""
    return (
        "zweave0",
        f"zweave{experts}",
        f"zweave{experts}-leading",
        f"zweave-lora{experts}-r16",
        "zweave0-grid",
        f"zweave{experts}-grid",
        f"zweave{experts}-leading-grid",
        f"zweave{experts}-refit",
        "vllm",
        "vllm-lora0",
        f"vllm-lora{experts}-r16",
        "vllm-zweave1",
        f"vllm-zweave{experts}",
        f"vllm-zweave{experts}-leading",
        "transformers",
        f"transformers-zweave{experts}",
        f"transformers-zweave{experts}-leading",
        f"peft-lora{experts}-r16",
        "llama.cpp",
        "llama.cpp-q8_0",
        "llama.cpp-q4_0",
        "llama.cpp-q4_1",
        f"llama.cpp-lora{experts}-r16",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    for name, value in (("requests", 16), ("prompt", 64), ("new", 64), ("experts", _EXPERTS)):
        parser.add_argument(f"--{name}", type=positive_whole, default=value, help="(%(default)s)")
    parser.add_argument(
        "--providers",
        help=f"of {', '.join(peer_names(_EXPERTS))} (all of them); the numbers are those of --experts",
    )
    add_pace(parser, rounds=5)


def check(args: argparse.Namespace) -> None:
    """ZweaveError for providers that there are not."""
    if args.providers is not None:
        chosen(args.providers, peer_names(args.experts))
