"""A training and its files: the expert, its log, its curves, and the state of an unfinished training."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoint.checkpoint import Checkpoint, resolve_model
from ..checkpoint.tensor_files import is_listed
from ..decomposition.decomposition import decompose
from ..device import parse_device
from ..errors import ZweaveError
from ..io.json_text import has_byte_order_mark
from ..tasks.render import expert_template
from ..tasks.task import Task
from ..text.tokenizer import Tokenizer
from .adapter import Adapter, SvfAdapter
from .curves import save_curves
from .joint.twins import twins
from .loop import Step, Training
from .lora import LoraAdapter
from .objective import accuracy
from .policy import Policy
from .recipe import Recipe
from .run_files import RunFiles
from .run_log import Log
from .svf import Packs

Report = Callable[[Step], None]


def load_model(checkpoint: Checkpoint, dtype: torch.dtype) -> nn.Module:
    """The transformers model of a checkpoint; ZweaveError without transformers, and for what it does not read."""
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
        from transformers.utils import logging
    except ImportError:
        raise ZweaveError("training needs transformers: pip install 'zweave[train]'") from None
    _refuse_unreadable(checkpoint.directory)
    logging.disable_progress_bar()
    if checkpoint.is_quantized:
        config = AutoConfig.from_pretrained(
            checkpoint.directory, tie_word_embeddings=checkpoint.config.tie_embeddings
        )
        # Its own way to read these matrices needs other libraries, and most of them a GPU.
        del config.quantization_config
        return _filled(AutoModelForCausalLM.from_config(config, dtype=dtype), checkpoint).eval()
    # transformers 4 ties the head wherever the config says so, even one that differs.
    return AutoModelForCausalLM.from_pretrained(
        checkpoint.directory, dtype=dtype, tie_word_embeddings=checkpoint.config.tie_embeddings
    ).eval()


def _filled(module: nn.Module, checkpoint: Checkpoint) -> nn.Module:
    """The model with the tensors of the checkpoint."""
    with torch.no_grad():
        for name in checkpoint.names():
            module.get_parameter(name).copy_(checkpoint.tensor(name))
    return module


def _refuse_unreadable(directory: Path) -> None:
    """ZweaveError for what zweave reads and transformers does not."""
    if not is_listed(directory):
        raise ZweaveError(
            f"{directory} holds shards without model.safetensors.index.json: transformers, which training "
            "runs on, needs it; download it, too (answering prompts needs none)"
        )
    for name in ("config.json", "generation_config.json", "model.safetensors.index.json"):
        path = directory / name
        if path.is_file() and has_byte_order_mark(path):
            raise ZweaveError(
                f"{path} begins with a byte order mark, which transformers, on which training runs, does not "
                "read: save it as UTF-8 without one"
            )


def open_policy(model: str, recipe: Recipe, dtype: torch.dtype, device: str = "cpu") -> Policy:
    """A model under a fresh adapter, ready to be trained by the recipe.

    model: as zweave.Engine takes it.
    device: "cpu" or "cuda"; a model that was never decomposed is decomposed there.
    Raises ZweaveError for a device that is not there, a model that cannot be opened and a recipe that does not fit it.
    """
    return open_policies(model, [recipe], dtype, device)[0]


def open_policies(
    model: str, recipes: Sequence[Recipe], dtype: torch.dtype, device: str = "cpu"
) -> list[Policy]:
    """A policy for each recipe, as `open_policy` returns it; they share the model's weights."""
    place = parse_device(device)
    checkpoint = resolve_model(model)
    config = checkpoint.config
    for recipe in recipes:
        if recipe.first_layer >= config.num_layers:
            raise ZweaveError(
                f"first_layer {recipe.first_layer}: the model has layers 0 to {config.num_layers - 1}"
            )
    module = load_model(checkpoint, dtype).requires_grad_(False)
    needs_factors = any(recipe.adapter == "svf" for recipe in recipes)
    # Before the model takes the device's memory.
    factors = decompose(checkpoint, device=device).factors if needs_factors else None
    module.to(place)
    packs: Packs = {}
    # Training attends to the whole sequence, which therefore must fit into every sliding window.
    longest = min([config.default_max_model_len, *(window for window in config.sliding_window if window)])
    tokenizer = Tokenizer(checkpoint.directory)
    policies = []
    for recipe, twin in zip(recipes, twins(module, len(recipes)), strict=True):
        adapter: Adapter
        if recipe.adapter == "lora" or factors is None:
            adapter = LoraAdapter(twin, recipe)
        else:
            adapter = SvfAdapter(twin, factors, recipe, checkpoint.digest(), packs)
        policies.append(Policy(twin, adapter, tokenizer, recipe.scope, longest))
    return policies


