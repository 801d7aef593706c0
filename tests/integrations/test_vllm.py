"""The plugin in vLLM itself: the real model in float32 against separately merged weights, offline and over HTTP.

ZWEAVE_VLLM_PYTHON names an interpreter that has vLLM and zweave;
`bench/serving/peers/vllm_environment.sh DIR` makes one.
"""

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from zweave.bench.serving.peers.vllm_environment import VARIABLE, vllm_environment, vllm_python
from zweave.checkpoint import Checkpoint
from zweave.decomposition import Decomposition, decompose
from zweave.experts import Expert, bundled_expert
from zweave.experts.mixture import mix_experts
from zweave.integrations.vllm import save_adapter
from zweave.io.cache_dir import cache_dir
from zweave.text import Tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

NEW_TOKENS = 24
LIMIT = 5e-4
EXPERTS = ("sst2", "trec", "addition", "mixture")
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
QUESTIONS = (
    "Review: a dull and lifeless film that never finds its feet, with a story that has been told a hundred times and "
    "actors who seem to know it. Is the review positive or negative? Answer with one word.",
    "Question: Who wrote the novel that the opera is based on, in which year was it first performed, and what became "
    "of the theatre? Does it ask for a person, a place or a number?",
)


@pytest.fixture(scope="module")
def python() -> Path:
    if VARIABLE not in os.environ:
        pytest.skip(f"{VARIABLE} names no interpreter with vLLM")
    found = vllm_python()
    check = [found, "-c", "import vllm, zweave.integrations.vllm.plugin"]
    done = subprocess.run(check, env=vllm_environment(found), capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{found} cannot import vLLM and zweave: {done.stderr.splitlines()[-1]}")
    return found


@pytest.fixture(scope="module")
def experts() -> dict[str, Expert]:
    found = {name: Expert.load(bundled_expert(name)) for name in ("sst2", "trec", "addition")}
    found["mixture"] = mix_experts([found["sst2"], found["trec"]], [[0.7] * 30, [0.3] * 30])
    return found


@pytest.fixture(scope="module")
def adapters(experts: Mapping[str, Expert], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Name to adapter directory."""
    root = tmp_path_factory.mktemp("adapters")
    for name, expert in experts.items():
        save_adapter(expert, root / name)
    return {name: str(root / name) for name in experts}


@pytest.fixture(scope="module")
def environment(
    python: Path,
    smollm2: Path,
    user_cache: str | None,
    in_user_cache: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    """A cache of its own, in which the user's decompositions lie."""
    decompose(Checkpoint(smollm2))
    cache = tmp_path_factory.mktemp("vllm-cache")
    (cache / "decompositions").symlink_to(cache_dir() / "decompositions")
    return vllm_environment(python) | {"ZWEAVE_CACHE": str(cache)}


@pytest.fixture(scope="module")
def truth(
    smollm2: Path, experts: Mapping[str, Expert], in_user_cache: None
) -> Callable[[str | None, list[int]], tuple[list[int], list[float]]]:
    """Greedy tokens and their log-probabilities from transformers with merged weights."""
    models: dict[str | None, Any] = {}
    known: dict[tuple[str | None, tuple[int, ...]], tuple[list[int], list[float]]] = {}

    @torch.inference_mode()
    def answer(name: str | None, prompt: list[int]) -> tuple[list[int], list[float]]:
        key = name, tuple(prompt)
        if key not in known:
            if name not in models:
                models.clear()
                models[name] = merged(smollm2, experts[name] if name else None)
            model = models[name]
            output = model.generate(
                torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False,
                eos_token_id=None, pad_token_id=0,
            )  # fmt: skip
            tokens = output[0, len(prompt) :].tolist()
            logits = model(output[:, :-1]).logits[0, len(prompt) - 1 :].double()
            chosen = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None]).flatten()
            known[key] = tokens, chosen.tolist()
        return known[key]

    return answer


