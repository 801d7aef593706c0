"""The decomposition of a loaded model, shared with its checkpoint if that has the same weights."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.weight_source import weights_digest
from ...decomposition.decomposition import Decomposition, decompose
from ...errors import ZweaveError
from ...io.progress import Report
from .linear import Target
from .targets import shapes_of


class ModelWeights:
    """The matrices of a loaded model, as `decompose` reads them."""

    def __init__(self, targets: Mapping[str, Target]) -> None:
        self._targets = targets

    def adapted_shapes(self) -> dict[str, tuple[int, int]]:
        return shapes_of(self._targets)

    def tensor(self, name: str) -> Tensor:
        return self._targets[name.removesuffix(".weight")].weight.cpu()

    def digest(self) -> str:
        return weights_digest(self)


def decomposition_of(
    model: nn.Module, targets: Mapping[str, Target], progress: Report | None = None
) -> Decomposition:
    """Opens or makes the decomposition, cached under a digest of the weights.

    A model that was loaded from the directory of a checkpoint that zweave can read, and has its weights rounded to the
    model's dtype, shares the checkpoint's decomposition, and so its experts.

    What is not in the cache is made on the model's own device where that is CUDA, else on the CPU.

    progress: as for `decompose`.
    Raises ZweaveError as `decompose` does.
    """
    place = next(iter(targets.values())).weight.device
    device = str(place) if place.type == "cuda" else "cpu"
    return decompose(
        _checkpoint_of(model, targets) or ModelWeights(targets), progress=progress, device=device
    )


def _checkpoint_of(model: nn.Module, targets: Mapping[str, Target]) -> Checkpoint | None:
    path = getattr(model, "name_or_path", "")
    if not isinstance(path, str) or not path or not Path(path).is_dir():
        return None
    try:
        checkpoint = Checkpoint(path)
    except ZweaveError:
        # An architecture that only transformers knows.
        return None
    known = checkpoint.adapted_shapes()
    for name, target in targets.items():
        if known.get(name) != target.shape:
            return None
        stored = checkpoint.tensor(f"{name}.weight")
        if not torch.equal(stored.to(target.weight.dtype), target.weight.cpu()):
            return None
    return checkpoint
