"""A copy of a model whose matrices went through eight bits."""

import json
import shutil
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from zweave.checkpoint import Checkpoint
from zweave.io.cache_dir import disk_errors


def rounded(weight: Tensor) -> Tensor:
    """weight [M, N] with each row rounded to 127 steps on either side of 0; float32."""
    weight = weight.float()
    step = weight.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
    return (weight / step).round() * step


def write_rounded(source: Checkpoint, directory: Path) -> None:
    """Writes the model with its adapted matrices rounded, all tensors in one file; ZweaveError if the disk is full."""
    matrices = {f"{module}.weight" for module in source.config.adapted_shapes()}
    tensors = {}
    for name in source.names():
        tensor = source.tensor(name)
        tensors[name] = rounded(tensor) if name in matrices else tensor.clone()
    with disk_errors(directory):
        save_file(tensors, directory / "model.safetensors", {"format": "pt"})
        for path in source.directory.glob("*.json"):
            if path.name != "model.safetensors.index.json":
                shutil.copy(path, directory)
        config = json.loads((directory / "config.json").read_text("utf-8"))
        config.pop("dtype", None)
        config["torch_dtype"] = "float32"
        (directory / "config.json").write_text(json.dumps(config), "utf-8")
