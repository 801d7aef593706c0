"""The network that turns a description's token states into the z vectors of an expert.

v = reader(states)                          [descriptions, task], what is asked
c = norm(down(gate(v) * up(v)))             [descriptions, code]
z = 1 + step * c basis                      basis is 0 at the start, so that z is 1

The rows of the basis are experts, and every description's expert is a mixture of them. The code is a product since an
answer is one, of what is read in a text and of which word that calls for: the sum of a part for the attribute and one
for the words gets no gradient as long as each word means yes as often as no.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

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
    """

    width: int
    task: int = 128
    layers: int = 2
    queries: int = 4
    code: int = 64

    def __post_init__(self) -> None:
        for name in ("width", "task", "layers", "queries", "code"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ZweaveError(f"a generator's {name} must be a whole number of at least 1, not {value!r}")
        if self.task % ATTENTION_HEADS:
            raise ZweaveError(f"a generator's task must be a multiple of {ATTENTION_HEADS}, not {self.task}")

    def reader(self) -> Reader:
        return Reader(self.width, self.task, self.layers, self.queries)


class Generator(nn.Module):
    """Token states of descriptions to z.

    ranks: R of each adapted matrix of the model, in layer order.
    """

    def __init__(self, config: GeneratorConfig, ranks: Mapping[str, int]) -> None:
        super().__init__()
        self.config, self.ranks = config, dict(ranks)
        self.reader = config.reader()
        self.gate, self.up = (nn.Linear(config.task, 2 * config.code) for _ in range(2))
        self.down = nn.Linear(2 * config.code, config.code)
        self.norm = nn.LayerNorm(config.code)
        self.basis = nn.Parameter(torch.zeros(config.code, sum(ranks.values())))

    def forward(self, texts: TokenStates) -> dict[str, Tensor]:
        """z [descriptions, R] of each adapted matrix, float32."""
        delta = _STEP * (self.code(texts) @ self.basis)
        return dict(zip(self.ranks, (1 + delta).split(list(self.ranks.values()), 1), strict=True))

    def code(self, texts: TokenStates) -> Tensor:
        """[descriptions, code]: how much of each expert of the basis."""
        v = self.reader(texts)
        code: Tensor = self.norm(self.down(self.gate(v) * self.up(v)))
        return code


def change(z: Mapping[str, Tensor], sigma: Mapping[str, Tensor]) -> Tensor:
    """[descriptions]: mean over the matrices of ||W' - W||^2 / ||W||^2.

    It is sum (sigma (z - 1))^2 / sum sigma^2, since the components are orthonormal.
    """
    shares = [((z[name] - 1) * sigma[name]).square().sum(-1) / sigma[name].square().sum() for name in z]
    return torch.stack(shares).mean(0)
