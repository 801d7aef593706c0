"""Singular Value Fine-tuning: linears whose only learnable part is the scale of their singular values."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

Factors = Callable[[str], tuple[Tensor, Tensor, Tensor]]


class SvfLinear(nn.Module):
    """Semantics: y = U ((σ ⊙ z) ⊙ Vᵀ x) + b, with gradients for z and x alone (Transformer², section 3.1).

    u: [M, R], vt: [R, N], in the dtype of the activations
    sigma, z: [R], float32: in bfloat16 a z near 1 would lose a tenth of z - 1
    bias: [M] or None
    """

    z: nn.Parameter
    sigma: Tensor
    u: Tensor
    vt: Tensor
    bias: Tensor | None

    def __init__(self, u: Tensor, sigma: Tensor, vt: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.ones_like(sigma, dtype=torch.float32))
        self.register_buffer("sigma", sigma.float())
        self.register_buffer("u", u)
        self.register_buffer("vt", vt)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        scaled = F.linear(x, self.vt) * (self.sigma * self.z)
        return F.linear(scaled.to(x.dtype), self.u, self.bias)


def adapt(model: nn.Module, factors: Factors) -> dict[str, SvfLinear]:
    """Replaces every adapted linear of a transformers model in place and freezes all but the z vectors.

    factors: gives u [M, R], sigma [R] and vt [R, N] for a name such as "model.layers.0.mlp.up_proj"
    Returns the new modules by that name, in the order of the model.
    """
    model.requires_grad_(False)
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in ADAPTED
    }
    adapted = {}
    for name, linear in linears.items():
        u, sigma, vt = factors(name)
        dtype = linear.weight.dtype
        adapted[name] = SvfLinear(u.to(dtype), sigma, vt.to(dtype), linear.bias)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, adapted[name])
    return adapted
