"""The support of an expert: which components of each matrix may differ from 1, and how many do."""

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..errors import ZweaveError, shortened

_FORM = re.compile(r"(leading|sparse):(?:(R)/)?([1-9][0-9]{0,5})")


@dataclass(frozen=True, slots=True)
class Support:
    """Which components of a matrix an expert may change.

    kind: "full" allows all components, "leading" the K with the largest singular values, "sparse" any K.
    count: K, or with `of_rank` the divisor d of K = R/d, rounded down but at least 1.
    of_rank: whether K is a share of each matrix's rank.
    """

    kind: Literal["full", "leading", "sparse"]
    count: int = 0
    of_rank: bool = False

    @classmethod
    def parse(cls, text: str) -> "Support":
        """Reads full, leading:K, leading:R/d, sparse:K or sparse:R/d; ZweaveError for anything else."""
        if text == "full":
            return cls("full")
        match = _FORM.fullmatch(text)
        if match is None:
            raise ZweaveError(
                f"the support must be full, leading:K, leading:R/d, sparse:K or sparse:R/d, not {shortened(text)}"
            )
        return cls("leading" if match[1] == "leading" else "sparse", int(match[3]), match[2] is not None)

    def components(self, rank: int) -> int:
        """How many components of a matrix of this rank may differ from 1."""
        if self.kind == "full":
            return rank
        return min(rank, max(1, rank // self.count) if self.of_rank else self.count)

    def check(self, module: str, z: npt.NDArray[np.float32]) -> None:
        """Raises ZweaveError if z differs from 1 outside the support."""
        allowed = self.components(z.size)
        used = support_of(z - 1) if self.kind == "leading" else np.count_nonzero(z != 1)
        if used > allowed:
            what = "leading components" if self.kind == "leading" else "components"
            raise ZweaveError(f"{module}: the support allows {allowed} {what} and z uses {used}")


def support_of(change: npt.NDArray[np.floating], tolerance: float = 0.0) -> int:
    """Number of leading components that hold all whose |change| exceeds the tolerance.

    change: [R], z - 1 or sigma * (z - 1), components in descending order of singular value.
    """
    differs = np.flatnonzero(np.abs(change) > tolerance)
    return int(differs[-1]) + 1 if differs.size else 0
