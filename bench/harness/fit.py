"""What a launch costs, and what rate it tends to: a line through times over bytes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Fit:
    """seconds = fixed + bytes / rate.

    fixed: seconds.
    rate: bytes a second; None where more bytes take no longer.
    """

    fixed: float
    rate: float | None

    @classmethod
    def of(cls, moved: Sequence[float], seconds: Sequence[float]) -> "Fit | None":
        """By least squares; None unless there are two sizes at least."""
        if len(set(moved)) < 2:
            return None
        # In units in which both columns are about as large.
        unit = max(moved)
        columns = np.stack([np.ones(len(moved)), np.asarray(moved) / unit], axis=1)
        fixed, slope = np.linalg.lstsq(columns, np.asarray(seconds), rcond=None)[0]
        return cls(float(fixed), float(unit / slope) if slope > 0 else None)
