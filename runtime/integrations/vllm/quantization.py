"""vLLM's quantisation method "svf", which owns the weights of the linears that experts adapt."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.linear import LinearBase, RowParallelLinear, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

from zweave.kernels import pack

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.module_name import linear_of
from ...decomposition.decomposition import Decomposition
from ...errors import ZweaveError
from .linears import CpuLinear, DeviceLinear, Forms, Part, Shard, forms_of, shard_factors

NAME = "svf"


class SvfConfig(QuantizationConfig):
    """`--quantization svf`. The factors come from the cache; there is no decomposition at start-up.

    forms: that linears on a GPU keep resident.
    """

    forms: Forms = "all"

    def __init__(self) -> None:
        super().__init__()
        self._digest = ""
        self._decomposition: Decomposition | None = None

    def get_name(self) -> Any:
        return NAME

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        return 80

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SvfConfig":
        return cls()

    def maybe_update_config(self, model_name: str, *args: Any, **options: Any) -> None:
        """Opens the decomposition before anything is loaded, and pins the adapters of requests."""
        from .requests import pin_requests

        pin_requests()
        self._open(model_name)

    def decomposition(self) -> Decomposition:
        """The decomposition of the model that is being loaded."""
        if self._decomposition is None:
            return self._open(get_current_vllm_config().model_config.model)
        return self._decomposition

    def get_quant_method(self, layer: nn.Module, prefix: str) -> Any:
        from .layers import use_our_layers

        if not isinstance(layer, LinearBase):
            return None
        names = self._names(prefix)
        if not set(names) <= self.decomposition().matrices.keys():
            return UnquantizedLinearMethod()
        vllm_config = get_current_vllm_config()
        self.forms = forms_of(vllm_config.additional_config)
        lora = vllm_config.lora_config
        if lora is None:
            raise ZweaveError("--quantization svf serves experts as adapters: add --enable-lora")
        if vllm_config.parallel_config.use_ubatching:
            raise ZweaveError("--quantization svf knows the experts of whole batches: leave out --enable-dbo")
        use_our_layers()
        if lora.target_modules is None:
            # Experts adapt nothing else, and each further layer that can take an adapter costs time.
            lora.target_modules = []
        lora.target_modules = sorted({*lora.target_modules, *map(linear_of, names)})
        return SvfLinearMethod(self, names, lora.max_loras)

    def _names(self, prefix: str) -> list[str]:
        """The matrices of a linear; several if vLLM fuses them."""
        parent, _, own = prefix.rpartition(".")
        return [f"{parent}.{name}" for name in self.packed_modules_mapping.get(own, [own])]

    def _open(self, model: str) -> Decomposition:
        directory = _directory(model)
        self._digest = self._digest or Checkpoint(directory).digest()
        try:
            self._decomposition = Decomposition.open(self._digest)
        except ZweaveError as error:
            raise ZweaveError(str(error).replace("decompose MODEL", f"decompose {directory}")) from None
        return self._decomposition


class SvfLinearMethod(UnquantizedLinearMethod):
    """Replaces a linear's weight by a `CpuLinear`, or on a GPU by a `DeviceLinear`.

    config: whose decomposition the linear uses.
    names: of the matrices in the linear, from top to bottom.
    adapters: number of adapters at once.
    """

    def __init__(self, config: SvfConfig, names: list[str], adapters: int) -> None:
        super().__init__()
        self.config, self.names, self._adapters = config, names, adapters

    def process_weights_after_loading(self, layer: Any) -> None:
        weight = layer.weight.data
        decomposition = self.config.decomposition()
        factors = []
        for index, name in enumerate(self.names):
            u, sigma, vt = decomposition.factors(name)
            u, vt = shard_factors(u, vt, *_shards(layer, index))
            factors.append((u, sigma, vt))
        if weight.device.type == "cpu":
            layer.served = self._on_cpu(weight, factors)
        else:
            layer.served = DeviceLinear(weight, factors, self._adapters, self.config.forms)
        layer.weight = nn.Parameter(weight.new_empty(0), requires_grad=False)

    def _on_cpu(self, weight: Tensor, factors: list[tuple[Tensor, Tensor, Tensor]]) -> CpuLinear:
        if self.config.forms != "all":
            raise ZweaveError(
                f'forms "{self.config.forms}" are for GPUs: vLLM on a CPU keeps W and the factors'
            )
        return CpuLinear(pack(weight), [Part.of(*each, weight.dtype) for each in factors], self._adapters)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        y = layer.served.base(x.reshape(-1, x.shape[-1]), bias)
        return y.view(*x.shape[:-1], y.shape[-1])


def _shards(layer: Any, index: int) -> tuple[Shard | None, Shard | None]:
    """The rows and columns of the linear's matrix `index` that this worker holds, None for all."""
    if isinstance(layer, RowParallelLinear):
        return None, Shard(layer.tp_rank, layer.input_size_per_partition)
    rank = layer.tp_rank
    if index and hasattr(layer, "num_kv_head_replicas"):
        # More workers than heads of keys and values: several hold the same.
        rank //= layer.num_kv_head_replicas
    return Shard(rank, layer.output_partition_sizes[index]), None


def _directory(model: str) -> Path:
    """The directory of a model that is given as for vLLM: a directory, or a name in the Hugging Face cache."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, local_files_only=True))
    except Exception:
        raise ZweaveError(
            f"{model} is no directory, nor is it in the Hugging Face cache: download it first"
        ) from None
