"""Gradients of the ops that have any: `svf_linear` with plain weights, and `mix`.

Autograd keys are off in inference mode: a decode step goes straight from the dispatcher to the C++ kernel.
"""

from typing import Any

import torch
from torch import Tensor

import zweave.kernels._C  # noqa: F401  defines the ops


def _svf_linear_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, vt, u, scale, slot, _, _ = inputs
    if vt.dim() != 2 or u.dim() != 2:
        raise RuntimeError("svf_linear: gradients need plain vt and u, not packed ones")
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        raise RuntimeError("svf_linear: vt and u are frozen, call requires_grad_(False) on them")
    ctx.save_for_backward(x, vt, u, scale, slot)


def _svf_linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of x, scale and bias; the first product is made again rather than kept."""
    x, vt, u, scale, slot = ctx.saved_tensors
    grad_x = grad_scale = grad_bias = None
    rows = slot.long()
    grad_h = grad @ u  # [T, R], of the scaled hidden values
    if ctx.needs_input_grad[0]:
        grad_x = (grad_h * scale[rows]).to(x.dtype) @ vt
    if ctx.needs_input_grad[3]:
        terms = grad_h.float() * (x @ vt.T).float()
        grad_scale = torch.zeros_like(scale).index_add(0, rows, terms)
    if ctx.needs_input_grad[5]:
        grad_bias = grad.sum(0)
    return grad_x, None, None, grad_scale, None, grad_bias, None


def _mix_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _mix_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    table, alpha = ctx.saved_tensors
    return (
        alpha.T @ grad if ctx.needs_input_grad[0] else None,
        grad @ table.T if ctx.needs_input_grad[1] else None,
    )


torch.library.register_autograd("zweave::svf_linear", _svf_linear_backward, setup_context=_svf_linear_setup)
torch.library.register_autograd("zweave::mix", _mix_backward, setup_context=_mix_setup)
