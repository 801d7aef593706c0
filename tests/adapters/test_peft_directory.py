"""What PEFT saves is read as it is, or refused in one line."""

import gc
import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from zweave.adapters.peft_directory import read_peft
from zweave.errors import ZweaveError

Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """An adapter of one matrix, written by hand."""
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    pair = {"lora_A": torch.arange(10.0).view(2, 5), "lora_B": torch.ones(3, 2)}
    save_file(
        {f"base_model.model.{Q}.{part}.weight": tensor for part, tensor in pair.items()},
        tmp_path / "adapter_model.safetensors",
    )
    return tmp_path


def change(directory: Path, **fields: Any) -> None:
    file = directory / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def change_tensors(directory: Path, by: Callable[[dict[str, torch.Tensor]], None]) -> None:
    file = directory / "adapter_model.safetensors"
    tensors = load_file(file)
    by(tensors)
    save_file(tensors, file)


def test_a_plain_adapter(plain: Path) -> None:
    lora = read_peft(plain)
    assert list(lora.pairs) == [Q] and lora.pairs[Q].scaling == 4 and lora.rank == 2
    assert lora.pairs[Q].a.tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert (lora.scope, lora.first_layer) == ("always", 0)


def test_reading_again_and_again_keeps_nothing(plain: Path) -> None:
    def grown(times: int) -> int:
        gc.collect()
        before = sys.getallocatedblocks()
        for _ in range(times):
            read_peft(plain)
        gc.collect()
        return sys.getallocatedblocks() - before

    grown(300)  # Python keeps some freed objects for the next.
    # It has two tensors: an object kept of each would make 400.
    assert grown(200) < 300


@pytest.mark.parametrize(
    ("fields", "scaling"),
    [
        ({"use_rslora": True}, 8 / 2**0.5),
        ({"alpha_pattern": {"q_proj": 1}}, 0.5),
        ({"alpha_pattern": {"0.self_attn.q_proj": 1}}, 0.5),
        ({"alpha_pattern": {"^model.layers.0.self_attn.q_proj": 1}}, 0.5),
        ({"alpha_pattern": {"k_proj": 1}}, 4),
        ({"r": 7, "rank_pattern": {"q_proj": 2}}, 4),
    ],
)
def test_scalings(plain: Path, fields: dict[str, Any], scaling: float) -> None:
    change(plain, **fields)
    assert read_peft(plain).pairs[Q].scaling == pytest.approx(scaling)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type must be LORA, not 'IA3'"),
        ({"peft_type": ["LORA"]}, "peft_type must be LORA"),
        ({"use_dora": True}, "use_dora is set, and DoRA scales whole rows"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"lora_bias": True}, "lora_bias is set"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is set"),
        ({"init_lora_weights": "pissa_niter_4"}, "which changes the base model's weights"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is set"),
        ({"target_parameters": ["x"]}, "target_parameters is set"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is set"),
        ({"r": 3}, f"{Q} has rank 2, and adapter_config.json says 3"),
        ({"r": "2"}, "r must be a number"),
        ({"lora_alpha": None}, "lora_alpha must be a number"),
        ({"rank_pattern": ["q"]}, "rank_pattern must be an object of numbers"),
        ({"alpha_pattern": {"(q|k)+_proj": 2}}, "is an expression"),
        ({"rank_pattern": {"\\": 8}}, "is no valid expression"),
        ({"alpha_pattern": {"\\1": 2}}, "is no valid expression"),
        ({"alora_invocation_tokens": [-1]}, "must be a list of token ids"),
    ],
)
def test_refusals(plain: Path, fields: dict[str, Any], words: str) -> None:
    change(plain, **fields)
    with pytest.raises(ZweaveError) as refused:
        read_peft(plain)
    assert words in str(refused.value) and "\n" not in str(refused.value)
    assert str(plain) in str(refused.value)


def test_tensors_that_are_no_lora(plain: Path) -> None:
    a, b = f"base_model.model.{Q}.lora_A.weight", f"base_model.model.{Q}.lora_B.weight"

    def nan(tensors: dict[str, torch.Tensor]) -> None:
        tensors[b][0, 0] = torch.nan

    def huge(tensors: dict[str, torch.Tensor]) -> None:
        tensors[a][0, 0] = -2e30

    def head(tensors: dict[str, torch.Tensor]) -> None:
        tensors["base_model.model.lm_head.lora_A.weight"] = torch.ones(2, 5)

    def magnitude(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"base_model.model.{Q}.lora_magnitude_vector"] = torch.ones(3)

    cases: list[tuple[Callable[[dict[str, torch.Tensor]], object], str]] = [
        (nan, f"{Q}: lora_B holds NaN or infinity"),
        (huge, f"{Q}: lora_A holds values up to 2.0e+30"),
        (lambda tensors: tensors.pop(b), f"{Q} has lora_A and not its other half"),
        (lambda tensors: tensors.update({b: torch.ones(3, 4)}), "do not share a rank"),
        (lambda tensors: tensors.update({a: torch.ones(2, 5, dtype=torch.int8)}), "is of torch.int8"),
        (head, "'lm_head' is not a matrix that an expert can adapt"),
        (magnitude, "is neither lora_A nor lora_B of a linear layer"),
        (dict.clear, "the adapter adapts no matrix"),
    ]
    whole = (plain / "adapter_model.safetensors").read_bytes()
    for by, words in cases:
        (plain / "adapter_model.safetensors").write_bytes(whole)
        change_tensors(plain, by)
        with pytest.raises(ZweaveError) as refused:
            read_peft(plain)
        assert words in str(refused.value) and "\n" not in str(refused.value)


def test_files_that_are_not_there_or_broken(plain: Path) -> None:
    weights = plain / "adapter_model.safetensors"
    whole = weights.read_bytes()
    for content in (whole[:-3], whole[:20], b"", struct.pack("<Q", 1 << 60)):
        weights.write_bytes(content)
        with pytest.raises(ZweaveError, match="is not a whole safetensors file"):
            read_peft(plain)
    weights.unlink()
    with pytest.raises(
        ZweaveError, match=r"holds no adapter_model\.safetensors: save it again as safetensors"
    ):
        read_peft(plain)
    (plain / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(ZweaveError, match="a pickle, which can run code"):
        read_peft(plain)
    (plain / "adapter_config.json").write_text("[" * 100_000)
    weights.write_bytes(whole)
    with pytest.raises(ZweaveError, match=r"adapter_config.json is not a JSON object"):
        read_peft(plain)
