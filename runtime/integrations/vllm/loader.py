"""Loads experts where vLLM's workers load adapters.

z stays in float32, and an expert that does not fit is refused before an adapter in use is evicted for it.
"""

from pathlib import Path
from typing import Any

import torch
from vllm.exceptions import LoRAAdapterNotFoundError
from vllm.lora.lora_model import LoRAModel
from vllm.lora.lora_weights import LoRALayerWeights
from vllm.lora.request import LoRARequest
from vllm.lora.worker_manager import WorkerLoRAManager

from ...decomposition.decomposition import Decomposition
from ...errors import ZweaveError
from ...experts.expert import Expert
from ...experts.slot_rows import adapted_scale, renormalisation
from ...experts.support import support_of
from .adapter import CONFIG, is_adapter, load_adapter
from .linears import Forms, plan_of


def use_our_loader() -> None:
    """Replaces the adapter loader of vLLM's workers, once a process; other models' adapters load as before."""
    others = WorkerLoRAManager._load_adapter
    if getattr(others, "of_zweave", False):
        return

    def load(self: Any, request: Any) -> LoRAModel:
        config = _config(self._adapter_manager)
        return others(self, request) if config is None else _load(request, config)

    load.of_zweave = True  # type: ignore[attr-defined]
    WorkerLoRAManager._load_adapter = load
    # An adapter and its successor of the same name may be in one batch: they are two adapters.
    LoRARequest.__eq__ = _equal
    LoRARequest.__hash__ = _hash


def _config(manager: Any) -> Any:
    """The `SvfConfig` of the model whose adapters a manager holds; None if its linears are not ours."""
    for module in manager.modules.values():
        method: Any = getattr(getattr(module, "base_layer", None), "quant_method", None)
        if hasattr(method, "config") and hasattr(method.config, "decomposition"):
            return method.config
    return None


def _load(request: Any, config: Any) -> LoRAModel:
    path, decomposition = Path(request.lora_path), config.decomposition()
    if not (path / CONFIG).is_file():
        raise LoRAAdapterNotFoundError(request.lora_name, request.lora_path)
    if not is_adapter(path):
        raise ZweaveError(
            f"{path} is no expert, and --quantization svf serves no others: write one with "
            "`zweave vllm-export EXPERT -o DIR`"
        )
    expert = load_adapter(path)
    shapes = {name: matrix.shape for name, matrix in decomposition.matrices.items()}
    expert.check(shapes, decomposition.digest)
    loras = {
        module: LoRALayerWeights(module, 1, 1, z.unsqueeze(0), torch.empty(1, 1), 1.0)
        for module, z in _scales(expert, decomposition, config.forms).items()
    }
    return LoRAModel(request.lora_int_id, 1, loras)


def _scales(expert: Expert, decomposition: Decomposition, forms: Forms) -> dict[str, torch.Tensor]:
    """z of each matrix, with the renormalisation in it; ZweaveError if a worker could not write its scales."""
    served = {}
    for module, z in expert.z.items():
        sigma = decomposition.sigma(module).double().numpy()
        if expert.renormalise:
            factor = renormalisation(module, sigma, sigma * z.double().numpy())
            z = (z.double() * factor).float()
        support, plan = support_of(adapted_scale(module, sigma, z) - sigma), plan_of(len(sigma), forms)
        if plan.mode_of(support) is None:
            raise ZweaveError(
                f"the expert adapts {support} components of {module}, and this server keeps {plan.delta_rank}: "
                f'start it with "forms" other than "{forms}"'
            )
        served[module] = z
    return served


def _equal(self: Any, other: object) -> bool:
    return (
        isinstance(other, LoRARequest)
        and self.lora_name == other.lora_name
        and self.lora_int_id == other.lora_int_id
    )


def _hash(self: Any) -> int:
    return hash((self.lora_name, self.lora_int_id))
