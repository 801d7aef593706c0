"""What approximate reuse costs, as `zweave eval --kv-reuse` tells it."""

import json
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from zweave import Engine
from zweave.cli.main import main
from zweave.evaluation import reuse_cost
from zweave.evaluation.reuse import divergence
from zweave.tasks import Sample, Splits, Task, prompt_ids

TinyEngine = Callable[..., Engine]


def test_the_divergence_is_that_of_the_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(50, generator=generator, dtype=torch.float64).log_softmax(0) for _ in range(2))
    whole = float((p.exp() * (p - q)).sum())
    assert divergence(p.tolist(), q.tolist()) == pytest.approx(whole, rel=1e-9)
    order = p.argsort(descending=True)
    some = [divergence(p[order[:count]].tolist(), q[order[:count]].tolist()) for count in (1, 10, 30, 49)]
    assert some == sorted(some) and some[0] >= 0 and some[-1] == pytest.approx(whole, rel=1e-9)
    assert divergence(p.tolist(), p.tolist()) == 0.0


def test_the_row_is_that_of_two_experts(tiny_engine: TinyEngine, prompt_logits: Callable) -> None:
    engine = tiny_engine(kv_tokens=1024)
    engine.load_expert("tail", replace(engine.bank.registered("b").read(), scope="after_prompt"))
    samples = [Sample(f"some words {'and more ' * (i % 4)}{i}", "x") for i in range(12)]
    task = Task("mine", "", lambda _: Splits([], samples), max_tokens=2)
    row = reuse_cost(engine, task, samples, "b", "b")
    prompts = [prompt_ids(engine.tokenizer, sample.prompt) for sample in samples]
    starts = [engine.tokenizer.after_prompt_start(prompt) for prompt in prompts]
    assert (row.n, row.prompt_tokens) == (12, sum(map(len, prompts)))
    assert sum(starts) <= row.reused_tokens < row.prompt_tokens
    exact, approximate = (
        torch.stack(
            [
                rows[-1].log_softmax(-1).double()
                for rows in prompt_logits(engine, [(p, name) for p in prompts])
            ]
        )
        for name in ("b", "tail")
    )
    # All of the 96 tokens but one are told apart.
    whole = float((exact.exp() * (exact - approximate)).sum(-1).mean())
    assert row.kl == pytest.approx(whole, rel=1e-3) and row.kl > 0
    spared = reuse_cost(engine, task, samples, "tail", "tail")
    assert spared.kl == pytest.approx(0, abs=1e-6)
    assert math.isclose(spared.accuracy, spared.approximate_accuracy)


def test_the_command(
    tiny_model_and_expert: tuple[str, str],
    capsys: pytest.CaptureFixture,
) -> None:
    model, expert = tiny_model_and_expert
    arguments = ["eval", "addition", "--kv-reuse", "--samples", "8", "--model", model, "--dtype", "float32"]
    assert main([*arguments, "--expert", expert, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["task"], row["method"], row["n"]) == ("addition", expert, 8)
    assert row["kl"] > 0 and 0 < row["reused_tokens"] < row["prompt_tokens"]
    assert main([*arguments, "--expert", expert]) == 0
    assert capsys.readouterr().out.startswith("| task | expert | exact | 95% | approximate | 95% | KL |")
    assert main(arguments) == 1
    assert "name one with --expert" in capsys.readouterr().err
