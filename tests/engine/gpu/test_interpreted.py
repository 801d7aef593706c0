"""The GPU engine with its Triton kernels in the interpreter: what the CPU engine gives, token for token."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from zweave.dispatch import EarlyClassifier, HiddenDispatcher, Routes
from zweave.engine import Engine
from zweave.request import Request, Sampling

pytest.importorskip("triton")

PROGRAM = """
import pickle, sys
from pathlib import Path
from zweave.engine import Engine
from zweave.engine.gpu import build
from zweave.engine.gpu.backend import ReferenceBackend
from zweave.kernels import triton_ops

backend = ReferenceBackend()
backend.ops = triton_ops()
build.backend_of = lambda *_: backend
folder, model, options = Path(sys.argv[1]), sys.argv[2], pickle.loads(bytes.fromhex(sys.argv[3]))
engine = Engine(model, device="reference", **options)
for path in folder.glob("*.safetensors"):
    engine.load_expert(path.stem, path)
results = engine.generate(pickle.loads((folder / "requests").read_bytes()))
(folder / "results").write_bytes(pickle.dumps([(result.token_ids, result.error) for result in results]))
"""


def classifier(width: int) -> EarlyClassifier:
    weight = torch.randn(3, width, generator=torch.Generator().manual_seed(0))
    return EarlyClassifier(("x", "y", "z"), 1, weight, torch.tensor([1.0, 0.0, -9.0]))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "batch_invariant"), [("qwen3", False), ("qwen2", True)])
def test_tokens(
    kind: str, batch_invariant: bool, tiny_model: Any, random_expert: Callable[..., Any], tmp_path: Path
) -> None:
    model = tiny_model(kind, vocab_size=96)
    options = {"dtype": "float32", "kv_tokens": 512, "block_size": 16}
    engine = Engine(model, **options)
    shapes = engine.model.config.adapted_shapes()
    for name, seed, scope in (("a", 1, "always"), ("b", 2, "always"), ("tail", 3, "after_prompt")):
        replace(random_expert(shapes, seed=seed), scope=scope).save(tmp_path / f"{name}.safetensors")
        engine.load_expert(name, tmp_path / f"{name}.safetensors")
    prompts = [[1, 5, 9, 40, 41, 7, 3], [8] * 21, list(range(3, 40)), [60]]
    dispatcher = HiddenDispatcher(
        classifier(engine.model.config.hidden_size), Routes({"x": "tail", "y": "tail"})
    )
    requests = [
        Request(
            prompt,
            expert=(None, "a", "auto", {"a": 0.5, "b": 0.5})[i],
            dispatcher=dispatcher if i == 2 else None,
            max_tokens=3,
            ignore_eos=True,
            sampling=Sampling(temperature=float(i % 2), top_k=10, seed=i),
        )
        for i, prompt in enumerate(prompts)
    ]
    given = interpreted(tmp_path, model, options | {"batch_invariant": batch_invariant}, requests)
    assert given == [(result.token_ids, None) for result in engine.generate(requests)]


def interpreted(folder: Path, model: Path, options: dict[str, Any], requests: list[Request]) -> list[Any]:
    """Token ids and error of each request, of an engine with the experts of a folder and interpreted kernels."""
    (folder / "requests").write_bytes(pickle.dumps(requests))
    command = [sys.executable, "-c", PROGRAM, str(folder), str(model), pickle.dumps(options).hex()]
    subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, check=True)
    return pickle.loads((folder / "results").read_bytes())


@pytest.mark.slow
def test_tokens_of_weights_on_a_grid(
    tiny_model: Any, to_grid: Callable[..., Path], random_expert: Callable[..., Any], tmp_path: Path
) -> None:
    source = tiny_model("llama", vocab_size=96, hidden_size=64, intermediate_size=96)
    model = to_grid(source, tmp_path / "model", lambda name: "Q8_0" if "v_proj" in name else "Q4_1")
    options = {"dtype": "float32", "kv_tokens": 512, "block_size": 16, "weights": "grid"}
    engine = Engine(model, device="reference", **options)
    random_expert(engine.model.config.adapted_shapes(), seed=1).save(tmp_path / "a.safetensors")
    engine.load_expert("a", tmp_path / "a.safetensors")
    requests = [
        Request(prompt, expert=expert, max_tokens=3, ignore_eos=True)
        for prompt, expert in (([1, 5, 9, 40], None), (list(range(3, 20)), "a"))
    ]
    given = interpreted(tmp_path, model, options, requests)
    assert given == [(result.token_ids, None) for result in engine.generate(requests)]
