"""Pooled hidden states and the classifier on them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from zweave import Engine, Request
from zweave.cli.main import main
from zweave.dispatch import EarlyClassifier
from zweave.dispatch.train_classifier import _fit, bare_prompt, train_classifier
from zweave.errors import ZweaveError
from zweave.evaluation.baselines import logistic_regression
from zweave.tasks import Sample, Splits, Task, resolve_task, which_task

TinyEngine = Callable[..., Engine]
PROMPTS = [[3, 14, 15, 9, 26, 5, 35], [8], [9, 7, 9, 32, 38, 46, 26, 4, 3, 3, 1], [14, 15]]

UNLABELLED = Task("mine", "", lambda _: Splits([Sample("a", "b")], [Sample("c", "d")]))


@pytest.fixture(scope="module")
def engine(tiny_engine: TinyEngine) -> Engine:
    return tiny_engine()


def make_task(labels: tuple[str, ...] = ("x", "y", "z")) -> Task:
    """Words of one letter, which tells the label."""
    letters = "abc"[: len(labels)]
    found = [
        Sample(f"{letters[i % len(labels)] * (1 + i % 9)}{i}", labels[i % len(labels)]) for i in range(150)
    ]
    return Task("mine", "", lambda _: Splits(found[50:], found[:50]), labels)


def test_pooled_states_are_transformers_hidden_states(
    engine: Engine, tiny_model: Callable[..., Path]
) -> None:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(tiny_model("llama", vocab_size=96), dtype=torch.float32).eval()
    # The last hidden state that transformers returns is normed; that of layer 2 is taken before its norm.
    before_norm: list[torch.Tensor] = []
    model.norm.register_forward_hook(lambda _, inputs, output: before_norm.append(inputs[0]))
    states = engine.pooled_states(PROMPTS, [2, 1])
    assert states.shape == (2, 4, 32) and states.dtype == torch.float32
    for index, prompt in enumerate(PROMPTS):
        with torch.inference_mode():
            hidden = model(torch.tensor([prompt]), output_hidden_states=True).hidden_states
        torch.testing.assert_close(states[1, index], hidden[1][0].mean(0), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(states[0, index], before_norm[-1][0].mean(0), rtol=1e-4, atol=1e-4)


def test_pooled_states_do_not_depend_on_the_batch_and_leave_the_engine_as_it_was(
    tiny_engine: TinyEngine,
) -> None:
    engine = tiny_engine(max_batch_tokens=8, max_sequences=8)
    before = engine.generate(Request(PROMPTS[0], expert="a", max_tokens=5))
    held = engine.stats().blocks_in_use
    together = engine.pooled_states(PROMPTS, [1])
    for index, prompt in enumerate(PROMPTS):
        assert torch.equal(engine.pooled_states([prompt], [1])[:, 0], together[:, index])
    assert engine.stats().blocks_in_use == held == 0
    assert engine.generate(Request(PROMPTS[0], expert="a", max_tokens=5)) == before


@pytest.mark.parametrize("labels", [("x", "y"), ("x", "y", "z")], ids=["two", "three"])
def test_training_chooses_the_layer_and_learns(engine: Engine, labels: tuple[str, ...]) -> None:
    task = make_task(labels)
    found, shares = train_classifier(engine, task, None, layers=[2, 1], shots=60)
    assert list(shares) == [1, 2] and shares[found.layer] == max(shares.values()) > 0.9
    assert found.layer == 1 or shares[1] < shares[2]
    test = task.samples("test")
    answers = found.classify(engine, [bare_prompt(engine, sample) for sample in test])
    assert sum(answer == s.answer for answer, s in zip(answers, test, strict=True)) > 0.9 * len(test)


def test_the_folded_weights_are_the_regressions_own(engine: Engine) -> None:
    generator = torch.Generator().manual_seed(0)
    states = 3 + 5 * torch.randn(60, 4, generator=generator)
    for labels in (["x", "y"], ["x", "y", "z"]):
        samples = [Sample("", labels[i % len(labels)]) for i in range(60)]
        weight, bias = _fit(states, samples, labels)
        model = logistic_regression().fit(states.double().numpy(), [i % len(labels) for i in range(60)])
        expected = torch.from_numpy(model.predict_proba(states.double().numpy())).float()
        found = EarlyClassifier(tuple(labels), 1, weight, bias)
        torch.testing.assert_close(found.probabilities(states), expected, rtol=1e-4, atol=1e-5)


def test_files(tmp_path: Path) -> None:
    saved = EarlyClassifier((" a", " b"), 3, torch.randn(2, 5), torch.randn(2), "digest", {"task": "t"})
    saved.save(tmp_path / "c.safetensors")
    found = EarlyClassifier.load(tmp_path / "c.safetensors")
    assert torch.equal(found.weight, saved.weight) and torch.equal(found.bias, saved.bias)
    assert (found.labels, found.layer, found.base_digest, found.training) == (
        (" a", " b"),
        3,
        "digest",
        {"task": "t"},
    )
    (tmp_path / "bad").write_bytes(b"no")
    with pytest.raises(ZweaveError, match="is not a whole safetensors file"):
        EarlyClassifier.load(tmp_path / "bad")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda engine: engine.pooled_states(PROMPTS, [0]), "layers are from 1 to 2"),
        (lambda engine: engine.pooled_states([], [1]), "there is no prompt"),
        (lambda engine: train_classifier(engine, UNLABELLED, None, [1]), "a classifier needs labels"),
        (lambda engine: train_classifier(engine, make_task(), None, [1], shots=2), "no training sample has"),
        (
            lambda _: EarlyClassifier(("a", "b"), 1, torch.zeros(3, 4), torch.zeros(2)),
            "do not fit its 2 labels",
        ),
        (lambda _: EarlyClassifier(("a", "b"), 1, torch.full((2, 4), torch.nan), torch.zeros(2)), "finite"),
    ],
)
def test_what_is_wrong_is_said(call: Callable[[Engine], object], words: str, engine: Engine) -> None:
    with pytest.raises(ZweaveError, match=words):
        call(engine)


def test_the_command(
    tiny_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{"labels": ["x", "y"]}]
    lines += [{"prompt": "ab"[i % 2] * 5 + str(i), "answer": "xy"[i % 2]} for i in range(80)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)))
    out = tmp_path / "c.safetensors"
    command = ["expert", "classifier", str(tmp_path / "mine.jsonl"), "--out", str(out), "--dtype", "float32"]
    assert main([*command, "--model", str(tiny_model("llama")), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert set(figures["validation"]) == {"1", "2"} and figures["n"] == 16
    found = EarlyClassifier.load(out)
    assert found.layer == figures["layer"] and found.base_digest
    assert main([*command[:3], "--out", "/none/c", "--model", str(tiny_model("llama"))]) == 1
    assert "no directory /none" in capsys.readouterr().err


def test_several_tasks_are_told_apart(
    tiny_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, letter in (("one", "a"), ("two", "b")):
        lines = [{"prompt": letter * 5 + str(i), "answer": str(i)} for i in range(60)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    files = [str(tmp_path / f"{name}.jsonl") for name in ("one", "two")]
    task = which_task([resolve_task(file) for file in files])
    for split in ("train", "validation", "test"):
        samples = task.samples(split)
        assert {sample.answer for sample in samples} == set(task.labels) == {"one", "two"}
        assert all((sample.answer == "one") == sample.prompt.startswith("a") for sample in samples)
        parts = [s.prompt for file in files for s in resolve_task(file).samples(split)]
        assert sorted(sample.prompt for sample in samples) == sorted(parts)
    out = tmp_path / "c.safetensors"
    options = ["--out", str(out), "--dtype", "float32", "--model", str(tiny_model("llama"))]
    assert main(["expert", "classifier", *files, *options, "--json"]) == 0
    # By chance a third; how many a random model tells apart differs between processors.
    assert json.loads(capsys.readouterr().out)["accuracy"] > 0.7
    assert EarlyClassifier.load(out).labels == ("one", "two", "other")
    command = ["expert", "classifier", *files, *options, "--overwrite"]
    assert main([*command, "--no-other"]) == 0
    assert EarlyClassifier.load(out).labels == ("one", "two")
    assert main([*command, "--no-other", "--unseen", files[0]]) == 1
    assert "give --other too" in capsys.readouterr().err
    assert main(["expert", "classifier", files[0], files[0], *options, "--overwrite"]) == 1
    assert "two tasks or more are wanted, each once" in capsys.readouterr().err
