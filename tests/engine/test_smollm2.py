"""The default model: equal to transformers with merged weights, batch-invariant, and as accurate as its experts."""

import csv
import os
import random
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from zweave import Engine, Expert, Request, Sampling
from zweave.checkpoint import Checkpoint
from zweave.decomposition import Decomposition
from zweave.tasks import prompts

pytestmark = pytest.mark.slow

PROMPT_TOKENS, NEW_TOKENS, SAMPLES = 200, 64, 300
# Two standard errors of 60 samples are at most .13, far below what lies between the base model and an expert.
BASE_SAMPLES = 60
EXPERTS = ("sst2", "trec", "sum2", "sst2-after-prompt", "trec-after-prompt")
MIXTURE = {"sst2": [0.5] * 10 + [0.25] * 20, "trec": [0.25] * 10 + [0.5] * 20, "sum2": 0.25}
CHOICES = [None, *EXPERTS, MIXTURE]
TREC_WORDS = ("description", "thing", "abbreviation", "person", "location", "number")


@pytest.fixture(scope="module")
def data() -> Path:
    if "ZWEAVE_DATA" not in os.environ:
        pytest.skip("ZWEAVE_DATA names no directory with tasks/ and experts/")
    return Path(os.environ["ZWEAVE_DATA"])


@pytest.fixture(scope="module")
def make_engine(smollm2: Path, data: Path, in_user_cache: None) -> Callable[..., Engine]:
    def make(dtype: str, **options: Any) -> Engine:
        engine = Engine(smollm2, dtype=dtype, **options)
        for name in EXPERTS:
            engine.load_expert(name, data / "experts" / f"{name}.safetensors")
        return engine

    return make


@pytest.fixture(scope="module")
def float32(make_engine: Callable[..., Engine]) -> Engine:
    return make_engine("float32")


@pytest.fixture(scope="module")
def bfloat16(make_engine: Callable[..., Engine]) -> Engine:
    return make_engine("bfloat16")


@pytest.fixture(scope="module")
def prompt(float32: Engine) -> list[int]:
    """Chat of 200 tokens whose user turn is the licence's beginning, so after_prompt experts have a header."""
    opening = float32.tokenizer.encode("<|im_start|>user\n")
    header = float32.tokenizer.encode("<|im_end|>\n<|im_start|>assistant\nThis licence says")
    licence = (Path(__file__).parents[2] / "LICENSE").read_text()
    text = float32.tokenizer.encode(licence)[: PROMPT_TOKENS - len(opening) - len(header)]
    return opening + text + header


