"""Tasks: splits that share nothing, rewards that reject what is wrong, readers and their complaints."""

import gzip
import json
import os
import random
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest

from zweave.errors import ZweaveError
from zweave.tasks import BUILT_IN, Sample, Splits, Task, balanced, prompts, resolve_task
from zweave.tasks.exact_match import final_number, same_number
from zweave.tasks.reasoning_gym import gym_problems

SPLITS = ("train", "validation", "test")
ONLY_TEST = {"humaneval"}


def humaneval_line(index: int) -> str:
    head = f"def add{index}(a, b):\n"
    entry = {
        "prompt": head,
        "entry_point": f"add{index}",
        "canonical_solution": "    return a + b\n",
        "test": "def check(candidate):\n    assert candidate(2, 3) == 5\n",
    }
    return json.dumps(entry)


def mbpp_line(number: int) -> str:
    tests = [f"assert plus{number}(1) == {number + 1}"]
    code = f"def plus{number}(a):\n    return a + {number}\n"
    return json.dumps({"task_id": number, "text": f"Add {number}.", "code": code, "test_list": tests})


def arc(start: int, count: int) -> str:
    question = "Please choose the correct answer to the question: What is {}?\n\n{}\n\nAnswer format: answer1/answer2"
    options = "Answer1: a rock Answer2: a tree Answer3: Answers"
    return json.dumps(
        [
            {"instruction": question.format(i, options), "answer": f"answer{i % 3 + 1}"}
            for i in range(start, start + count)
        ]
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files in every format; some test prompts stand in the training files too."""
    folder = tmp_path_factory.mktemp("tasks")

    def write(name: str, lines: list[str], encoding: str = "utf-8") -> None:
        (folder / name).write_bytes("\n".join([*lines, ""]).encode(encoding))

    write("sst2_train.tsv", [f"a film of {i}\t{i % 2}" for i in range(100)])
    write("sst2_test.tsv", [f"a film of {i}\t{i % 2}" for i in range(80, 120)])
    write("TREC.train.all", [f"{i % 6} Où is {i}\x85 ?" for i in range(120)], "latin-1")
    write("TREC.test.all", [f"{i % 6} Où is {i}\x85 ?" for i in range(110, 160)], "latin-1")
    write("mpqa.all", [f"{i % 2} so {i % 90}" for i in range(100)])
    write("ag_test.csv", [f'"{i % 4 + 1}","Title {i}","Text, of {i}"' for i in range(60)])
    write(
        "gsm8k_test.jsonl",
        [json.dumps({"question": f"{i}?", "answer": f"x<<1>>\n#### {i}"}) for i in range(60)],
    )
    (folder / "ARC-Easy_train.json").write_text(arc(0, 60))
    (folder / "ARC-Easy_test.json").write_text(arc(50, 60))
    (folder / "ARC-Challenge_test.json").write_text(arc(0, 60))
    (folder / "HumanEval.jsonl.gz").write_bytes(
        gzip.compress("\n".join(map(humaneval_line, range(3))).encode())
    )
    write("mbpp.jsonl", [mbpp_line(n) for n in (5, 11, 510, 511, 600, 601, 974)])
    return folder


def groups(task: Task, data: Path) -> dict[str, set[object]]:
    """What each split holds, by a key computed here: summands without order, other prompts as they are."""

    def key(sample: Sample) -> object:
        found = re.fullmatch(r".*user\nWhat is ([\d +]+)\?.*", sample.prompt, re.DOTALL)
        return tuple(sorted(found[1].split(" + "))) if found else sample.prompt

    splits = SPLITS if task.name not in ONLY_TEST else ("test",)
    return {split: {key(sample) for sample in task.samples(split, data)} for split in splits}


def check_disjoint(task: Task, data: Path) -> None:
    found = groups(task, data)
    assert all(found.values())
    assert sum(map(len, found.values())) == len(set().union(*found.values()))


def wrong_answers(task: Task, sample: Sample) -> list[str]:
    others = [label for label in task.labels if label != sample.answer]
    if task.name in ("humaneval", "mbpp"):
        return ["", "    pass\n", "    return None\nimport os\nos._exit(0)\n", "    exit(0)\n"]
    if task.name == "gsm8k":
        return ["", "none", f"{sample.answer}1", f"{sample.answer}\n#### -1", "it is -1"]
    return [*others, "", " ", f"{sample.answer}1", f"{sample.answer} or 7", f"1{sample.answer.strip()}"]


@pytest.mark.parametrize("name", BUILT_IN)
def test_splits_share_no_prompt_and_wrong_answers_are_rejected(name: str, data: Path) -> None:
    task = BUILT_IN[name]
    check_disjoint(task, data)
    for sample in task.samples("test", data)[:3]:
        assert task.reward(sample, sample.answer) > 0
        assert {task.reward(sample, text) for text in wrong_answers(task, sample)} == {-1.0}


@pytest.mark.parametrize("name", sorted(set(BUILT_IN) - {"mbpp"}))
def test_splits_of_the_real_files_share_no_prompt(name: str) -> None:
    folder = Path(os.environ.get("ZWEAVE_DATA", "/nowhere")) / "tasks"
    if not folder.is_dir():
        pytest.skip("needs ZWEAVE_DATA")
    check_disjoint(BUILT_IN[name], folder)


def test_a_seed_orders_samples_and_moves_none_between_splits(data: Path) -> None:
    for name in ("sst2", "addition", "mpqa", "last-letters"):
        task = BUILT_IN[name]
        for split in SPLITS:
            a, b = (task.samples(split, data, seed) for seed in (0, 1))
            assert a != b and sorted(s.prompt for s in a) == sorted(s.prompt for s in b)
            assert a == task.samples(split, data, 0)


def test_answers_are_right_by_their_own_rule(data: Path) -> None:
    for sample in BUILT_IN["subtraction"].samples("test")[:50]:
        a, b = map(int, re.findall(r"What is (\d+) - (\d+)\?", sample.prompt)[0])
        assert sample.answer == f" {a - b}" and a > b
    for sample in BUILT_IN["letter-count"].samples("test")[:50]:
        letter, word = re.findall(r"letter (\w) stand in (\w+)\?", sample.prompt)[0]
        assert sample.answer == f" {word.count(letter)}"
    for sample in BUILT_IN["last-letters"].samples("test")[:50]:
        words = re.findall(r"together: (.*)\.<", sample.prompt)[0].split(", ")
        assert sample.answer == " " + "".join(word[-1] for word in words)
    assert {len(s.prompt.split("\n")) for s in BUILT_IN["arc-easy"].samples("test", data)} == {8}
    assert BUILT_IN["trec"].samples("test", data)[0].prompt.count("Où is") == 1
    news = BUILT_IN["ag-news"].samples("train", data)[0]
    index = int(re.findall(r"News: Title (\d+) Text, of \1\n", news.prompt)[0])
    assert news.answer == (" world", " sports", " business", " technology")[index % 4]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 1,234", 1234),
        ("so 3 and 4.", 4),
        ("#### 5 apples of 7", 5),
        ("none", None),
        ("1\n#### -2.50", -2.5),
    ],
)
def test_final_number(text: str, number: float | None) -> None:
    assert final_number(text) == number
    sample = Sample("?", "x\n#### 5")
    assert same_number(sample, text) == (1 if number == 5 else -1)


def test_balanced_draws_the_labels_in_turn() -> None:
    samples = [Sample(str(i), " a" if i % 5 else " b") for i in range(20)]
    drawn = list(islice(balanced(samples, (" a", " b"), seed=0), 40))
    assert [sample.answer for sample in drawn] == [" a", " b"] * 20
    assert {s.prompt for s in drawn} == {s.prompt for s in samples}


def make_task(**fields: object) -> Task:
    samples = [Sample(str(i), " x") for i in range(10)]
    return Task(
        **{"name": "mine", "description": "", "read": lambda _: Splits(samples[:8], samples[8:]), **fields}
    )


def raises(error: Exception) -> Callable[..., float]:
    def judge(*_: object) -> float:
        raise error

    return judge


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: make_task(read=lambda _: Splits([], [])).samples("train"), "mine has no train samples"),
        (
            lambda: make_task(read=lambda _: Splits([], [Sample("q", "a")])).samples("train"),
            "mine has no train samples (train 0, validation 0, test 1)",
        ),
        (
            lambda: make_task(read=raises(ZeroDivisionError("division by zero"))).samples("test"),
            "the task mine fails: ZeroDivisionError: division by zero",
        ),
        (
            lambda: make_task(read=lambda _: None).samples("test"),
            "the read of the task mine must return Splits(train, test), not None",
        ),
        (
            lambda: make_task(read=lambda _: Splits([], None)).samples("test"),
            "test must be a list of samples, not None",
        ),
        (
            lambda: make_task(read=lambda _: Splits([("q", "a")], [])).samples("train"),
            "sample 0 of train must be Sample(prompt, answer), not ('q', 'a')",
        ),
        (
            lambda: make_task(read=lambda _: Splits([Sample("q", 4)], [])).samples("train"),
            "sample 0 of train has the answer 4, and it must be text",
        ),
        (
            lambda: make_task(read=lambda _: Splits([Sample("q\ud800", "a")], [])).samples("train"),
            "sample 0 of train has a lone surrogate in its prompt",
        ),
        (
            lambda: make_task(read=lambda _: Splits([Sample("q", "a", {"group": [1]})], [])).samples("train"),
            "sample 0 of train has the group [1], and it must be text or a number",
        ),
        (lambda: make_task().samples("dev"), "a split is one of train, validation, test, not 'dev'"),
        (lambda: make_task(labels=(" y", " z")).samples("test"), "an answer ' x' that is none of ' y', ' z'"),
        (lambda: make_task(labels=(" y", " y")), "all different"),
        (
            lambda: make_task(judge=raises(KeyError("b\nc"))).reward(Sample("", ""), ""),
            "mine fails: KeyError",
        ),
        (lambda: make_task(judge=lambda *_: float("nan")).reward(Sample("", ""), ""), "is nan: it must be"),
        (lambda: make_task(judge=lambda *_: None).reward(Sample("", ""), ""), "mine fails: TypeError"),
        (lambda: resolve_task("additoin"), "did you mean addition"),
        (lambda: resolve_task("none.jsonl"), "there is no task file none.jsonl"),
        (lambda: BUILT_IN["sst2"].samples("train", None), "give the directory of the task files"),
        (lambda: BUILT_IN["sst2"].samples("train", Path("/nowhere")), "/nowhere/sst2_train.tsv is missing"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(call: Callable[[], object], words: str) -> None:
    with pytest.raises(ZweaveError) as caught:
        call()
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "file", "content", "words"),
    [
        ("sst2", "sst2_train.tsv", b"fine\t1\n\nno label\n", "entry 3 is not text, a tab and a whole number"),
        ("trec", "TREC.train.all", b"6 What ?\n", "an answer 'label 6' that is none of"),
        ("ag-news", "ag_test.csv", b'"1","t"\n', "entry 1 is not a class, a title and a text"),
        ("gsm8k", "gsm8k_test.jsonl", b'{"question": "q", "answer": "5"}\n', "entry 1 is not a question and"),
        ("arc-easy", "ARC-Easy_train.json", b"{}", "is not a JSON list"),
        (
            "arc-easy",
            "ARC-Easy_train.json",
            b'[{"instruction": "?"}]',
            "entry 1 is not a question with choices",
        ),
        ("humaneval", "HumanEval.jsonl.gz", b"not gzip", "cannot be read"),
        ("mpqa", "mpqa.all", b"1\n", "entry 1 is not a whole number, a space and text"),
    ],
)
def test_malformed_files(
    name: str, file: str, content: bytes, words: str, data: Path, tmp_path: Path
) -> None:
    for path in data.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ZweaveError, match=re.escape(words)):
        BUILT_IN[name].samples("test", tmp_path)


def write_jsonl(path: Path, entries: list[object]) -> str:
    path.write_text("\n".join(map(json.dumps, entries)))
    return str(path)


def test_a_jsonl_file_is_a_task(tmp_path: Path) -> None:
    lines = [{"prompt": f"{i}?", "answer": " oui", "extra": i} for i in range(50)]
    task = resolve_task(write_jsonl(tmp_path / "mine.jsonl", [*lines, lines[0]]))
    check_disjoint(task, tmp_path)
    assert (task.name, task.labels, task.max_tokens, task.stop) == ("mine", (), 5, ("\n",))
    sample = task.samples("test")[0]
    assert sample.data["extra"] == int(sample.prompt[:-1])
    assert task.reward(sample, "oui ") == 1 and task.reward(sample, "non") == -1


def test_a_jsonl_file_may_give_labels_and_splits(tmp_path: Path) -> None:
    lines = [
        {"prompt": f"{i}", "answer": random.Random(i).choice([" a", " b"]), "split": SPLITS[i % 3]}
        for i in range(30)
    ]
    task = resolve_task(write_jsonl(tmp_path / "mine.jsonl", [{"labels": [" a", " b"]}, *lines]))
    assert task.labels == (" a", " b") and task.max_tokens == 1
    assert {int(s.prompt) % 3 for s in task.samples("validation")} == {1}
    assert len(task.samples("test")) == 10


def test_an_answer_that_goes_on_after_its_label_counts_as_the_label(tmp_path: Path) -> None:
    lines = [{"labels": [" good", " very good"]}, {"prompt": "a", "answer": " good"}]
    lines.append({"prompt": "b", "answer": " very good"})
    task = resolve_task(write_jsonl(tmp_path / "mine.jsonl", lines))
    sample = Sample("b", " very good")
    assert task.reward(sample, " very good.\nNext: dull") == 1
    assert task.reward(sample, " good") == task.reward(sample, " very goodness") == -1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "has no samples"),
        ('{"prompt": "a", "answer": "b"}\n\n{"prompt": "a"}', 'line 3: has no "answer"'),
        ('{"answer": "b"}', 'line 1: must have a "prompt" or "messages", one of the two'),
        (
            '{"prompt": "a", "answer": "b", "split": "dev"}',
            """line 1: "split" is 'dev', and must be one of train, validation, test""",
        ),
        ('{"prompt": "a", "answer": 4}', 'line 1: "answer" is 4, and must be text: write "4"'),
        ('{"prompt": ["a"], "answer": "b"}', """line 1: "prompt" is ['a'], and must be text"""),
        ("[1]", "line 1: is [1], and must be a JSON object"),
        ("{", "line 1: is not JSON (Expecting property name"),
        (
            '{"prompt": "a", "answer": "b", "answer": "c"}',
            "line 1: is not JSON (the key 'answer' stands twice in one object: leave one out)",
        ),
        ('{"prompt": "a", "answer": " "}', 'line 1: "answer" is empty'),
        ('{"prompt": "", "answer": "b"}', 'line 1: "prompt" is empty'),
        (
            '{"prompt": "a", "answer": "b"}\n{"labels": ["c"]}',
            'line 2: only the first line may give the "labels"',
        ),
        ('{"labels": [3]}', 'line 1: "labels" is [3], and must be a list of texts'),
        ('{"labels": "ab"}', """line 1: "labels" is 'ab', and must be a list of texts"""),
        ('{"messages": [], "answer": "b"}', 'line 1: "messages" is [], and must be a list'),
        ('{"messages": [{"role": "user"}], "answer": "b"}', "and must hold"),
        ('{"messages": [{"role": "bot", "content": "c"}], "answer": "b"}', "has the role 'bot'"),
        (
            '{"prompt": "a", "answer": "b"}\n{"prompt": "a", "answer": "b", "group": [1]}',
            'line 2: "group" is [1], and must be text or a number',
        ),
        (r'{"prompt": "a\ud800", "answer": "b"}', 'line 1: "prompt" holds a lone surrogate'),
        (
            r'{"messages": [{"role": "user", "content": "\ud800"}], "answer": "b"}',
            'line 1: "messages" holds a lone surrogate',
        ),
        (r'{"labels": ["\udfff", "b"]}', 'line 1: "labels" holds a lone surrogate'),
        (
            '{"prompt": "a", "answer": "b", "group": {}}',
            'line 1: "group" is {}, and must be text or a number',
        ),
    ],
)
def test_malformed_jsonl(content: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(content)
    with pytest.raises(ZweaveError, match=re.escape(words)):
        resolve_task(str(path))


def test_a_jsonl_file_is_read_as_requests_are(tmp_path: Path) -> None:
    """With a byte order mark, CRLF, blank lines and messages."""
    path = tmp_path / "mine.jsonl"
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
    lines = [
        {"prompt": "à", "answer": "b", "split": "train"},
        {"messages": messages, "answer": " 2", "split": "test"},
        {
            "messages": [*messages, {"role": "assistant", "content": "It is"}],
            "answer": " 2",
            "split": "validation",
        },
    ]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n \r\n".join(map(json.dumps, lines)).encode())
    task = resolve_task(str(path))
    (asked,), (opened,) = task.samples("test"), task.samples("validation")
    head = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (asked.prompt, opened.prompt) == (head, head + "It is")
    assert task.samples("train")[0] == Sample("à", "b", {}) and asked.data == {}


@pytest.mark.parametrize(
    ("encoding", "number"), [("latin-1", 2), ("utf-16", 1), ("utf-16-le", 1), ("utf-16-be", 1)]
)
def test_a_file_that_is_not_utf_8_names_its_line(encoding: str, number: int, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    line = '{"prompt": "%s", "answer": "b"}\n'
    path.write_bytes((line % "a" + line % "à").encode(encoding))
    with pytest.raises(ZweaveError, match=f"line {number} is not UTF-8 text: save the file as UTF-8"):
        resolve_task(str(path))


def test_a_group_of_null_is_none(tmp_path: Path) -> None:
    lines = [{"prompt": f"{i}?", "answer": f" {i}", "group": None} for i in range(40)]
    task = resolve_task(write_jsonl(tmp_path / "mine.jsonl", lines))
    assert [len(task.samples(split)) for split in ("train", "validation", "test")] == [26, 6, 8]


def test_a_python_file_is_run_as_python_runs_it(tmp_path: Path) -> None:
    """It imports its neighbours, also when it is used, and its dataclasses find their module."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(
            "from __future__ import annotations\n"
            "import pickle\n"
            "from dataclasses import dataclass, field\n"
            "from typing import ClassVar\n"
            f"from zweave_test_neighbour_{name} import NAME\n"
            "from zweave.tasks import Sample, Splits, Task\n"
            "@dataclass\n"
            "class Made:\n"
            "    kinds: ClassVar[int] = 3\n"
            "    text: str = field(default=NAME)\n"
            "def read(data):\n"
            f"    import zweave_test_neighbour_{name}\n"
            "    text = pickle.loads(pickle.dumps(Made())).text\n"
            "    return Splits([Sample(text + str(i), 'b') for i in range(9)], [Sample(text, 'b')])\n"
            "task = Task('mine', '', read)\n"
        )
        (tmp_path / name / f"zweave_test_neighbour_{name}.py").write_text(f"NAME = {name!r}\n")
    tasks = [resolve_task(str(tmp_path / name / "mine.py")) for name in ("one", "two")]
    assert [task.samples("test")[0].prompt for task in tasks] == ["one", "two"]


