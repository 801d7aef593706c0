"""The linears of a model that vLLM serves, on a CPU and on a GPU, and what they are told of a step."""

from .cpu_linear import CpuLinear, Part
from .device_linear import DeviceLinear
from .device_step import DeviceStep
from .forms import Forms, forms_of, plan_of
from .sharding import Shard, shard_factors
from .tokens import StepTokens, Tokens

__all__ = [
    "CpuLinear",
    "DeviceLinear",
    "DeviceStep",
    "Forms",
    "Part",
    "Shard",
    "StepTokens",
    "Tokens",
    "forms_of",
    "plan_of",
    "shard_factors",
]
