"""Checks of the products of a layer, in each mode, eager and replayed with other slots."""

from collections.abc import Iterator
from functools import partial

from zweave.checkpoint import ModelConfig
from zweave.kernels import LinearMode

from .check_case import CheckSource, KernelCheck, replayed
from .stages import STAGES, Stage

MODES = (LinearMode.DENSE, LinearMode.DELTA, LinearMode.FACTORED)
SLOTS = 4


def product_checks(source: CheckSource) -> Iterator[KernelCheck]:
    """All stages of a layer of random sizes, of a random number of tokens."""
    config = _config(source)
    tokens = source.between(1, 300)
    ops = source.backend.ops
    for name in STAGES:
        stage = Stage.of(name, config, SLOTS, source.dtype, source.device, ops, most_copies=1)
        stack = stage.copies[0]
        x, slot = source.normal(tokens, stage.inputs), source.whole(0, SLOTS, tokens)
        others = source.whole(0, SLOTS, tokens)
        for mode in MODES:
            shape = f"{tokens} x {stage.inputs} -> {' + '.join(str(u.shape[0]) for u in stack.u)}"
            kernel = f"{name} {mode.name.lower()}"
            yield KernelCheck(kernel, shape, partial(stack, x, slot, mode), stage.truth(x, slot, mode))
            taken = slot.clone()
            yield KernelCheck(
                f"{kernel}, replayed",
                shape,
                partial(
                    replayed,
                    source.backend,
                    partial(stack, x, taken, mode),
                    partial(taken.copy_, others),
                ),
                stage.truth(x, others, mode),
                in_graph=True,
            )
    weight = source.normal(source.between(1, 3000), stage.inputs)
    yield KernelCheck(
        "linear",
        f"{tokens} x {stage.inputs} -> {len(weight)}",
        partial(ops.linear, x, weight),
        x.double() @ weight.double().T,
    )


def _config(source: CheckSource) -> ModelConfig:
    kv_heads, head_dim = source.size(1, 2, 4), source.size(16, 64, 128)
    return ModelConfig(
        "llama",
        hidden_size=8 * source.between(4, 128),
        intermediate_size=8 * source.between(4, 256),
        num_layers=1,
        num_heads=kv_heads * source.size(1, 2, 4),
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=64,
    )