def test_a_python_file_is_a_task(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import zweave.tasks\n"
        "from zweave.tasks import Sample, Splits\n"
        "def read(data):\n"
        "    found = [Sample(f'{i}?', f' {i}') for i in range(20)]\n"
        "    return Splits(found[5:], found[:5])\n"
        "task = zweave.tasks.Task('mine', 'counts', read, judge=lambda sample, text: 0.25)\n"
    )
    task = resolve_task(str(path))
    assert len(task.samples("test")) == 5 and task.reward(task.samples("test")[0], "") == 0.25


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("task = 3", "defines no task"),
        ("1/0", "fails: ZeroDivisionError"),
        ("exit()", "SystemExit"),
        ("def", "fails: SyntaxError"),
    ],
)
def test_python_files_that_fail(content: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(content)
    with pytest.raises(ZweaveError, match=words):
        resolve_task(str(path))


def test_gym_tasks_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    with pytest.raises(ZweaveError, match="pip install reasoning-gym"):
        resolve_task("gym:chain_sum")


def test_gym_tasks_of_the_real_package() -> None:
    pytest.importorskip("reasoning_gym")
    task = resolve_task("gym:chain_sum")
    check_disjoint(task, Path())
    sample = task.samples("test")[0]
    assert task.reward(sample, sample.answer) == 1 and task.reward(sample, "12345678") == -1
    with pytest.raises(ZweaveError, match="no generator 'chain'"):
        resolve_task("gym:chain")


def test_gym_tasks_read_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with reasoning-gym's interface, so that the reader is tested without the package."""

    class Doubles(list):
        def score_answer(self, answer: str, entry: dict[str, str]) -> float:
            return 1.0 if answer == entry["answer"] else 0.9

    def create(name: str, size: int, seed: int, by: int = 2) -> Doubles:
        numbers = range(seed * size // 2, seed * size // 2 + size)
        return Doubles({"question": f"{by} x {i}?", "answer": f"{by * i}"} for i in numbers)

    factory = SimpleNamespace(DATASETS={"doubles": None})
    gym = SimpleNamespace(create_dataset=create, factory=factory, __path__=[])
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", gym)
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym.factory", factory)
    task = resolve_task("gym:doubles")
    check_disjoint(task, Path())
    assert gym_problems("doubles", 2, seed=3, by=5)[1] == {"question": "5 x 4?", "answer": "20"}
    sample = task.samples("train")[0]
    assert sample.prompt.startswith(prompts.chat("2 x")[:20])
    assert task.reward(sample, f" {sample.answer}\n") == 1 and task.reward(sample, "1") == -1