def merged(directory: Path, expert: Expert | None) -> Any:
    """transformers' model in float32 whose weights are U diag(sigma * z) V^T, multiplied out in float64."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    decomposition = Decomposition.open(Checkpoint(directory).digest())
    for module, z in expert.z.items() if expert else ():
        u, sigma, vt = (factor.double() for factor in decomposition.factors(module))
        model.get_submodule(module).weight.data.copy_((u * (sigma * z.double())) @ vt)
    return model.eval()


def prompts(smollm2: Path) -> list[list[int]]:
    tokenizer = Tokenizer(smollm2)
    return [tokenizer.encode(CHAT.format(question)) for question in QUESTIONS]


def answers(python: Path, model: Path, environment: Mapping[str, str], job: dict[str, Any]) -> list[Any]:
    script = Path(__file__).with_name("vllm_answers.py")
    done = subprocess.run(
        [python, script, model], input=json.dumps(job), env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_mixed_batch_equals_merged_weights(
    python: Path, smollm2: Path, environment: dict, adapters: dict, truth: Callable, tmp_path: Path
) -> None:
    asked = prompts(smollm2)
    names = [name for name in (None, *EXPERTS) for _ in asked]
    mixed = {"prompts": asked * 5, "adapters": [name and adapters[name] for name in names], "copy": None}
    base = {"prompts": asked, "adapters": [None] * len(asked), "copy": None}
    # One directory and name, whose content is first sst2's and then trec's.
    changing = str(tmp_path / "changing")
    before, after = (
        {"prompts": asked, "adapters": [changing] * len(asked), "copy": [adapters[name], changing]}
        for name in ("sst2", "trec")
    )
    job = {"max_tokens": NEW_TOKENS, "batches": [base, mixed, before, after, dict(after, copy=None)]}
    alone, together, first, second, again = answers(python, smollm2, environment, job)

    largest = 0.0
    for name, prompt, (tokens, logprobs, _) in zip(names, asked * 5, together, strict=True):
        expected, chosen = truth(name, prompt)
        assert tokens == expected, name
        largest = max(largest, *(abs(a - b) for a, b in zip(logprobs, chosen, strict=True)))
    print(f"largest difference of a log-probability: {largest:.1e}")
    assert largest < LIMIT

    # The base's rows are what they are without experts beside them.
    for (tokens, logprobs, _), (own, own_logprobs, _) in zip(together, alone, strict=False):
        assert tokens == own
        assert max(abs(a - b) for a, b in zip(logprobs, own_logprobs, strict=True)) < LIMIT / 5

    # The second content found none of the first one's keys and values, but its own.
    for name, batch in (("sst2", first), ("trec", second), ("trec", again)):
        assert [tokens for tokens, _, _ in batch] == [truth(name, prompt)[0] for prompt in asked]
    assert all(cached > 0 for _, _, cached in again)


def test_a_missing_decomposition_is_one_line(
    python: Path, smollm2: Path, environment: dict, tmp_path: Path
) -> None:
    script = Path(__file__).with_name("vllm_answers.py")
    done = subprocess.run(
        [python, script, smollm2], input=json.dumps({"max_tokens": 1, "batches": []}),
        env=environment | {"ZWEAVE_CACHE": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if "is not decomposed" in line]
    assert lines and f"zweave decompose {smollm2}" in lines[-1]


@pytest.fixture
def server(python: Path, smollm2: Path, environment: dict, adapters: dict, tmp_path: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        python, "-m", "vllm.entrypoints.openai.api_server", "--model", smollm2, "--served-model-name", "smollm2",
        "--quantization", "svf", "--enable-lora", "--max-loras", "5", "--dtype", "float32", "--max-model-len", "512",
        "--block-size", "32", "--host", "127.0.0.1", "--port", port,
        "--lora-modules", *(f"{name}={adapters[name]}" for name in EXPERTS),
    ]  # fmt: skip
    # As servers run: the engine in a process of its own.
    variables = environment | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    log = (tmp_path / "server.log").open("w+")
    process = subprocess.Popen(
        list(map(str, command)), env=variables, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            if process.poll() is not None or is_up(url):
                break
            time.sleep(1)
        assert is_up(url), (tmp_path / "server.log").read_text()[-4000:]
        yield url
    finally:
        process.terminate()
        process.wait(timeout=60)


def is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def test_experts_come_and_go_under_traffic(
    python: Path, smollm2: Path, server: str, environment: dict, adapters: dict, truth: Callable, tmp_path: Path,
    random_expert: Callable,
) -> None:  # fmt: skip
    tokenizer = Tokenizer(smollm2)
    texts = [CHAT.format(question) for question in QUESTIONS]
    encoded = prompts(smollm2)
    foreign, lora = tmp_path / "foreign", tmp_path / "lora"
    save_adapter(random_expert({"model.layers.0.mlp.up_proj": (1536, 576)}, 1, base_digest="f" * 64), foreign)
    lora.mkdir()
    (lora / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": []}'
    )
    contents = ("sst2", "trec", "addition", "sst2")
    job = {
        "models": list(EXPERTS),
        "prompts": texts,
        "max_tokens": NEW_TOKENS,
        "changing": {
            "name": "changing",
            "directory": str(tmp_path / "changing"),
            "contents": [adapters[name] for name in contents],
        },
        "bad": [str(foreign), str(lora), str(tmp_path / "nothing")],
    }
    script = Path(__file__).with_name("vllm_client.py")
    done = subprocess.run(
        [python, script, server], input=json.dumps(job), env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])

    def expected(name: str) -> list[str]:
        return [tokenizer.decode(truth(name, prompt)[0]) for prompt in encoded]

    assert not found["failures"]
    for name in EXPERTS:
        assert found["steady"][name] == [[text] for text in expected(name)]
    for name, given in zip((*contents, contents[-1]), found["changing"], strict=True):
        assert given == expected(name)
    assert {"smollm2", *EXPERTS, "changing"} <= set(found["listed"])
    assert "trained for other weights" in found["refusals"][0]
    assert "is no expert" in found["refusals"][1] and "vllm-export" in found["refusals"][1]
