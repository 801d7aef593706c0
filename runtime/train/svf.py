"""Singular Value Fine-tuning: linears whose only learnable part is the scale of their singular values."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zweave.kernels.train.svf_linear_train import TrainingFactors, svf_linear_train

from ..checkpoint.module_name import LINEARS, layer_of, linear_of, replace_module
from ..experts.support import Support

Factors = Callable[[str], tuple[Tensor, Tensor, Tensor]]
# By a linear's name and the number of its components that learn.
Packs: TypeAlias = dict[tuple[str, int], TrainingFactors]


class SvfLinear(nn.Module):
    """Semantics: y = U ((σ ⊙ z) ⊙ Vᵀ x) + b, with gradients for z and x alone (Transformer², section 3.1).

    weight: [M, N], u: [M, R], vt: [R, N], in the dtype of the activations.
    sigma: [R].
    bias: [M] or None.
    learned: number of leading components that learn. If not all do, their change is added to W x, in products over
        these components alone.
    z: [learned], float32: in bfloat16 a z near 1 would lose a tenth of z - 1.
    factors: of another linear with the same matrix and `learned`, to share; None to pack u and vt.
    base: whether the linear computes W x + b, as in the base model.
    """

    z: nn.Parameter
    sigma: Tensor
    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        u: Tensor,
        sigma: Tensor,
        vt: Tensor,
        bias: Tensor | None = None,
        learned: int | None = None,
        factors: TrainingFactors | None = None,
    ) -> None:
        super().__init__()
        learned = learned or len(sigma)
        self.base = False
        self.is_delta = learned < len(sigma)
        self.z = nn.Parameter(torch.ones(learned, dtype=torch.float32, device=weight.device))
        self.register_buffer("sigma", sigma.float().to(weight.device))
        self.register_buffer("weight", weight.detach())
        self.register_buffer("bias", None if bias is None else bias.detach())
        if factors is None:
            vt, u = (part.to(weight) for part in (vt[:learned], u[:, :learned]))
            factors = TrainingFactors.of(vt, u, self.weight if self.is_delta else None)
        self.factors = factors

    def forward(self, x: Tensor) -> Tensor:
        if self.base:
            return F.linear(x, self.weight, self.bias)
        y = svf_linear_train(x.reshape(-1, x.shape[-1]), self.factors, self.scale()[None], bias=self.bias)
        return y.view(*x.shape[:-1], -1)

    def scale(self) -> Tensor:
        """What Vᵀ x is multiplied by, [learned] float32."""
        return self.sigma[: len(self.z)] * (self.z - 1 if self.is_delta else self.z)

    def full_z(self) -> Tensor:
        """z [R] of all components, detached."""
        z = torch.ones(len(self.sigma))
        z[: len(self.z)] = self.z.detach().cpu()
        return z


def svf_rows(linears: Sequence[SvfLinear], x: Tensor, rows: Sequence[int]) -> Tensor:
    """The first `rows[0]` rows of x [T, N] through the first of linears that share their factors, and so on."""
    first, scale = linears[0], torch.stack([linear.scale() for linear in linears])
    return svf_linear_train(x, first.factors, scale, bias=first.bias, lengths=rows)


def adapt(
    model: nn.Module,
    factors: Factors,
    first_layer: int = 0,
    support: Support | None = None,
    packs: Packs | None = None,
) -> dict[str, SvfLinear]:
    """Replaces the adapted linears of a transformers model in place and freezes all but the z vectors.

    factors: gives u [M, R], sigma [R] and vt [R, N] for a name such as "model.layers.0.mlp.up_proj".
    first_layer: linears of the layers below it stay as they are and get no gradient.
    support: a leading support limits z to its components.
    packs: the factors that models of the same weights share; those that are missing are added.
    Returns the new modules by that name, in the order of the model.
    """
    model.requires_grad_(False)
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and linear_of(name) in LINEARS and layer_of(name) >= first_layer
    }
    packs, adapted = {} if packs is None else packs, {}
    for name, linear in linears.items():
        u, sigma, vt = factors(name)
        leading = support is not None and support.kind == "leading"
        learned = support.components(len(sigma)) if support is not None and leading else len(sigma)
        known = packs.get((name, learned))
        adapted[name] = SvfLinear(linear.weight, u, sigma, vt, linear.bias, learned, known)
        packs[name, learned] = adapted[name].factors
        replace_module(model, name, adapted[name])
    return adapted
