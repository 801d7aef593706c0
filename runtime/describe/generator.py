"""The network that turns a description's token states into the z vectors of an expert.

v = reader(states)                          [descriptions, task], what is asked
c = norm(down(gate(v) * up(v)))             [descriptions, code]
z = 1 + step * c basis                      basis is 0 at the start, so that z is 1

The rows of the basis are experts, and every description's expert is a mixture of them. The code is a product since an
answer is one, of what is read in a text and of which word that calls for: the sum of a part for the attribute and one
for the words gets no gradient as long as each word means yes as often as no.

In two parts, code and basis are those of the lower layers and of the upper ones, and a training tells each another
description: what is asked to the lower, which words to say to the upper. So the two can meet in the model's own
states alone, and attribute and words that were never seen together are two halves that were.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..checkpoint.module_name import layer_of
from ..errors import ZweaveError
from .reader import ATTENTION_HEADS, Reader
from .token_states import TokenStates

_STEP = 0.05


@dataclass(frozen=True, slots=True)
class GeneratorConfig:
    """The sizes of a generator.

    width: of an encoder's token state.
    task: width of the vector that says what is asked.
    layers, queries: of the reader.
    code: experts of the basis.
    upper_layer: where the upper part begins; 0: there is one part.
    """

    width: int
    task: int = 128
    layers: int = 2
    queries: int = 4
    code: int = 64
    upper_layer: int = 0

    def __post_init__(self) -> None:
        for name in ("width", "task", "layers", "queries", "code"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ZweaveError(f"a generator's {name} must be a whole number of at least 1, not {value!r}")
        if not isinstance(self.upper_layer, int) or self.upper_layer < 0:
            raise ZweaveError(f"a generator's upper_layer must be a layer, not {self.upper_layer!r}")
        if self.task % ATTENTION_HEADS:
            raise ZweaveError(f"a generator's task must be a multiple of {ATTENTION_HEADS}, not {self.task}")

    def reader(self) -> Reader:
        return Reader(self.width, self.task, self.layers, self.queries)


class Part(nn.Module):
    """The experts of some matrices, and the code that weighs them."""

    def __init__(self, config: GeneratorConfig, ranks: Mapping[str, int]) -> None:
        super().__init__()
        self.ranks = dict(ranks)
        self.gate, self.up = (nn.Linear(config.task, 2 * config.code) for _ in range(2))
        self.down = nn.Linear(2 * config.code, config.code)
        self.norm = nn.LayerNorm(config.code)
        self.basis = nn.Parameter(torch.zeros(config.code, sum(ranks.values())))

    def forward(self, v: Tensor) -> dict[str, Tensor]:
        """z [descriptions, R] of each matrix, float32."""
        code = self.norm(self.down(self.gate(v) * self.up(v)))
        z = 1 + _STEP * (code @ self.basis)
        return dict(zip(self.ranks, z.split(list(self.ranks.values()), 1), strict=True))


class Generator(nn.Module):
    """Token states of descriptions to z.

    ranks: R of each adapted matrix of the model, in layer order.
    """

    def __init__(self, config: GeneratorConfig, ranks: Mapping[str, int]) -> None:
        super().__init__()
        self.config, self.ranks = config, dict(ranks)
        self.reader = config.reader()
        upper = {name: rank for name, rank in ranks.items() if 0 < config.upper_layer <= layer_of(name)}
        lower = {name: rank for name, rank in ranks.items() if name not in upper}
        if config.upper_layer and not (upper and lower):
            raise ZweaveError(f"no layers of the experts lie on both sides of layer {config.upper_layer}")
        self.parts = nn.ModuleList(Part(config, some) for some in (lower, upper) if some)

    def forward(self, texts: TokenStates, upper: TokenStates | None = None) -> dict[str, Tensor]:
        """z [descriptions, R] of each adapted matrix, float32.

        upper: what is told to the upper part in place of `texts`.
        """
        read = [self.reader(texts)] * len(self.parts)
        if upper is not None:
            read[-1] = self.reader(upper)
        z: dict[str, Tensor] = {}
        for part, v in zip(self.parts, read, strict=True):
            z |= part(v)
        return z


def change(z: Mapping[str, Tensor], sigma: Mapping[str, Tensor]) -> Tensor:
    """[descriptions]: mean over the matrices of ||W' - W||^2 / ||W||^2.

    It is sum (sigma (z - 1))^2 / sum sigma^2, since the components are orthonormal.
    """
    shares = [((z[name] - 1) * sigma[name]).square().sum(-1) / sigma[name].square().sum() for name in z]
    return torch.stack(shares).mean(0)
