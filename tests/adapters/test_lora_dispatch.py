"""`expert="auto"` with LoRAs as choices: the answer of whoever names the choice, and the first pass is not lost."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from zweave.adapters.peft_directory import read_peft
from zweave.dispatch import FixedDispatcher, HiddenDispatcher, PromptDispatcher, Routes
from zweave.dispatch.early_classifier import EarlyClassifier
from zweave.engine import Engine
from zweave.request import Request, Result
from zweave.trace.timeline import Timeline

PROMPT = list(range(20, 57))


@pytest.fixture
def engine(save_lora: Callable[..., Any], tiny_engine: Callable[..., Engine]) -> Engine:
    """With the LoRAs "one", "spares" (the same after the prompt), and "act", which [7, 9] activate."""
    directory, _ = save_lora("one", 1, r=4, merge=False)
    engine = tiny_engine(kv_tokens=1024)
    lora = read_peft(directory)
    engine.load_expert("one", directory)
    engine.load_expert("spares", replace(lora, scope="after_prompt"))
    engine.load_expert("act", replace(lora, scope="after_prompt", invocation_tokens=(7, 9)))
    return engine


def ask(engine: Engine, expert: Any, prompt: list[int] = PROMPT, dispatcher: Any = None) -> Result:
    """Each dispatcher's answer by a cache of its own."""
    salt = None if dispatcher is None else type(dispatcher).__name__
    request = Request(prompt, expert=expert, max_tokens=8, ignore_eos=True, dispatcher=dispatcher, salt=salt)
    return engine.generate(request)[0]


def hidden(choice: Any) -> HiddenDispatcher:
    """Reads the states of layer 1, and chooses the same for every prompt."""
    classifier = EarlyClassifier(("x", "y"), 1, torch.zeros(2, 32), torch.tensor([1.0, -1.0]))
    return HiddenDispatcher(classifier, Routes({"x": choice, "y": None}))


@pytest.mark.parametrize("choice", ["one", "spares", {"one": 0.5, "a": 0.5}, {"one": [0.25, 2.0]}], ids=str)
def test_the_choice_answers_as_if_it_had_been_named(engine: Engine, choice: Any) -> None:
    named = ask(engine, choice)
    assert named.token_ids != ask(engine, None).token_ids
    by_prompt = PromptDispatcher(Routes({"x": choice, "y": choice}), "x or y?")
    for dispatcher in (hidden(choice), FixedDispatcher(choice), by_prompt):
        chosen = ask(engine, "auto", PROMPT, dispatcher)
        assert (chosen.token_ids, chosen.error) == (named.token_ids, None)
        assert chosen.dispatch.mixture == choice


def test_a_lora_that_spares_the_prompt_goes_on_from_the_first_pass(engine: Engine) -> None:
    fresh = ask(engine, "auto", PROMPT, hidden("spares"))
    # Nothing was computed for the first pass alone: the prompt's keys are the base model's either way.
    assert fresh.dispatch.tokens == 0 and fresh.token_ids == ask(engine, "spares").token_ids


def test_an_activated_lora_as_a_choice_wants_its_tokens(engine: Engine) -> None:
    prompt = [*PROMPT, 7, 9, 30]
    chosen = ask(engine, "auto", prompt, hidden("act"))
    assert chosen.token_ids == ask(engine, "act", prompt).token_ids
    failed = ask(engine, "auto", PROMPT, hidden("act"))
    assert failed.finish_reason == "error"
    assert failed.error == "the prompt does not hold the tokens that activate 'act': [7, 9]"
    assert ask(engine, "act", prompt).token_ids == chosen.token_ids


def test_the_timeline_names_the_lora_that_was_chosen(engine: Engine) -> None:
    timeline = Timeline()
    engine.observer = timeline
    for expert, dispatcher in (("auto", hidden("one")), ({"one": 0.5, "a": 0.5}, None)):
        request = Request(PROMPT, expert=expert, max_tokens=3, ignore_eos=True, dispatcher=dispatcher)
        timeline.arrive(engine.add(request), 0.0, "shown")
        while engine.has_work:
            for delta in engine.step():
                if delta.result is not None:
                    timeline.finish(delta.request_id, 1.0, delta.result)
    drawn = json.dumps(timeline.chrome())
    assert '"one"' in drawn and "one=0.5,a=0.5" in drawn
