"""Names that users write: the choices of options, which the command line knows before it loads anything."""

from pathlib import Path
from typing import Literal, TypeAlias

DEFAULT_MODEL = "smollm2"
PULLED_MODELS = (DEFAULT_MODEL,)
# Of an engine; torch has more.
DTYPES = ("float32", "bfloat16")
WEIGHTS = ("auto", "grid", "refit")
# Of an engine, unless the user says otherwise.
SLOTS = 64
LORA_COMPONENTS = 512
MAX_SEQUENCES = 64
KV_TOKENS = 16384
BUNDLED_EXPERTS = tuple(
    sorted(path.stem for path in (Path(__file__).parent / "experts" / "data").glob("*.safetensors"))
)

Scope: TypeAlias = Literal["always", "after_prompt"]
KVReuse: TypeAlias = Literal["exact", "approximate"]
Split: TypeAlias = Literal["train", "validation", "test"]
Objective: TypeAlias = Literal["reinforce", "plain", "grpo", "sft"]
AdapterKind: TypeAlias = Literal["svf", "lora"]
CompressionVariant: TypeAlias = Literal["diagonal", "full"]
