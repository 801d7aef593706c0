"""Tasks in one stream: what an oracle, a dispatcher and the base answer, and `zweave eval --dispatch`."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from zweave import Dispatch, Engine, Request, ZweaveError
from zweave.cli.main import main
from zweave.dispatch import Prompt
from zweave.evaluation.dispatched import Labelled, evaluate_dispatch
from zweave.tasks import Sample, Splits, Task

TinyEngine = Callable[..., Engine]
EXPERTS = {"one": "a", "two": {"a": 0.5, "b": 0.5}, "three": None}


class Crooked:
    """Takes every third prompt of "one" for one of "three"; the others are known by their letter."""

    blocking = False

    def probe(self, prompt: Prompt) -> None:
        return None

    def choose(self, prompt: Prompt, evidence: object) -> Dispatch:
        text = prompt.tokenizer.decode(prompt.tokens)
        label = {"o": "one", "w": "two", "t": "three"}[text[0]]
        if label == "one" and int(text[1:]) % 3 == 0:
            label = "three"
        return Dispatch(label, {}, EXPERTS[label])


@pytest.fixture
def engine(tiny_engine: TinyEngine) -> Engine:
    engine = tiny_engine()
    engine.dispatcher = Crooked()
    return engine


def tasks_of(engine: Engine) -> list[Labelled]:
    """What the right expert answers is the right answer."""
    found = []
    for letter, (name, expert) in zip("owt", EXPERTS.items(), strict=True):
        prompts = [f"{letter}{i}" for i in range(12)]
        answers = engine.generate(Request(prompt, expert=expert, max_tokens=3) for prompt in prompts)
        samples = [Sample(prompt, result.text) for prompt, result in zip(prompts, answers, strict=True)]
        found.append(Labelled(Task(name, "", lambda _: Splits([], []), max_tokens=3), samples, expert))
    return found


def test_the_dispatcher_beside_the_oracle(engine: Engine) -> None:
    tasks = tasks_of(engine)
    found = evaluate_dispatch(engine, tasks)
    rows = {(row.task, row.method): row for row in found.rows}
    assert len(rows) == 12
    assert all(rows[name, "oracle"].accuracy == 1 for name in (*EXPERTS, "all"))
    assert rows["three", "base"].accuracy == 1 and rows["two", "base"].accuracy < 1
    wrong = 1 - rows["one", "dispatched"].accuracy
    base = engine.generate(Request(sample.prompt, max_tokens=3) for sample in tasks[0].samples[::3])
    answers = [sample.answer for sample in tasks[0].samples[::3]]
    missed = sum(r.text != answer for r, answer in zip(base, answers, strict=True))
    assert missed > 0 and wrong == pytest.approx(missed / 12)
    assert rows["all", "dispatched"].accuracy == pytest.approx(1 - wrong / 3)
    assert found.difference == pytest.approx(-wrong / 3)
    assert found.stderr == pytest.approx(math.sqrt(wrong / 3 * (1 - wrong / 3) / 36))
    assert (rows["one", "oracle"].n, rows["all", "oracle"].n) == (12, 36)
    mixture = "a mixture, mostly for two"
    assert found.routing == {
        "one": {"a": 8, mixture: 0, "base": 4},
        "two": {"a": 0, mixture: 12, "base": 0},
        "three": {"a": 0, mixture: 0, "base": 12},
    }
    seconds = sum(rows[name, "dispatched"].seconds for name in EXPERTS)
    assert seconds == pytest.approx(rows["all", "dispatched"].seconds)


def test_no_run_finds_what_another_computed(tiny_engine: TinyEngine) -> None:
    """So that their seconds are of the same work."""
    engine = tiny_engine(kv_tokens=8192)
    engine.dispatcher = Crooked()
    tasks = tasks_of(engine)
    long = [
        replace(of, samples=[Sample(s.prompt + " and on" * 9, s.answer) for s in of.samples]) for of in tasks
    ]
    before = engine.stats().tokens_computed
    evaluate_dispatch(engine, long[1:2])
    once = engine.stats().tokens_computed - before
    evaluate_dispatch(engine, long[1:2])
    assert engine.stats().tokens_computed - before == 2 * once
    assert once >= 3 * sum(len(engine.tokenizer.encode(sample.prompt)) for sample in long[1].samples)


def test_a_dispatcher_that_fails_is_told(engine: Engine) -> None:
    tasks = tasks_of(engine)
    engine.dispatcher.choose = lambda prompt, evidence: Dispatch(mixture="nobody")
    with pytest.raises(ZweaveError, match=r"cannot be answered: .*no expert 'nobody'"):
        evaluate_dispatch(engine, tasks)


@pytest.fixture
def command(tiny_model: Callable[..., Path], tmp_path: Path) -> list[str]:
    """Two tasks, two experts, a classifier trained on the tasks, and a dispatcher's file."""
    model = ["--model", str(tiny_model("llama")), "--dtype", "float32"]
    files = []
    for name, letter in (("one", "o"), ("two", "w")):
        lines = [{"prompt": f"{letter * 4}{i}", "answer": str(i)} for i in range(60)]
        files.append(str(tmp_path / f"{name}.jsonl"))
        Path(files[-1]).write_text("\n".join(map(json.dumps, lines)))
        assert (
            main(["expert", "new", str(tmp_path / f"{name}.safetensors"), "--random", "0.3", *model[:2]]) == 0
        )
    assert main(["expert", "classifier", *files, "--out", str(tmp_path / "c.safetensors"), *model]) == 0
    experts = {name: f"{name}.safetensors" for name in ("one", "two")}
    fields = {"strategy": "hidden", "classifier": "c.safetensors", "experts": experts}
    (tmp_path / "d.json").write_text(json.dumps(fields))
    return ["eval", *files, "--dispatch", str(tmp_path / "d.json"), *model]


def test_the_command(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {"model", "dtype", "split", "difference", "stderr", "first_pass_tokens"} < printed.keys()
    assert [(row["task"], row["method"]) for row in printed["rows"]] == [
        (task, method) for task in ("one", "two", "all") for method in ("base", "oracle", "dispatched")
    ]
    assert {task: sum(counts.values()) for task, counts in printed["routing"].items()} == {
        "one": 12,
        "two": 12,
    }
    assert printed["routing"]["one"][str(tmp_path / "one.safetensors")] >= 10
    assert main([*command, "--right", "one=base"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("| task | method |") and "dispatched less oracle: " in out
    assert f"| task | {tmp_path}/one.safetensors |" in out


def test_the_command_says_what_is_wrong(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "three.jsonl").write_text(Path(command[1]).read_text().replace("oooo", "tttt"))
    three = ["eval", str(tmp_path / "three.jsonl"), *command[2:]]
    for arguments, words in (
        ([*command, "--right", "four=base"], "--right takes TASK=EXPERT"),
        ([*command, "--right", "one=nobody"], "there is no expert 'nobody'"),
        (three, "no label 'three': say what is right for it, --right three=EXPERT"),
        ([*command[:4], str(tmp_path / "none.json"), *command[5:]], "none.json"),
    ):
        capsys.readouterr()
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert words in error and "Traceback" not in error
