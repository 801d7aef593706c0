"""write_kv and paged_attention on a CPU: values, causality, independence of the batch, refusals."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from zweave.kernels import empty_kv, pack, paged_attention, paged_attention_ref, write_kv, write_kv_ref

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
NAN = float("nan")
CPU = torch.device("cpu")


def caches(
    blocks: int, kv_heads: int, block_size: int, size: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """All of it NaN, padding included."""
    k_cache, v_cache = empty_kv(blocks, kv_heads, block_size, size, dtype, CPU)
    return k_cache.fill_(NAN), v_cache.fill_(NAN)


def rows(k_cache: Tensor, v_cache: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Keys and values [blocks, kv_heads, block_size, size] of a packed cache."""
    v = v_cache.permute(0, 1, 3, 5, 2, 4).flatten(4).flatten(2, 3)
    k = k_cache.permute(0, 1, 2, 4, 3, 5).flatten(4).flatten(2, 3)
    return k[:, :, : v.shape[2], :size], v[..., :size]


@dataclass(frozen=True)
class Problem:
    """Sequences in a paged cache ; unused places hold NaN, unused table entries 2**30."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    block_table: Tensor
    sequence: Tensor
    position: Tensor
    scale: float
    window: int
    keys: list[Tensor]
    values: list[Tensor]

    def arguments(self) -> tuple[Tensor | float | int, ...]:
        caches = self.q, self.k_cache, self.v_cache, self.block_table
        return *caches, self.sequence, self.position, self.scale, self.window

    def take(self, tokens: Tensor) -> "Problem":
        return replace(self, q=self.q[tokens], sequence=self.sequence[tokens], position=self.position[tokens])

    def expected(self) -> Tensor:
        """In float64 from the dense keys and values."""
        y = torch.empty(self.q.shape, dtype=torch.float64)
        for t, (s, p) in enumerate(zip(self.sequence.tolist(), self.position.tolist(), strict=True)):
            first = max(0, p + 1 - self.window) if self.window else 0
            share = self.q.shape[1] // self.keys[s].shape[1]
            k, v = (
                x[s][first : p + 1].double().repeat_interleave(share, 1) for x in (self.keys, self.values)
            )
            score = torch.einsum("hd,jhd->hj", self.q[t].double(), k) * self.scale
            y[t] = torch.einsum("hj,jhd->hd", score.softmax(1), v)
        return y


def problem(
    chunks: list[tuple[int, int]],
    dtype: torch.dtype,
    heads: int = 4,
    kv_heads: int = 2,
    size: int = 16,
    block_size: int = 16,
    window: int = 0,
) -> Problem:
    """chunks: for each sequence the tokens it already has, and those whose queries are asked for."""
    random = torch.Generator().manual_seed(len(chunks) + size + block_size)
    lengths = [before + count for before, count in chunks]
    per_sequence = [-(-n // block_size) for n in lengths]
    order = torch.randperm(sum(per_sequence) + 3, generator=random, dtype=torch.int32)
    k_cache, v_cache = caches(len(order), kv_heads, block_size, size, dtype)
    table = torch.full((len(chunks), max(per_sequence) + 2), 2**30, dtype=torch.int32)
    keys, values, sequence, position = [], [], [], []
    for s, ((before, count), blocks) in enumerate(zip(chunks, per_sequence, strict=True)):
        table[s, :blocks] = order[sum(per_sequence[:s]) :][:blocks]
        k, v = torch.randn(2, before + count, kv_heads, size, generator=random).to(dtype)
        j = torch.arange(before + count)
        write_kv_ref(k, v, k_cache, v_cache, table[s].long()[j // block_size] * block_size + j % block_size)
        keys.append(k)
        values.append(v)
        sequence += [s] * count
        position += range(before, before + count)
    q = torch.randn(len(position), (heads + 2) * size, generator=random).to(dtype)
    return Problem(
        q[:, : heads * size].unflatten(1, (heads, size)),
        k_cache,
        v_cache,
        table,
        torch.tensor(sequence, dtype=torch.int32),
        torch.tensor(position, dtype=torch.int32),
        size**-0.5,
        window,
        keys,
        values,
    )


CASES = {
    "one token": ([(0, 1)], {}),
    "decode": ([(n, 1) for n in (0, 1, 14, 15, 16, 62, 63, 64, 65, 127, 128, 200, 515)], {}),
    "decode as SmolLM2": ([(n, 1) for n in (5, 77, 300)], {"heads": 9, "kv_heads": 3, "size": 64}),
    "prefill": ([(0, 199)], {}),
    "chunks": ([(0, 63), (100, 1), (63, 70), (7, 17)], {"heads": 9, "kv_heads": 3, "size": 64}),
    "blocks of 2": ([(60, 9), (0, 5)], {"block_size": 2}),
    "blocks of 6": ([(60, 70), (3, 1)], {"block_size": 6}),
    "blocks of 50": ([(60, 70), (3, 1), (200, 4)], {"block_size": 50}),
    "blocks of 256": ([(250, 9), (0, 70)], {"block_size": 256}),
    "head size 1": ([(60, 9)], {"size": 1}),
    "head size 63": ([(70, 9), (3, 1)], {"size": 63}),
    "head size 80": ([(70, 9), (3, 1)], {"size": 80}),
    "head size 128": ([(70, 9), (3, 1)], {"size": 128}),
    "head size 199": ([(70, 9), (3, 1)], {"size": 199}),
    "no sharing": ([(70, 19)], {"heads": 3, "kv_heads": 3}),
    "64 heads share": ([(70, 5)], {"heads": 64, "kv_heads": 1}),
    "window of 1": ([(0, 70)], {"window": 1}),
    "window of 64": ([(0, 199), (300, 1), (10, 1)], {"window": 64}),
    "window of 100": ([(90, 99), (700, 1), (99, 1)], {"window": 100, "block_size": 8}),
    "window of 31 in blocks of 6": ([(90, 99), (700, 1), (99, 1)], {"window": 31, "block_size": 6}),
    "window of everything": ([(90, 9)], {"window": 2**40}),
}


@DTYPES
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_values(case, dtype, tolerance, poisoned_outputs) -> None:
    chunks, sizes = case
    p = problem(chunks, dtype, **sizes)
    y = paged_attention(*p.arguments())
    assert y.dtype == dtype and y.is_contiguous()
    torch.testing.assert_close(y.double(), p.expected(), **tolerance(dtype))


@DTYPES
@pytest.mark.parametrize("window", [0, 20])
def test_reference(window, dtype, tolerance) -> None:
    p = problem([(3, 40), (70, 2)], dtype, window=window)
    torch.testing.assert_close(paged_attention_ref(*p.arguments()).double(), p.expected(), **tolerance(dtype))


def test_no_tokens() -> None:
    p = problem([(5, 2)], torch.float32)
    assert paged_attention(*p.take(torch.arange(0)).arguments()).shape == (0, 4, 16)


@DTYPES
@pytest.mark.parametrize("window", [0, 50])
def test_a_token_has_the_same_bits_alone_in_chunks_and_in_any_order(window, dtype, threads) -> None:
    p = problem([(0, 130), (300, 1), (40, 37)], dtype, heads=9, kv_heads=3, size=64, window=window)
    threads(2)
    whole = paged_attention(*p.arguments())
    threads(1)
    assert torch.equal(paged_attention(*p.arguments()), whole)
    tokens = torch.arange(len(whole))
    for size in (1, 5, 16, 64):
        parts = [paged_attention(*p.take(part).arguments()) for part in tokens.split(size)]
        assert torch.equal(torch.cat(parts), whole), size
    for order in (tokens.flip(0), torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))):
        assert torch.equal(paged_attention(*p.take(order).arguments()), whole[order])


@DTYPES
def test_a_token_has_the_same_bits_with_any_block_size(dtype) -> None:
    results = []
    for block_size in (2, 16, 50):
        p = problem([(30, 90)], dtype, block_size=16)
        j = torch.arange(120)
        blocks = -(-120 // block_size)
        k_cache, v_cache = caches(blocks, 2, block_size, 16, dtype)
        write_kv(p.keys[0], p.values[0], k_cache, v_cache, j)
        table = torch.arange(blocks, dtype=torch.int32)[None]
        p = replace(p, k_cache=k_cache, v_cache=v_cache, block_table=table)
        results.append(paged_attention(*p.arguments()))
    assert all(torch.equal(result, results[0]) for result in results)


@DTYPES
def test_nan_in_a_later_token_never_reaches_an_earlier_one(dtype) -> None:
    p = problem([(0, 100)], dtype)
    clean = paged_attention(*p.arguments())
    j = torch.tensor([70])
    index = p.block_table[0].long()[j // 16] * 16 + j % 16
    poison = torch.full((1, 2, 16), NAN, dtype=dtype)
    write_kv(poison, poison, p.k_cache, p.v_cache, index)
    y = paged_attention(*p.arguments())
    assert torch.equal(y[:70], clean[:70])
    assert y[70:].isnan().all()


@DTYPES
def test_large_scores_do_not_overflow(dtype, tolerance) -> None:
    p = problem([(100, 3)], dtype)
    p = replace(p, scale=40.0)
    y = paged_attention(*p.arguments())
    # Scores reach some hundreds: their own rounding, relative 2**-24, shows as 1e-4 in a probability.
    wide = tolerance(dtype) if dtype == torch.bfloat16 else {"rtol": 2e-4, "atol": 2e-4}
    torch.testing.assert_close(y.double(), p.expected(), **wide)


def test_a_scale_of_zero_averages(tolerance) -> None:
    p = replace(problem([(100, 3)], torch.float32), scale=0.0)
    torch.testing.assert_close(
        paged_attention(*p.arguments()).double(), p.expected(), **tolerance(torch.float32)
    )


@DTYPES
@pytest.mark.parametrize("function", [write_kv, write_kv_ref])
@pytest.mark.parametrize("tokens", [0, 1, 63])
def test_write_kv_writes_its_places_and_nothing_else(tokens, function, dtype) -> None:
    random = torch.Generator().manual_seed(tokens)
    fused = torch.randn(tokens, 5 * 3 * 10, generator=random).to(dtype)
    k, v = (fused[:, 30 * i : 30 * (i + 1)].unflatten(1, (3, 10)) for i in (3, 4))
    k_cache, v_cache = caches(12, 3, 8, 10, dtype)
    index = torch.randperm(96, generator=random)[:tokens]
    function(k, v, k_cache, v_cache, index)
    for source, target in zip((k, v), rows(k_cache, v_cache, 10), strict=True):
        places = target.transpose(1, 2).reshape(96, 3, 10)
        assert torch.equal(places[index], source)
        assert places.isnan().sum() == (96 - tokens) * 30


@DTYPES
@pytest.mark.parametrize("size", [1, 63, 64])
def test_a_block_is_its_keys_and_transposed_values_packed(size, dtype) -> None:
    k, v = torch.randn(2, 48, 2, size, generator=torch.Generator().manual_seed(size)).to(dtype)
    k_cache, v_cache = caches(1, 2, 48, size, dtype)
    write_kv(k, v, k_cache, v_cache, torch.arange(48))
    for head in range(2):
        assert torch.equal(k_cache[0, head], pack(k[:, head].contiguous()).data)
        columns = pack(v[:, head].T.contiguous()).data
        # What pads the last panel of columns is never written.
        assert torch.equal(v_cache[0, head].nan_to_num(0), columns)


@DTYPES
def test_both_implementations_write_the_same(dtype) -> None:
    k, v = torch.randn(2, 20, 2, 63, generator=torch.Generator().manual_seed(0)).to(dtype)
    index = torch.randperm(40, generator=torch.Generator().manual_seed(1))[:20]
    ours, theirs = (caches(5, 2, 8, 63, dtype) for _ in range(2))
    write_kv(k, v, *ours, index)
    write_kv_ref(k, v, *theirs, index)
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)


def test_the_references_take_the_layout_of_a_gpu_too(tolerance) -> None:
    p = problem([(3, 20)], torch.float32)
    k_cache, v_cache = torch.full((2, 5, 2, 16, 16), NAN)
    write_kv_ref(p.keys[0], p.values[0], k_cache, v_cache, torch.arange(16, 39))
    table = torch.tensor([[1, 2]], dtype=torch.int32)
    other = replace(p, k_cache=k_cache, v_cache=v_cache, block_table=table)
    torch.testing.assert_close(
        paged_attention_ref(*other.arguments()).double(), p.expected(), **tolerance(torch.float32)
    )


def test_a_copied_block_serves_as_its_original() -> None:
    p = problem([(20, 30)], torch.bfloat16)
    expected = paged_attention(*p.arguments())
    used, free = p.block_table[0, 2].item(), p.block_table.new_tensor(range(len(p.k_cache)))
    copy = next(b for b in free.tolist() if b not in p.block_table[0].tolist())
    for cache in (p.k_cache, p.v_cache):
        cache[copy] = cache[used]
        cache[used] = NAN
    table = changed(p.block_table, (0, 2), copy)
    assert torch.equal(paged_attention(*replace(p, block_table=table).arguments()), expected)


def test_a_block_of_pairs_holds_an_even_number_of_positions() -> None:
    with pytest.raises(ValueError, match="even number of positions, not 7"):
        empty_kv(2, 1, 7, 16, torch.bfloat16, CPU)
    assert empty_kv(2, 1, 7, 16, torch.float32, CPU)[1].shape == (2, 1, 1, 7, 16, 1)


@pytest.mark.parametrize("wrong", [-1, 96, 2**62])
def test_a_place_outside_the_cache_is_refused_before_anything_is_written(wrong) -> None:
    k = torch.zeros(2, 3, 10)
    both = caches(12, 3, 8, 10, torch.float32)
    with pytest.raises(RuntimeError, match=r"^write_kv: index\[1\] is"):
        write_kv(k, k, *both, torch.tensor([0, wrong]))
    assert all(cache.isnan().all() for cache in both)


def changed(tensor: Tensor, at: int | tuple[int, int], value: int) -> Tensor:
    tensor = tensor.clone()
    tensor[at] = value
    return tensor


P = problem([(20, 3), (40, 2)], torch.float32, block_size=8)
OUTSIDE = {
    "sequence": {"sequence": changed(P.sequence, 1, 2)},
    "sequence below 0": {"sequence": changed(P.sequence, 1, -1)},
    "position below 0": {"position": changed(P.position, 4, -1)},
    "position beyond the table": {"position": changed(P.position, 4, 64)},
    "position beyond every table": {"position": changed(P.position, 4, 2**31 - 1)},
    "position in an unused entry": {"position": changed(P.position, 4, 50)},
    "block below 0": {"block_table": changed(P.block_table, (0, 1), -1)},
    "block beyond the cache": {"block_table": changed(P.block_table, (1, 5), len(P.k_cache))},
}
WRONG = {
    "q is flat": {"q": P.q.flatten(1)},
    "head sizes differ": {"q": P.q[..., :-1].contiguous()},
    "heads cannot share": {"q": P.q[:, :3]},
    "q in another dtype": {"q": P.q.bfloat16()},
    "q in float64": {"q": P.q.double()},
    "heads apart": {"q": P.q[:, ::2]},
    "caches differ": {"v_cache": P.v_cache[:-1]},
    "blocks differ": {"v_cache": P.v_cache.repeat(1, 1, 1, 3, 1, 1)},
    "cache is a view": {"k_cache": P.k_cache[::2], "v_cache": P.v_cache[::2]},
    "caches in rows": dict(zip(("k_cache", "v_cache"), rows(P.k_cache, P.v_cache, 16), strict=True)),
    "table in int64": {"block_table": P.block_table.long()},
    "table is a vector": {"block_table": P.block_table[0]},
    "sequence too short": {"sequence": P.sequence[:-1]},
    "positions in int64": {"position": P.position.long()},
    "negative window": {"window": -1},
}


@pytest.mark.parametrize("wrong", (OUTSIDE | WRONG).values(), ids=OUTSIDE | WRONG)
def test_wrong_operands_are_refused_in_one_line(wrong) -> None:
    with pytest.raises(RuntimeError, match=r"^paged_attention: "):
        paged_attention(*replace(P, **wrong).arguments())


def test_blocks_before_the_window_are_never_looked_at() -> None:
    p = problem([(200, 2)], torch.float32, block_size=8, window=20)
    p.block_table[0, : (200 - 19) // 8] = -1
    assert paged_attention(*p.arguments()).isfinite().all()
