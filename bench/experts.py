"""Does the cost of a batch depend on how many experts it holds?

    python bench/experts.py

16 requests of 64 prompt and 64 new tokens, greedy, under 1 expert and under 16 different ones, in turn.
"""

import argparse
import statistics

import torch
from harness import interleaved, medians, print_json

from zweave import Engine, Expert, Request
from zweave.bundled import DEFAULT_MODEL

PROMPT, NEW, REQUESTS = 64, 64, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    engine = Engine(args.model, dtype=args.dtype)
    generator = torch.Generator().manual_seed(0)
    shapes = engine.model.config.adapted_shapes()
    for i in range(REQUESTS):
        z = {name: 1 + 0.01 * torch.randn(min(shape), generator=generator) for name, shape in shapes.items()}
        engine.load_expert(str(i), Expert(z=z))
    vocabulary = engine.model.config.vocab_size
    prompts = torch.randint(0, vocabulary, (REQUESTS, PROMPT), generator=generator).tolist()

    def serve(experts: int) -> None:
        engine.generate(
            Request(prompt, expert=str(i % experts), max_tokens=NEW, ignore_eos=True)
            for i, prompt in enumerate(prompts)
        )

    times = interleaved({"1": lambda: serve(1), "16": lambda: serve(16)}, args.rounds)
    seconds = medians(times)
    ratio = statistics.median(b / a for a, b in zip(times["1"], times["16"], strict=True))
    print(
        f"{REQUESTS} requests, {PROMPT} + {NEW} tokens, {args.dtype}, medians of {args.rounds} interleaved runs"
    )
    for experts, value in seconds.items():
        print(f"{experts:>3} experts  {REQUESTS * NEW / value:7.1f} new tokens/s")
    print(f"time under 16 experts / time under 1, median of the rounds' ratios: {ratio:.3f}")
    rows = [{"experts": int(k), "seconds": v, "tok_s": REQUESTS * NEW / v} for k, v in seconds.items()]
    print_json("experts", [*rows, {"ratio": ratio}])


if __name__ == "__main__":
    main()
