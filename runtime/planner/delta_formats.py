"""int8 and int4 factors of a delta: their bytes, and a bound on what an expert loses by them.

A product with them rounds the activations to 1/254 of the peak of 64 inputs, and the factors to half a scale.
The spectral norm of what a delta loses is at most a share of the delta's own, max |sigma (z - 1)|, that depends on
the format alone: U and V are orthonormal, so that the error of U_q D V_q^T is at most
(|U_q - U| + |V_q - V| + |U_q - U| |V_q - V|) max |D|, and of x at most sqrt(64) / 254 of itself, twice.
"""

from typing import Literal, TypeAlias

IntegerFormat: TypeAlias = Literal["int8", "int4"]
# Bytes of a weight; int4 with float32 scales of 64.
BYTES: dict[IntegerFormat, float] = {"int8": 1.0, "int4": 0.5 + 4 / 64}
# Share of a delta's spectral norm that is lost at most; docs/kernels/quantize.md says how it was found.
STATED_ERROR: dict[IntegerFormat, float] = {"int8": 0.12, "int4": 0.65}
# The largest sigma |z - 1| over the largest sigma that a plan expects of experts; trained ones reach .07. What an
# expert really loses is checked when its rows are written.
EXPECTED_CHANGE = 0.1


def meets_error(format: IntegerFormat, max_error: float) -> bool:
    """Whether experts of the expected change lose at most `max_error` of a matrix's spectral norm by a format."""
    return STATED_ERROR[format] * EXPECTED_CHANGE <= max_error