class Truth:
    """transformers' model in float32 whose weights are W' = U diag(sigma * z) V^T, multiplied out.

    An expert is defined on the factors that it was served with, so they are those of the cache: where singular
    values nearly coincide, another decomposition has other vectors, and z means something else.
    """

    def __init__(self, directory: Path, data: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        self.experts = {name: Expert.load(data / "experts" / f"{name}.safetensors") for name in EXPERTS}
        self.decomposition = Decomposition.open(Checkpoint(directory).digest())
        self.base = {
            module: self.model.get_submodule(module).weight.data.clone()
            for module in self.decomposition.names
        }

    def use(self, choice: str | Mapping[str, Any] | None) -> None:
        mixture = {choice: 1.0} if isinstance(choice, str) else choice
        for module, weight in self.base.items():
            if mixture:
                layer = int(module.split(".")[2])
                z = sum(
                    (alpha if isinstance(alpha, float) else alpha[layer]) * self.experts[name].z[module]
                    for name, alpha in mixture.items()
                )
                u, sigma, vt = self.decomposition.factors(module)
                weight = (u * (sigma * z)) @ vt
            self.model.get_submodule(module).weight.data.copy_(weight)

    @torch.inference_mode()
    def answer(self, prompt: list[int], choice: Any, header_start: int) -> tuple[Tensor, list[int]]:
        """Logits [len(prompt), vocabulary] and the greedy tokens after them."""
        cache, parts = None, []
        if isinstance(choice, str) and choice.endswith("after-prompt"):
            self.use(None)
            output = self.model(torch.tensor([prompt[:header_start]]), use_cache=True)
            cache, parts, prompt = output.past_key_values, [output.logits[0]], prompt[header_start:]
        self.use(choice)
        output = self.model(torch.tensor([prompt]), past_key_values=cache, use_cache=True)
        logits, tokens = torch.cat([*parts, output.logits[0]]), [int(output.logits[0, -1].argmax())]
        while len(tokens) < NEW_TOKENS:
            output = self.model(
                torch.tensor([tokens[-1:]]), past_key_values=output.past_key_values, use_cache=True
            )
            tokens.append(int(output.logits[0, -1].argmax()))
        return logits, tokens


@pytest.fixture(scope="module")
def truth(smollm2: Path, data: Path, prompt: list[int], float32: Engine) -> list[tuple[Tensor, list[int]]]:
    """Logits and greedy tokens of each of CHOICES."""
    reference = Truth(smollm2, data)
    start = float32.tokenizer.after_prompt_start(prompt)
    return [reference.answer(prompt, choice, start) for choice in CHOICES]


def test_float32_equals_merged_weights(
    float32: Engine,
    prompt: list[int],
    truth: list[tuple[Tensor, list[int]]],
    prompt_logits: Callable[..., list[Tensor]],
) -> None:
    served = prompt_logits(float32, [(prompt, choice) for choice in CHOICES])
    differences = [
        (logits - wanted).abs().max().item() for logits, (wanted, _) in zip(served, truth, strict=True)
    ]
    print("largest logit differences:", dict(zip(map(str, CHOICES), differences, strict=True)))
    assert max(differences) < 2e-3
    requests = [Request(prompt, expert=choice, max_tokens=NEW_TOKENS, ignore_eos=True) for choice in CHOICES]
    for result, (_, tokens) in zip(float32.generate(requests), truth, strict=True):
        assert result.token_ids == tokens


def test_bfloat16_stays_close_to_float32(
    bfloat16: Engine,
    prompt: list[int],
    truth: list[tuple[Tensor, list[int]]],
    prompt_logits: Callable[..., list[Tensor]],
) -> None:
    served = prompt_logits(bfloat16, [(prompt, choice) for choice in CHOICES])
    divergences = [
        torch.nn.functional.kl_div(
            logits.log_softmax(-1), wanted.log_softmax(-1), reduction="batchmean", log_target=True
        ).item()
        for logits, (wanted, _) in zip(served, truth, strict=True)
    ]
    print("mean KL to float32:", dict(zip(map(str, CHOICES), divergences, strict=True)))
    assert max(divergences) < 5e-3


def test_integer_factors_stay_close_and_batch_invariant(
    make_engine: Callable[..., Engine],
    float32: Engine,
    prompt: list[int],
    prompt_logits: Callable[..., list[Tensor]],
) -> None:
    # A few MiB below the factors of all matrices: the square ones must be W and int4.
    engine = make_engine("bfloat16", max_memory=290 << 20)
    cases = [(prompt, choice) for choice in (None, "sst2", "trec")]
    divergences = [
        torch.nn.functional.kl_div(
            logits.log_softmax(-1), wanted.log_softmax(-1), reduction="batchmean", log_target=True
        ).item()
        for logits, wanted in zip(prompt_logits(engine, cases), prompt_logits(float32, cases), strict=True)
    ]
    print("mean KL to float32 with int4 factors:", divergences)
    assert max(divergences) < 1e-2
    requests = [Request(prompt, expert=choice, max_tokens=8, logprobs=1) for _, choice in cases]
    together = engine.generate(requests)
    for request, result in zip(requests, together, strict=True):
        (alone,) = engine.generate([request])
        assert (alone.token_ids, alone.logprobs) == (result.token_ids, result.logprobs)


def test_the_grid_gives_the_base_exactly_and_experts_closely(
    make_engine: Callable[..., Engine],
    float32: Engine,
    prompt: list[int],
    prompt_logits: Callable[..., list[Tensor]],
) -> None:
    cases = [(prompt, choice) for choice in CHOICES]
    truth = prompt_logits(float32, cases)
    request = Request(prompt, max_tokens=NEW_TOKENS, ignore_eos=True, salt="this test")
    for dtype, most_of_base, most_of_experts in (("float32", 1e-6, 2e-3), ("bfloat16", 5e-3, 5e-3)):
        engine = make_engine(dtype, weights="grid")
        divergences = [
            torch.nn.functional.kl_div(
                logits.log_softmax(-1), wanted.log_softmax(-1), reduction="batchmean", log_target=True
            ).item()
            for logits, wanted in zip(prompt_logits(engine, cases), truth, strict=True)
        ]
        print(f"mean KL to float32 on the grid, {dtype}:", divergences)
        assert divergences[0] < most_of_base
        assert max(divergences) < most_of_experts
        if dtype == "float32":
            (one,), (other,) = engine.generate(request), float32.generate(request)
            assert one.token_ids == other.token_ids


@pytest.mark.parametrize(
    ("dtype", "weights"),
    [("float32", "auto"), ("bfloat16", "auto"), ("float32", "grid"), ("bfloat16", "grid")],
)
def test_a_request_gives_the_same_bits_alone_and_among_31_others(
    make_engine: Callable[..., Engine], prompt: list[int], dtype: str, weights: str
) -> None:
    engine = make_engine(dtype, prefix_cache=False, weights=weights)
    requests = [
        Request(
            prompt[: 200 - 5 * i],
            expert=CHOICES[i % len(CHOICES)],
            max_tokens=8,
            ignore_eos=True,
            logprobs=50,
        )
        for i in range(32)
    ]
    together = engine.generate(requests)
    watched = [0, 1, 4, 6, 12, 31]
    assert [engine.generate(requests[i])[0] for i in watched] == [together[i] for i in watched]
    chunked = make_engine(dtype, max_batch_tokens=48, max_sequences=48, prefix_cache=False, weights=weights)
    assert [chunked.generate(requests[i])[0] for i in watched] == [together[i] for i in watched]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_prefix_cache_changes_no_bit(
    make_engine: Callable[..., Engine], prompt: list[int], dtype: str
) -> None:
    engine, plain = make_engine(dtype, kv_tokens=1024), make_engine(dtype, prefix_cache=False)
    fields = {"max_tokens": 8, "ignore_eos": True, "logprobs": 50}
    samples = [
        Request(prompt[:150], expert="sst2", sampling=Sampling(1.0, seed=seed), **fields) for seed in range(4)
    ]
    requests = [Request(prompt, expert=choice, **fields) for choice in CHOICES] + samples
    wanted = plain.generate(requests)
    assert engine.generate(requests) == wanted
    assert [engine.generate(request)[0] for request in requests] == wanted
    turns = [
        Request(prompt + result.token_ids + prompt[:20], expert=request.expert, **fields)
        for request, result in zip(requests[::3], wanted[::3], strict=True)
    ]
    assert engine.generate(turns) == plain.generate(turns)
    assert engine.stats().tokens_reused > 2000
    assert engine.stats().tokens_evicted > 0


def test_an_after_prompt_expert_computes_its_own_tokens_alone(
    bfloat16: Engine, make_engine: Callable[..., Engine], prompt: list[int]
) -> None:
    salt = {"salt": "this test", "ignore_eos": True, "logprobs": 50}
    bfloat16.generate(Request(prompt, max_tokens=1, **salt))
    before = bfloat16.stats().tokens_computed
    result = bfloat16.generate(Request(prompt, expert="trec-after-prompt", max_tokens=4, **salt))[0]
    start = bfloat16.tokenizer.after_prompt_start(prompt)
    assert (result.reuse, result.reused_tokens) == ("after_prompt", start)
    assert bfloat16.stats().tokens_computed - before == len(prompt) - start + 3
    plain = make_engine("bfloat16", prefix_cache=False)
    assert plain.generate(Request(prompt, expert="trec-after-prompt", max_tokens=4, **salt)) == [result]


def sst2(tasks: Path) -> tuple[list[str], list[str]]:
    with (tasks / "sst2_test.tsv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    texts = [prompts.sentiment(text) for text, _ in rows]
    return texts, [" positive" if label == "1" else " negative" for _, label in rows]


def trec(tasks: Path) -> tuple[list[str], list[str]]:
    lines = (tasks / "TREC.test.all").read_text(encoding="latin-1").splitlines()
    labels, texts = zip(*(line.split(" ", 1) for line in lines), strict=True)
    answers = [f" {TREC_WORDS[int(label)]}" for label in labels]
    return [prompts.question_type(text) for text in texts], answers


def addition(tasks: Path) -> tuple[list[str], list[str]]:
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    random.Random(0).shuffle(pairs)
    return [prompts.addition(a, b) for a, b in pairs], [f" {a + b}" for a, b in pairs]


Reader = Callable[[Path], tuple[list[str], list[str]]]
STATED = {
    "sst2": (sst2, 0.880),
    "sst2-after-prompt": (sst2, 0.873),
    "trec": (trec, 0.903),
    "trec-after-prompt": (trec, 0.850),
    "sum2": (addition, 0.800),
}


@pytest.fixture(scope="module")
def base_accuracy(bfloat16: Engine, data: Path) -> Callable[[Reader], float]:
    """The base model's on a task, measured once however many experts the task has."""

    @cache
    def measure(read: Reader) -> float:
        texts, answers = (part[:BASE_SAMPLES] for part in read(data / "tasks"))
        return accuracy_of(bfloat16, texts, answers, None)

    return measure


@pytest.mark.parametrize("name", STATED)
def test_experts_are_as_accurate_as_stated(
    bfloat16: Engine, data: Path, base_accuracy: Callable[[Reader], float], name: str
) -> None:
    read, stated = STATED[name]
    texts, answers = (part[:SAMPLES] for part in read(data / "tasks"))
    accuracy = accuracy_of(bfloat16, texts, answers, name)
    base = base_accuracy(read)
    print(f"{name}: {accuracy:.3f}, stated {stated:.3f}, base {base:.3f}")
    assert abs(accuracy - stated) <= 0.03
    assert base < accuracy - 0.3


def accuracy_of(engine: Engine, texts: Sequence[str], answers: Sequence[str], expert: str | None) -> float:
    tokens = max(len(engine.tokenizer.encode(answer)) for answer in answers)
    results = engine.generate(Request(text, expert=expert, max_tokens=tokens) for text in texts)
    return sum(first_word(r.text) == answer for r, answer in zip(results, answers, strict=True)) / len(
        answers
    )


def first_word(text: str) -> str:
    """The word or number that an answer begins with: a sum may be followed by more words."""
    found = re.match(r" \w+", text)
    return found[0] if found else ""
