"""LoRAs as PEFT saves them, and the models that they are merged into."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture
def save_lora(tiny_model: Callable[..., Path], tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    """`save_lora(name, seed, r=..., ...)`: a random adapter of PEFT, and the model with it merged in."""
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")

    def save(name: str, seed: int, merge: bool = True, **config: Any) -> tuple[Path, Any]:
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            tiny_model("llama", vocab_size=96), dtype=torch.float32
        )
        options = {"target_modules": "all-linear", "init_lora_weights": False} | config
        adapted = peft.get_peft_model(model, peft.LoraConfig(**options))
        with torch.no_grad():
            for parameter_name, parameter in adapted.named_parameters():
                if "lora_" in parameter_name:
                    parameter.mul_(3)
        adapted.save_pretrained(tmp_path / name)
        return tmp_path / name, adapted.merge_and_unload() if merge else adapted

    return save
