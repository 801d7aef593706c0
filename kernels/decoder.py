"""The layers of a decoder of the Llama family (Llama, Mistral, Qwen2, Qwen3) over a paged cache.

    residual += x;    h = rms_norm(residual)
    q, k, v = heads of q(h), k(h), v(h), q and k rotated (and normed before, where the model does that)
    residual += o(attention(q, cache + k, v));    h = rms_norm(residual)
    x = down(silu(gate(h)) * up(h))

for each layer. The last x is returned and not yet added: the next layer or the final norm adds it.

Why one native call: on a CPU, a step of a few tokens is about twenty matrix products a layer, tens of microseconds
each. Separate calls, thread wake-ups and small ops in between would double its time. `Decoder` runs all layers in
one call with a team of threads that meet at barriers; near the end of a product each thread prefetches the weights
of its next one. The result equals that of `decoder_ref` bit for bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from . import _C
from .adapted_linear import AdaptedLinear
from .attention import paged_attention, write_kv
from .layout.packed import Packed
from .rms_norm import add_rms_norm, rms_norm
from .rope import rope
from .silu_mul import silu_mul

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """What all layers have in common.

    heads: query heads.
    kv_heads: key and value heads.
    head_size: elements of a head.
    scale: factor of the attention scores.
    eps: added to the variance in the norms.
    cos, sin: [positions, head_size / 2] float32, tables of the rotary embedding.
    """

    heads: int
    kv_heads: int
    head_size: int
    scale: float
    eps: float
    cos: Tensor
    sin: Tensor


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """Weights and KV cache of one layer.

    input_norm, mlp_norm: [hidden]
    q_norm, k_norm: [head_size], or None
    q, k, v, o, gate, up, down: the seven linears
    k_cache, v_cache: as `empty_kv` makes them
    window: positions of the sliding attention window, 0 for full attention
    """

    input_norm: Tensor
    mlp_norm: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None
    q: AdaptedLinear
    k: AdaptedLinear
    v: AdaptedLinear
    o: AdaptedLinear
    gate: AdaptedLinear
    up: AdaptedLinear
    down: AdaptedLinear
    k_cache: Tensor
    v_cache: Tensor
    window: int


@dataclass(frozen=True, slots=True)
class DecoderMetadata:
    """Where the tokens of a step stand, in the form that `svf_linear`, `write_kv` and `paged_attention` take.

    slot: [T] int32, row of the expert tables, 0 for the base model
    seq_index: [T] int32, row of the block table, one a sequence
    position: [T] int32, position in the sequence
    kv_index: [T] int64, cache position where the token's key and value go
    block_table: [B, n] int32, cache blocks of each sequence; unused entries are 0 and never read
    all_factored: every token takes the factored mode where a linear has it, whatever its slot says
    """

    slot: Tensor
    seq_index: Tensor
    position: Tensor
    kv_index: Tensor
    block_table: Tensor
    all_factored: bool = False

    def rows(self, first: int, last: int) -> "DecoderMetadata":
        """The tokens [first, last) alone."""
        if first == 0 and last == len(self.slot):
            return self
        return self.at(slice(first, last))

    def at(self, rows: Tensor | slice) -> "DecoderMetadata":
        """Some of the tokens. rows: [n] int64."""
        return replace(
            self,
            slot=self.slot[rows],
            seq_index=self.seq_index[rows],
            position=self.position[rows],
            kv_index=self.kv_index[rows],
        )


def decoder_ref(
    config: DecoderConfig, layers: Sequence[DecoderLayer], x: Tensor, residual: Tensor, meta: DecoderMetadata
) -> Tensor:
    """Semantics: the formulas of the module's docstring, op by op, on any device.

    x: [tokens, hidden]
    residual: [tokens, hidden] float32, changed in place
    Returns x [tokens, hidden].
    """

    def heads(y: Tensor, norm: Tensor | None) -> Tensor:
        return _heads(config, y, norm)

    def through(linear: AdaptedLinear, h: Tensor) -> Tensor:
        return linear(h, meta.slot, meta.all_factored)

    for layer in layers:
        h = add_rms_norm(x, residual, layer.input_norm, config.eps)
        q = heads(through(layer.q, h), layer.q_norm)
        k = heads(through(layer.k, h), layer.k_norm)
        v = heads(through(layer.v, h), None)
        rope(q, k, config.cos, config.sin, meta.position)
        write_kv(k, v, layer.k_cache, layer.v_cache, meta.kv_index)
        y = paged_attention(
            q,
            layer.k_cache,
            layer.v_cache,
            meta.block_table,
            meta.seq_index,
            meta.position,
            config.scale,
            layer.window,
        )
        x = through(layer.o, y.flatten(1))
        h = add_rms_norm(x, residual, layer.mlp_norm, config.eps)
        x = through(layer.down, silu_mul(through(layer.gate, h), through(layer.up, h)))
    return x


def _heads(config: DecoderConfig, y: Tensor, norm: Tensor | None) -> Tensor:
    """Splits [tokens, heads * head_size] into heads, normed where the model has a norm for them."""
    if norm is not None:
        y = rms_norm(y.view(-1, config.head_size), norm, config.eps).view(y.shape)
    return y.unflatten(1, (-1, config.head_size))


class Decoder:
    """The layers of a model, ready to run: one native call on a CPU, `decoder_ref` elsewhere.

    Raises: RuntimeError if the shapes, dtypes or devices of a layer's parts do not fit together.
    """

    def __init__(self, config: DecoderConfig, layers: Sequence[DecoderLayer]) -> None:
        self.config = config
        self.layers = tuple(layers)
        self._native = _native(config, self.layers) if config.cos.device.type == "cpu" else None

    def __call__(
        self, x: Tensor, residual: Tensor, meta: DecoderMetadata, first: int = 0, last: int | None = None
    ) -> Tensor:
        """Computes layers [first, last), by default all of them.

        x: [tokens, hidden], bf16 or float32, the output of the layer below `first`, or embeddings
        residual: [tokens, hidden] float32, changed in place; x is added to it first
        Returns x [tokens, hidden]; residual + x is the hidden state that enters layer `last`.
        Raises: RuntimeError on a wrong shape, stride or dtype, an index outside its range, or a slot whose
        mode has no weights.
        """
        last = len(self.layers) if last is None else last
        if self._native is None:
            return decoder_ref(self.config, self.layers[first:last], x, residual, meta)
        return self._native.run(
            x,
            residual,
            meta.slot,
            meta.seq_index,
            meta.position,
            meta.kv_index,
            meta.block_table,
            meta.all_factored,
            first,
            last,
        )

    def store_keys(self, x: Tensor, residual: Tensor, meta: DecoderMetadata, layer: int) -> None:
        """Computes only the keys and values of a layer and writes them to its cache, with the same bits.

        x, residual: as in `__call__`; residual is changed in place
        Raises: RuntimeError as `__call__` does.
        """
        part, config = self.layers[layer], self.config
        h = add_rms_norm(x, residual, part.input_norm, config.eps)
        k = _heads(config, part.k(h, meta.slot, meta.all_factored), part.k_norm)
        v = _heads(config, part.v(h, meta.slot, meta.all_factored), None)
        rope(k[:, :0], k, config.cos, config.sin, meta.position)
        write_kv(k, v, part.k_cache, part.v_cache, meta.kv_index)

    def set_merged(self, layer: int, name: str, slot: int, weight: Packed | None) -> None:
        """Sets or removes the merged weight W' of a slot in a linear ("q" to "down").

        It is used only where the linear's `modes` says `LinearMode.MERGED`. Not to be called while a step runs.
        """
        linear: AdaptedLinear = getattr(self.layers[layer], name)
        if weight is None:
            linear.merged.pop(slot, None)
        else:
            linear.merged[slot] = weight
        if self._native is not None:
            self._native.set_merged(layer, LINEARS.index(name), slot, None if weight is None else weight.data)


def _native(config: DecoderConfig, layers: Sequence[DecoderLayer]) -> _C.Decoder:
    return _C.Decoder(
        [
            _C.DecoderLayer(
                input_norm=layer.input_norm,
                mlp_norm=layer.mlp_norm,
                q_norm=layer.q_norm,
                k_norm=layer.k_norm,
                q=layer.q.native(),
                k=layer.k.native(),
                v=layer.v.native(),
                o=layer.o.native(),
                gate=layer.gate.native(),
                up=layer.up.native(),
                down=layer.down.native(),
                k_cache=layer.k_cache,
                v_cache=layer.v_cache,
                window=layer.window,
            )
            for layer in layers
        ],
        config.cos,
        config.sin,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_size=config.head_size,
        scale=config.scale,
        eps=config.eps,
    )
