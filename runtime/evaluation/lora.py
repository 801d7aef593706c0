"""LoRA adapters as methods: PEFT directories, run by the forward pass of training."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from ..adapters.lora_record import LoraRecord
from ..checkpoint.checkpoint import resolve_model
from ..errors import ZweaveError, one_line
from ..experts.expert import Scope
from ..tasks import Sample, Task
from ..text.tokenizer import Tokenizer
from ..train.adapter import Adapter
from ..train.policy import Policy
from ..train.rollout import sample_answers
from ..train.run import load_model

# Prompts of a forward pass, as in the validations of training.
BATCH = 32


class LoraModel:
    """A transformers model with any number of adapters, one of them active.

    model: as zweave.Engine takes it.
    Raises ZweaveError for one that cannot be opened, and without transformers.
    """

    def __init__(self, model: str, dtype: torch.dtype, device: str = "cpu") -> None:
        checkpoint = resolve_model(model)
        self.module = load_model(checkpoint, dtype).to(device).requires_grad_(False)
        self.tokenizer = Tokenizer(checkpoint.directory)
        self.max_length = checkpoint.config.default_max_model_len
        self._peft: Any = None
        self._count = 0

    def method(self, name: str, directory: Path) -> "LoraMethod":
        """The adapter in a directory that `zweave train --adapter lora` or PEFT wrote.

        Raises ZweaveError if there is none, or one for another model.
        """
        try:
            from peft import PeftModel
        except ImportError:
            raise ZweaveError("--lora needs peft: pip install 'zweave[train]' peft") from None
        scope = _scope(directory)
        adapter = f"adapter{self._count}"
        self._count += 1
        try:
            if self._peft is None:
                self._peft = PeftModel.from_pretrained(self.module, str(directory), adapter_name=adapter)
            else:
                self._peft.load_adapter(str(directory), adapter_name=adapter)
        # What does not fit fails in many types, over many lines.
        except Exception as error:
            raise ZweaveError(f"{directory} is no adapter for this model: {one_line(error)}") from None
        self._peft.requires_grad_(False).eval()
        size = sum(p.numel() for key, p in self.module.named_parameters() if adapter in key.split("."))
        if not size:
            raise ZweaveError(f"{directory} adapts none of this model's matrices")
        return LoraMethod(name, self, adapter, scope, size)

    @contextmanager
    def base(self) -> Iterator[None]:
        """A context in which the model answers without adapters."""
        with self._peft.disable_adapter():
            yield

    def activate(self, adapter: str) -> None:
        self._peft.set_adapter(adapter)


@dataclass(frozen=True, slots=True)
class LoraMethod:
    """One adapter, greedy over the whole vocabulary.

    parameters: numbers in its matrices A and B.
    """

    name: str
    model: LoraModel
    adapter: str
    scope: Scope
    parameters: int

    def answers(self, task: Task, samples: Sequence[Sample]) -> list[str]:
        self.model.activate(self.adapter)
        # Answering uses nothing of an adapter but `base`.
        adapter = cast(Adapter, self.model)
        policy = Policy(self.model.module, adapter, self.model.tokenizer, self.scope, self.model.max_length)
        texts: list[str] = []
        for start in range(0, len(samples), BATCH):
            texts += sample_answers(policy, task, list(samples[start : start + BATCH])).texts
        return texts


def _scope(directory: Path) -> Scope:
    """The adapter's scope by the record of `zweave train`; all tokens without one."""
    if not (directory / "adapter_config.json").is_file():
        raise ZweaveError(f"{directory} holds no adapter_config.json: give a directory that PEFT wrote")
    try:
        record = LoraRecord.read(directory)
    except ZweaveError as error:
        raise ZweaveError(f"{directory}: {error}") from None
    return "always" if record is None else record.scope
