"""Prompts and labels as token ids, for ChatML, for another template and for none."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from zweave.errors import ZweaveError
from zweave.tasks import (
    BUILT_IN,
    Sample,
    Splits,
    Task,
    answer_ids,
    answer_limit,
    expert_template,
    label_tokens,
    prompt_ids,
    prompts,
)
from zweave.text import PromptTemplate, Tokenizer

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


def test_an_experts_words_are_those_of_its_task() -> None:
    def words(*texts: str, **fields: object) -> PromptTemplate:
        samples = [Sample(text, "x") for text in texts]
        task = Task("mine", "", lambda _: Splits(samples, []), max_tokens=3, stop=("\n",), **fields)
        return expert_template(task, samples)

    rest = {"max_tokens": 3, "stop": ("\n",)}
    chats = prompts.chat("Who?", "It is"), prompts.chat("How\nis it?", "It is")
    assert words(*chats) == PromptTemplate("{text}", "It is", **rest)
    for texts in (
        (),
        ("raw",),
        (*chats, "raw"),
        (*chats, prompts.chat("Who?", "It was")),
    ):
        assert words(*texts) == PromptTemplate(chat=False, **rest)
    asks = "Ticket: {}\nWhich team is it for?"
    tickets = [asks.format(text) for text in ("my printer", "my printer is late", "my holiday")]
    # Whole words alone: they end in no part of a word, and leave something in between.
    asked = asks.format("my {text}")
    assert words(*tickets) == PromptTemplate(asked, chat=False, **rest)
    assert words(*map(prompts.chat, tickets)) == PromptTemplate(asked, **rest)
    for texts in (
        ("What is it?", "Who is it?"),
        ("so", "so it is", "so it"),
        ("a {text} b", "a {text} c"),
        ("x y",),
    ):
        found = words(*texts)
        assert all(found.prompt(text) == text for text in texts) and found.user in ("{text} is it?", "{text}")
    named = PromptTemplate("Q: {text}", "A:", max_tokens=9, stop=("q",))
    found = words(*chats, template=named)
    assert found == PromptTemplate("Q: {text}", "A:", max_tokens=3, stop=("q", "\n"))
    sst2 = expert_template(BUILT_IN["sst2"], [])
    assert (sst2.labels, sst2.max_tokens) == ((" negative", " positive"), 1)
    assert sst2.prompt("fine") == prompts.sentiment("fine")


def test_the_tokens_of_labels(directory: Path) -> None:
    tokenizer = Tokenizer(directory)
    assert tokenizer.decode(answer_ids(tokenizer, " yes")) == " yes"
    task = Task("mine", "", lambda _: Splits([], []), labels=("a", " yes"))
    assert label_tokens(tokenizer, task) == [tokenizer.encode("a"), answer_ids(tokenizer, " yes")]


@pytest.mark.parametrize("label", ["<|im_end|>", "a<|im_end|>"])
def test_a_label_with_an_end_token_is_refused(label: str, directory: Path) -> None:
    task = Task("mine", "", lambda _: Splits([], []), labels=("b", label))
    with pytest.raises(ZweaveError, match=r"label '.*' of mine holds an end token of this model"):
        expert_template(task, [], Tokenizer(directory))


def test_an_answer_takes_as_many_tokens_as_the_longest_label(directory: Path) -> None:
    tokenizer = Tokenizer(directory)
    short = Task("mine", "", lambda _: Splits([], []), labels=("a", "b"))
    long = replace(short, labels=("a", "very good"))
    assert answer_limit(tokenizer, short) == 1
    limit = len(tokenizer.encode("very good", special=False)) + 1
    assert answer_limit(tokenizer, long) == limit > 2
    assert expert_template(long, [], tokenizer).max_tokens == limit
    assert expert_template(short, [], tokenizer).max_tokens == 1
    assert label_tokens(tokenizer, long) == [answer_ids(tokenizer, label) for label in long.labels]
