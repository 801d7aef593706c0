"""A long random life of the bank with LoRAs: no slot ever names another adapter's components."""

import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from zweave.adapters.component_pool import ComponentOrder, ComponentPool, Share
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


class Life:
    """What a bank goes through, at random.

    known: name -> the LoRA that it stands for now.
    held: slots that are acquired, what of, and what the names stood for then.
    """

    def __init__(self, seed: int, file: Path) -> None:
        self.trace, self.file, self.basis = random.Random(seed), file, compressed()
        save_compressed(self.basis, file)
        order = ComponentOrder(torch.float32)
        self.pool = ComponentPool(dict.fromkeys(Q, (M, N)), COMPONENTS, SLOTS, order)
        self.bank = Bank({module: torch.ones(min(M, N)) for module in Q}, SLOTS, components=self.pool)
        self.known: dict[str, Lora] = {}
        self.held: list[tuple[int, dict[str, float], dict[str, Lora]]] = []
        self.seen: Counter[str] = Counter()

    def load(self) -> None:
        if self.trace.random() < 0.2:
            names = [entry.name for entry in self.bank.load_adapters(self.file)]
            self.known |= {name: self.basis.lora(index) for index, name in enumerate(names)}
            return
        name, new = f"l{self.trace.randrange(12)}", lora(self.trace.randrange(40))
        self.bank.load(name, new)
        self.known |= {name: new}

    def unload(self) -> None:
        if self.known:
            name = self.trace.choice(sorted(self.known))
            self.bank.unload(name)
            self.known = {other: one for other, one in self.known.items() if other != name}

    def acquire(self) -> None:
        if not self.known:
            return
        names = self.trace.sample(sorted(self.known), min(len(self.known), self.trace.choice([1, 1, 2, 3])))
        parts = {name: self.trace.choice([1.0, -0.5, 2.0]) for name in names}
        try:
            slot = self.bank.try_acquire(Mixture.parse(parts))
        except ZweaveError as error:
            assert "give it more lora_components" in str(error)
            self.seen["refused"] += 1
            return
        # With nothing held there is room for whatever is not refused.
        assert slot is not None or self.held
        if slot is None:
            self.seen["waits"] += 1
        else:
            self.seen["acquired"] += 1
            self.held.append((slot, parts, dict(self.known)))
            check(self.pool, slot, parts, self.known)

    def release(self) -> None:
        if self.held:
            self.bank.release(self.held.pop(self.trace.randrange(len(self.held)))[0])

    def step(self) -> None:
        self.trace.choices([self.load, self.unload, self.acquire, self.release], [2, 1, 6, 5])[0]()

    def rest(self) -> None:
        """What the engine does while another thread loads, between two pieces of that."""
        self.trace.choices([self.acquire, self.release, lambda: None], [1, 1, 8])[0]()


@pytest.mark.parametrize("steps", [1500, pytest.param(100_000, marks=pytest.mark.exhaustive)])
def test_a_random_trace(steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    life = Life(steps, tmp_path / "many")
    monkeypatch.setattr(life.bank.turns, "rest", life.rest)
    for step in range(steps):
        life.step()
        if step % 10 == 0:
            for slot, parts, then in life.held:
                check(life.pool, slot, parts, then)
    assert min(life.seen[kind] for kind in ("acquired", "waits", "refused")) > steps / 100, life.seen
    assert not life.pool._unfinished


def test_an_acquired_adapter_takes_the_pages_of_one_that_is_being_written() -> None:
    pool = ComponentPool(dict.fromkeys(Q, (M, N)), PAGE, SLOTS, ComponentOrder(torch.float32))
    one, other = (
        Lora({Q[0]: LoraPair(torch.full((1, N), value), torch.ones(M, 1), 1.0)}) for value in (1.0, 2.0)
    )
    pieces = pool.place_gradually(pool.packed(one, "one"))
    next(pieces)
    assert pool.place([pool.packed(other, "other")])
    assert list(pieces) == [] and not pool.is_resident("one")
    pool.assign(1, [Share("other", [1.0])])
    torch.testing.assert_close(product(pool, 1, Q[0]), torch.full((M, N), 2.0))


@pytest.mark.usefixtures("poisoned_outputs")
def test_a_page_adds_nothing_to_a_matrix_that_its_adapter_leaves_alone() -> None:
    pool = ComponentPool(dict.fromkeys(Q, (M, N)), 2 * PAGE, SLOTS, ComponentOrder(torch.float32))
    first, both = (
        Lora({module: LoraPair(torch.ones(1, N), torch.ones(M, 1), 1.0) for module in modules})
        for modules in (Q[:1], Q)
    )
    assert pool.place([pool.packed(first, "first"), pool.packed(both, "both")])
    pool.assign(1, [Share("first", [2.0, 2.0]), Share("both", [1.0, 1.0])])
    torch.testing.assert_close(product(pool, 1, Q[0]), torch.full((M, N), 3.0))
    torch.testing.assert_close(product(pool, 1, Q[1]), torch.ones(M, N))
