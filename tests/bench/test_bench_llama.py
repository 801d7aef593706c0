"""llama.cpp beside ours, in `zweave bench peers`."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from zweave.bench.serving.fixtures import Fixtures
from zweave.bench.serving.peers.gguf_files import write_gguf
from zweave.bench.serving.peers.llama import LlamaFiles, llama_python
from zweave.bench.serving.workload import Workload
from zweave.cli.main import main
from zweave.errors import ZweaveError

LLAMA = ["llama.cpp", "llama.cpp-q8_0", "llama.cpp-q4_0", "llama.cpp-q4_1", "llama.cpp-lora3-r16"]


def test_no_interpreter_and_a_wrong_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zweave.bench.serving.peers.llama.find_spec", lambda module: None)
    monkeypatch.delenv("ZWEAVE_LLAMA_PYTHON", raising=False)
    with pytest.raises(
        ZweaveError, match=r"with llama-cpp-python: make one with .*llama_environment\.sh DIR"
    ):
        llama_python()
    monkeypatch.setenv("ZWEAVE_LLAMA_PYTHON", "/none")
    with pytest.raises(ZweaveError, match="ZWEAVE_LLAMA_PYTHON: /none is no interpreter"):
        llama_python()


def test_what_the_worker_is_told(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    fixtures, workload = Fixtures(str(tiny_model("llama", vocab_size=264)), "float32"), Workload(4, 8, 6)
    job = json.loads(LlamaFiles(tmp_path, fixtures, "q4_0").job(workload, [], threads=2).read_text())
    assert job["format"] == "q4_0" and Path(job["source"]).is_file() and not Path(job["model"]).exists()
    assert job["prompts"] == workload.prompts(fixtures.config) and job["turns"] == [[None] * 4]
    plain = json.loads(LlamaFiles(tmp_path, fixtures, "").job(workload, [], threads=2).read_text())
    assert plain["model"] == plain["source"] == job["source"] and plain["format"] == ""


@pytest.mark.slow
@pytest.mark.parametrize("requests", [1, 6])
def test_llama_cpp_answers_right(
    capsys: pytest.CaptureFixture[str], tiny_model: Callable[..., Path], requests: int
) -> None:
    try:
        llama_python()
    except ZweaveError as error:
        pytest.skip(str(error))
    # Rows of whole blocks of 32, which the formats want.
    model = tiny_model("llama", vocab_size=264, hidden_size=64, intermediate_size=96)
    status = main(
        ["bench", "peers", "--model", str(model), "--dtype", "float32", "--requests", str(requests), "--prompt", "8",
         "--new", "6", "--experts", "3", "--rounds", "2", "--providers", ",".join(LLAMA)]
    )  # fmt: skip
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert status == 0, line["rows"]
    rows = {row["provider"]: row for row in line["rows"]}
    assert set(rows) == set(LLAMA)
    # In float32 it chooses the likeliest token; with activations in eight bits one that is hardly less likely.
    assert rows["llama.cpp"]["error"] < 1e-3 and rows["llama.cpp-lora3-r16"]["error"] < 1e-3
    errors = {name: rows[name]["error"] for name in LLAMA}
    assert all(error < 0.05 for error in errors.values()), errors
    assert rows["llama.cpp-q4_0"]["vs_llama_q4_0"] == 1


def test_weights_are_judged_by_the_matrices_that_their_file_stands_for(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    fixtures = Fixtures(str(tiny_model("llama", vocab_size=264)), "float32")
    files = LlamaFiles(tmp_path, fixtures, "q8_0")
    write_gguf(fixtures.checkpoint, tmp_path / "model-q8_0.gguf", "float32")
    assert set(files.changes) == {*fixtures.config.adapted_shapes(), "model.embed_tokens", "lm_head"}
    for module, matrix in files.changes.items():
        assert torch.equal(matrix, fixtures.checkpoint.tensor(f"{module}.weight")), module
