"""What the command line prints and writes: experts, searches, evaluations, plans, traces. And the files of a cache."""

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

from digests import of_tensors
from models import tiny, tiny_engine
from safetensors.torch import load_file
from surroundings import fixed_clock

from zweave.cli.main import main

# One after the other, in a folder with the model and the tasks; TINY and SEARCH stand for OPTIONS.
COMMANDS = """
expert new a.safetensors --random 0.3 --seed 0 --model model
expert new b.safetensors --random 0.3 --seed 1 --model model
expert new late.safetensors --random 0.3 --first-layer 2 --model model
expert mix mixed.safetensors a.safetensors=0.5 late.safetensors=1,0.5,0.25
expert diff a.safetensors mixed.safetensors --json
expert show mixed.safetensors --json
expert show late.safetensors
expert transfer a.safetensors moved.safetensors --from model --to other --json
vllm-export a.safetensors -o adapter
expert search task.jsonl --out found.safetensors SEARCH --json TINY
expert search task.jsonl --out free.safetensors --per-layer --free SEARCH --json TINY
expert classifier one.jsonl two.jsonl --out c.safetensors --json TINY
eval task.jsonl --expert a.safetensors --runs both=a.safetensors,b.safetensors --json TINY
eval task.jsonl --expert a.safetensors --kv-reuse --json TINY
eval one.jsonl two.jsonl --dispatch d.json --json TINY
plan --max-memory 0.2 --max-error 0.1 --certify a.safetensors --json TINY
plan --certify late.safetensors --json TINY
generate some words --expert a.safetensors --max-tokens 4 --temperature 1 --seed 3 TINY
generate --input requests.jsonl --jsonl --dispatcher d.json --load a=a.safetensors TINY
trace --input requests.jsonl --interval 0 --dispatcher d.json --load a=a.safetensors TINY
train task.jsonl --steps 3 --batch 4 --draws 4 --validation 4 --held-out 9 --out . --json TINY
"""
OPTIONS = {
    "TINY": "--model model --dtype float32",
    "SEARCH": "--experts a.safetensors b.safetensors --shots 4 --population 10 --generations 2",
}
REQUESTS: list[dict[str, Any]] = [
    {"prompt": "a text", "expert": "auto", "max_tokens": 3},
    {
        "messages": [{"role": "user", "content": "words"}],
        "expert": {"a": 0.5},
        "max_tokens": 3,
        "logprobs": 5,
    },
    {
        "prompt": "a text",
        "sampling": {"temperature": 1.0, "seed": 1, "top_k": 9},
        "stop": "e",
        "max_tokens": 9,
    },
]
# What is measured, or tells when and where it was made.
UNSURE = {"seconds", "time", "ts", "dur", "out", "directory", "threads"}


def cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    yield "commands", commands
    yield "cache", decomposition


def commands() -> Any:
    """What each command returns, prints and leaves behind."""
    found: dict[str, Any] = {}
    before = Path.cwd()
    width = mock.patch.dict(os.environ, COLUMNS="100")
    with tempfile.TemporaryDirectory() as folder, fixed_clock(), width:
        os.chdir(folder)
        _prepare()
        for command in COMMANDS.strip().splitlines():
            known, printed = _files(), io.StringIO()
            words = " ".join(OPTIONS.get(word, word) for word in command.split()).split()
            with redirect_stdout(printed):
                status = main(words)
            written = {name: digest for name, digest in _files().items() if known.get(name) != digest}
            found[command] = [status, _sure(printed.getvalue()), written]
        # As a set: in which order a step computes its sequences changes no result.
        found["trace.json"] = sorted(map(json.dumps, _sure(Path("trace.json").read_text())["traceEvents"]))
        os.chdir(before)
    return found


def _prepare() -> None:
    for name, model in (("model", "llama"), ("other", "qwen2")):
        Path(name).symlink_to(tiny(model))
    labels: list[dict[str, Any]] = [{"labels": ["x", "y"]}]
    _write_lines("task", labels + [{"prompt": f"{i} is", "answer": "xy"[i % 2]} for i in range(50)])
    for name, letter in (("one", "o"), ("two", "w")):
        _write_lines(name, [{"prompt": f"{letter * 4}{i}", "answer": str(i)} for i in range(60)])
    _write_lines("requests", REQUESTS)
    experts = {"one": "a.safetensors", "two": {"b.safetensors": 0.5}}
    Path("d.json").write_text(
        json.dumps({"strategy": "hidden", "classifier": "c.safetensors", "experts": experts})
    )


def _write_lines(name: str, lines: list[dict[str, Any]]) -> None:
    Path(f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _files() -> dict[str, str]:
    """Digests of the tensors in the folder's files, whose metadata tell when they were made."""
    return {
        str(path): of_tensors(*(tensor for _, tensor in sorted(load_file(path).items())))
        for path in sorted(Path().glob("**/*.safetensors"))
    }


def _sure(text: str) -> Any:
    """What was printed: JSON without what is measured, a JSON value a line, or lines."""
    try:
        return _without_unsure(json.loads(text))
    except ValueError:
        return [_sure(line) if line.startswith("{") else line for line in text.splitlines()]


def _without_unsure(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_unsure(one) for key, one in value.items() if key not in UNSURE}
    return [_without_unsure(one) for one in value] if isinstance(value, list) else value


def decomposition() -> Any:
    """Names and content of the files that an engine leaves in an empty cache, which later versions read."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, ZWEAVE_CACHE=folder):
        tiny_engine("odd", "float32")
        paths = sorted(path for path in Path(folder).rglob("*") if path.is_file() and path.suffix != ".lock")
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths
        }
