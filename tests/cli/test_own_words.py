"""Commands under an expert with words of its own: what is asked, what is said of it, and what --raw turns off."""

import io
import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from zweave import Engine, Sampling
from zweave.cli.chat import Conversation
from zweave.cli.main import main
from zweave.experts import Expert
from zweave.text import PromptTemplate

WORDS = PromptTemplate("Film: {text}\nGood?", "It is", (" a", " b"), 2)
ASKED = "Film: dull\nGood?\nIt is"


@pytest.fixture
def generate(
    tiny_model_and_expert: tuple[str, str], capsys: pytest.CaptureFixture
) -> Callable[..., tuple[list[dict], str]]:
    model, path = tiny_model_and_expert
    expert = Expert.load(path)
    replace(expert, prompt_template=WORDS).save(path)

    def run(*arguments: str) -> tuple[list[dict], str]:
        """The results and what is said of them."""
        options = ["--model", model, "--dtype", "float32", "--max-tokens", "3", "--jsonl"]
        assert main(["generate", *arguments, *options]) == 0
        out, err = capsys.readouterr()
        return [json.loads(line) for line in out.splitlines()], err

    return run


def test_generate_says_what_it_asked(generate: Callable, tiny_model_and_expert: tuple[str, str]) -> None:
    _, path = tiny_model_and_expert
    ((result,), said) = generate("dull", "--expert", path)
    assert result["asked"] == ASKED and len(result["token_ids"]) <= 2
    assert "asked in the expert's words (--raw: in yours): Film: dull | Good? | It is" in said
    ((chat,), _) = generate("dull", "--expert", path, "--chat")
    assert chat | {"request": None} == result | {"request": None}
    assert generate("dull", "--template", path)[0][0]["asked"] == ASKED
    results, said = generate("dull", "Film: dull", "[1]", "--expert", path)
    assert "3 of 3 prompts" in said and [result["asked"] for result in results].count(ASKED) == 2
    results, said = generate("dull", "--expert", path, "--raw")
    assert results[0]["asked"] is None and "asked" not in said


@pytest.mark.parametrize("raw", [False, True])
def test_chat_asks_an_expert_with_words_of_its_own_alone(
    generate: Callable, tiny_model_and_expert: tuple[str, str], raw: bool
) -> None:
    model, path = tiny_model_and_expert
    engine, screen = Engine(model, dtype="float32", kv_tokens=512), io.StringIO()
    conversation = Conversation(engine, "system", 3, Sampling(), raw)
    console = Console(file=screen, width=200)
    conversation.ask("hello", console)
    assert "asked alone" not in screen.getvalue()
    conversation.choose(path)
    conversation.ask("dull", console)
    assert ("asked alone in the expert's words" in screen.getvalue()) is not raw
    roles = [message["role"] for message in conversation.messages]
    assert roles == ["system", "user", "assistant", "user", "assistant"]


def test_chat_escapes_special_tokens_on_request(
    tiny_model_and_expert: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The option, which has the conversation's requests say so."""
    words = ["chat", "--escape-special", "--model", tiny_model_and_expert[0], "--max-tokens", "1"]
    asked: list[bool] = []
    stream = Engine.stream
    monkeypatch.setattr(
        Engine, "stream", lambda self, request: asked.append(request.escape_special) or stream(self, request)
    )
    for arguments in (words, [words[0], *words[2:]]):
        monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
        assert main(arguments) == 0
    assert asked == [True, False]


def test_show_prints_the_words(
    generate: Callable, tiny_model_and_expert: tuple[str, str], capsys: pytest.CaptureFixture
) -> None:
    _, path = tiny_model_and_expert
    assert main(["expert", "show", path]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("prompt ")]
    assert json.loads(line.removeprefix("prompt ")) | {"version": 1} == json.loads(WORDS.to_json())
    assert main(["expert", "show", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"]["labels"] == [" a", " b"]
