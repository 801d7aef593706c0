"""The command line as a user meets it: a process, its output and its exit status; what is wrong with many inputs is
told in one process, since each takes seconds to load torch."""

import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from zweave import __version__
from zweave.checkpoint import ModelConfig
from zweave.cli.main import main

Run = Callable[..., subprocess.CompletedProcess[str]]
COMMAND = [sys.executable, "-m", "zweave.cli.main"]


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", vocab_size=96)


@pytest.fixture
def zweave(tmp_path: Path) -> Run:
    def run(*args: object, text: str | None = None) -> subprocess.CompletedProcess:
        return subprocess.run(
            [*COMMAND, *map(str, args)],
            input=text,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=120,
        )

    return run


def assert_one_line_error(done: subprocess.CompletedProcess, *words: str) -> None:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("zweave: error: ")]
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0]


def test_help_of_every_command(zweave: Run, capsys: pytest.CaptureFixture) -> None:
    listed = zweave("--help").stdout
    for command in ("pull", "decompose", "expert", "generate", "chat", "demo"):
        assert command in listed
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        assert f"zweave {command}" in capsys.readouterr().out
    assert zweave("nonsense").returncode == 2


def test_jsonl_in_and_out(zweave: Run, model: Path, random_expert: Callable, tmp_path: Path) -> None:
    shapes = ModelConfig.from_directory(model).adapted_shapes()
    random_expert(shapes, seed=1).save(tmp_path / "one.safetensors")
    lines = [
        {"prompt": "hello", "max_tokens": 3, "ignore_eos": True},
        {"prompt": [1, 2, 3], "expert": "mine", "max_tokens": 5, "ignore_eos": True, "logprobs": 2},
        {"prompt": "hi", "expert": {"mine": 0.5}, "sampling": {"temperature": 1, "seed": 3}, "max_tokens": 2},
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    done = zweave(
        "generate", "--model", model, "--dtype", "float32", "--load", "mine=one.safetensors",
        "--input", "in.jsonl", "--jsonl", "--output", "out.jsonl",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "tokens/s" in done.stderr
    results = {
        row["index"]: row for row in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    }
    assert sorted(results) == [0, 1, 2]
    assert len(results[0]["token_ids"]) == 3
    assert len(results[1]["logprobs"][0]["top"]) == 2
    assert results[2]["expert"] == {"mine": 0.5}


def test_plain_prompts_from_standard_input(zweave: Run, model: Path) -> None:
    done = zweave(
        "generate", "--model", model, "--input", "-", "--max-tokens", 2, "--max-model-len", 1000,
        text="first\nsecond\n",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "\nzweave: warning: max_model_len 1000: the model is made for 512 tokens" in f"\n{done.stderr}"
    assert done.stdout.count("> ") == 2
    assert "2 requests" in done.stderr


@pytest.mark.parametrize(
    ("args", "text", "words"),
    [
        ((), None, ("no prompt given",)),
        (("",), None, ("empty",)),
        (("Once upon a time", "--max-model-len", "4"), None, ("16 tokens", "at most 3")),
        (("hello", "--temperature", "-1"), None, ("temperature",)),
        (("hello", "--temperature", "nan"), None, ("temperature",)),
        (("hello", "--expert", "nobody"), None, ("nobody",)),
        (("hello", "--expert", "a=x"), None, ("NAME=WEIGHT",)),
        (("hello", "--load", "a"), None, ("NAME=PATH",)),
        (("hello", "--load", "a=missing.safetensors"), None, ("missing.safetensors",)),
        (("hello", "--model", "gpt-17"), None, ("gpt-17",)),
        (("hello", "--device", "tpu"), None, ("device",)),
        (("--input", "missing.txt"), None, ("missing.txt",)),
        (("--input", "-", "--jsonl"), "{", ("line 1", "JSON")),
        (("--input", "-", "--jsonl"), "[]", ("line 1", "object")),
        (("--input", "-", "--jsonl"), '{"prompt": "a", "tokens": 1}', ("line 1", "tokens")),
        (
            ("--input", "-", "--jsonl"),
            '{"prompt": "a"}\n{"prompt": "a", "max_tokens": 0}',
            ("line 2", "max_tokens"),
        ),
        (("--input", "-", "--jsonl"), '{"prompt": "a", "sampling": {"heat": 1}}', ("line 1", "heat")),
        (("--input", "-", "--jsonl"), '{"prompt": "a", "sampling": 3}', ("line 1", "sampling")),
        (("hello", "--output", "missing/out"), None, ("--output", "missing")),
    ],
    ids=str,
)
def test_bad_input_gives_one_line(
    model: Path,
    args: tuple[str, ...],
    text: str | None,
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    model_args = () if "--model" in args else ("--model", str(model))
    status = main(["generate", *args, *model_args])
    assert_one_line_error(subprocess.CompletedProcess((), status, *capsys.readouterr()), *words)


def test_model_that_was_never_pulled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("ZWEAVE_CACHE", str(tmp_path / "nothing"))
    status = main(["generate", "hello"])
    done = subprocess.CompletedProcess((), status, *capsys.readouterr())
    assert_one_line_error(done, "zweave pull smollm2")


def test_interrupt_keeps_what_is_done(model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": [1], "max_tokens": 1}, {"prompt": [1], "max_tokens": 200, "ignore_eos": True}] * 100
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    output = tmp_path / "out.jsonl"
    process = subprocess.Popen(
        [*COMMAND, "generate", "--model", model, "--input", "in.jsonl", "--jsonl", "--output", output],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (output.is_file() and output.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    kept = [json.loads(line) for line in output.read_text().splitlines()]
    assert 0 < len(kept) < len(rows)


def test_chat_changes_experts_and_survives_mistakes(
    zweave: Run, tiny_model: Callable[..., Path], random_expert: Callable, tmp_path: Path
) -> None:
    model = tiny_model("llama", vocab_size=96)
    random_expert(ModelConfig.from_directory(model).adapted_shapes(), seed=1).save(
        tmp_path / "one.safetensors"
    )
    script = "/experts\n/expert nobody\n/expert mine\n/expert base\n/help\n/reset\n/quit\n"
    done = zweave("chat", "--model", model, "--load", "mine=one.safetensors", text=script)
    assert done.returncode == 0, done.stderr
    assert "no expert 'nobody'" in done.stdout
    assert "mine>" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="needs Linux to see what is loaded")
@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.4])
def test_interrupt_while_the_program_loads(seconds: float) -> None:
    process = subprocess.Popen([*COMMAND, "chat"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "zweave: interrupted\n")


@pytest.mark.parametrize(
    ("closed", "status", "out", "errors"),
    [
        (">&-", 1, "", "zweave: error: standard output is closed: send it to a file, or to /dev/null\n"),
        ("<&- 2>&-", 0, f"zweave {__version__}\n", ""),
    ],
    ids=["output", "input and errors"],
)
def test_closed_streams(closed: str, status: int, out: str, errors: str) -> None:
    """Python drops what is printed to a closed output; coreutils end with an error as this does."""
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *COMMAND, "--version"]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (status, errors) and done.stdout.startswith(out)


@pytest.mark.parametrize(("options", "reused"), [((), [0, 4]), (("--no-prefix-cache",), [0, 0])], ids=str)
def test_what_was_reused_is_told(
    model: Path,
    options: tuple[str, ...],
    reused: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('{"prompt": [1, 2, 3, 4, 5]}\n' * 2))
    arguments = ("--model", str(model), "--input", "-", "--jsonl", "--max-tokens", "2")
    assert main(["generate", *arguments, *options]) == 0
    results = sorted(map(json.loads, capsys.readouterr().out.splitlines()), key=lambda r: r["index"])
    assert [result["reused_tokens"] for result in results] == reused
    assert [result["reuse"] for result in results] == ["same_mixture" if count else None for count in reused]
