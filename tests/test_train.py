"""Training: the linears, the token tree, the two estimators, the loop and the script of the demo experts."""

import itertools
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from zweave.bundled import bundled_experts
from zweave.checkpoint import Checkpoint
from zweave.errors import ZweaveError
from zweave.expert import Expert
from zweave.tokenizer import Tokenizer
from zweave.train import TASKS, Recipe, Sample, SvfLinear, Task, adapt, demo_experts, reinforce, train_expert
from zweave.train.loop import accuracy, label_ids
from zweave.train.tasks import balanced
from zweave.train.token_tree import TokenTree

pytest.importorskip("transformers")
END = 2


@pytest.fixture
def directory(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama")


@pytest.fixture
def model(directory: Path) -> Any:
    return demo_experts.load_model(Checkpoint(directory), torch.float32)


@pytest.fixture
def adapted(model: Any) -> dict[str, SvfLinear]:
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return adapt(model, lambda name: torch.linalg.svd(weights[f"{name}.weight"], full_matrices=False))


@pytest.fixture
def tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer(directory)


def logits_alone(model: Any, tokens: list[int]) -> Tensor:
    return model(torch.tensor([tokens])).logits[0]


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (3, 5), (4, 4)], ids=str)
def test_svf_linear_is_the_merged_linear_and_learns_z_and_x_alone(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(shape), torch.randn(shape[0])
    u, sigma, vt = torch.linalg.svd(weight, full_matrices=False)
    linear = SvfLinear(u, sigma, vt, bias)
    linear.z.data.uniform_(0.5, 1.5)
    x = torch.randn(7, shape[1], requires_grad=True)
    z = linear.z.detach().clone().requires_grad_()
    x_merged = x.detach().clone().requires_grad_()
    merged = F.linear(x_merged, u @ torch.diag(sigma * z) @ vt, bias)
    target = torch.randn(7, shape[0])
    y = linear(x)
    torch.testing.assert_close(y, merged)
    (y * target).sum().backward()
    (merged * target).sum().backward()
    torch.testing.assert_close(linear.z.grad, z.grad)
    torch.testing.assert_close(x.grad, x_merged.grad)
    assert [name for name, _ in linear.named_parameters()] == ["z"]


def test_svf_linear_in_bfloat16_keeps_z_in_float32() -> None:
    weight = torch.eye(4)
    u, sigma, vt = torch.linalg.svd(weight)
    linear = SvfLinear(u.bfloat16(), sigma, vt.bfloat16())
    linear.z.data.fill_(1.001)
    y = linear(torch.full((1, 4), 128.0, dtype=torch.bfloat16))
    assert linear.z.dtype == torch.float32 and y.dtype == torch.bfloat16
    y.float().sum().backward()
    torch.testing.assert_close(linear.z.grad, torch.full((4,), 128.0))


def test_adapt_replaces_all_seven_and_leaves_the_model_as_it_was(model: Any, directory: Path) -> None:
    tokens = [1, 7, 9, 200, 3]
    before = logits_alone(model, tokens)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    adapted = adapt(model, lambda name: torch.linalg.svd(weights[f"{name}.weight"], full_matrices=False))
    assert list(adapted) == list(Checkpoint(directory).config.adapted_shapes())
    torch.testing.assert_close(logits_alone(model, tokens), before, rtol=1e-4, atol=1e-4)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        f"{name}.z" for name in adapted
    ]


SEQUENCES = ([1, 5, 9, 9], [1, 5, 9, 4, 8, 8], [1, 5], [30, 31, 32], [1, 5, 9, 4, 7], [1, 5, 9, 9])


