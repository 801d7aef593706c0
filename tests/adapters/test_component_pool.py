"""A long random life of the bank with LoRAs: no slot ever names another adapter's components."""

import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from zweave.adapters.component_pool import ComponentOrder, ComponentPool
from zweave.adapters.compression.compress import compress
from zweave.adapters.compression.compressed import CompressedLoras
from zweave.adapters.compression.compressed_file import save_compressed
from zweave.adapters.lora import Lora, LoraPair
from zweave.errors import ZweaveError
from zweave.experts.bank import Bank
from zweave.experts.mixture import Mixture
from zweave.kernels import PAGE, Packed, unpack

Q = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(2)]
M, N, SLOTS, COMPONENTS = 5, 7, 5, 6 * PAGE


def lora(seed: int) -> Lora:
    """Of one or both matrices, with ranks of one to three pages."""
    chosen, random_values = random.Random(seed), torch.Generator().manual_seed(seed)
    modules = chosen.choice([Q, Q[:1], Q[1:]])
    ranks = [chosen.choice([1, 16, 17, 40]) for _ in modules]
    return Lora(
        {
            module: LoraPair(
                torch.randn(rank, N, generator=random_values),
                torch.randn(M, rank, generator=random_values),
                1.0,
            )
            for module, rank in zip(modules, ranks, strict=True)
        }
    )


def compressed() -> CompressedLoras:
    """Six adapters over a basis of two pages."""
    loras = {f"c{seed}": lora(100 + seed) for seed in range(6)}
    return compress(loras, dict.fromkeys(Q, (M, N)), rank=20)


def product(pool: ComponentPool, slot: int, module: str) -> torch.Tensor:
    """What the pages of a slot add to a matrix [M, N]."""
    linear = pool.linear(module)
    added = torch.zeros(M, N)
    for page in linear.pages_of[slot].tolist() if linear.adapted[slot] else []:
        if page < 0:
            break
        vt = unpack(Packed(linear.vt[page : page + 1], (PAGE, N)))
        u = unpack(Packed(linear.u[page], (M, PAGE)))
        added += u * linear.scale[slot, page * PAGE : (page + 1) * PAGE] @ vt
    return added


def check(pool: ComponentPool, slot: int, parts: dict[str, float], known: dict[str, Lora]) -> None:
    for module in Q:
        wanted = torch.zeros(M, N)
        for name, weight in parts.items():
            pair = known[name].pairs.get(module)
            if pair is not None:
                wanted += weight * pair.b @ pair.a
        torch.testing.assert_close(product(pool, slot, module), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [1500, pytest.param(100_000, marks=pytest.mark.exhaustive)])
def test_a_random_trace(steps: int, tmp_path: Path) -> None:
    trace = random.Random(steps)
    shapes, order = dict.fromkeys(Q, (M, N)), ComponentOrder(torch.float32)
    pool = ComponentPool(shapes, COMPONENTS, SLOTS, order)
    bank = Bank({module: torch.ones(min(M, N)) for module in Q}, SLOTS, components=pool)
    file, over_one_basis = tmp_path / "many", compressed()
    save_compressed(over_one_basis, file)
    known: dict[str, Lora] = {}
    held: list[tuple[int, dict[str, float], dict[str, Lora]]] = []
    seen: Counter[str] = Counter()
    for step in range(steps):
        kind = trace.choices(["load", "unload", "acquire", "release"], [2, 1, 6, 5])[0]
        if kind == "load" and trace.random() < 0.2:
            names = [entry.name for entry in bank.load_adapters(file)]
            known = known | {name: over_one_basis.lora(index) for index, name in enumerate(names)}
        elif kind == "load":
            name = f"l{trace.randrange(12)}"
            known = known | {name: lora(trace.randrange(40))}
            bank.load(name, known[name])
        elif kind == "unload" and known:
            name = trace.choice(sorted(known))
            bank.unload(name)
            known = {other: one for other, one in known.items() if other != name}
        elif kind == "acquire" and known:
            names = trace.sample(sorted(known), min(len(known), trace.choice([1, 1, 2, 3])))
            parts = {name: trace.choice([1.0, -0.5, 2.0]) for name in names}
            try:
                slot = bank.try_acquire(Mixture.parse(parts))
            except ZweaveError as error:
                assert "give it more lora_components" in str(error)
                kind = "refused"
            else:
                kind = "waits" if slot is None else kind
                # With nothing held there is room for whatever is not refused.
                assert slot is not None or held
                if slot is not None:
                    held.append((slot, parts, known))
                    check(pool, slot, parts, known)
        elif kind == "release" and held:
            bank.release(held.pop(trace.randrange(len(held)))[0])
        seen[kind] += 1
        if step % 10 == 0:
            for slot, parts, then in held:
                check(pool, slot, parts, then)
    assert min(seen[kind] for kind in ("acquire", "waits", "refused")) > steps / 100, seen
