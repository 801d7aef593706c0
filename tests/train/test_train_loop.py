"""The training loop: it learns, it goes on bit for bit after a kill, it gives up with one clear line."""

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from zweave.checkpoint import Checkpoint
from zweave.engine import Engine
from zweave.errors import ZweaveError
from zweave.experts import Expert, Mixture
from zweave.kernels import LinearMode
from zweave.planner import plan_for
from zweave.tasks import BUILT_IN
from zweave.tasks.task import Sample, Splits, Task, exact
from zweave.train import Policy, Recipe, default_recipe, open_policy, train

pytest.importorskip("transformers")
SAMPLES = [Sample("x", "a"), Sample("y", "b"), Sample("xx", "a"), Sample("yy", "b")]
LETTERS = Task("letters", "", lambda data: Splits(SAMPLES, SAMPLES), labels=("a", "b"))
QUICK = Recipe(steps=30, batch=4, lr=0.03, draws=8, validate_every=10, validation=4)


@pytest.fixture
def make_policy(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Recipe], Policy]:
    monkeypatch.setenv("ZWEAVE_CACHE", str(tmp_path / "cache"))
    return lambda recipe: open_policy(str(tiny_model("llama")), recipe, torch.float32)


def z_of(policy: Policy) -> Tensor:
    return torch.cat([z.detach().flatten() for z in policy.adapter.parameters()])


def run(policy: Policy, recipe: Recipe, task: Task = LETTERS, **options: Any) -> list[Any]:
    return list(train(policy, task, SAMPLES, SAMPLES, recipe, **options))


VARIANTS = (
    {},
    {"support": "leading:R/4"},
    {"support": "sparse:R/4"},
    {"scope": "after_prompt"},
    {"first_layer": 1},
    {"adapter": "lora", "rank": 4},
)


@pytest.mark.parametrize("chosen", VARIANTS, ids=str)
def test_labels_are_learnt(make_policy: Any, chosen: dict[str, Any]) -> None:
    recipe = replace(QUICK, **chosen)
    steps = run(make_policy(recipe), recipe)
    assert [step.step for step in steps] == list(range(30))
    assert sum(step.reward for step in steps[:3]) / 3 < 0.4 and steps[-1].reward > 0.6


@pytest.mark.parametrize("adapter", ["svf", "lora"])
def test_the_base_answers_as_the_base_after_the_prompt_too(make_policy: Any, adapter: Any) -> None:
    policy = make_policy(Recipe(scope="after_prompt", adapter=adapter))
    prompts = [sample.prompt for sample in LETTERS.samples("test")[:4]]

    def answered() -> Tensor:
        tree = policy.prefill(prompts)
        return policy.logits(policy.hidden(tree, tree.leaves)).detach()

    base = answered() if adapter == "lora" else None
    with torch.no_grad():
        for parameter in policy.adapter.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    with policy.adapter.base():
        one = answered()
        torch.testing.assert_close(answered(), one, rtol=0, atol=0)
    assert (answered() - one).abs().max() > 1e-3
    if base is not None:
        torch.testing.assert_close(one, base, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["reinforce", "plain", "grpo"])
def test_generated_answers_are_learnt(make_policy: Any, kind: Any) -> None:
    recipe = replace(QUICK, steps=80, objective=kind, batch=2, draws=32)
    # About half of what a random model says: 640 answers of it would hardly reach 56%.
    even = replace(
        LETTERS, labels=(), judge=lambda s, text: 1.0 if len(text.encode()) and text.encode()[0] % 2 else -1.0
    )
    rewards = [step.reward for step in run(make_policy(recipe), recipe, even)]
    assert sum(rewards[:10]) / 10 < 0.56 < sum(rewards[-10:]) / 10


def test_given_answers_become_likely(make_policy: Any) -> None:
    recipe = replace(QUICK, objective="sft")
    steps = run(make_policy(recipe), recipe)
    # The mean probability of a token of the answers.
    assert steps[0].reward < 0.02 and steps[-1].reward > 0.08


def test_a_sparse_support_is_pruned_to_its_size(make_policy: Any, tmp_path: Path) -> None:
    recipe = replace(QUICK, support="sparse:5")
    policy = make_policy(recipe)
    seen = []
    for _ in train(policy, LETTERS, SAMPLES, SAMPLES, recipe):
        seen.append(max(int((z != 1).sum()) for z in policy.adapter.parameters()))
    assert seen[0] == 32 and seen[-1] == 5 and sorted(seen, reverse=True) == seen
    policy.adapter.save(tmp_path / "it.safetensors", "", {})
    expert = Expert.load(tmp_path / "it.safetensors")
    assert expert.support == "sparse:5"
    assert not all((z[:5] != 1).all() for z in expert.z.values())


