"""The expert that comes closest to a LoRA: its product on the components of the base model.

    z_j = 1 + u_j^T (B A) v_j / sigma_j        minimises ||B A - U diag(sigma (z - 1)) V^T||

The matrices u_j v_j^T are orthonormal, so the least squares solution takes each by itself, and what is kept of
||B A||^2 is the sum of the squares of u_j^T (B A) v_j.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters.lora import Lora, LoraPair
from ..checkpoint.module_name import linear_of
from ..decomposition.decomposition import Decomposition
from ..errors import ZweaveError
from ..io.progress import Report, silent
from .expert import Expert

# Components of a smaller share of the largest singular value are noise, which no scale turns into a LoRA's.
_LEAST_SIGMA = 1e-6


@dataclass(frozen=True, slots=True)
class Kept:
    """What a projection keeps of one matrix.

    module: the matrix, or a kind of them.
    squared: ||B A||^2.
    kept: of it, the projection's.
    by_chance: of it, what is kept of a random matrix, on average.
    """

    module: str
    squared: float
    kept: float
    by_chance: float

    @property
    def share(self) -> float:
        return self.kept / self.squared if self.squared else 1.0

    @property
    def chance(self) -> float:
        """The share that is kept of a random matrix."""
        return self.by_chance / self.squared if self.squared else 1.0


def project(lora: Lora, decomposition: Decomposition, report: Report = silent) -> tuple[Expert, list[Kept]]:
    """The expert, and what it keeps of each matrix, in the order of the decomposition's.

    Raises ZweaveError if the LoRA does not fit the model, or is activated by tokens, which no expert is.
    """
    lora.check({module: matrix.shape for module, matrix in decomposition.matrices.items()})
    if lora.invocation_tokens:
        raise ZweaveError("the adapter is activated by tokens, and no expert is: it cannot be projected")
    modules = [module for module in decomposition.names if module in lora.pairs]
    z, kept = {}, []
    for done, module in enumerate(modules):
        report("projecting", done, len(modules))
        z[module], squared, part = project_pair(lora.pairs[module], decomposition.factors(module))
        # R of the M N dimensions, R being the smaller side.
        chance = squared / max(decomposition.matrices[module].shape)
        kept.append(Kept(module, squared, part, chance))
    report("projecting", len(modules), len(modules))
    whole = total(kept)
    expert = Expert(
        z=z,
        base_digest=decomposition.digest,
        scope=lora.scope,
        first_layer=lora.first_layer,
        description=lora.description,
        training={"projected_from": lora.digest, "kept": whole.share},
        prompt_template=lora.prompt_template,
    )
    return expert, kept


def project_pair(pair: LoraPair, factors: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, float, float]:
    """z [R] of one matrix, float32, and the squared norms of the product and its projection.

    factors: u [M, R], sigma [R], vt [R, N].
    """
    u, sigma, vt = (factor.double() for factor in factors)
    a, b = pair.a.double(), pair.b.double() * pair.scaling
    along = ((u.T @ b) * (vt @ a.T)).sum(1)
    along = torch.where(sigma > _LEAST_SIGMA * sigma.max(), along, 0)
    z = torch.where(along != 0, 1 + along / sigma.clamp(min=1e-300), 1).float()
    squared = ((b.T @ b) * (a @ a.T)).sum().clamp(min=0)
    return z, squared.item(), along.square().sum().item()


def total(kept: Sequence[Kept], module: str = "all") -> Kept:
    """Of several matrices together."""
    sums = (sum(getattr(entry, field) for entry in kept) for field in ("squared", "kept", "by_chance"))
    return Kept(module, *sums)


def by_kind(kept: Sequence[Kept]) -> Iterator[Kept]:
    """Of all layers' matrices of each kind together, "q_proj" to "down_proj"."""
    kinds = dict.fromkeys(linear_of(entry.module) for entry in kept)
    for kind in kinds:
        yield total([entry for entry in kept if linear_of(entry.module) == kind], kind)
