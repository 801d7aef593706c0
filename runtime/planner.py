"""The plan that an engine's configuration asks for, by what products cost on this machine."""

from collections.abc import Mapping

from zweave.cost_model import cost_model
from zweave.engine_config import EngineConfig
from zweave.plan import Plan, make_plan


def plan_for(config: EngineConfig, shapes: Mapping[str, tuple[int, int]]) -> Plan:
    """The plan of matrices [out_features, in_features] under the configured memory and error.

    Without a limit of memory nothing depends on costs, and none are measured.
    Raises ZweaveError as `make_plan` and `cost_model` do.
    """
    device = config.torch_device.type
    weighs_costs = device == "cpu" and config.max_memory is not None
    return make_plan(
        shapes,
        device,
        config.torch_dtype.itemsize,
        config.max_memory,
        config.max_error,
        cost_model(config.torch_dtype) if weighs_costs else None,
    )
