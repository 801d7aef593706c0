"""`vllm bench serve` as a load generator, unchanged.

ZWEAVE_VLLM_PYTHON names an interpreter that has vLLM; `bench/serving/peers/vllm_environment.sh DIR` makes one.
"""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zweave.bench.serving.peers.vllm_environment import VARIABLE, vllm_environment, vllm_python

REQUESTS = 24


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "path", "options"),
    [
        ("openai", "/v1/completions", []),
        ("openai-chat", "/v1/chat/completions", ["--temperature", "0", "--ignore-eos"]),
        ("vllm", "/v1/completions", ["--request-rate", "50", "--top-p", "0.9", "--logprobs", "2"]),
    ],
)
def test_vllm_loads_this_server(
    tiny_model: Callable[..., Path],
    server_process: Callable[..., Any],
    tmp_path: Path,
    backend: str,
    path: str,
    options: list[str],
) -> None:
    if VARIABLE not in os.environ:
        pytest.skip(f"{VARIABLE} names no interpreter with vLLM")
    vllm = vllm_python().with_name("vllm")
    if not vllm.is_file():
        pytest.skip(f"there is no {vllm}")
    model = tiny_model("llama")
    server = server_process(model, "--dtype", "float32", "--served-model-name", "tiny").wait()
    command = [vllm, "bench", "serve", "--backend", backend, "--base-url", server.url, "--endpoint", path]
    command += [
        "--model",
        "tiny",
        "--tokenizer",
        model,
        "--dataset-name",
        "random",
        "--num-prompts",
        REQUESTS,
    ]
    command += ["--random-input-len", "30", "--random-output-len", "12", "--max-concurrency", "8"]
    command += ["--save-result", "--result-filename", tmp_path / "result.json", *options]
    # vLLM for CPUs is a distribution of another name, and its command asks for this one.
    named = tmp_path / "vllm-0.dist-info"
    named.mkdir()
    (named / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0\n")
    done = subprocess.run(
        [str(part) for part in command],
        env=vllm_environment(vllm_python()) | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["completed"], result["failed"]) == (REQUESTS, 0), done.stdout[-2000:]
    # Chat answers may hold tokens without text, which its client does not count.
    assert 0 < result["total_output_tokens"] <= 12 * REQUESTS
    assert result["mean_ttft_ms"] > 0 and result["mean_itl_ms"] > 0
