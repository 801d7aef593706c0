"""The network that turns a description's token states into the z vectors of an expert.

v = reader(states)                                  what is asked, a vector of each description
e = [v | norm(layer) | norm(kind)]                  for each adapted matrix, all of them one batch
h = trunk(e)                                        residual MLPs
z = 1 + step[matrix] * head[kind](h)                heads are 0 at the start, so that z is 1
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..checkpoint.module_name import layer_of, linear_of
from ..errors import ZweaveError
from .reader import ATTENTION_HEADS, Reader
from .token_states import TokenStates

_STEP = 0.02


@dataclass(frozen=True, slots=True)
class GeneratorConfig:
    """The sizes of a generator.

    width: of an encoder's token state.
    task, place: of the parts that say what is asked, and which layer and which kind of matrix it is for.
    layers, queries: of the reader.
    hidden, head: of the trunk, and of what its heads read.
    blocks: residual MLPs of the trunk.
    """

    width: int
    task: int = 128
    place: int = 64
    layers: int = 2
    queries: int = 4
    hidden: int = 256
    head: int = 512
    blocks: int = 2

    def __post_init__(self) -> None:
        for name in ("width", "task", "place", "layers", "queries", "hidden", "head", "blocks"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ZweaveError(f"a generator's {name} must be a whole number of at least 1, not {value!r}")
        if self.task % ATTENTION_HEADS:
            raise ZweaveError(f"a generator's task must be a multiple of {ATTENTION_HEADS}, not {self.task}")

    def reader(self) -> Reader:
        return Reader(self.width, self.task, self.layers, self.queries)


class _Block(nn.Module):
    """x + W2 silu(W1 norm(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.down(nn.functional.silu(self.up(self.norm(x))))
        return result


class Generator(nn.Module):
    """Token states of descriptions to z.

    ranks: R of each adapted matrix of the model, in layer order; matrices of a kind have the same.
    """

    def __init__(self, config: GeneratorConfig, ranks: Mapping[str, int]) -> None:
        super().__init__()
        self.config, self.ranks = config, dict(ranks)
        kinds: dict[str, int] = {linear_of(name): rank for name, rank in ranks.items()}
        layers = sorted({layer_of(name) for name in ranks})
        self._kinds = list(kinds)
        # The matrices, kind by kind: what one head makes lies together.
        self._names = [[name for name in ranks if linear_of(name) == kind] for kind in kinds]
        flat = [name for names in self._names for name in names]
        if any(ranks[name] != kinds[linear_of(name)] for name in flat):
            raise ZweaveError("matrices of one kind have different ranks: no generator fits such a model")
        self.register_buffer(
            "_layer", torch.tensor([layers.index(layer_of(n)) for n in flat]), persistent=False
        )
        self.register_buffer(
            "_kind", torch.tensor([self._kinds.index(linear_of(n)) for n in flat]), persistent=False
        )
        self.reader = config.reader()
        self.layer = nn.Sequential(nn.Embedding(len(layers), config.place), nn.LayerNorm(config.place))
        self.kind = nn.Sequential(nn.Embedding(len(kinds), config.place), nn.LayerNorm(config.place))
        self.mixer = nn.Linear(config.task + 2 * config.place, config.hidden)
        self.trunk = nn.Sequential(*(_Block(config.hidden) for _ in range(config.blocks)))
        self.last = nn.Sequential(
            nn.LayerNorm(config.hidden), nn.Linear(config.hidden, config.head), nn.SiLU()
        )
        self.heads = nn.ModuleList(nn.Linear(config.head, rank) for rank in kinds.values())
        self.step = nn.Parameter(torch.full((len(flat),), _STEP))
        for head in self.heads.children():
            for parameter in head.parameters():
                nn.init.zeros_(parameter)

    def forward(self, texts: TokenStates) -> dict[str, Tensor]:
        """z [descriptions, R] of each adapted matrix, float32."""
        count, matrices = len(texts), len(self.step)
        parts = [
            self.reader(texts)[:, None].expand(count, matrices, -1),
            self.layer(self._layer)[None].expand(count, matrices, -1),
            self.kind(self._kind)[None].expand(count, matrices, -1),
        ]
        states = self.last(self.trunk(self.mixer(torch.cat(parts, -1))))
        z: dict[str, Tensor] = {}
        first = 0
        for head, names in zip(self.heads, self._names, strict=True):
            end = first + len(names)
            made = 1 + self.step[first:end, None] * head(states[:, first:end])
            z |= dict(zip(names, made.unbind(1), strict=True))
            first = end
        return {name: z[name] for name in self.ranks}


def change(z: Mapping[str, Tensor], sigma: Mapping[str, Tensor]) -> Tensor:
    """[descriptions]: mean over the matrices of ||W' - W||^2 / ||W||^2.

    It is sum (sigma (z - 1))^2 / sum sigma^2, since the components are orthonormal.
    """
    shares = [((z[name] - 1) * sigma[name]).square().sum(-1) / sigma[name].square().sum() for name in z]
    return torch.stack(shares).mean(0)
