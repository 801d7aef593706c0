"""Hidden tasks: what they ask, how they are described, and that nothing of what is held out is trained on."""

import os
import random
import re
import sys
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path

import pytest

from zweave.describe.tasks import HiddenTask, as_task, chosen_tasks, hidden_tasks, split_levels
from zweave.describe.tasks.attributes import SEMANTIC, SURFACE
from zweave.describe.tasks.hidden_task import BARE, LISTED, LabelTask, NumberTask, in_one_order
from zweave.describe.tasks.label_words import LABEL_WORDS, PAIRS
from zweave.describe.tasks.numbers import NUMBERS, OPERATIONS
from zweave.describe.tasks.strings import STRINGS
from zweave.describe.tasks.texts import SOURCES, Text, texts
from zweave.describe.tasks.wordings import LABELLED, LABELLED_HELD_OUT, NUMERIC, NUMERIC_HELD_OUT
from zweave.errors import ZweaveError

EVERY = (*SEMANTIC, *SURFACE, *NUMBERS, *STRINGS)
ATTRIBUTES = {attribute.name: attribute for attribute in EVERY}
TASKS = {task.name: task for task in hidden_tasks()}


@pytest.fixture(scope="module")
def data() -> Path:
    folder = Path(os.environ.get("ZWEAVE_DATA", "/nowhere")) / "tasks"
    if not folder.is_dir():
        pytest.skip("needs ZWEAVE_DATA")
    return folder


def test_there_are_enough_tasks_and_no_two_have_the_same_name():
    assert len(TASKS) == len(hidden_tasks()) >= 400
    assert len(ATTRIBUTES) == len(EVERY)
    assert len(set(LABEL_WORDS)) == 2 * len(PAIRS)


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        ("positive-red-blue", Text("sst2", "a fine film", 1), " red"),
        ("positive-blue-red", Text("sst2", "a fine film", 1), " blue"),
        ("positive-red-blue", Text("sst2", "a shame", 0), " blue"),
        ("asks-person-yes-no", Text("trec", "Who was he ?", 3), " yes"),
        ("asks-place-yes-no", Text("trec", "Who was he ?", 3), " no"),
        ("about-sports-A-B", Text("ag", "A match", 1), " A"),
        ("is-maths-yes-no", Text("gsm8k", "He has 3 cats."), " yes"),
        ("question-up-down", Text("trec", "Who was he ?", 3), " up"),
        ("has-the-yes-no", Text("sst2", "The end", 0), " yes"),
        ("has-the-yes-no", Text("sst2", "there they go", 0), " no"),
        ("begins-what-yes-no", Text("trec", "What is it ?", 0), " yes"),
        ("begins-vowel-yes-no", Text("sst2", "Odd", 0), " yes"),
        ("over-3-words-yes-no", Text("mpqa", "one two three", 0), " no"),
        ("has-digit-one-two", Text("trec", "What is 7 ?", 0), " one"),
        ("negated-yes-no", Text("sst2", "it does n't work", 0), " yes"),
        ("negated-yes-no", Text("sst2", "a notable north", 0), " no"),
        ("first-larger-yes-no", Text("numbers", "23 ? 45"), " no"),
        ("sum-even-yes-no", Text("numbers", "23 ? 45"), " yes"),
        ("same-pattern-yes-no", Text("strings", "egg add", 1), " yes"),
        ("same-pattern-yes-no", Text("strings", "egg abc", 0), " no"),
        ("sum", Text("numbers", "23 ? 45"), " 68"),
        ("difference", Text("numbers", "23 ? 45"), " 22"),
        ("first-units", Text("numbers", "23 ? 45"), " 3"),
        ("second-tens", Text("numbers", "23 ? 45"), " 4"),
    ],
)
def test_answers(name: str, text: Text, answer: str):
    assert TASKS[name].answer(text) == answer


@pytest.mark.parametrize("listed", [False, True])
def test_the_prompt_tells_nothing_of_the_task(listed: bool):
    template = LISTED if listed else BARE
    found = [as_task(TASKS[name], listed) for name in ("first-larger-cat-dog", "close-A-B", "sum")]
    prompts = [[sample.prompt for sample in task.read(None).test] for task in found]
    assert prompts[0] == prompts[1] == prompts[2]
    assert template.prompt(texts("numbers", "test", None)[0].text) == prompts[0][0]
    assert all(word in prompts[0][0] for word in LABEL_WORDS) == listed


@pytest.mark.parametrize("held_out", [False, True])
def test_a_description_names_both_words_and_what_is_asked(held_out: bool):
    rng = random.Random(0)
    for task in hidden_tasks():
        said = task.describe(rng, held_out)
        assert "{" not in said and "}" not in said
        if isinstance(task, LabelTask):
            said_words = re.findall(r"\w+", said.replace("In one word", ""))
            assert task.yes in said_words and task.no in said_words
            clauses = task.asked.clauses[-1:] if held_out else task.asked.clauses[:-1]
            assert any(_fits(clause, said) for clause in clauses)
        else:
            assert isinstance(task, NumberTask)
            assert any(phrase in said for phrase in task.asked.phrases)


