"""The server under clients that leave, dawdle and send nonsense, while a thousand experts come and go."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zweave import Engine, Expert, Request, Sampling

CLIENTS = Path(__file__).with_name("soak") / "clients.py"
ADMIN_KEY = "admin"
NEW = 12
KV_TOKENS = 2048
OPTIONS = [
    *("--admin-key", ADMIN_KEY, "--served-model-name", "tiny", "--dtype", "float32"),
    *("--slots", "16", "--kv-tokens", str(KV_TOKENS)),
]
LONG = {"prompt": [5, 6, 7], "n": 8, "max_tokens": 200, "logprobs": 5, "ignore_eos": True, "seed": 3}
# Seconds of the exhaustive run.
DURATION = "ZWEAVE_SOAK_SECONDS"


@pytest.mark.slow
def test_a_short_soak(soak: Callable[..., Any]) -> None:
    found = soak(seconds=12, experts=60)
    assert found["counts"]["answers under a name that changed"] > 0


@pytest.mark.exhaustive
@pytest.mark.timeout(0)
def test_a_long_soak(soak: Callable[..., Any]) -> None:
    seconds = float(os.environ.get(DURATION, "600"))
    found = soak(seconds=seconds, experts=1000)
    kept = [size for at, size in found["sizes"] if at > min(120, seconds / 5)]
    assert max(kept) < 1.05 * kept[0]


@pytest.fixture
def soak(
    tiny_model: Callable[..., Path],
    random_expert: Callable[..., Expert],
    server_process: Callable[..., Any],
    tmp_path: Path,
) -> Callable[..., Any]:
    """`soak(seconds, experts)`: what the clients found, with the sizes of the server; checks that it is idle then."""
    model = tiny_model("llama", vocab_size=96)
    directory = tmp_path / "experts"
    directory.mkdir()

    def run(seconds: float, experts: int) -> Any:
        job = make_job(model, directory, random_expert, experts)
        server = server_process(model, *OPTIONS, "--experts", str(directory)).wait()
        before = server.resources()
        job |= {"port": server.port, "seconds": seconds, "clients": 64, "seed": 0, "admin_key": ADMIN_KEY}
        command = [sys.executable, CLIENTS]
        clients = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert clients.stdin and clients.stdout
        clients.stdin.write(json.dumps(job | {"directory": str(directory)}))
        clients.stdin.close()
        start, sizes = time.monotonic(), []
        while clients.poll() is None:
            sizes.append((time.monotonic() - start, server.resources()["bytes"]))
            time.sleep(0.5)
        found = json.loads(clients.stdout.read().splitlines()[-1])
        assert found["faults"] == [], "\n".join(found["faults"]) + str(found["counts"])
        print(
            found["counts"], "MiB every minute:", [size >> 20 for _, size in sizes[::120]], sizes[-1][1] >> 20
        )
        check_idle(server, before)
        return found | {"sizes": sizes}

    return run


def check_idle(server: Any, before: dict[str, int]) -> None:
    """Nothing is left of any request."""
    end = time.monotonic() + 20
    while (gauges := server.gauges())["zweave_requests_in_work"] or gauges["zweave_cache_blocks_in_use"]:
        assert time.monotonic() < end, gauges
        time.sleep(0.1)
    assert gauges["zweave_expert_slots_in_use"] == 0
    assert gauges["zweave_cache_blocks_free"] + gauges["zweave_cache_blocks_cached"] == KV_TOKENS / 16
    assert gauges["zweave_preemptions_total"] > 0
    assert server.process.poll() is None
    after = server.resources()
    assert after["files"] <= before["files"] + 1
    # The pools of asyncio and of the framework keep theirs.
    assert after["threads"] <= before["threads"] + 50
    told = set(server.log.read_text().splitlines()[1:])
    # The second is asyncio's, of a client that has just gone.
    assert told <= {"WARNING:  Invalid HTTP request received.", "socket.send() raised exception."}


def make_job(
    model: Path, directory: Path, random_expert: Callable[..., Expert], count: int
) -> dict[str, Any]:
    """Experts on the disk, and what the engine alone answers under each of them."""
    engine = Engine(model, dtype="float32", kv_tokens=8192, slots=64)
    shapes = engine.model.config.adapted_shapes()
    prompts = [list(range(3, 8)), [*range(3, 40), 9], [*range(3, 40), *range(50, 90)]]
    names: dict[str, Any] = {}
    asked: list[Request] = []
    (directory / "versions").mkdir()
    for index in range(count):
        kind = ("upload", "file", "adapter")[index % 3]
        name = f"{kind}{index}"
        names[name] = {"kind": kind, "versions": []}
        for version in range(2):
            expert = random_expert(shapes, seed=2 * index + version)
            file = directory / "versions" / f"{name}-{version}.safetensors"
            expert.save(file)
            engine.load_expert(f"{name}-{version}", expert)
            names[name]["versions"].append([str(file), []])
            asked += [
                Request(prompt, expert=f"{name}-{version}", max_tokens=NEW, ignore_eos=True)
                for prompt in prompts
            ]
        if kind == "file":
            (directory / f"{name}.safetensors").write_bytes(Path(names[name]["versions"][0][0]).read_bytes())
    texts = iter([result.text for result in engine.generate(asked)])
    for entry in names.values():
        for version in entry["versions"]:
            version[1] = [next(texts) for _ in prompts]
    for seed, name in enumerate(("s", "t")):
        expert = random_expert(shapes, seed=-1 - seed)
        expert.save(directory / f"{name}.safetensors")
        engine.load_expert(name, expert)
    fixed, long = fixed_cases(engine)
    return {"names": names, "prompts": prompts, "new": NEW, "fixed": fixed, "long": long}


def fixed_cases(engine: Engine) -> tuple[list[Any], Any]:
    """Bodies with one right answer each, as the engine gives it."""
    mixture = {"s": 0.5, "t": [0.3, 0.7]}
    talk = [{"role": "user", "content": "so it is"}]
    cases: list[tuple[str, dict[str, Any], list[Request]]] = []

    def add(
        body: dict[str, Any], *prompts: Any, chat: bool = False, expert: Any = None, **options: Any
    ) -> None:
        sampling = Sampling(temperature=body["temperature"], seed=body.get("seed"))
        common = {
            "expert": expert,
            "max_tokens": body["max_tokens"],
            "ignore_eos": True,
            "sampling": sampling,
        }
        given = [{"messages": talk}] if chat else [{"prompt": prompt} for prompt in prompts]
        requests = [Request(**one, **common, **options) for one in given]
        path = "/v1/chat/completions" if chat else "/v1/completions"
        cases.append((path, body | {"ignore_eos": True}, requests))

    greedy = {"temperature": 0, "max_tokens": 40}
    add(greedy | {"model": "tiny", "prompt": "so"}, "so")
    add(greedy | {"model": "s", "prompt": [3, 4, 5]}, [3, 4, 5], expert="s")
    add(greedy | {"expert": mixture, "prompt": [8, 9]}, [8, 9], expert=mixture)
    add(greedy | {"prompt": ["so", "it", "goes"], "model": "t"}, "so", "it", "goes", expert="t")
    add(greedy | {"model": "s", "messages": talk}, chat=True, expert="s")
    drawn = {"temperature": 1, "seed": 7, "max_tokens": 30, "n": 3}
    add(drawn | {"prompt": "it", "model": "t"}, "it", expert="t", n=3)
    add(LONG | {"temperature": 1}, LONG["prompt"], n=LONG["n"])
    told = []
    for path, body, requests in cases:
        texts = [
            sample.text for result in engine.generate(requests) for sample in (result.samples or (result,))
        ]
        told.append({"path": path, "body": body, "texts": texts})
    return told[:-1], told[-1]