def test_a_sparse_expert_is_served_exactly(
    make_policy: Any,
    tiny_model: Callable[..., Path],
    prompt_logits: Any,
    merged_logits: Any,
    tmp_path: Path,
) -> None:
    recipe = replace(QUICK, support="sparse:5", steps=8, validate_every=4)
    policy = make_policy(recipe)
    run(policy, recipe)
    policy.adapter.save(tmp_path / "it.safetensors", "", {})
    directory, expert = tiny_model("llama"), Expert.load(tmp_path / "it.safetensors")
    engine = Engine(directory, dtype="float32", kv_tokens=64, block_size=4)
    engine.load_expert("it", tmp_path / "it.safetensors")
    prompt = [5, 40, 41, 77, 9]
    (found,) = prompt_logits(engine, [(prompt, "it")])
    truth = merged_logits(directory, {"it": expert}, "it", prompt)
    assert (truth - merged_logits(directory, {}, None, prompt)).abs().max() > 0.05
    torch.testing.assert_close(found, truth, rtol=1e-3, atol=2e-4)
    slot = engine.bank.acquire(engine.bank.resolve(Mixture.parse("it")))
    plan = plan_for(Checkpoint(directory).config.adapted_shapes(), "cpu", engine.config.torch_dtype)
    for module, z in expert.z.items():
        # By the last component that it changes: a delta is over leading ones.
        mode = LinearMode.DELTA if (z[plan[module].delta_rank :] == 1).all() else LinearMode.FACTORED
        assert engine.bank.tables.modes_of(module)[slot] == int(mode)


def test_the_best_on_validation_is_what_stays(make_policy: Any) -> None:
    policy = make_policy(QUICK)
    looked: list[Tensor] = []
    # Whatever is answered is right until the first look and wrong after it; what is learnt from stays the same.
    turned = replace(LETTERS, judge=lambda s, t: exact(s, t) + (-2.0 if looked else 2.0))
    for step in train(policy, turned, SAMPLES, SAMPLES, replace(QUICK, validate_every=5, patience=2)):
        if step.validation is not None:
            looked.append(z_of(policy))
            assert step.improved == (len(looked) == 1)
    assert step.step == 14 and len(looked) == 3
    assert torch.equal(z_of(policy), looked[0])