def _fits(clause: str, said: str) -> bool:
    return bool(re.search(re.escape(clause).replace(r"\{text\}", r"(the|this) \w+"), said))


def test_wordings_that_are_held_out_are_those_of_no_seen_description():
    assert len(LABELLED) >= 20 and len(NUMERIC) >= 20
    assert not set(LABELLED) & set(LABELLED_HELD_OUT) and not set(NUMERIC) & set(NUMERIC_HELD_OUT)
    for names in (*(a.clauses for a in ATTRIBUTES.values()), *(o.phrases for o in OPERATIONS)):
        assert len(set(names)) == len(names) >= 3
    clauses = [clause for attribute in ATTRIBUTES.values() for clause in attribute.clauses]
    assert len(set(clauses)) == len(clauses)
    rng = random.Random(1)
    for task in random.Random(0).sample(hidden_tasks(), 60):
        seen = {task.describe(rng) for _ in range(40)}
        assert len(seen) >= 20
        assert not seen & {task.describe(rng, held_out=True) for _ in range(20)}


@pytest.mark.parametrize("seed", [0, 1])
def test_levels_share_nothing(seed: int):
    levels = split_levels(hidden_tasks(), seed)
    assert _names(levels.seen) == _names(split_levels(hidden_tasks()[::-1], seed).seen)
    parts = (levels.seen, levels.combinations, levels.attributes)
    assert sum(map(len, parts)) == len(TASKS) and min(map(len, parts)) > 50
    for one, other in combinations(map(_names, parts), 2):
        assert not one & other
    seen = {task.attribute for task in levels.seen}
    assert not seen & {task.attribute for task in levels.attributes}
    assert {task.attribute for task in levels.combinations} <= seen
    together = {(task.attribute, frozenset(task.labels)) for task in levels.seen}
    assert not together & {(task.attribute, frozenset(task.labels)) for task in levels.combinations}
    seen_words = {word for task in levels.seen for word in task.labels}
    assert {word for task in levels.combinations for word in task.labels} <= seen_words
    assert any(not task.labels for task in levels.attributes)


def test_in_one_order_the_first_word_of_a_pair_means_yes():
    kept, every = in_one_order(hidden_tasks()), split_levels(hidden_tasks())
    labelled = [task for task in kept if isinstance(task, LabelTask)]
    assert {(task.yes, task.no) for task in labelled} == set(PAIRS)
    assert 2 * len(labelled) + len(OPERATIONS) == len(TASKS) and len(kept) == len(labelled) + len(OPERATIONS)
    # The levels are those of all tasks.
    assert _names(split_levels(kept).seen) == _names(in_one_order(every.seen))


def test_another_seed_splits_in_another_way():
    assert _names(split_levels(hidden_tasks(), 0).seen) != _names(split_levels(hidden_tasks(), 1).seen)


def _names(tasks: Iterable[HiddenTask]) -> set[str]:
    return {task.name for task in tasks}


def test_missing_texts_are_told(tmp_path: Path):
    with pytest.raises(ZweaveError, match=r"sst2_test\.tsv is missing"):
        texts("sst2", "train", tmp_path)


def test_strings_need_reasoning_gym(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    texts.cache_clear()
    with pytest.raises(ZweaveError, match="pip install reasoning-gym"):
        texts("strings", "train", None)


def test_all_tasks_are_those_that_need_no_package():
    every = _names(chosen_tasks(hidden_tasks()))
    assert set(TASKS) - every == {name for name in TASKS if name.startswith("same-pattern-")}
    assert len(chosen_tasks(hidden_tasks(), ["same-pattern"])) == 2 * len(PAIRS)


def test_strings_are_those_of_reasoning_gym():
    pytest.importorskip("reasoning_gym")
    train, test = (texts("strings", half, None) for half in ("train", "test"))
    assert len(train) > 2000 and len(test) == 1000
    assert not {text.text for text in train} & {text.text for text in test}
    for half in (train, test):
        assert {text.label for text in half} == {0, 1}
    for text in (*train, *test):
        first, second = text.text.split()
        pairs = set(zip(first, second, strict=True))
        assert text.label == (len(pairs) == len(set(first)) == len(set(second))), text


@pytest.mark.slow
def test_halves_share_no_text(data: Path):
    for source in set(SOURCES) - {"strings"}:
        train, test = ({text.text for text in texts(source, half, data)} for half in ("train", "test"))
        assert len(train) >= 300 and len(test) >= 250
        assert not train & test


@pytest.mark.slow
def test_every_task_has_both_answers_in_both_halves(data: Path):
    for attribute in (*SEMANTIC, *SURFACE, *NUMBERS):
        for half in ("train", "test"):
            found = [attribute.holds(t) for source in attribute.sources for t in texts(source, half, data)]
            assert min(sum(found), len(found) - sum(found)) >= 20, (attribute.name, half)
