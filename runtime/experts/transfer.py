"""Transfers experts to another model of the same shapes.

z vectors keep their places in the order of the singular values (Transformer², section 4.4), and a report says how
alike the components of the two models are.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from torch import Tensor

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.module_name import linear_of
from ..decomposition.decomposition import Decomposition
from ..errors import ZweaveError
from .expert import Expert

# Components whose left and right vectors both agree within about 25 degrees count as the same.
ALIGNED = 0.9


@dataclass(frozen=True, slots=True)
class Overlap:
    """How alike the components of one matrix are in two models.

    module: the matrix.
    subspace: mean squared cosine of the principal angles between the spans of the leading K = R/8 components, averaged
        over left and right ones: 1 for equal spans.
    chance: the same for random spans, the average of K/M and K/N.
    aligned: share of the leading components that are the same, with |u_a . u_b| and |v_a . v_b| both at least 0.9.
    spectrum: cosine of the vectors of singular values.
    """

    module: str
    subspace: float
    chance: float
    aligned: float
    spectrum: float


def overlaps(a: Decomposition, b: Decomposition) -> Iterator[Overlap]:
    """Compares the decompositions of two models of equal shapes, matrix by matrix."""
    for module in a.names:
        yield overlap(module, a.factors(module), b.factors(module))


def overlap(module: str, a: tuple[Tensor, Tensor, Tensor], b: tuple[Tensor, Tensor, Tensor]) -> Overlap:
    """Compares two decompositions (u [M, R], sigma [R], vt [R, N]) of matrices of one shape."""
    (u_a, sigma_a, vt_a), (u_b, sigma_b, vt_b) = a, b
    kept = max(1, len(sigma_a) // 8)
    left, right = u_a[:, :kept].T @ u_b[:, :kept], vt_a[:kept] @ vt_b[:kept].T
    same = torch.minimum(left.diagonal().abs(), right.diagonal().abs()) >= ALIGNED
    return Overlap(
        module,
        subspace=((left.square().sum() + right.square().sum()) / (2 * kept)).item(),
        chance=(kept / u_a.shape[0] + kept / vt_a.shape[1]) / 2,
        aligned=same.float().mean().item(),
        spectrum=torch.nn.functional.cosine_similarity(sigma_a, sigma_b, dim=0).item(),
    )


def by_kind(found: Sequence[Overlap]) -> list[Overlap]:
    """Means over the layers for each linear, "q_proj" to "down_proj"."""
    kinds: dict[str, list[Overlap]] = defaultdict(list)
    for entry in found:
        kinds[linear_of(entry.module)].append(entry)
    return [
        Overlap(
            kind,
            subspace=fmean(entry.subspace for entry in entries),
            chance=fmean(entry.chance for entry in entries),
            aligned=fmean(entry.aligned for entry in entries),
            spectrum=fmean(entry.spectrum for entry in entries),
        )
        for kind, entries in kinds.items()
    ]


def transfer(expert: Expert, source: Checkpoint, target: Checkpoint) -> Expert:
    """The expert for the target model, with z in the same order of singular values.

    Raises ZweaveError if the expert was trained for other weights than the source's, or the shapes differ.
    """
    shapes = source.config.adapted_shapes()
    expert.check(shapes, source.digest())
    others = target.config.adapted_shapes()
    for module, shape in shapes.items():
        if others.get(module) != shape:
            found = others.get(module)
            have = "has none" if found is None else f"has {found[0]} x {found[1]}"
            raise ZweaveError(
                f"{module} is {shape[0]} x {shape[1]} in the source and the target {have}: "
                "experts move between models of equal shapes only"
            )
    if len(others) != len(shapes):
        raise ZweaveError(
            "the target has more layers than the source: experts move between equal shapes only"
        )
    record = {**expert.training, "transferred_from": source.digest(), "expert": expert.digest}
    return replace(expert, base_digest=target.digest(), training=record)


def shuffled(expert: Expert, seed: int) -> Expert:
    """The paper's control: the values of each z in random order.

    An expert with a support is shuffled within it, so that it is served in the same mode.
    """
    generator = torch.Generator().manual_seed(seed)
    z = {}
    for module, values in expert.z.items():
        places = (values != 1).nonzero().flatten() if expert.support != "full" else torch.arange(len(values))
        z[module] = values.clone()
        z[module][places] = values[places[torch.randperm(len(places), generator=generator)]]
    return replace(expert, z=z, training={**expert.training, "shuffled": seed})
