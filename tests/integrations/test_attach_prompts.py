"""Which rows of a batch have which expert, and experts that act after the prompt only, in transformers' models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from zweave.decomposition import Decomposition
from zweave.engine import Engine
from zweave.errors import ZweaveError
from zweave.experts import Expert
from zweave.io.progress import silent
from zweave.request import Request

pytest.importorskip("transformers")

from transformers import AutoModelForCausalLM

from zweave.integrations.transformers import Attached, attach

LENGTHS = [9, 5, 7, 9]
CHOICES = ["after", None, {"after": 0.5}, "a"]
GREEDY: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


@pytest.fixture
def directory(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama")


@pytest.fixture
def experts(directory: Path, random_expert: Callable[..., Expert]) -> dict[str, Expert]:
    model = AutoModelForCausalLM.from_pretrained(directory)
    attached = attach(model, progress=silent)
    shapes = {name: m.shape for name, m in Decomposition.open(attached.base_digest).matrices.items()}
    return {
        "a": random_expert(shapes, seed=1),
        "after": random_expert(shapes, seed=2, scope="after_prompt"),
    }


@pytest.fixture
def model(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory)


@pytest.fixture
def attached(model: Any, experts: dict[str, Expert]) -> Attached:
    return attach(model, experts, progress=silent)


@pytest.fixture
def answers(directory: Path, experts: dict[str, Expert]) -> list[list[int]]:
    """What the engine answers to the prompts."""
    engine = Engine(directory, dtype="float32", kv_tokens=512)
    for name, expert in experts.items():
        engine.load_expert(name, expert)
    requests = [
        Request(prompt, expert=choice, max_tokens=8, ignore_eos=True)
        for prompt, choice in zip(prompts(), CHOICES, strict=True)
    ]
    return [result.token_ids for result in engine.generate(requests)]


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 96, (length,), generator=generator).tolist() for length in LENGTHS]


def padded() -> tuple[Tensor, Tensor]:
    """The prompts side by side, padded on the left, and their mask."""
    ids, mask = torch.zeros(4, 9, dtype=torch.int64), torch.zeros(4, 9, dtype=torch.int64)
    for row, prompt in enumerate(prompts()):
        ids[row, 9 - len(prompt) :], mask[row, 9 - len(prompt) :] = torch.tensor(prompt), 1
    return ids, mask


@pytest.mark.parametrize(
    "options",
    [{}, {"use_cache": False}, {"cache_implementation": "static"}, {"prompt_lengths": LENGTHS}],
    ids=str,
)
def test_an_expert_of_the_answer_answers_as_in_the_engine(options, model, attached, answers):
    ids, mask = padded()
    options = dict(options)
    lengths = options.pop("prompt_lengths", None)
    with attached.use(CHOICES, prompt_lengths=lengths):
        found = model.generate(ids, attention_mask=mask, **GREEDY, **options)
    assert found[:, 9:].tolist() == answers


def test_beams_and_returned_sequences_have_their_prompts_expert(model, attached):
    ids, mask = padded()
    options = {**GREEDY, "num_beams": 3, "num_return_sequences": 2}
    with attached.use(CHOICES):
        found = model.generate(input_ids=ids, attention_mask=mask, **options)
    for row, (prompt, choice) in enumerate(zip(prompts(), CHOICES, strict=True)):
        with attached.use(choice):
            alone = model.generate(torch.tensor([prompt]), **options)
        assert torch.equal(found[2 * row : 2 * row + 2, 9:], alone[:, len(prompt) :])


def test_prompt_lookup_with_an_expert_of_the_answer(model, attached):
    prompt = torch.tensor([prompts()[0] * 2])
    with attached.use("after"):
        wanted = model.generate(prompt, **GREEDY)
        found = model.generate(prompt, prompt_lookup_num_tokens=3, **GREEDY)
    assert torch.equal(found, wanted)


@torch.no_grad()
def test_a_call_with_prompt_lengths(directory, model, attached, experts):
    """The rows of one call, prompt and answer together: the prompt's keys and values are the base model's."""
    ids, mask = padded()
    answer = torch.randint(3, 96, (4, 5), generator=torch.Generator().manual_seed(4))
    whole, mask = torch.cat([ids, answer], 1), torch.cat([mask, torch.ones_like(answer)], 1)
    position = (mask.cumsum(1) - 1).clamp(min=0)
    with attached.use("after", prompt_lengths=LENGTHS):
        found = model(whole, attention_mask=mask, position_ids=position).logits
    plain = AutoModelForCausalLM.from_pretrained(directory)
    under = attach(plain, {"always": Expert(experts["after"].z)}, progress=silent)
    for row, length in enumerate(LENGTHS):
        begin = 9 - length
        cached = plain(whole[row : row + 1, begin:8])
        with under.use("always"):
            rest = plain(whole[row : row + 1, 8:], past_key_values=cached.past_key_values).logits[0]
        torch.testing.assert_close(found[row, begin:8], cached.logits[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(found[row, 8:], rest, rtol=0, atol=1e-4)


def test_gradients_of_a_prompt_under_an_expert_of_the_answer(model, attached):
    embedded = model.get_input_embeddings()(padded()[0][:1]).detach()
    x, step = embedded.clone().requires_grad_(), 1e-3
    with attached.use("after", prompt_lengths=6):
        model(inputs_embeds=x).logits.logsumexp(-1).sum().backward()
        high, low = (
            model(inputs_embeds=embedded + change).logits.double().logsumexp(-1).sum()
            for change in (step, -step)
        )
    torch.testing.assert_close(x.grad.sum().double(), (high - low) / (2 * step), rtol=0.02, atol=0.02)


def test_what_an_expert_of_the_answer_wants(model, attached):
    ids, mask = padded()
    with attached.use("after"):
        with pytest.raises(ZweaveError, match="or call generate"):
            model(ids, attention_mask=mask)
        with pytest.raises(ZweaveError, match="call the model itself"):
            model.model(ids)
        with pytest.raises(ZweaveError, match="does not begin with the whole prompt"):
            model.generate(ids, attention_mask=mask, prefill_chunk_size=4, **GREEDY)
    for lengths in (0, [3, 0], [], "nine", 2.5, [None]):
        with pytest.raises(ZweaveError, match="prompt_lengths must be whole"), attached.use("after", lengths):
            pass
    with attached.use("after", [3, 4, 5]), pytest.raises(ZweaveError, match="3 numbers and the batch 4 rows"):
        model(ids)
    with pytest.raises(ZweaveError, match="train it with zweave train"):
        attached.learn("after")


def test_fewer_experts_than_prompts_are_refused(model, attached):
    ids, mask = padded()
    wanted = "2 experts are named and the batch has 4 rows"
    with attached.use(["a", None]):
        for call in (
            lambda: model(ids),
            lambda: model.model(ids),
            lambda: model.generate(ids, attention_mask=mask, **GREEDY),
            lambda: model.generate(input_ids=ids, num_beams=2, **GREEDY),
            lambda: model.generate(inputs_embeds=model.get_input_embeddings()(ids), **GREEDY),
        ):
            with pytest.raises(ZweaveError, match=wanted):
                call()
        assert len(model.generate(ids[:2], num_return_sequences=2, num_beams=2, **GREEDY)) == 4


def test_detaching_leaves_the_models_own_generate(model, attached):
    assert "generate" in vars(model)
    attached.detach()
    assert "generate" not in vars(model) and not model._forward_pre_hooks and not model._forward_hooks
