"""Is the factored linear faster than PyTorch's dense one, though it reads more weights?

    python bench/linear.py

Shapes of SmolLM2-135M, bf16; weights rotate so that they come from memory, not from the cache.
bytes: of the weights, R (M + N) factored and M N dense, two bytes each.
"""

import argparse
import itertools
from collections.abc import Callable, Sequence
from functools import partial

import torch
from harness import interleaved, medians, print_json
from torch.nn import functional as F

from zweave.kernels import pack, svf_linear, svf_linear_ref

SHAPES = ((576, 576), (192, 576), (1536, 576), (576, 1536))
ROTATED_BYTES = 128 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    rows = []
    print(
        f"{'M x N':>12} {'T':>3} {'F.linear us':>12} {'factored us':>12} {'GB/s':>6} {'F.linear / factored':>20}"
    )
    for (M, N), T in itertools.product(SHAPES, (1, 4, 8, 16)):
        row = measure(M, N, T, args.rounds)
        rows.append(row)
        print(
            f"{M:>5} x {N:>4} {T:>3} {row['dense_us']:>12.1f} {row['factored_us']:>12.1f} {row['factored_gb_s']:>6.1f} "
            f"{row['dense_us'] / row['factored_us']:>20.2f}"
        )
    print_json("linear", rows)


@torch.inference_mode()
def measure(M: int, N: int, T: int, rounds: int) -> dict[str, float]:
    """Times of one shape; refuses to give any if the factored output is wrong."""
    R = min(M, N)
    copies = max(2, ROTATED_BYTES // (2 * R * (M + N)))
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(torch.bfloat16)

    x = random(T, N)
    slot = torch.arange(T, dtype=torch.int32)
    scale = torch.rand(T, R, generator=generator) + 0.5
    weights = [random(M, N) for _ in range(copies)]
    vt, u = random(R, N) * N**-0.5, random(M, R) * R**-0.5
    factors = [(pack(vt.clone()), pack(u.clone())) for _ in range(copies)]
    error = (
        svf_linear(x, *factors[0], scale, slot).float() - svf_linear_ref(x, vt, u, scale, slot).float()
    ).abs()
    if error.max() > 0.05:
        raise SystemExit(f"the factored output is wrong by {error.max():.3f}: no times are printed")
    times = interleaved(
        {
            "dense": partial(run_all, [partial(F.linear, x, w) for w in weights]),
            "factored": partial(run_all, [partial(svf_linear, x, v, w, scale, slot) for v, w in factors]),
        },
        rounds,
    )
    dense, factored = (1e6 * value / copies for value in medians(times).values())
    moved = 2 * R * (M + N)
    return {
        "M": M, "N": N, "T": T, "dense_us": dense, "factored_us": factored, "factored_gb_s": moved / factored / 1e3
    }  # fmt: skip


def run_all(calls: Sequence[Callable[[], object]]) -> None:
    for call in calls:
        call()


if __name__ == "__main__":
    main()
