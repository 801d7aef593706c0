"""The tensors of a model, cast and packed for a device."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from zweave.kernels import AdaptedLinear, DecoderLayer, Packed, grid_of, grid_rows, pack, pack_grid, quantize

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.model_config import ModelConfig
from ..checkpoint.module_name import module_name
from ..decomposition.decomposition import Decomposition
from ..experts.bank import Bank
from ..kv_cache.block_pool import LayerCache
from ..planner.delta_formats import IntegerFormat
from ..planner.plan import MatrixPlan, Plan
from .grid_embedding import GridEmbedding
from .held_weights import HeldWeights


class Weights:
    """Reads the tensors of a checkpoint and its decomposition, those that the plan keeps resident.

    held: the form in which they stay.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        decomposition: Decomposition,
        bank: Bank,
        plan: Plan,
        dtype: torch.dtype,
        device: torch.device,
        held: HeldWeights,
    ) -> None:
        self._checkpoint = checkpoint
        self._decomposition = decomposition
        self._bank = bank
        self._plan = plan
        self._present = frozenset(checkpoint.names())
        self.dtype = dtype
        self.device = device
        self._held = held

    def tensor(self, name: str) -> Tensor:
        return self._checkpoint.tensor(name).to(self.device, self.dtype, copy=True)

    def packed(self, name: str) -> Packed:
        """A matrix in kernel order."""
        grid = self._checkpoint.grid(name) if self._held.on_grid else None
        return pack(self.tensor(name)) if grid is None else pack_grid(grid)

    def embedding(self, head: Packed, is_tied: bool) -> Tensor | GridEmbedding:
        """The embedding; head: that of the model."""
        name = "model.embed_tokens.weight"
        if self._held.on_grid and name in self._checkpoint.grid_kinds:
            return GridEmbedding(partial(grid_rows, head if is_tied else self.packed(name)), self.dtype)
        return self.tensor(name)

    def adapted(self, module: str) -> AdaptedLinear:
        plan, bias = self._plan[module], f"{module}.bias"
        factors = list(self._factors(module, plan)) if plan.kept else []

        return AdaptedLinear(
            shape=plan.shape,
            dense=self.packed(f"{module}.weight") if plan.dense else None,
            vt=factors[0][0] if factors else None,
            u=factors[0][1] if factors else None,
            scale=self._bank.tables.columns(module) if plan.factored else None,
            delta=self._bank.tables.delta_columns(module) if plan.delta_rank else None,
            bias=self.tensor(bias) if bias in self._present else None,
            modes=self._bank.tables.modes_of(module) if plan.dense else None,
            supports=self._bank.tables.supports_of(module) if plan.delta_rank else None,
            pages=None if self._bank.components is None else self._bank.components.linear(module),
            rest=factors[1] if len(factors) > 1 else None,
        )

    def _factors(self, module: str, plan: MatrixPlan) -> Iterator[tuple[Packed, Packed]]:
        """V^T and U of the components that lie together, leading ones first."""
        if self._held.refit is not None:
            refit = self._held.refit.matrix(module)
            yield pack_grid(grid_of(refit.vt)), pack_grid(grid_of(refit.u))
            return
        u, _, vt = self._decomposition.factors(module)

        def factor(weight: Tensor, format: IntegerFormat | None) -> Packed:
            if format:
                return pack(quantize(weight.float().contiguous(), format))
            return pack(weight.to(self.device, self.dtype))

        start = 0
        for kept, format in plan.factors:
            stop = start + kept
            yield factor(vt[start:stop], format), factor(u[:, start:stop], format)
            start = stop

    def layer(self, config: ModelConfig, layer: int, cache: LayerCache) -> DecoderLayer:
        prefix = f"model.layers.{layer}"
        attention = f"{prefix}.self_attn"

        def linear(name: str) -> AdaptedLinear:
            return self.adapted(module_name(layer, name))

        return DecoderLayer(
            input_norm=self.tensor(f"{prefix}.input_layernorm.weight"),
            mlp_norm=self.tensor(f"{prefix}.post_attention_layernorm.weight"),
            q_norm=self.tensor(f"{attention}.q_norm.weight") if config.qk_norm else None,
            k_norm=self.tensor(f"{attention}.k_norm.weight") if config.qk_norm else None,
            q=linear("q_proj"),
            k=linear("k_proj"),
            v=linear("v_proj"),
            o=linear("o_proj"),
            gate=linear("gate_proj"),
            up=linear("up_proj"),
            down=linear("down_proj"),
            k_cache=cache.k,
            v_cache=cache.v,
            window=config.sliding_window[layer],
        )