@pytest.mark.parametrize("cached", [False, True], ids=["one pass", "in two passes with a cache"])
def test_a_tree_gives_each_sequence_what_it_gets_alone(model: Any, cached: bool) -> None:
    tree = TokenTree()
    leaves = [tree.add(tokens) for tokens in SEQUENCES[: 2 if cached else None]]
    with torch.no_grad():
        if cached:
            from transformers import DynamicCache

            cache = DynamicCache()
            first = tree.hidden(model, cache)
            leaves += [tree.add(tokens) for tokens in SEQUENCES[2:]]
            hidden = torch.cat([first, tree.hidden(model, cache, start=len(first))])
        else:
            hidden = tree.hidden(model)
        assert len(tree) == len(hidden) == 11 and leaves[0] == leaves[5]
        for leaf, tokens in zip(leaves, SEQUENCES, strict=True):
            expected = logits_alone(model, tokens)[-1]
            torch.testing.assert_close(model.lm_head(hidden[leaf]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("draws", [2, 16])
@pytest.mark.parametrize(("entropy", "mass"), [(0.0, 0.0), (0.4, 0.0), (0.4, 0.2)])
@pytest.mark.parametrize("start", [[0.0, 0.0, 0.0, 0.0], [-1.0, 9.0, 4.0, 0.0]], ids=["uniform", "collapsed"])
def test_label_loss_estimates_the_exact_gradient(
    start: list[float], entropy: float, mass: float, draws: int
) -> None:
    logits = torch.tensor(start, requires_grad=True)
    labels = torch.tensor([3, 2, 0])
    policy = logits[labels].softmax(-1)
    reward = torch.tensor([-1.0, 1.0, -1.0])
    exact = -(policy * reward).sum() + entropy * (policy * policy.log()).sum()
    exact = exact - mass * logits.softmax(-1)[labels].sum().log()
    (gradient,) = torch.autograd.grad(exact, logits)
    copies = 400_000 // draws
    loss = reinforce.label_loss(
        logits.expand(copies, 4),
        labels,
        torch.ones(copies, dtype=torch.int64),
        draws=draws,
        entropy=entropy,
        mass=mass,
        generator=torch.Generator().manual_seed(0),
    )
    (estimate,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(estimate, gradient, rtol=0.0, atol=0.01)


def test_leave_one_out_compares_with_the_other_draws() -> None:
    advantage = reinforce.leave_one_out(torch.tensor([[1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]))
    torch.testing.assert_close(advantage, torch.tensor([[2.0, -1.0, -1.0], [0.0, 0.0, 0.0]]))


def test_generation_loss_has_the_gradient_of_the_answers_one_by_one(
    model: Any, adapted: dict[str, SvfLinear]
) -> None:
    prompts = [[1, 5, 9], [1, 5, 12, 13]]
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        # Peaked, so that answers repeat and share beginnings.
        model.lm_head.weight *= 6
    generation = reinforce.generate(model, prompts, ends=[END], max_tokens=3, generator=generator, samples=6)
    answers = generation.tokens()
    assert len(answers) == 12 and len(set(map(tuple, answers))) < 12
    advantage = torch.randn(12, generator=generator)
    z = [module.z for module in adapted.values()]
    found = torch.autograd.grad(reinforce.generation_loss(model, generation, advantage), z)
    alone = torch.zeros(())
    for prompt, answer, weight in zip([prompts[0]] * 6 + [prompts[1]] * 6, answers, advantage, strict=True):
        log_policy = logits_alone(model, prompt + answer)[len(prompt) - 1 : -1].log_softmax(-1)
        alone = alone - weight * log_policy[range(len(answer)), answer].sum() / 12
    for one, other in zip(found, torch.autograd.grad(alone, z), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_greedy_answers_are_those_of_transformers(model: Any) -> None:
    prompts = [[1, 5, 9], [1, 5], [40, 41, 42, 43], [1, 5, 9]]
    generation = reinforce.generate(model, prompts, ends=[END], max_tokens=6)
    for prompt, answer in zip(prompts, generation.tokens(), strict=True):
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False, eos_token_id=END)
        assert answer == expected[0, len(prompt) :].tolist()


def test_an_answer_may_run_along_another_prompt_and_stops_at_the_end_token(model: Any) -> None:
    first = reinforce.generate(model, [[1, 5]], ends=[], max_tokens=4).tokens()[0]
    both = reinforce.generate(model, [[1, 5], [1, 5, *first[:3], 77]], ends=[], max_tokens=4).tokens()
    assert both[0] == first
    stopped = reinforce.generate(model, [[1, 5]], ends=[first[1]], max_tokens=4).tokens()[0]
    assert stopped == first[: first.index(first[1]) + 1]


def test_text_reward_forgives_white_space_alone() -> None:
    texts = {7: " 68", 8: "68", 9: "68."}
    generation = reinforce.Generation(TokenTree(), [[(0, token)] for token in texts])
    reward = reinforce.text_reward(generation, [" 68"] * 3, lambda tokens: texts[tokens[0]])
    assert reward.tolist() == [1.0, 1.0, -1.0]


LETTERS = Task("letters", "", ("a", "b"), lambda data, seed: ([], []))
LETTER_SAMPLES = [Sample("x", "a"), Sample("y", "b"), Sample("xx", "a"), Sample("yy", "b")]
QUICK = Recipe(steps=30, batch=4, lr=0.03, draws=8)


def test_the_reward_of_a_trivial_task_rises(
    model: Any, adapted: dict[str, SvfLinear], tokenizer: Tokenizer
) -> None:
    steps = list(train_expert(model, adapted, tokenizer, LETTERS, LETTER_SAMPLES, QUICK))
    assert [step.step for step in steps] == list(range(30))
    assert sum(step.reward for step in steps[:3]) / 3 < 0.4
    assert steps[-1].reward > 0.9


def test_generated_answers_learn_too(model: Any, adapted: dict[str, SvfLinear], tokenizer: Tokenizer) -> None:
    with torch.no_grad():
        model.lm_head.weight *= 3
        second = logits_alone(model, tokenizer.encode("x"))[-1].topk(2).indices[1]
    answer = tokenizer.decode([int(second)])
    task = replace(LETTERS, labels=())
    samples = [Sample("x", answer)]
    recipe = replace(QUICK, draws=16, batch=2, max_tokens=1)
    steps = list(train_expert(model, adapted, tokenizer, task, samples, recipe))
    assert sum(step.reward for step in steps[:3]) / 3 < 0 < 0.5 < steps[-1].reward
    assert accuracy(model, tokenizer, samples, max_tokens=1) == 1.0


def test_an_interrupted_training_ends_as_an_uninterrupted_one(
    model: Any, adapted: dict[str, SvfLinear], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    def run(steps: int | None, state: Path, recipe: Recipe) -> tuple[list[int], Tensor]:
        for module in adapted.values():
            torch.nn.init.ones_(module.z)
        trained = train_expert(model, adapted, tokenizer, LETTERS, LETTER_SAMPLES, recipe, state=state)
        done = [step.step for step in itertools.islice(trained, steps)]
        return done, torch.cat([module.z.detach() for module in adapted.values()])

    recipe = replace(QUICK, steps=12)
    _, whole = run(None, tmp_path / "whole", recipe)
    done, _ = run(7, tmp_path / "cut", recipe)
    assert done == list(range(7))
    # What was saved after step 5 is the last whole state.
    done, resumed = run(None, tmp_path / "cut", recipe)
    assert done == list(range(5, 12))
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)
    done, _ = run(1, tmp_path / "cut", replace(recipe, seed=1))
    assert done == [0]


def test_the_learning_rate_rises_stays_and_falls() -> None:
    recipe = Recipe(steps=20, lr=1.0, warmup=4, decay=0.5)
    rates = [recipe.lr_at(step) for step in range(20)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0] and rates[10:12] == [1.0, 0.9]
    assert rates[-1] == pytest.approx(0.1)
    assert recipe.entropy_at(0) == 0.4 and recipe.entropy_at(19) == pytest.approx(0.02)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"draws": 1}, {"lr": 0.0}, {"decay": 2.0}], ids=str)
def test_a_recipe_that_cannot_work_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ZweaveError):
        Recipe(**wrong)


