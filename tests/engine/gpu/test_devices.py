"""The GPU engine, on a device and on a CPU with references in the place of kernels: what the CPU engine gives."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from zweave.checkpoint import ModelConfig
from zweave.engine import Engine
from zweave.errors import ZweaveError
from zweave.experts import Expert
from zweave.kernels import LinearMode
from zweave.planner import MatrixPlan, make_plan
from zweave.planner.plan import memory
from zweave.request import Request, Sampling

pytestmark = pytest.mark.parametrize("device", ["reference", pytest.param("cuda", marks=pytest.mark.gpu)])

# float32 sums in another order, through two layers; bf16 rounds after each op.
LIMITS = {"float32": 1e-3, "bfloat16": 0.1}
PROMPTS = [[1, 5, 9, 40, 41, 7, 3], [8] * 21, list(range(3, 60)), [1, 5, 9, 40, 41, 7, 3], [60]]
CHOICES: list[Any] = ["a", None, {"a": 0.5, "b": 0.25}, "late", "b"]
TinyEngine = Callable[..., Engine]


def requests(expert_of: Callable[[int], Any] = CHOICES.__getitem__, **options: Any) -> list[Request]:
    options = {"max_tokens": 8, **options}
    return [Request(prompt, expert=expert_of(i), **options) for i, prompt in enumerate(PROMPTS)]


def token_ids(engine: Engine, asked: list[Request]) -> list[list[int]]:
    return [result.token_ids for result in engine.generate(asked)]


@pytest.mark.parametrize("batch_invariant", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_log_probabilities_of_a_mixed_batch(
    dtype: str, batch_invariant: bool, device: str, tiny_engine: TinyEngine
) -> None:
    engines = [tiny_engine(dtype), tiny_engine(dtype, device=device, batch_invariant=batch_invariant)]
    asked = requests(max_tokens=1, score=tuple(range(96)))
    here, there = ([result.scores for result in engine.generate(asked)] for engine in engines)
    torch.testing.assert_close(torch.tensor(there), torch.tensor(here), rtol=0, atol=LIMITS[dtype])


def test_dependent_launches_change_no_bit(device: str, tiny_engine: TinyEngine) -> None:
    plain, dependent = (
        [
            (result.token_ids, result.logprobs)
            for result in tiny_engine(device=device, dependent_launches=on).generate(requests(logprobs=2))
        ]
        for on in (False, True)
    )
    assert dependent == plain
    with pytest.raises(ZweaveError, match="dependent_launches must be True or False"):
        tiny_engine(device=device, dependent_launches=1)


def test_answers_whatever_was_cached(device: str, tiny_engine: TinyEngine) -> None:
    expected = token_ids(tiny_engine(), requests())
    engine = tiny_engine(device=device, max_batch_tokens=64)
    for _ in range(2):
        results = engine.generate(requests())
        assert [result.token_ids for result in results] == expected
    assert sum(result.reused_tokens for result in results) > 0
    late = Request(PROMPTS[1], expert="late", max_tokens=8)
    again = engine.generate(late)[0]
    assert again.resumed_tokens > 0
    assert again.token_ids == tiny_engine().generate(late)[0].token_ids


def test_samples_and_log_probabilities(device: str, tiny_engine: TinyEngine) -> None:
    options = {"sampling": Sampling(temperature=0.8, top_k=20, top_p=0.9, min_p=0.02, seed=3), "logprobs": 2}
    here, there = (
        tiny_engine(device=d).generate(requests(lambda i: "a", **options)) for d in ("cpu", device)
    )
    for left, right in zip(here, there, strict=True):
        assert left.token_ids == right.token_ids
        assert left.logprobs is not None and right.logprobs is not None
        for one, other in zip(left.logprobs, right.logprobs, strict=True):
            assert other.logprob == pytest.approx(one.logprob, abs=1e-3)


def test_pooled_states(device: str, tiny_engine: TinyEngine) -> None:
    here, there = (tiny_engine(device=d).pooled_states(PROMPTS, [1, 2]) for d in ("cpu", device))
    torch.testing.assert_close(there.cpu(), here.cpu(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral"])
def test_families(kind: str, device: str, tiny_model: Any) -> None:
    """Biases, norms of heads, sliding windows."""
    asked = [Request(prompt, max_tokens=12, ignore_eos=True) for prompt in PROMPTS]
    options = {"dtype": "float32", "kv_tokens": 512, "block_size": 4}
    here, there = (Engine(tiny_model(kind), device=d, **options) for d in ("cpu", device))
    assert token_ids(there, asked) == token_ids(here, asked)


def test_a_plan_of_less_memory(device: str, tiny_engine: TinyEngine) -> None:
    """The factors alone serve everything."""
    shapes = tiny_engine().model.config.adapted_shapes()
    factors = memory({name: MatrixPlan(shape) for name, shape in shapes.items()}, 4)
    assert factors < memory(make_plan(shapes, "gpu"), 4)
    engine = tiny_engine(device=device, max_memory=factors)
    assert token_ids(engine, requests()) == token_ids(tiny_engine(), requests())


def test_a_plan_of_little_memory(device: str, tiny_model: Any, random_expert: Any) -> None:
    """W and leading components: an expert of more is refused, one of as many is a delta."""
    model = tiny_model("llama", hidden_size=96, intermediate_size=256)
    options = {"dtype": "float32", "kv_tokens": 512, "block_size": 4}
    here = Engine(model, **options)
    shapes = here.model.config.adapted_shapes()
    leading = {name: MatrixPlan(shape, True, 16, factored=False) for name, shape in shapes.items()}
    there = Engine(model, device=device, max_memory=memory(leading, 4), **options)
    unrestricted = random_expert(shapes, seed=1)
    few = Expert({name: torch.cat([z[:16], torch.ones(len(z) - 16)]) for name, z in unrestricted.z.items()})
    for engine in (here, there):
        engine.load_expert("whole", unrestricted)
        engine.load_expert("few", few)
    asked = requests(lambda index: [None, "few"][index % 2])
    assert token_ids(there, asked) == token_ids(here, asked)
    refused = there.generate(Request(PROMPTS[0], expert="whole"))[0]
    assert refused.error is not None and "allow it more memory" in refused.error


@pytest.fixture
def integer_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """W and all components in int8, on whatever device."""

    def plan(shapes: dict[str, tuple[int, int]], *_: Any) -> dict[str, MatrixPlan]:
        return {
            name: MatrixPlan(s, True, min(s), factored=False, format="int8") for name, s in shapes.items()
        }

    monkeypatch.setattr("zweave.engine.engine_parts.plan_for", plan)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_deltas_of_integers(
    kind: str, device: str, integer_plan: None, tiny_model: Any, random_expert: Any
) -> None:
    """Few tokens and many, with biases. A CPU rounds activations to 1/254 of their peaks, too."""
    options = {"dtype": "float32", "kv_tokens": 1024, "block_size": 4}
    engines = [Engine(tiny_model(kind), device=d, **options) for d in ("cpu", device)]
    for engine in engines:
        engine.load_expert("a", random_expert(engine.model.config.adapted_shapes(), seed=1))
    prompts = [*PROMPTS, list(range(3, 63)) * 3]
    asked = [
        Request(prompt, expert=expert, max_tokens=1, score=tuple(range(64)))
        for prompt in prompts
        for expert in (None, "a")
    ]
    here, there = (torch.tensor([result.scores for result in engine.generate(asked)]) for engine in engines)
    torch.testing.assert_close(there[::2], here[::2], rtol=0, atol=LIMITS["float32"])
    assert (there[1::2] - there[::2]).abs().max() > 1
    torch.testing.assert_close(there[1::2], here[1::2], rtol=0, atol=0.1)


def test_a_plan_with_a_stated_error(device: str, tiny_model: Any, random_expert: Any) -> None:
    """The base stays dense, experts are deltas, and one that would lose too much is refused."""
    model = tiny_model("llama")
    shapes = ModelConfig.from_directory(model).adapted_shapes()
    integers = {
        name: MatrixPlan(s, True, min(s), factored=False, format="int8") for name, s in shapes.items()
    }
    engine = Engine(
        model,
        dtype="float32",
        kv_tokens=512,
        block_size=4,
        device=device,
        max_memory=memory(integers, 4),
        max_error=0.02,
    )
    z = random_expert(shapes, seed=1).z
    engine.load_expert("little", Expert({name: 1 + 0.1 * (values - 1) for name, values in z.items()}))
    engine.load_expert("much", Expert(z))
    modes = engine.bank.tables.modes
    little, base, much = engine.generate([Request(PROMPTS[0], expert=e) for e in ("little", None, "much")])
    assert little.error is None and base.error is None
    assert set(modes[:, 0].tolist()) == {LinearMode.DENSE} and LinearMode.DELTA in modes[:, 1]
    assert much.error is not None and "allow more error or more memory" in much.error


def test_the_engine_says_what_batch_invariance_costs(
    device: str, tiny_engine: TinyEngine, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "zweave"):
        tiny_engine(device=device)
        assert not caplog.messages
        tiny_engine(device=device, batch_invariant=True)
    assert "batch_invariant=True reads 1." in caplog.text and "predicted" in caplog.text


def test_steps_and_waiting_are_counted(device: str, tiny_engine: TinyEngine) -> None:
    engine = tiny_engine(device=device)
    engine.generate(requests(max_tokens=4, ignore_eos=True))
    stats = engine.stats()
    # The prompts fit into one step. On a GPU the next steps are launched before one has landed.
    assert (stats.steps, stats.decode_steps) == (4, 3)
    assert stats.wait_seconds > 0
    here = tiny_engine()
    here.generate(requests(max_tokens=4, ignore_eos=True))
    assert (here.stats().steps, here.stats().decode_steps) == (4, 3)
