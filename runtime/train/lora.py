"""The baseline: PEFT's low-rank adapters on the same matrices, trained by the same objectives."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from ..adapters.lora_record import LORA_RECORD
from ..checkpoint.module_name import LINEARS
from ..errors import ZweaveError
from ..io.cache_dir import disk_errors
from ..text.prompt_template import PromptTemplate
from .recipe import Recipe


class LoraAdapter:
    """LoRA of the recipe's rank, alpha twice that, float32; saved as a PEFT directory."""

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        self._scope = recipe.scope
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError:
            raise ZweaveError("the adapter lora needs peft: pip install 'zweave[train]' peft") from None
        config = LoraConfig(
            r=recipe.rank,
            lora_alpha=2 * recipe.rank,
            target_modules=list(LINEARS),
            task_type="CAUSAL_LM",
        )
        # PEFT initialises its factors from the global generator.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self._peft = get_peft_model(model, config)
        self._is_off = False

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self._peft.parameters() if parameter.requires_grad]

    @contextmanager
    def base(self) -> Iterator[None]:
        # Of two nested contexts PEFT's inner one would switch the adapter on again at its end.
        if self._is_off:
            yield
            return
        self._is_off = True
        try:
            with self._peft.disable_adapter():
                yield
        finally:
            self._is_off = False

    def before_step(self) -> None:
        pass

    def after_step(self, step: int) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return {"lora": [parameter.detach().clone() for parameter in self.parameters()]}

    def load_state(self, state: dict[str, Any]) -> None:
        for parameter, value in zip(self.parameters(), state["lora"], strict=True):
            parameter.data.copy_(value)

    def save(
        self,
        path: Path,
        description: str,
        training: dict[str, Any],
        template: PromptTemplate | None = None,
    ) -> None:
        """Writes PEFT's files and the record of the training; each is replaced whole."""
        record = {"scope": self._scope, "description": description, "training": training}
        if template is not None:
            record["prompt_template"] = json.loads(template.to_json())
        with disk_errors(path), TemporaryDirectory(dir=path.parent) as folder:
            self._peft.save_pretrained(folder)
            (Path(folder) / LORA_RECORD).write_text(json.dumps(record), "utf-8")
            path.mkdir(exist_ok=True)
            for file in Path(folder).iterdir():
                file.replace(path / file.name)