def test_labels_must_be_single_tokens(tokenizer: Tokenizer) -> None:
    assert label_ids(tokenizer, LETTERS).tolist() == [*tokenizer.encode("a"), *tokenizer.encode("b")]
    with pytest.raises(ZweaveError, match="'ab' of letters is 2 tokens"):
        label_ids(tokenizer, replace(LETTERS, labels=("ab",)))


def test_balanced_batches_hold_every_label_equally() -> None:
    samples = [Sample(str(i), "rare" if i == 0 else "common") for i in range(9)]
    drawn = list(itertools.islice(balanced(samples, ("rare", "common", "absent"), seed=0), 32))
    assert [sample.answer for sample in drawn] == ["rare", "common"] * 16
    assert len({sample.prompt for sample in drawn[1:16:2]}) == 8


def test_held_out_sums_are_not_trained_in_either_order() -> None:
    train, held_out = TASKS["addition"].samples(Path("nowhere"))

    def pair(sample: Sample) -> tuple[int, int]:
        a, b = map(int, sample.prompt.rpartition("\n")[2].removesuffix(" =").split(" + "))
        assert sample.answer == f" {a + b}"
        return min(a, b), max(a, b)

    assert len(held_out) == 600 and len(train) == 90 * 90 - sum(1 + (len({*pair(s)}) == 2) for s in held_out)
    assert not {pair(sample) for sample in train} & {pair(sample) for sample in held_out}