KILLED = """
import os, signal, sys
import torch
from zweave.tasks.task import Sample, Splits, Task, exact
from zweave.train import Recipe, loop, open_policy, train
from pathlib import Path

directory, state, kill_at, labelled = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "labels"
samples = [Sample("x", "a"), Sample("y", "b"), Sample("xx", "a"), Sample("yy", "b")]
loop.SAVE_EVERY = 2
step = 0

def judge(sample, text):
    if step == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    # Of a random model's texts about half begin so; hardly any is the right one.
    odd = bool(text) and text.encode()[0] % 2 == 1
    return exact(sample, text) if labelled else 2.0 * odd - 1.0

labels, tokens = (("a", "b"), 1) if labelled else ((), 2)
task = Task("letters", "", lambda data: Splits(samples, samples), labels, tokens, judge=judge)
recipe = Recipe(
    steps=6, batch=4, lr=0.03, draws=8, validate_every=3, validation=4, support="sparse:5" if labelled else "full"
)
policy = open_policy(directory, recipe, torch.bfloat16)
for done in train(policy, task, samples, samples, recipe, state):
    print(done.step, flush=True)
    step = done.step + 1
torch.save([z.detach() for z in policy.adapter.parameters()], state.with_suffix(".end"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["labels", "generated"])
def test_a_killed_training_ends_in_the_same_bits(
    tiny_model: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    def process(name: str, kill_at: int) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-c",
            KILLED,
            str(tiny_model("llama")),
            str(tmp_path / name),
            str(kill_at),
            kind,
        ]
        env = os.environ | {"ZWEAVE_CACHE": str(tmp_path / "cache")}
        # Not in the checkout: transformers would take its folder `kernels` for the package of that name.
        return subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=120)

    whole = process("whole", -1)
    assert whole.returncode == 0 and whole.stdout.split() == list("012345"), whole.stderr
    killed = process("cut", 3)
    assert killed.returncode == -signal.SIGKILL and killed.stdout.split() == list("012")
    # Three steps were done: the last state saved is that of the validation, or of the step before.
    resumed = process("cut", -1)
    assert resumed.returncode == 0 and resumed.stdout.split() == list("345"), resumed.stderr
    for one, other in zip(*(torch.load(tmp_path / f"{name}.end") for name in ("whole", "cut")), strict=True):
        assert torch.equal(one, other) and (one != 1).any()


def test_a_state_that_is_none_is_named(make_policy: Any, tmp_path: Path) -> None:
    (tmp_path / "it.state").write_bytes(b"no state")
    with pytest.raises(ZweaveError, match=r"it\.state cannot be gone on from .*: delete it"):
        run(make_policy(QUICK), QUICK, state=tmp_path / "it.state")


def test_a_gradient_that_is_not_finite_ends_it_and_keeps_the_state(make_policy: Any, tmp_path: Path) -> None:
    policy, state = make_policy(QUICK), tmp_path / "it.state"
    steps = train(policy, LETTERS, SAMPLES, SAMPLES, QUICK, state)
    list(itertools.islice(steps, 6))
    saved = state.read_bytes()
    policy.adapter.parameters()[0].data.fill_(float("nan"))
    with pytest.raises(ZweaveError, match="not finite: lower the learning rate"):
        next(steps)
    assert state.read_bytes() == saved
    fresh = make_policy(QUICK)
    (first,) = itertools.islice(train(fresh, LETTERS, SAMPLES, SAMPLES, QUICK, state), 1)
    assert first.step == 5 and z_of(fresh).isfinite().all()


def test_even_rewards_end_it(make_policy: Any) -> None:
    policy, even = make_policy(QUICK), replace(LETTERS, judge=lambda sample, text: -1.0)
    with pytest.raises(ZweaveError, match=r"same reward \(-1\), there is nothing to learn"):
        run(policy, QUICK, even)


def test_a_reward_that_raises_is_named(make_policy: Any) -> None:
    def judge(sample: Sample, text: str) -> float:
        raise KeyError("answer")

    with pytest.raises(ZweaveError, match="reward of the task letters fails: KeyError"):
        run(make_policy(QUICK), QUICK, replace(LETTERS, judge=judge))


@pytest.mark.parametrize(("samples", "validation"), [([], SAMPLES), (SAMPLES, [])], ids=["train", "validate"])
def test_an_empty_split_is_named(make_policy: Any, samples: Any, validation: Any, request: Any) -> None:
    what = request.node.callspec.id
    with pytest.raises(ZweaveError, match=f"letters has no samples to {what} on"):
        list(train(make_policy(QUICK), LETTERS, samples, validation, QUICK))


def test_the_learning_rate_rises_stays_and_falls() -> None:
    recipe = Recipe(steps=20, lr=1.0, warmup=4, decay=0.5)
    rates = [recipe.lr_at(step) for step in range(20)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0] and rates[10:12] == [1.0, 0.9]
    assert rates[-1] == pytest.approx(0.1)
    assert recipe.entropy_at(0) == 0.4 and recipe.entropy_at(19) == pytest.approx(0.02)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"draws": 1},
        {"lr": 0.0},
        {"decay": 2.0},
        {"objective": "guess"},
        {"support": "leading"},
        {"entropy": -1.0},
        {"adapter": "lora", "support": "leading:3"},
        {"rank": 0},
    ],
    ids=json.dumps,
)
def test_a_recipe_that_cannot_work_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ZweaveError):
        Recipe(**wrong)


def test_defaults_follow_the_task_and_yield_to_what_is_chosen() -> None:
    assert default_recipe(LETTERS).draws == 32 and default_recipe(replace(LETTERS, labels=())).draws == 8
    few = default_recipe(LETTERS, support="leading:R/8")
    texts = replace(LETTERS, labels=(), max_tokens=3)
    judged = replace(texts, judge=lambda sample, text: 1.0)
    found = [default_recipe(task).objective for task in (LETTERS, texts, judged, BUILT_IN["addition"])]
    assert found == ["reinforce", "sft", "reinforce", "reinforce"]
    assert default_recipe(texts, objective="grpo").objective == "grpo"
    assert few.lr > default_recipe(LETTERS).lr and few.steps > default_recipe(LETTERS).steps
    chosen = default_recipe(LETTERS, support="leading:R/8", lr=1e-3, steps=7, seed=None)
    assert (chosen.lr, chosen.steps, chosen.seed) == (1e-3, 7, 0)
