"""Many LoRAs over common bases."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...errors import ZweaveError
from ...names import CompressionVariant, Scope
from ...text.prompt_template import PromptTemplate
from ..lora import Lora, LoraPair
from .compressed_matrix import CompressedMatrix, DiagonalMatrix


@dataclass(frozen=True, slots=True)
class CompressedLora:
    """One of the adapters.

    name: its own.
    cluster: whose basis it is over.
    digest: of the LoRA that it approximates.
    rank, scope, invocation_tokens, description: of that LoRA.
    prompt_template: the prompt that it was trained on, as JSON; empty if that is not known.
    error: ||W - W'|| / ||W|| over all matrices together, W being what the LoRA adds and W' what this does.
    """

    name: str
    cluster: int
    digest: str
    rank: int
    scope: Scope
    invocation_tokens: tuple[int, ...]
    description: str
    prompt_template: str
    error: float


@dataclass(frozen=True, slots=True, eq=False)
class CompressedLoras:
    """Adapters over a basis each cluster.

    variant: "diagonal" or "full".
    rank: K, the most components of a basis.
    seed: of the fit.
    base_digest: of the weights that the adapters are for, if known.
    adapters: in a cluster they have rows of its matrices in this order.
    clusters: each cluster's matrices by module.
    rows: each adapter's row in the matrices of its cluster.
    """

    variant: CompressionVariant
    rank: int
    seed: int
    base_digest: str | None
    adapters: tuple[CompressedLora, ...]
    clusters: tuple[Mapping[str, CompressedMatrix], ...]
    rows: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        counts, rows = [0] * len(self.clusters), []
        for adapter in self.adapters:
            rows.append(counts[adapter.cluster])
            counts[adapter.cluster] += 1
        object.__setattr__(self, "rows", tuple(rows))

    def check(self, shapes: Mapping[str, tuple[int, int]], base_digest: str | None = None) -> None:
        """Raises ZweaveError unless the adapters fit a model, as `Lora.check` and `Expert.check` do."""
        if base_digest and self.base_digest and base_digest != self.base_digest:
            raise ZweaveError(
                f"the adapters were trained for other weights (base {self.base_digest[:12]!r}, "
                f"the model's is {base_digest[:12]!r})"
            )
        for matrices in self.clusters:
            ends = {
                module: LoraPair(matrix.v[:1], matrix.u[:, :1], 1.0) for module, matrix in matrices.items()
            }
            Lora(ends).check(shapes)

    def errors(self, index: int) -> dict[str, float]:
        """The relative error of each matrix that an adapter changes."""
        row = self.rows[index]
        matrices = self.clusters[self.adapters[index].cluster]
        return {module: matrix.error[row].item() for module, matrix in matrices.items() if matrix.uses(row)}

    def lora(self, index: int) -> Lora:
        """What stands for an adapter, as a LoRA of its own."""
        row, adapter = self.rows[index], self.adapters[index]
        matrices = self.clusters[adapter.cluster]
        return Lora(
            {module: matrix.pair(row) for module, matrix in matrices.items() if matrix.uses(row)},
            adapter.scope,
            adapter.invocation_tokens,
            adapter.description,
            PromptTemplate.from_json(adapter.prompt_template) if adapter.prompt_template else None,
        )

    def basis(self, cluster: int) -> Lora:
        """The components that the adapters of a cluster of the diagonal variant share; modules in sorted order."""
        matrices = self.clusters[cluster]
        return Lora(
            {module: LoraPair(matrices[module].v, matrices[module].u, 1.0) for module in sorted(matrices)}
        )

    def scales(self, cluster: int) -> Tensor:
        """sigma of the adapters of a cluster of the diagonal variant [n, matrices, K], in the order of its basis."""
        matrices = self.clusters[cluster]
        most = max(matrix.u.shape[1] for matrix in matrices.values())
        sigmas = []
        for module in sorted(matrices):
            matrix = matrices[module]
            assert isinstance(matrix, DiagonalMatrix)
            sigmas.append(pad(matrix.sigma, (0, most - matrix.sigma.shape[1])))
        return torch.stack(sigmas, 1)

    def digest(self, index: int, basis: str, scales: Tensor) -> str:
        """sha256 of everything that changes what an adapter of the diagonal variant computes.

        basis: digest of its basis.
        scales: its own, [matrices, K].
        """
        adapter = self.adapters[index]
        text = f"zweave-compressed-lora-1 {basis} {adapter.scope} {adapter.invocation_tokens}\n"
        return hashlib.sha256(text.encode() + scales.contiguous().numpy().tobytes()).hexdigest()
