"""`zweave expert compress` and `project`, and what commands make of their files."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from zweave.adapters.compression.compressed_file import load_compressed
from zweave.checkpoint import Checkpoint
from zweave.cli.main import main
from zweave.experts import Expert

DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture
def model(tiny_model_and_expert: tuple[str, str]) -> str:
    return tiny_model_and_expert[0]


@pytest.fixture
def loras(model: str, tmp_path: Path) -> list[str]:
    """Directories of three LoRAs, of two components each."""
    shapes = Checkpoint(model).adapted_shapes()
    return [save_lora(tmp_path / name, shapes, seed) for seed, name in enumerate(("one", "two", "three"))]


def save_lora(directory: Path, shapes: dict[str, tuple[int, int]], seed: int) -> str:
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for module, (rows, columns) in shapes.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(2, columns, generator=generator)
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(rows, 2, generator=generator)
    directory.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 0.2, "description": f"of seed {seed}"}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "adapter_model.safetensors")
    return str(directory)


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command prints."""

    def run(*argv: object) -> str:
        assert main([str(word) for word in argv]) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line of a command that fails."""

    def run(*argv: object) -> str:
        assert main([str(word) for word in argv]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


@pytest.mark.parametrize("variant", ["diagonal", "full"])
def test_compress_tells_the_errors_and_writes_what_show_shows(
    variant: str, model: str, loras: list[str], tmp_path: Path, printed: Callable[..., str]
) -> None:
    file = tmp_path / "many.safetensors"
    command = (
        "expert",
        "compress",
        *loras[:2],
        f"third={loras[2]}",
        "--rank",
        4,
        "-o",
        file,
        "--model",
        model,
    )
    found = json.loads(printed(*command, "--variant", variant, "--json"))
    first = file.read_bytes()
    compressed = load_compressed(file)
    assert [entry["name"] for entry in found["adapters"]] == ["one", "two", "third"]
    for index, entry in enumerate(found["adapters"]):
        assert entry["errors"] == compressed.errors(index) and 0 < entry["error"] < 1
    assert found["matrices"].keys() == Checkpoint(model).adapted_shapes().keys()
    assert json.loads(printed("expert", "show", file, "--json")) == found
    table = printed(*command, "--variant", variant, "--overwrite")
    assert file.read_bytes() == first and table == printed("expert", "show", file)
    row = next(line.split() for line in table.splitlines() if "third" in line)
    worst = max(found["adapters"][2]["errors"].items(), key=lambda item: item[1])
    assert row == [
        "third",
        "2",
        f"{found['adapters'][2]['error']:.4f}",
        worst[0].split(".")[2],
        worst[0].rpartition(".")[2],
        f"{worst[1]:.4f}",
    ]
    assert ("served as a plain LoRA of its own rank" in table) == (variant == "full")


def test_requests_name_the_adapters_of_a_file(
    model: str, loras: list[str], tmp_path: Path, printed: Callable[..., str], refused: Callable[..., str]
) -> None:
    file = tmp_path / "many.safetensors"
    printed("expert", "compress", *loras, "--rank", 6, "-o", file, "--model", model)
    said = ("generate", "--model", model, "--raw", "abc", "--max-tokens", 8, "--jsonl")
    answers = {
        expert: json.loads(printed(*said, "--load", file, "--expert", expert))["token_ids"]
        for expert in ("base", "one", "two=0.5,three=1")
    }
    assert len({str(tokens) for tokens in answers.values()}) == 3
    assert "there is no expert 'four'" in refused(*said, "--load", file, "--expert", "four")
    assert "--load FILE" in refused(*said, "--load", f"x={file}", "--expert", "x")
    assert "--load takes NAME=FILE, or FILE of compressed LoRAs" in refused(*said, "--load", __file__)
    assert "holds LoRAs, which have none" in refused("expert", "show", file, "--png", tmp_path / "map.png")


def test_what_cannot_be_compressed_is_told_in_one_line(
    model: str, loras: list[str], tmp_path: Path, refused: Callable[..., str]
) -> None:
    file = tmp_path / "many.safetensors"
    rest = ("-o", file, "--model", model)
    for words, argv in {
        "two adapters are called 'one': NAME=": (loras[0], loras[0], "--rank", 2),
        "the expert name 'base' is reserved": (f"base={loras[0]}", "--rank", 2),
        "from 1 to 4096, not 4097": (loras[0], "--rank", 4097),
        "2 adapters make from 1 to 2 clusters, not 3": (*loras[:2], "--rank", 2, "--clusters", 3),
        "holds no adapter_config.json": (tmp_path, "--rank", 2),
    }.items():
        assert words in refused("expert", "compress", *argv, *rest)
    assert not file.exists()


def test_project_writes_the_nearest_expert(
    model: str, loras: list[str], tmp_path: Path, printed: Callable[..., str], refused: Callable[..., str]
) -> None:
    file = tmp_path / "nearest.safetensors"
    command = ("expert", "project", loras[0], "-o", file, "--model", model)
    found = json.loads(printed(*command, "--json"))
    expert = Expert.load(file)
    assert expert.base_digest == Checkpoint(model).digest() and expert.description == "of seed 0"
    assert expert.training["kept"] == found["kept"] and expert.digest == found["digest"]
    assert {entry["module"] for entry in found["matrices"]} == expert.z.keys()
    table = printed(*command, "--all", "--overwrite")
    share = next(entry["kept"] for entry in found["matrices"] if entry["module"] == DOWN)
    assert f"{share:.4f}" in next(line for line in table.splitlines() if DOWN in line)
    kinds = printed(*command, "--overwrite").splitlines()
    assert len(kinds) == 1 + 7 + 1 + 1 and f"{found['kept']:.4f}" in kinds[-2]
    other = tmp_path / "other"
    save_lora(other, {DOWN: (7, 5)}, 0)
    assert f"{other}: {DOWN}: the adapter is for a matrix of 7 x 5" in refused(
        "expert", "project", other, *command[3:], "--overwrite"
    )
