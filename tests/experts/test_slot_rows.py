"""Rows have the bits of float64, by whatever way they come into a slot; files are read without another check."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from zweave.errors import ZweaveError
from zweave.experts import Bank, Expert, Mixture, expert_file
from zweave.experts.byte_cache import ByteCache
from zweave.kernels import LinearMode
from zweave.planner.plan import MatrixPlan

RANKS = {
    f"model.layers.{layer}.mlp.{part}_proj": 63 + layer for layer in (0, 1, 10) for part in ("up", "down")
}
Z = {module: 1 + torch.randn(rank) for module, rank in RANKS.items()}
PLAN = {module: MatrixPlan((rank, rank), dense=True, delta_rank=7) for module, rank in RANKS.items()}


def sigmas(zeros: int = 0) -> dict[str, Tensor]:
    found = {module: torch.rand(rank).sort(descending=True).values + 0.01 for module, rank in RANKS.items()}
    for sigma in found.values():
        sigma[len(sigma) - zeros :] = 0
    return found


def leading(z: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    return {module: torch.where(torch.arange(len(one)) < count, one, 1.0) for module, one in z.items()}


@pytest.mark.parametrize("zeros", [0, 60])
@pytest.mark.parametrize("spread", [0.1, 5.0], ids=["near 1", "also negative"])
def test_rows_have_the_bits_of_float64(zeros: int, spread: float) -> None:
    held = sigmas(zeros)
    z = {module: 1 + spread * (one - 1) for module, one in Z.items()}
    wide, narrow = list(z)[:2]
    del z[wide]
    z |= leading({narrow: z[narrow]}, 3)
    rows = Bank(held, 2, plan=PLAN).tables.rows_of(z)
    full = {module: z.get(module, torch.ones(rank)).double() for module, rank in RANKS.items()}
    change = {module: held[module].double() * full[module] - held[module].double() for module in RANKS}
    scale = torch.cat([(held[module].double() * full[module]).float() for module in RANKS])
    assert torch.equal(rows.scale, scale)
    assert torch.equal(rows.delta, torch.cat([one[:7].float() for one in change.values()]))
    supports = [int(one.nonzero().max()) + 1 if one.any() else 0 for one in change.values()]
    assert rows.modes.supports.tolist() == supports
    modes = {0: LinearMode.DENSE} | dict.fromkeys(range(1, 8), LinearMode.DELTA)
    assert rows.modes.modes.tolist() == [modes.get(one, LinearMode.FACTORED) for one in supports]


@pytest.mark.parametrize("max_error", [0.0, 1e-9])
@pytest.mark.parametrize("renormalise", [False, True])
def test_z_multiplies_other_scales_than_sigma(renormalise: bool, max_error: float) -> None:
    """Those of refit factors; what is renormalised is still what z makes of sigma."""
    held = sigmas()
    scales = {module: 2.0 ** torch.randint(-9, 9, (rank,)) for module, rank in RANKS.items()}
    tables = Bank(held, 2, plan=PLAN, max_error=max_error, scales=scales).tables
    assert torch.equal(tables.scale[0], torch.cat(list(scales.values())))
    rows, plain = tables.rows_of(Z, renormalise), Bank(held, 2, plan=PLAN).tables.rows_of(Z, renormalise)
    factor = {module: held[module].sum() / (held[module] * z).sum() for module, z in Z.items()}
    wanted = [scales[module] * z * (factor[module] if renormalise else 1) for module, z in Z.items()]
    torch.testing.assert_close(rows.scale, torch.cat(wanted))
    assert torch.equal(rows.delta, plain.delta) and torch.equal(rows.modes.modes, plain.modes.modes)


def test_equal_supports_share_their_modes() -> None:
    tables = Bank(sigmas(), 2, plan=PLAN).tables
    one, other = tables.rows_of(leading(Z, 5)), tables.rows_of(leading(Z, 5))
    assert one.modes is other.modes


def save(path: Path, kind: str) -> dict[str, Tensor]:
    """An expert file of one kind or both, some matrices left out; its z."""
    z = dict(list(Z.items())[1:])
    halves = {"float32": [], "float16": list(z), "both": list(z)[:2]}[kind]
    stored = {
        f"{module}.z_minus_1" if module in halves else f"{module}.z": (one - 1).half()
        if module in halves
        else one
        for module, one in z.items()
    }
    save_file(stored, path)
    return {module: (one - 1).half().float() + 1 if module in halves else one for module, one in z.items()}


@pytest.mark.parametrize("kind", ["float32", "float16", "both"])
def test_a_file_gives_the_rows_of_memory(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    z = save(path, kind)
    bank = Bank(sigmas(), 3, plan=PLAN)
    bank.load("file", path)
    bank.load("memory", Expert(z, scope="after_prompt"))
    bank._prepared = ByteCache(0, 1)
    if kind != "both":
        monkeypatch.setattr(expert_file, "_sha256", lambda data: pytest.fail("hashed"))
    slots = [bank.acquire(Mixture.parse(name)) for name in ("file", "memory")]
    tables, wanted = bank.tables, bank.tables.rows_of(z)
    for slot in slots:
        assert torch.equal(tables.scale[slot], wanted.scale)
        assert torch.equal(tables.delta[slot], wanted.delta)
        assert torch.equal(tables.modes[:, slot], wanted.modes.modes)
        assert torch.equal(tables.supports[:, slot], wanted.modes.supports)
    assert torch.equal(bank.registered("memory").read().z[next(iter(z))], z[next(iter(z))])


def test_whoever_has_run_under_an_expert_goes_on_without_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    z = save(path, "float32")
    bank = Bank(sigmas(), 2, plan=PLAN)
    bank.load("a", path)
    bank.load("b", Expert(leading(Z, 3), scope="after_prompt"))
    bank._prepared = ByteCache(0, 1)
    running = [bank.resolve(Mixture.parse("a")) for _ in range(2)]
    late = bank.resolve(Mixture.parse("a"))
    for _ in range(2):
        for one in running:
            slot = bank.acquire(one)
        # As who merges a slot's matrices does.
        bank.tables.modes[:, slot] = int(LinearMode.MERGED)
        path.unlink(missing_ok=True)
        for _ in running:
            bank.release(slot)
        bank.release(bank.acquire(Mixture.parse("b")))
    with pytest.raises(ZweaveError, match=r"a\.safetensors"):
        bank.acquire(late)
    for one in running:
        slot = bank.acquire(one)
    wanted = bank.tables.rows_of(z)
    assert torch.equal(bank.tables.scale[slot], wanted.scale)
    assert torch.equal(bank.tables.delta[slot], wanted.delta)
    assert torch.equal(bank.tables.modes[:, slot], wanted.modes.modes)
    assert running[0].held[0] is running[1].held[0], "one copy for both"


@pytest.mark.parametrize("change", ["bytes", "cut"])
def test_a_file_that_is_changed_where_it_lies_is_noticed(change: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(path, "float32")
    bank = Bank(sigmas(), 2, plan=PLAN)
    bank.load("a", path)
    bank._prepared = ByteCache(0, 1)
    data = path.read_bytes()
    path.write_bytes(data[:-8] if change == "cut" else data[:-4] + np.float32(3).tobytes())
    os.utime(path, ns=(0, 0))
    with pytest.raises(ZweaveError, match=r"a\.safetensors"):
        bank.acquire(Mixture.parse("a"))
    path.write_bytes(data)
    assert bank.acquire(Mixture.parse("a")) == 1, "no slot was lost"
