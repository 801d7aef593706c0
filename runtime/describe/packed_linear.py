"""The linears of a text encoder on the CPU kernels."""

from torch import Tensor, nn

from zweave.kernels import linear, pack


class PackedLinear(nn.Module):
    """A linear in float32 without gradients. For the few tokens of a description PyTorch's own takes twice as long."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self._weight = pack(plain.weight.detach())
        self._bias = None if plain.bias is None else plain.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        y = linear(x.flatten(0, -2), self._weight, self._bias)
        return y.view(*x.shape[:-1], y.shape[-1])


def pack_linears(model: nn.Module) -> None:
    """Replaces every linear of a model."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            model.set_submodule(name, PackedLinear(module))
