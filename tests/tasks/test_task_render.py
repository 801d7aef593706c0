"""Prompts and labels as token ids, for ChatML, for another template and for none."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from zweave.errors import ZweaveError
from zweave.tasks import Splits, Task, answer_ids, label_ids, prompt_ids, prompts
from zweave.text import Tokenizer

OTHER = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] | trim }}[end]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture
def directory(tiny_model: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model("llama"), tmp_path / "model"))


def other_model(directory: Path, template: str | None) -> Tokenizer:
    """The same letters without the tokens of ChatML."""
    path = directory / "tokenizer.json"
    written = json.loads(path.read_text().replace("<|im_start|>", "<|a|>").replace("<|im_end|>", "<|b|>"))
    path.write_text(json.dumps(written))
    config = {"eos_token": "<|b|>"} | ({"chat_template": template} if template else {})
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer(directory)


def test_chatml_is_kept_as_it_is(directory: Path) -> None:
    tokenizer = Tokenizer(directory)
    prompt = prompts.sentiment("fine\nindeed")
    assert prompt_ids(tokenizer, prompt) == tokenizer.encode(prompt, special=False)
    assert tokenizer.decode(prompt_ids(tokenizer, prompt), skip_special=False) == prompt


def test_another_template_is_rendered_and_its_last_message_continued(directory: Path) -> None:
    tokenizer = other_model(directory, OTHER)
    ids = prompt_ids(tokenizer, prompts.addition(23, 45))
    assert tokenizer.decode(ids) == "[user]What is 23 + 45?[end][assistant]23 + 45 ="
    assert tokenizer.decode(prompt_ids(tokenizer, prompts.chat("Hi"))) == "[user]Hi[end][assistant]"


def test_conversations_are_rendered_turn_by_turn(directory: Path) -> None:
    turns = [("system", "S"), ("user", "A"), ("assistant", "B"), ("user", "C"), ("assistant", "D")]
    prompt = prompts.conversation([{"role": role, "content": content} for role, content in turns])
    chatml = Tokenizer(directory)
    assert chatml.decode(prompt_ids(chatml, prompt), skip_special=False) == prompt
    tokenizer = other_model(directory, OTHER)
    assert tokenizer.decode(prompt_ids(tokenizer, prompt)) == (
        "[system]S[end][user]A[end][assistant]B[end][user]C[end][assistant]D"
    )
    assert prompt_ids(tokenizer, prompts.conversation([{"role": "user", "content": "Hi"}])) == prompt_ids(
        tokenizer, prompts.chat("Hi")
    )


def test_without_a_template_the_bare_words_are_left(directory: Path) -> None:
    tokenizer = other_model(directory, None)
    assert tokenizer.decode(prompt_ids(tokenizer, prompts.addition(1, 2))) == "What is 1 + 2?\n1 + 2 ="


def test_other_text_is_taken_as_it_stands(directory: Path) -> None:
    assert Tokenizer(directory).decode(prompt_ids(Tokenizer(directory), "def f():")) == "def f():"


def test_labels_must_be_one_token_each(directory: Path) -> None:
    tokenizer = Tokenizer(directory)
    assert tokenizer.decode(answer_ids(tokenizer, " yes")) == " yes"
    task = Task("mine", "", lambda _: Splits([], []), labels=("a", "b"))
    assert label_ids(tokenizer, task) == [tokenizer.encode("a")[0], tokenizer.encode("b")[0]]
    with pytest.raises(ZweaveError, match=r"the label ' yes' of mine is \d tokens"):
        label_ids(tokenizer, Task("mine", "", lambda _: Splits([], []), labels=(" yes", " no")))
