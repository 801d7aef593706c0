"""The native decoder against its op-by-op reference: the same bits, whatever the modes of the tokens."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from zweave import kernels
from zweave.kernels import (
    AdaptedLinear,
    Decoder,
    DecoderConfig,
    DecoderLayer,
    DecoderMetadata,
    LinearMode,
    Packed,
    decoder_ref,
    dequantize,
    empty_kv,
    pack,
    quantize,
    unpack,
)
from zweave.kernels.decoder import LINEARS

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
HEADS, KV_HEADS, HEAD_SIZE, INNER = 6, 2, 10, 77
SLOTS, BLOCKS, BLOCK_SIZE = 5, 12, 16
# The base, two experts without limits and two of few components.
MODES = [LinearMode.DENSE, LinearMode.FACTORED, LinearMode.DELTA, LinearMode.FACTORED, LinearMode.DELTA]
SLOTS_OF_A_BATCH = {
    "base": [0] * 9,
    "factored": [1, 3, 1],
    "delta": [2, 4, 4, 2, 2],
    "in turn": [0, 1, 2, 3, 4] * 5,
    "sorted": [0] * 7 + [2] * 30 + [1] * 13,
    "many": [0] * 40 + [1] * 120 + [4] * 31,
}


def linear(random: torch.Generator, M: int, N: int, dtype: torch.dtype, bias: bool) -> AdaptedLinear:
    weight = torch.randn(M, N, generator=random) / N**0.5
    u, sigma, vt = torch.linalg.svd(weight, full_matrices=False)
    kept = max(1, sigma.numel() // 4)
    scale = sigma * (1 + 0.2 * torch.randn(SLOTS, sigma.numel(), generator=random))
    scale[0] = sigma
    for slot in (2, 4):
        scale[slot, kept:] = sigma[kept:]
    return AdaptedLinear(
        shape=(M, N),
        dense=pack(weight.to(dtype)),
        vt=pack(vt.contiguous().to(dtype)),
        u=pack(u.contiguous().to(dtype)),
        scale=scale,
        delta=(scale - sigma)[:, :kept],
        bias=torch.randn(M, generator=random).to(dtype) if bias else None,
        modes=torch.tensor(MODES, dtype=torch.uint8),
    )


def layer(seed: int, dtype: torch.dtype, hidden: int, extras: bool, window: int = 0) -> DecoderLayer:
    """extras: biases and norms of the heads."""
    random = torch.Generator().manual_seed(seed)

    def norm(size: int) -> Tensor:
        return (torch.rand(size, generator=random) + 0.5).to(dtype)

    def matrix(M: int, N: int) -> AdaptedLinear:
        return linear(random, M, N, dtype, extras)

    caches = empty_kv(BLOCKS, KV_HEADS, BLOCK_SIZE, HEAD_SIZE, dtype, torch.device("cpu"))
    width, kv_width = HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE
    return DecoderLayer(
        input_norm=norm(hidden),
        mlp_norm=norm(hidden),
        q_norm=norm(HEAD_SIZE) if extras else None,
        k_norm=norm(HEAD_SIZE) if extras else None,
        q=matrix(width, hidden),
        k=matrix(kv_width, hidden),
        v=matrix(kv_width, hidden),
        o=matrix(hidden, width),
        gate=matrix(INNER, hidden),
        up=matrix(INNER, hidden),
        down=matrix(hidden, INNER),
        k_cache=caches[0],
        v_cache=caches[1],
        window=window,
    )


def config() -> DecoderConfig:
    angles = torch.rand(BLOCKS * BLOCK_SIZE, HEAD_SIZE // 2, generator=torch.Generator().manual_seed(5)) * 6
    return DecoderConfig(HEADS, KV_HEADS, HEAD_SIZE, HEAD_SIZE**-0.5, 1e-5, angles.cos(), angles.sin())


def batch(slots: Sequence[int]) -> DecoderMetadata:
    """All tokens of one sequence, whose blocks lie in reverse."""
    position = torch.arange(len(slots), dtype=torch.int32)
    table = torch.arange(BLOCKS - 1, -1, -1, dtype=torch.int32)[None]
    index = table[0, (position // BLOCK_SIZE).long()].long() * BLOCK_SIZE + position % BLOCK_SIZE
    return DecoderMetadata(
        slot=torch.tensor(slots, dtype=torch.int32),
        seq_index=torch.zeros(len(slots), dtype=torch.int32),
        position=position,
        kv_index=index,
        block_table=table,
    )


def run(
    decoder: Decoder,
    slots: Sequence[int],
    native: bool,
    dtype: torch.dtype,
    hidden: int,
    all_factored: bool = False,
) -> list[Tensor]:
    """What a run returns and leaves in the residual stream and the caches."""
    for part in decoder.layers:
        part.k_cache.fill_(float("nan"))
        part.v_cache.fill_(float("nan"))
    random = torch.Generator().manual_seed(9)
    x = torch.randn(len(slots), hidden, generator=random).to(dtype)
    residual = torch.randn(len(slots), hidden, generator=random)
    step = replace(batch(slots), all_factored=all_factored)
    with torch.inference_mode():
        reference = decoder_ref(decoder.config, decoder.layers, x, residual, step) if not native else None
        y = decoder(x, residual, step) if reference is None else reference
    caches = [cache for part in decoder.layers for cache in (part.k_cache.clone(), part.v_cache.clone())]
    return [y, residual, *caches]


@DTYPES
@pytest.mark.parametrize("slots", SLOTS_OF_A_BATCH.values(), ids=SLOTS_OF_A_BATCH)
@pytest.mark.parametrize("extras", [False, True], ids=["llama", "qwen"])
def test_the_bits_of_the_reference(slots, extras, dtype, poisoned_outputs, threads) -> None:
    hidden = 51
    decoder = Decoder(
        config(), [layer(seed, dtype, hidden, extras, window) for seed, window in ((1, 0), (2, 7))]
    )
    expected = run(decoder, slots, False, dtype, hidden)
    assert expected[0].isfinite().all()
    for count in (1, 2, 3):
        threads(count)
        for got, want in zip(run(decoder, slots, True, dtype, hidden), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@DTYPES
def test_rows_that_fall_on_the_same_cache_lines(dtype) -> None:
    hidden = 1024
    decoder = Decoder(config(), [layer(3, dtype, hidden, False)])
    for got, want in zip(
        run(decoder, [0, 1, 2] * 9, True, dtype, hidden),
        run(decoder, [0, 1, 2] * 9, False, dtype, hidden),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@DTYPES
def test_layers_may_be_run_in_parts(dtype) -> None:
    slots, hidden = [0, 2, 1, 1], 40
    decoder = Decoder(config(), [layer(seed, dtype, hidden, False) for seed in range(3)])
    y, residual, *_ = run(decoder, slots, True, dtype, hidden)
    random = torch.Generator().manual_seed(9)
    x = torch.randn(len(slots), hidden, generator=random).to(dtype)
    stream = torch.randn(len(slots), hidden, generator=random)
    for first, last in ((0, 1), (1, 3)):
        x = decoder(x, stream, batch(slots), first, last)
    assert torch.equal(x, y) and torch.equal(stream, residual)


@DTYPES
@pytest.mark.parametrize("extras", [False, True], ids=["llama", "qwen"])
def test_tokens_may_leave_only_keys_and_values_in_a_layer(dtype, extras) -> None:
    slots, hidden = [0, 2, 1, 1, 4, 0, 3], 40
    decoder = Decoder(config(), [layer(1, dtype, hidden, extras, window=5)])
    y, residual, *caches = run(decoder, slots, True, dtype, hidden)
    for cache in (decoder.layers[0].k_cache, decoder.layers[0].v_cache):
        cache.fill_(float("nan"))
    random = torch.Generator().manual_seed(9)
    x = torch.randn(len(slots), hidden, generator=random).to(dtype)
    stream = torch.randn(len(slots), hidden, generator=random)
    others, wanted = torch.tensor([0, 1, 3, 4, 5]), torch.tensor([2, 6])
    decoder.store_keys(x[others], stream[others], batch(slots).at(others), 0)
    rest = stream[wanted]
    assert torch.equal(decoder(x[wanted], rest, batch(slots).at(wanted)), y[wanted])
    assert torch.equal(rest, residual[wanted])
    for got, want in zip((decoder.layers[0].k_cache, decoder.layers[0].v_cache), caches, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@DTYPES
def test_all_factored(dtype) -> None:
    hidden = 40
    decoder = Decoder(config(), [layer(3, dtype, hidden, True)])
    slots = [0, 0, 2, 1, 4, 4]
    together = run(decoder, slots, True, dtype, hidden, all_factored=True)
    for got, want in zip(together, run(decoder, slots, False, dtype, hidden, all_factored=True), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    for linear in (decoder.layers[0].q, decoder.layers[0].down):
        linear.modes.fill_(LinearMode.FACTORED)
    assert not torch.equal(together[0], run(decoder, slots, True, dtype, hidden)[0])


@DTYPES
def test_a_slot_with_weights_of_its_own(dtype) -> None:
    hidden = 40
    decoder = Decoder(config(), [layer(seed, dtype, hidden, False) for seed in range(2)])
    slots = [0, 3, 3, 1, 3, 1]
    linears = [(0, "q"), (1, "down"), (1, "gate")]
    for index, name in linears:
        part = getattr(decoder.layers[index], name)
        part.modes[[1, 3]] = int(LinearMode.MERGED)
        with pytest.raises(RuntimeError, match="has no weights"):
            run(decoder, slots, True, dtype, hidden)
        for slot in (1, 3):
            own = torch.randn(part.shape, generator=torch.Generator().manual_seed(slot)) / 8
            decoder.set_merged(index, name, slot, pack(own.to(dtype)))
    merged = run(decoder, slots, True, dtype, hidden)
    for got, want in zip(merged, run(decoder, slots, False, dtype, hidden), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    decoder.set_merged(0, "q", 3, None)
    with pytest.raises(RuntimeError, match="slot 3 has mode 3"):
        run(decoder, slots, True, dtype, hidden)


@DTYPES
def test_components_that_no_slot_of_a_run_needs_change_no_bit(dtype) -> None:
    hidden = 40
    whole = layer(3, dtype, hidden, True)
    parts = {}
    for name in ("q", "k", "v", "o", "gate", "up", "down"):
        part = getattr(whole, name)
        supports = torch.tensor([0, 0, 3, 0, part.delta.shape[1]], dtype=torch.int32)
        part.delta[2, 3:] = 0
        parts[name] = replace(part, supports=supports)
    slots = [2, 2, 0, 4, 2]
    few = Decoder(config(), [replace(whole, **parts)])
    for got, want in zip(
        run(few, slots, True, dtype, hidden),
        run(Decoder(config(), [whole]), slots, True, dtype, hidden),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def with_quantised_delta(part: DecoderLayer, format: str, exact: bool = False) -> DecoderLayer:
    """All components of every linear in a delta of integers, for experts without limits.

    exact: in plain factors of the values that the integers stand for.
    """

    def factor(weight: Packed) -> Packed:
        integers = quantize(unpack(weight), format)
        return pack(dequantize(integers).to(weight.dtype) if exact else integers)

    def change(linear: AdaptedLinear) -> AdaptedLinear:
        return replace(
            linear,
            vt=factor(linear.vt),
            u=factor(linear.u),
            scale=None,
            delta=linear.scale - linear.scale[0],
            modes=torch.tensor([LinearMode.DENSE, *[LinearMode.DELTA] * (SLOTS - 1)], dtype=torch.uint8),
        )

    return replace(part, **{name: change(getattr(part, name)) for name in LINEARS})


@DTYPES
@pytest.mark.parametrize("format", ["int8", "int4"])
@pytest.mark.parametrize(
    "slots", [[1], [0, 1, 2, 3, 4] * 5, [0] * 40 + [1] * 120], ids=["one", "mixed", "many"]
)
def test_deltas_of_integers(slots, format, dtype, threads) -> None:
    hidden = 51
    layers = [layer(seed, dtype, hidden, True) for seed in range(2)]
    decoder = Decoder(config(), [with_quantised_delta(part, format) for part in layers])
    expected = run(decoder, slots, False, dtype, hidden)
    for count in (1, 2):
        threads(count)
        for got, want in zip(run(decoder, slots, True, dtype, hidden), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    plain = Decoder(config(), [with_quantised_delta(part, format, exact=True) for part in layers])
    truth = run(plain, slots, True, dtype, hidden)[0].float()
    # Activations that meet integers are rounded to 1/254 of their block's peak at most, a hundredth of a delta,
    # and deltas are as large as W here.
    limit = 0.03
    assert (expected[0].float() - truth).norm() < limit * truth.norm()


def test_integers_do_not_serve_whole_weights() -> None:
    part = layer(1, torch.float32, 40, False)
    wrong = with_quantised_delta(part, "int8")
    wrong = replace(wrong, o=replace(wrong.o, scale=part.o.scale))
    with pytest.raises(RuntimeError, match="serve deltas alone"):
        Decoder(config(), [wrong])


def test_no_tokens() -> None:
    decoder = Decoder(config(), [layer(1, torch.float32, 40, False)])
    assert decoder(torch.empty(0, 40), torch.empty(0, 40), batch([])).shape == (0, 40)


REFUSALS = {
    "slot outside the tables": ({"slot": torch.tensor([0, SLOTS], dtype=torch.int32)}, "slots"),
    "position outside the tables": ({"position": torch.tensor([0, 4000], dtype=torch.int32)}, "positions"),
    "place outside the cache": ({"kv_index": torch.tensor([0, BLOCKS * BLOCK_SIZE])}, "places"),
    "block outside the cache": ({"block_table": torch.full((1, 3), BLOCKS, dtype=torch.int32)}, "blocks"),
    "sequence outside the table": ({"seq_index": torch.ones(2, dtype=torch.int32)}, "rows of block_table"),
    "slots of another type": ({"slot": torch.zeros(2, dtype=torch.int64)}, "Int"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refuses(changes, message) -> None:
    decoder = Decoder(config(), [layer(1, torch.float32, 40, False)])
    with pytest.raises(RuntimeError, match=message):
        decoder(torch.zeros(2, 40), torch.zeros(2, 40), replace(batch([0, 1]), **changes))


def test_a_way_without_weights_is_refused() -> None:
    part = layer(1, torch.float32, 40, False)
    bare = replace(part, o=replace(part.o, dense=None, delta=None))
    decoder = Decoder(config(), [bare])
    decoder(torch.zeros(1, 40), torch.zeros(1, 40), batch([1]))
    for slot in (0, 2):
        with pytest.raises(RuntimeError, match=f"slot {slot} has mode {int(MODES[slot])}"):
            decoder(torch.zeros(1, 40), torch.zeros(1, 40), batch([slot]))


def test_parts_that_do_not_fit_are_refused() -> None:
    part = layer(1, torch.float32, 40, False)
    for wrong in (
        replace(part, q=part.k),
        replace(part, k_cache=part.k_cache[:-1]),
        replace(part, input_norm=part.input_norm[:-1]),
        replace(part, up=replace(part.up, modes=part.up.modes[None])),
        replace(part, down=replace(part.down, u=None)),
    ):
        with pytest.raises(RuntimeError):
            Decoder(config(), [wrong])


def test_the_old_name_of_the_metadata_warns() -> None:
    with pytest.warns(DeprecationWarning, match="DecoderMetadata"):
        assert kernels.DecoderBatch is DecoderMetadata
