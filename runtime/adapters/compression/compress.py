"""Compresses LoRAs to coefficients over common bases."""

from collections.abc import Mapping

import torch

from ...errors import ZweaveError
from ...io.progress import Report, silent
from ...names import CompressionVariant
from ..lora import Lora
from ..peft_directory import MAX_RANK
from .bases import Plan, modules_of
from .clusters import fit_clusters
from .compressed import CompressedLora, CompressedLoras

# Coefficients are kept in float32, which holds nothing below.
_LEAST_NORM = torch.finfo(torch.float32).tiny


def compress(
    loras: Mapping[str, Lora],
    shapes: Mapping[str, tuple[int, int]],
    *,
    rank: int,
    variant: CompressionVariant = "diagonal",
    clusters: int = 1,
    seed: int = 0,
    base_digest: str | None = None,
    report: Report = silent,
) -> CompressedLoras:
    """Fits bases of K = rank components to adapters, by name; the same arguments give the same result.

    shapes: the model's adaptable matrices, (out_features, in_features) each.
    Raises ZweaveError if an adapter does not fit the model or changes nothing, K is too large, or there are more
    clusters than adapters.
    """
    if not 1 <= rank <= MAX_RANK:
        raise ZweaveError(f"the rank of a basis is from 1 to {MAX_RANK}, not {rank}")
    if not 1 <= clusters <= len(loras):
        raise ZweaveError(f"{len(loras)} adapters make from 1 to {len(loras)} clusters, not {clusters}")
    for name, lora in loras.items():
        _check(name, lora, shapes)
    chosen, fitted = fit_clusters(
        list(loras.values()), modules_of(loras, shapes), clusters, Plan(variant, rank, seed), report
    )
    adapters = [
        CompressedLora(
            name=name,
            cluster=cluster,
            digest=lora.digest,
            rank=lora.rank,
            scope=lora.scope,
            invocation_tokens=lora.invocation_tokens,
            description=lora.description,
            prompt_template=lora.prompt_template.to_json() if lora.prompt_template else "",
            error=error,
        )
        for (name, lora), cluster, error in zip(
            loras.items(), chosen.tolist(), fitted.errors.tolist(), strict=True
        )
    ]
    return CompressedLoras(variant, rank, seed, base_digest, tuple(adapters), fitted.clusters)


def _check(name: str, lora: Lora, shapes: Mapping[str, tuple[int, int]]) -> None:
    try:
        lora.check(shapes)
        # The norm of the product: B A may be zero where neither of them is.
        if all(pair.norm < _LEAST_NORM for pair in lora.pairs.values()):
            raise ZweaveError("the adapter changes nothing: leave it out")
    except ZweaveError as error:
        raise ZweaveError(f"{name}: {error}") from None