def run_record(task: Task, recipe: Recipe, model: str, dtype: str) -> dict[str, Any]:
    """What a training follows from, as its expert file says it."""
    return asdict(recipe) | {"task": task.name, "model": model, "dtype": dtype}


def run_digest(task: Task, recipe: Recipe, model: str, dtype: str) -> str:
    """A digest of what a training follows from."""
    key = json.dumps([task.name, model, dtype, asdict(recipe)])
    return hashlib.sha256(key.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Run:
    """A task to train on and where its files go.

    model, dtype: recorded in the expert file.
    data: directory of the task files.
    files: that are written.
    held_out: test samples of the final accuracy.
    """

    policy: Policy
    task: Task
    recipe: Recipe
    model: str
    dtype: str
    data: Path | None
    files: RunFiles
    held_out: int = 500

    def train(self, report: Report) -> dict[str, Any]:
        """Trains to the end, from the state of an unfinished training if there is one.

        Writes NAME.safetensors (a directory for LoRA), NAME.log.jsonl and NAME.png; returns the record in the expert
        file.
        Raises ZweaveError as `zweave.train.train` does; the best expert and the last state are kept then.
        """
        recorder = Recorder(self)
        while not recorder.training.is_done:
            step = recorder.training.step()
            recorder.add(step)
            report(step)
        return recorder.finish()


class Recorder:
    """A run that is under way, and the files that it writes.

    training: its steps are to be made, each of them added, and the run finished when it is done.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        train_samples = run.task.samples("train", run.data, run.recipe.seed)
        validation = run.task.samples("validation", run.data)[: run.recipe.validation]
        self._test = run.task.samples("test", run.data)[: run.held_out] if run.held_out else []
        self._template = expert_template(run.task, train_samples, run.policy.tokenizer)
        self._record = run_record(run.task, run.recipe, run.model, run.dtype)
        state = run.files.state
        self._log = Log(run.files.log, keep=state.exists())
        self.training = Training(run.policy, run.task, train_samples, validation, run.recipe, state)

    def add(self, step: Step) -> None:
        """Logs a step that was made, and saves the expert if it is the best so far, and the state if it is time."""
        self._log.add(step)
        if step.improved:
            self._record |= {"validation_accuracy": step.validation, "best_step": step.step + 1}
            self._save(self._record | {"unfinished": True})
        self.training.save_after(step)

    def finish(self) -> dict[str, Any]:
        """Writes the best expert with its record, which is returned, and the curves; drops the state."""
        self.training.load_best()
        policy, log, record = self._run.policy, self._log, self._record
        improvements = [line for line in log.lines if line["improved"]]
        # Empty if somebody has removed the log.
        if improvements:
            best = improvements[-1]
            record |= {"validation_accuracy": best["validation"], "best_step": best["step"] + 1}
        record |= {"seconds": round(log.seconds()), "steps_done": len(log.lines)}
        if self._test:
            with policy.adapter.base():
                before = accuracy(policy, self._run.task, self._test)
            after = accuracy(policy, self._run.task, self._test)
            record |= {"held_out": len(self._test)}
            record |= {"accuracy_before": round(before, 4), "accuracy_after": round(after, 4)}
        self._save(record)
        save_curves(log.lines, self._run.files.curves, self._run.files.name)
        self._run.files.state.unlink(missing_ok=True)
        return record

    def _save(self, record: dict[str, Any]) -> None:
        files, task = self._run.files, self._run.task
        self._run.policy.adapter.save(files.expert, task.description, record, self._template)
