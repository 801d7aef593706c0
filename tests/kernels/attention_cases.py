"""What the tests of decode and prefill attention share: heads, pages and windows."""

from dataclasses import dataclass

import torch

FLOATS = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Of a case's queries and pages; size: of a head."""

    heads: int = 4
    kv_heads: int = 2
    size: int = 16
    block_size: int = 16
    window: int = 0


# Of every run, and of exhaustive ones.
LAYOUTS: dict[str, dict[str, int]] = {
    "window of 1": {"window": 1},
    "window of everything": {"window": 2**40},
    "no sharing": {"heads": 3, "kv_heads": 3},
    "17 heads share": {"heads": 34},
    "head size 80": {"size": 80},
    "head size 63, blocks of 64": {"size": 63, "block_size": 64},
    "blocks of 1": {"block_size": 1},
}
MORE_LAYOUTS: dict[str, dict[str, int]] = {
    "heads as SmolLM2's": {"heads": 9, "kv_heads": 3, "size": 64},
    "2 heads share, blocks of 32": {"block_size": 32},
    "8 heads share": {"heads": 8, "kv_heads": 1},
    "64 heads share": {"heads": 64, "kv_heads": 1},
    "head size 1": {"size": 1},
    "head size 96": {"size": 96},
    "head size 128": {"size": 128},
    "head size 256": {"size": 256},
}
