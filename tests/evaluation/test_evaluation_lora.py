"""LoRA adapters in the result table: the answers are those of PEFT's own model, the row says what was trained."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from zweave import Engine
from zweave.cli.main import main
from zweave.errors import ZweaveError
from zweave.evaluation import ExpertMethod
from zweave.evaluation.lora import LoraModel
from zweave.tasks import Sample, Splits, Task
from zweave.train import Recipe, open_policy, train

pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
TASK = Task("mine", "", lambda _: Splits([], []), max_tokens=4)
SAMPLES = [Sample(f"{'word ' * (i % 5)}{i}", "ab"[i % 2]) for i in range(40)]


@pytest.fixture
def model(tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ZWEAVE_CACHE", str(tmp_path / "cache"))
    return str(tiny_model("llama"))


@pytest.fixture
def make(model: str, tmp_path: Path) -> Callable[..., Path]:
    """Trains an adapter for two steps, large ones, so that its answers are its own."""

    def adapter(name: str, **fields: Any) -> Path:
        recipe = Recipe(adapter="lora", steps=2, batch=4, draws=4, lr=0.05, warmup=0, validation=2, **fields)
        policy = open_policy(model, recipe, torch.float32)
        labelled = Task("letters", "", lambda _: Splits(SAMPLES, SAMPLES), labels=("a", "b"))
        for _ in train(policy, labelled, SAMPLES, SAMPLES[:2], recipe):
            pass
        policy.adapter.save(tmp_path / name, "", {"seed": recipe.seed})
        return tmp_path / name

    return adapter


def answers_of_peft(model: str, directory: Path | None) -> list[str]:
    """By transformers' generate, one prompt after the other."""
    from transformers import AutoModelForCausalLM

    from zweave.text import Tokenizer

    own: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if directory is not None:
        own = peft.PeftModel.from_pretrained(own, str(directory))
    tokenizer, texts = Tokenizer(Path(model)), []
    for sample in SAMPLES:
        ids = tokenizer.encode(sample.prompt)
        found = own.generate(
            input_ids=torch.tensor([ids]),
            max_new_tokens=4,
            do_sample=False,
            eos_token_id=list(tokenizer.eos_ids),
        )
        texts.append(tokenizer.decode(found[0, len(ids) :].tolist()))
    return texts


def test_adapters_answer_as_pefts_own_model(model: str, make: Callable[..., Path]) -> None:
    first, second = make("first", rank=2), make("second", rank=3, seed=1)
    lora = LoraModel(model, torch.float32)
    methods = [lora.method("low", directory) for directory in (first, second)]
    # In turn and back again: one adapter is active at a time.
    found = [method.answers(TASK, SAMPLES) for method in (*methods, methods[0])]
    assert found[0] == found[2] == answers_of_peft(model, first)
    assert found[1] == answers_of_peft(model, second)
    assert answers_of_peft(model, None) not in found and found[0] != found[1]
    shapes = [part.shape for part in lora.module.parameters() if 2 in part.shape]
    assert methods[0].parameters == sum(a * b for a, b in shapes) > 0
    assert methods[1].parameters * 2 == methods[0].parameters * 3


def test_an_adapter_that_acts_after_the_prompt_is_answered_so(model: str, make: Callable[..., Path]) -> None:
    always, late = make("always", rank=2), make("late", rank=2, scope="after_prompt")
    (late / "adapter_model.safetensors").write_bytes((always / "adapter_model.safetensors").read_bytes())
    lora = LoraModel(model, torch.float32)
    methods = [lora.method(name, directory) for name, directory in (("always", always), ("late", late))]
    assert [method.scope for method in methods] == ["always", "after_prompt"]
    found = [method.answers(TASK, SAMPLES) for method in methods]
    assert found[0] != found[1]
    engine = Engine(model, dtype="float32", kv_tokens=2048)
    for directory in (always, late):
        engine.load_expert(directory.name, directory)
    served = [ExpertMethod("", engine, directory.name) for directory in (always, late)]
    assert [method.answers(TASK, SAMPLES) for method in served] == found
    (always / "zweave.json").unlink()
    assert lora.method("peft's own", always).scope == "always"


def test_the_table_holds_its_row(
    model: str, make: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    low = [make("0", rank=2), make("1", rank=2, seed=1)]
    lines = [{"labels": ["a", "b"]}, *({"prompt": s.prompt, "answer": s.answer} for s in SAMPLES)]
    (tmp_path / "letters.jsonl").write_text("\n".join(map(json.dumps, lines)))
    arguments = ["--model", model, "--dtype", "float32", "--seeds", "1", "--lora", f"LoRA={low[0]},{low[1]}"]
    arguments += ["--runs", f"served={low[0]},{low[1]}"]
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "letters.jsonl"), *arguments, "--json"]) == 0
    rows = {row["method"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    row = rows["LoRA"]
    # The engine's answers under the same adapters are those of PEFT's forward pass.
    assert rows["served"]["accuracy"] == row["accuracy"] and rows["served"]["parameters"] == row["parameters"]
    assert row["runs"] == 2 and row["n"] == 8 and 0 <= row["accuracy"] <= 1
    assert row["parameters"] == LoraModel(model, torch.float32).method("", low[0]).parameters


def test_what_is_no_adapter_is_one_line(
    model: str, make: Callable[..., Path], tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    lora = LoraModel(model, torch.float32)
    with pytest.raises(ZweaveError, match=r"holds no adapter_config\.json"):
        lora.method("x", tmp_path)
    other = make("other", rank=2)
    wide = LoraModel(str(tiny_model("llama", hidden_size=64)), torch.float32)
    with pytest.raises(ZweaveError, match=r"is no adapter for this model: .*size mismatch") as raised:
        wide.method("x", other)
    assert "\n" not in str(raised.value)
    for text, words in (("{", "is not a JSON object"), ('{"scope": "sometimes"}', "not 'sometimes'")):
        (other / "zweave.json").write_text(text)
        with pytest.raises(ZweaveError, match=words):
            lora.method("x", other)
