"""A tiny model whose rows stand under experts, and tasks with chat prompts."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from zweave.describe.train.rows import RowModel
from zweave.tasks.task import Sample, Splits, Task
from zweave.text.chatml import chat

pytest.importorskip("transformers")


@pytest.fixture(scope="session")
def chats() -> list[Task]:
    """Two tasks over the same prompts, one with labels, one whose answers are texts."""

    def make(name: str, answers: str, labels: tuple[str, ...]) -> Task:
        prompts = [chat(f"Text: {word}", "It is") for word in ("x", "yy", "x y z", "zz")]
        samples = [Sample(prompt, f" {answer}") for prompt, answer in zip(prompts, answers, strict=True)]
        return Task(name, "", lambda data: Splits(samples, samples), labels=labels, max_tokens=6)

    return [make("first", "abab", (" a", " b")), make("second", "cdef", ())]


@pytest.fixture(scope="module")
def row_model(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., RowModel]:
    """`row_model(first_layer=0)`: anew, with no prompt computed."""
    directory = str(tiny_model("llama"))
    return lambda first_layer=0: RowModel.open(directory, torch.float32, first_layer)
