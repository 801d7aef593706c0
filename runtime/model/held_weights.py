"""The form in which the weights of the adapted matrices stay, as an engine's `weights` says."""

from dataclasses import dataclass, field

from ..checkpoint.checkpoint import Checkpoint
from ..decomposition.refit.quantized_model import QuantizedModel
from ..planner.grid_plan import gpu_grids_plan, grids_plan, refit_plan
from ..planner.plan import Plan
from ..planner.planner import DeviceType


@dataclass(frozen=True, slots=True)
class HeldWeights:
    """What is known of a form before anything is loaded.

    on_grid: whether matrices that came on a grid stay there.
    refit: the factors that are all that stays, or None.
    plan: of the matrices whose plan follows from that.
    """

    on_grid: bool = False
    refit: QuantizedModel | None = None
    plan: Plan = field(default_factory=dict)

    @classmethod
    def of(cls, weights: str, checkpoint: Checkpoint, device_type: DeviceType = "cpu") -> "HeldWeights":
        """Raises ZweaveError if the model does not have its weights in this form; weights: one of WEIGHTS."""
        shapes = checkpoint.adapted_shapes()
        if weights == "grid":
            make_plan = grids_plan if device_type == "cpu" else gpu_grids_plan
            return cls(on_grid=True, plan=make_plan(shapes, checkpoint.adapted_grids()))
        if weights == "refit":
            refit = QuantizedModel.open(checkpoint)
            return cls(refit=refit, plan=refit_plan(shapes, refit.grids))
        return cls()