def test_a_held_out_review_is_dropped_from_training(tmp_path: Path) -> None:
    (tmp_path / "sst2_train.tsv").write_text("good\t1\nbad\t0\nso\u2028 so\t0\n", "utf-8")
    (tmp_path / "sst2_test.tsv").write_text("bad\t0\n", "utf-8")
    train, held_out = TASKS["sentiment"].samples(tmp_path)
    assert sorted(sample.answer for sample in train) == [" negative", " positive"]
    assert held_out == [
        Sample(
            "<|im_start|>user\nReview: bad\nIs the sentiment of this review positive or negative?<|im_end|>\n"
            "<|im_start|>assistant\nThe sentiment is",
            " negative",
        )
    ]


def test_missing_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(ZweaveError, match=r"TREC\.train\.all"):
        TASKS["question-type"].samples(tmp_path)


def test_missing_transformers_is_named(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ZweaveError, match=r"zweave\[train\]"):
        demo_experts.load_model(Checkpoint(directory), torch.float32)


def test_the_script_writes_an_expert_for_its_base(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZWEAVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(demo_experts.RECIPES, "addition", Recipe(steps=2, batch=2, draws=2, lr=0.1))
    monkeypatch.setattr(demo_experts, "VALIDATION", 2)
    command = ["addition", "--model", str(directory), "--out", str(tmp_path), "--held-out", "3"]
    demo_experts.run(demo_experts.parser().parse_args(command), Console(quiet=True))
    expert = Expert.load(tmp_path / "addition.safetensors")
    checkpoint = Checkpoint(directory)
    expert.check(checkpoint.config.adapted_shapes(), checkpoint.digest())
    assert expert.base_digest == checkpoint.digest() and expert.scope == "always"
    assert expert.training["task"] == "addition" and expert.training["held_out"] == 3
    assert len((tmp_path / "addition.jsonl").read_text().splitlines()) == 2
    assert not list(tmp_path.glob("*.state"))


def test_each_expert_starts_from_the_base(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZWEAVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(demo_experts, "VALIDATION", 2)
    measured = []
    trainer = demo_experts.Trainer.open(str(directory), torch.float32, Console(quiet=True))

    def measure(*arguments: Any, **options: Any) -> float:
        measured.append(torch.cat([module.z.detach() for module in trainer.adapted.values()]))
        return 0.5

    monkeypatch.setattr(demo_experts, "accuracy", measure)
    recipe = Recipe(steps=1, batch=1, draws=2, lr=0.1)
    labelled = replace(LETTERS, read=lambda data, seed: (LETTER_SAMPLES[:4], [Sample("z", "a")]))
    first, second = (tmp_path / name for name in "ab")
    for out in (first, second):
        out.mkdir()
        trainer.train(labelled, recipe, tmp_path, out, 1)
    before, after, again, _ = measured
    assert (before == 1).all() and (again == 1).all() and (after != 1).any()
    stored = Expert.load(first / "letters.safetensors")
    torch.testing.assert_close(torch.cat([stored.z[name] for name in trainer.adapted]), after, rtol=0, atol=0)


def test_the_script_refuses_an_unknown_task(tmp_path: Path) -> None:
    arguments = demo_experts.parser().parse_args(["poetry", "--out", str(tmp_path)])
    with pytest.raises(ZweaveError, match="poetry"):
        demo_experts.run(arguments, Console(quiet=True))


@pytest.mark.parametrize(
    ("name", "least"), [("sentiment", 0.86), ("question-type", 0.88), ("addition", 0.78)]
)
def test_bundled_experts_are_small_and_say_how_good_they_are(name: str, least: float) -> None:
    path = bundled_experts()[name]
    expert = Expert.load(path)
    assert path.stat().st_size < 250_000
    assert len(expert.z) == 210 and sum(z.numel() for z in expert.z.values()) == 97_920
    assert expert.base_digest and expert.description and expert.training["held_out"] >= 300
    assert expert.training["accuracy_after"] >= least > expert.training["accuracy_before"]
