"""How far a prompt's state lies from all that a classifier was trained on.

A softmax is sure of its answer for anything. The distance to the nearest class is not (Mahalanobis distance with one
covariance for all classes; Lee et al., arXiv 1807.03888). The covariance keeps its leading directions p_i; what lies in
none of them has one variance in all directions:

    x = (h - center_c) / scale
    d(h) = min over c of  sum_i (p_i . x)^2 / variance_i + (|x|^2 - sum_i (p_i . x)^2) / rest
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ..errors import ZweaveError

DIRECTIONS = 16
# A state at the limit is as likely unknown as known; one that is a tenth nearer is known to 84%.
_SHARPNESS = 16


@dataclass(frozen=True, slots=True, eq=False)
class OpenSet:
    """The classes' centers and the covariance around them, all float32.

    centers: [classes, hidden]
    scale: [hidden], standard deviation of each feature
    directions: [n, hidden], orthonormal
    variances: [n + 1], along each direction, and of the rest
    limit: [1], the largest d of the classes' own validation states
    """

    centers: Tensor
    scale: Tensor
    directions: Tensor
    variances: Tensor
    limit: Tensor

    def __post_init__(self) -> None:
        hidden, n = self.scale.numel(), len(self.directions)
        shapes = {
            "centers": (len(self.centers), hidden),
            "scale": (hidden,),
            "directions": (n, hidden),
            "variances": (n + 1,),
            "limit": (1,),
        }
        for field in fields(self):
            tensor = getattr(self, field.name)
            if tensor.shape != shapes[field.name] or tensor.dtype != torch.float32:
                raise ZweaveError(f"the open set's {field.name} must be float32 {list(shapes[field.name])}")
            if not tensor.isfinite().all():
                raise ZweaveError(f"the open set's {field.name} must be finite")
        if min(self.scale.min(), self.variances.min(), self.limit.min()) <= 0:
            raise ZweaveError("the open set's scale, variances and limit must be above 0")

    @classmethod
    def fit(cls, states: Tensor, classes: Tensor, validation: Tensor) -> "OpenSet":
        """Fits centers and covariance, and takes the limit from states that were not trained on.

        states: [prompts, hidden]
        classes: [prompts], from 0 on, none empty
        validation: [prompts, hidden], of the same classes
        """
        states = states.double()
        centers = torch.stack([states[classes == c].mean(dim=0) for c in range(int(classes.max()) + 1)])
        scale = states.std(dim=0, correction=0).clamp(min=1e-6)
        spread = (states - centers[classes]) / scale
        values, vectors = torch.linalg.eigh(spread.T @ spread / len(spread))
        n = max(1, min(DIRECTIONS, len(values) - 1))
        variances = torch.cat([values[-n:], values[:-n].mean()[None]]).clamp(min=1e-6)
        directions = vectors[:, -n:].T.contiguous()
        found = cls(centers.float(), scale.float(), directions.float(), variances.float(), torch.ones(1))
        return replace(found, limit=found.distances(validation).max().clamp(min=1e-6)[None])

    def to(self, device: torch.device) -> "OpenSet":
        """The same on a device."""
        return replace(self, **{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def distances(self, states: Tensor) -> Tensor:
        """d / limit of each state, [prompts] float32. states: [prompts, hidden] float32."""
        # Not matrix products, whose rows may depend on how many there are: a prompt's distance must not.
        x = (states[:, None, :].double() - self.centers) / self.scale  # [prompts, classes, hidden]
        along = torch.stack([(x * p).sum(dim=-1).square() for p in self.directions.double()], dim=-1)
        rest = (x.square().sum(dim=-1) - along.sum(dim=-1)).clamp(min=0)
        d = (along / self.variances[:-1]).sum(dim=-1) + rest / self.variances[-1]
        return (d.amin(dim=1) / self.limit).float()

    def unknown(self, states: Tensor) -> Tensor:
        """Probability that a state is of no class, [prompts] float32: 1/2 at the limit. states as in `distances`."""
        return torch.sigmoid(_SHARPNESS * self.distances(states).double().log()).float()
