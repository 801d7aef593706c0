"""Bodies of vLLM's calls for adapters."""

from typing import Any

from .body import Body


class LoadBody(Body):
    """lora_path: an expert file, a LoRA or an adapter's folder in the server's directory of experts."""

    lora_name: str
    lora_path: str
    load_inplace: bool = False
    base_model_name: Any = None
    lora_int_id: Any = None


class UnloadBody(Body):
    lora_name: str
    lora_int_id: Any = None
