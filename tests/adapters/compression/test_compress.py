"""Adapters of a model over common bases, and the file that holds them."""

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from zweave.adapters.compression.compress import compress
from zweave.adapters.compression.compressed import CompressedLoras
from zweave.adapters.compression.compressed_file import is_compressed, load_compressed, save_compressed
from zweave.adapters.lora import Lora, LoraPair
from zweave.errors import ZweaveError

Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"
SHAPES = {Q: (8, 8), UP: (12, 8)}


def values(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lora(seed: int, rank: int = 2, modules: tuple[str, ...] = (Q, UP)) -> Lora:
    return Lora(
        {
            m: LoraPair(values(rank, SHAPES[m][1], seed=seed), values(SHAPES[m][0], rank, seed=seed + 1), 0.5)
            for m in modules
        },
        description=f"of seed {seed}",
    )


def loras() -> dict[str, Lora]:
    return {"a": lora(10), "b": lora(20, 3, (UP,)), "c": replace(lora(30, 1), scope="after_prompt")}


def dense(adapter: Lora) -> dict[str, Tensor]:
    return {m: pair.scaling * pair.b.double() @ pair.a.double() for m, pair in adapter.pairs.items()}


@pytest.fixture(params=["diagonal", "full"])
def compressed(request: pytest.FixtureRequest) -> CompressedLoras:
    return compress(loras(), SHAPES, rank=4, variant=request.param, clusters=2, base_digest="b" * 64)


@pytest.mark.parametrize("variant", ["diagonal", "full"])
@pytest.mark.parametrize(("rank", "clusters"), [(2, 1), (3, 2), (3, 3), (100, 1)])
def test_the_errors_told_are_those_of_what_is_kept(variant: str, rank: int, clusters: int) -> None:
    found = compress(loras(), SHAPES, rank=rank, variant=variant, clusters=clusters)
    assert len(found.clusters) == clusters == len({adapter.cluster for adapter in found.adapters})
    for index, (adapter, original) in enumerate(zip(found.adapters, loras().values(), strict=True)):
        wanted, kept, errors = dense(original), dense(found.lora(index)), found.errors(index)
        assert kept.keys() == wanted.keys() == errors.keys()
        for module, error in errors.items():
            assert error == pytest.approx(
                float((wanted[module] - kept[module]).norm() / wanted[module].norm()), rel=1e-5, abs=1e-6
            )
        lost = sum((wanted[m] - kept[m]).square().sum() for m in wanted)
        whole = sum(wanted[m].square().sum() for m in wanted)
        assert adapter.error == pytest.approx(float((lost / whole).sqrt()), rel=1e-5, abs=1e-6)
    if rank == 100:
        assert max(adapter.error for adapter in found.adapters) < 1e-6


def test_adapters_of_two_families_part_by_themselves() -> None:
    """Each family has a basis of its own, which none of three components holds for both."""
    families = [(values(3, 8, seed=family), values(12, 3, seed=family + 5)) for family in (1, 2)]
    many = {
        f"{family}-{i}": Lora({UP: LoraPair(a, b * values(3, seed=100 * family + i), 1.0)})
        for i in range(5)
        for family, (a, b) in enumerate(families)
    }
    found = compress(many, SHAPES, rank=3, clusters=2)
    assert {(adapter.name[0], adapter.cluster) for adapter in found.adapters} in (
        {("0", 0), ("1", 1)},
        {("0", 1), ("1", 0)},
    )
    assert max(adapter.error for adapter in found.adapters) < 1e-6
    assert min(adapter.error for adapter in compress(many, SHAPES, rank=3).adapters) > 1e-3


def test_a_file_gives_back_what_was_written(compressed: CompressedLoras, tmp_path: Path) -> None:
    save_compressed(compressed, tmp_path / "one")
    found = load_compressed(tmp_path / "one")
    assert is_compressed(tmp_path / "one") and not is_compressed(tmp_path / "none")
    assert (found.adapters, found.base_digest, found.rank) == (compressed.adapters, "b" * 64, 4)
    assert [adapter.digest for adapter in found.adapters] == [one.digest for one in loras().values()]
    assert found.adapters[2].scope == "after_prompt" and found.adapters[0].description == "of seed 10"
    for index in range(3):
        assert found.lora(index).digest == compressed.lora(index).digest
    again = compress(loras(), SHAPES, rank=4, variant=found.variant, clusters=2, base_digest="b" * 64)
    save_compressed(again, tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_what_cannot_be_compressed_is_told_in_one_line() -> None:
    nothing = Lora({Q: LoraPair(values(2, 8, seed=0), torch.zeros(8, 2), 1.0)})
    ends = torch.zeros(2, 8)
    ends[0] = 1.0
    product = Lora({Q: LoraPair(ends, ends.flip(0).T.contiguous(), 1.0)})
    least = Lora({Q: replace(lora(1).pairs[Q], scaling=1e-200)})
    other = Lora({Q: LoraPair(values(2, 9, seed=0), values(8, 2, seed=1), 1.0)})
    huge = Lora({Q: LoraPair(values(2, 8, seed=0) * 1e25, values(8, 2, seed=1) * 1e25, 1.0)})
    cases: list[tuple[dict[str, Lora], dict[str, int], str]] = [
        ({"a": huge}, {}, "an adapter is too large for float32: leave it out"),
        ({"a": nothing}, {}, "a: the adapter changes nothing: leave it out"),
        ({"b": lora(1), "a": product}, {}, "a: the adapter changes nothing: leave it out"),
        ({"b": lora(1), "a": least}, {}, "a: the adapter changes nothing: leave it out"),
        ({"a": other}, {}, f"a: {Q}: the adapter is for a matrix of 8 x 9 and the model's is 8 x 8"),
        ({"a": lora(1)}, {"rank": 0}, "the rank of a basis is from 1 to 4096, not 0"),
        ({"a": lora(1)}, {"rank": 10**9}, "the rank of a basis is from 1 to 4096, not 1000000000"),
        ({"a": lora(1)}, {"clusters": 2}, "1 adapters make from 1 to 1 clusters, not 2"),
    ]
    for adapters, options, words in cases:
        with pytest.raises(ZweaveError) as refused:
            compress(adapters, SHAPES, **{"rank": 2, **options})
        assert words in str(refused.value)


def test_broken_files_are_told_in_one_line(compressed: CompressedLoras, tmp_path: Path) -> None:
    file = tmp_path / "file"
    save_compressed(compressed, file)
    whole, tensors = file.read_bytes(), load_file(file)
    with safe_open(file, "pt") as handle:
        metadata = handle.metadata()
    u = next(key for key in tensors if key.endswith(f"{UP}.u"))
    listed = metadata["adapters"]

    def nan(found: dict[str, Tensor]) -> None:
        found[u][0, 0] = torch.nan

    def short(found: dict[str, Tensor]) -> None:
        found[u] = found[u][:, 1:].clone()

    def without(found: dict[str, Tensor]) -> None:
        del found[u]

    changes: list[tuple[Callable[[dict[str, Tensor]], None], dict[str, str], str]] = [
        (nan, {}, "a tensor holds NaN or infinity"),
        (short, {}, "which does not fit the others"),
        (without, {}, "not error,"),
        (lambda found: found.update({"x": found[u].clone()}), {}, "'x' is no part of its clusters"),
        (lambda found: found.update({u: found[u].half()}), {}, "u is of torch.float16"),
        (dict.clear, {}, "the adapter adapts no matrix"),
        (
            lambda found: None,
            {"format": "zweave-compressed-loras-9"},
            "its format is 'zweave-compressed-loras-9'",
        ),
        (lambda found: None, {"variant": "both"}, "the variant must be diagonal or full, not 'both'"),
        (lambda found: None, {"rank": "9" * 30}, "rank must be a number from 1 to 4096"),
        (lambda found: None, {"adapters": "[" * 9999}, "its adapters are no list of JSON objects"),
        (lambda found: None, {"base_digest": "\x1b[31m"}, "base_digest must be 64 hexadecimal digits"),
        (
            lambda found: None,
            {"adapters": listed.replace('"c"', '"[c]"')},
            "the name of an adapter cannot be",
        ),
        (lambda found: None, {"adapters": "[1]"}, "does not hold the fields of one"),
        (lambda found: None, {"adapters": listed.replace('"b"', '"a"')}, "two adapters have the same name"),
        (
            lambda found: None,
            {"adapters": listed.replace('"always"', '"never"')},
            "the scope of an adapter cannot be 'never'",
        ),
    ]
    for change, fields, words in changes:
        found = {key: tensor.clone() for key, tensor in tensors.items()}
        change(found)
        save_file(found, file, metadata | fields)
        with pytest.raises(ZweaveError) as refused:
            load_compressed(file).check(SHAPES)
        assert words in str(refused.value) and "\n" not in str(refused.value)
    for content in (whole[:-3], whole[:20], b"", struct.pack("<Q", 1 << 60)):
        file.write_bytes(content)
        with pytest.raises(ZweaveError, match="is not a whole safetensors file"):
            load_compressed(file)
    file.write_bytes(whole)
    with pytest.raises(ZweaveError, match=r"trained for other weights \(base 'bbbbbbbbbbbb'"):
        load_compressed(file).check(SHAPES, "c" * 64)
    with pytest.raises(ZweaveError, match="the model has no adaptable matrix"):
        load_compressed(file).check({Q: (8, 8)})
    with pytest.raises(ZweaveError, match="the model's is 8 x 12: it is for another model"):
        load_compressed(file).check({Q: (8, 8), UP: (8, 12)})
