"""What is wrong with a quantised checkpoint is told in one line."""

import json
import shutil

import pytest
import torch

from zweave.checkpoint import Checkpoint
from zweave.errors import ZweaveError

MODULE = "model.layers.1.mlp.down_proj"
AWQ = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 16}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False, "sym": True}
FP8 = {"quant_method": "fp8", "weight_block_size": [16, 16]}
WEIGHTS = {"num_bits": 8, "type": "float", "strategy": "tensor"}


def _compressed(**change):
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {"weights": WEIGHTS | change}},
    }


PACKED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {
        "group_0": {"weights": {"num_bits": 4, "strategy": "group", "group_size": 16, "symmetric": False}}
    },
}


@pytest.fixture(scope="module")
def built(formats, quantized_model):
    """A quantised checkpoint by its quant_method, made once."""
    parts = {
        "awq": lambda rng, m, n: formats["awq"](rng, m, n, 16),
        "gptq": lambda rng, m, n: formats["gptq"](rng, m, n, 16),
        "fp8": lambda rng, m, n: formats["fp8"](rng, m, n, 16, 16, "weight_scale_inv"),
    }
    parts["packed"] = lambda rng, m, n: formats["compressed"](rng, m, n, 4, 16, zeros=True, act_order=True)
    configs = {"awq": AWQ, "gptq": GPTQ, "fp8": FP8, "packed": PACKED}
    return {method: quantized_model(parts[method], configs[method])[0] for method in configs}


@pytest.fixture
def models(built, tmp_path):
    """A copy of a quantised checkpoint that may be damaged."""
    return lambda method: shutil.copytree(built[method], tmp_path / "model")


def _read(directory):
    checkpoint = Checkpoint(directory)
    for name in checkpoint.names():
        checkpoint.tensor(name)


def _refused(directory, message):
    with pytest.raises(ZweaveError, match=message) as refusal:
        _read(directory)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 500


def _set_config(directory, quantization):
    raw = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(raw | {"quantization_config": quantization}))


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        (
            {"quant_method": "bitsandbytes"},
            "'bitsandbytes' is not supported, only awq, gptq, fp8, compressed-tensors",
        ),
        ({"quant_method": ["awq"]}, "is not supported"),
        ({"bits": 4}, "quant_method None is not supported"),
        ("awq", "quant_method None is not supported"),
        (AWQ | {"version": "gemv"}, "version 'gemv' is not supported, only gemm"),
        (AWQ | {"bits": 8}, "bits 8 is not supported, only 4"),
        (AWQ | {"group_size": None}, "group_size must be a positive integer, not None"),
        (AWQ | {"group_size": 0}, "group_size must be a positive integer, not 0"),
        (AWQ | {"group_size": True}, "group_size must be a positive integer, not True"),
        (GPTQ | {"bits": 3}, "bits 3 is not supported, only 4 and 8"),
        (
            GPTQ | {"checkpoint_format": "marlin"},
            "checkpoint_format 'marlin' is not supported, only gptq and gptq_v2",
        ),
        (GPTQ | {"desc_act": 1}, "desc_act 1 is not supported"),
        (GPTQ | {"dynamic": {"+:.*up.*": {"bits": 8}}}, "bits or groups of their own"),
        (GPTQ | {"dynamic": ["a"]}, "bits or groups of their own"),
        (FP8 | {"fmt": "e5m2"}, "fmt 'e5m2' is not supported, only e4m3"),
        (FP8 | {"weight_block_size": [128]}, "weight_block_size must be two positive integers"),
        (FP8 | {"weight_block_size": "128"}, "weight_block_size must be two positive integers"),
        (
            _compressed() | {"format": "marlin-24"},
            "format 'marlin-24' is not supported, only float-quantized and pack-quantized and int-quantized",
        ),
        (_compressed() | {"config_groups": {"FP8": ["Linear"]}}, "config_groups must hold weights"),
        (_compressed() | {"config_groups": None}, "config_groups must hold weights, not None"),
        (_compressed(type="int"), "type 'int' is not supported, only float"),
        (_compressed() | {"format": "int-quantized"}, "type 'float' is not supported, only int"),
        (
            _compressed(type="int", num_bits=2) | {"format": "pack-quantized"},
            "num_bits 2 is not supported, only 4 and 8",
        ),
        (
            _compressed(type="int", strategy="block") | {"format": "int-quantized"},
            "strategy 'block' is not supported, only tensor and channel and group",
        ),
        (
            _compressed(type="int", strategy="group", group_size=-1) | {"format": "int-quantized"},
            "group_size must be a positive integer, not -1",
        ),
        (_compressed(num_bits=4), "num_bits 4 is not supported, only 8"),
        (_compressed(symmetric=False), "symmetric False is not supported"),
        (_compressed(strategy="tensor_group"), "strategy 'tensor_group' is not supported"),
        (_compressed(strategy="block"), "strategy block needs a block_structure"),
    ],
)
def test_other_methods_and_malformed_configs(tiny_model, tmp_path, quantization, message):
    directory = tiny_model("llama")
    (tmp_path / "model.safetensors").symlink_to(directory / "model.safetensors")
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    _set_config(tmp_path, quantization)
    _refused(tmp_path, message)


def _without(part):
    return lambda tensors: tensors.pop(f"{MODULE}.{part}")


def _changed(part, change):
    def apply(tensors):
        tensors[f"{MODULE}.{part}"] = change(tensors[f"{MODULE}.{part}"]).contiguous()

    return apply


def _first(value):
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[0] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        ("awq", _without("scales"), r"lacks model.layers.1.mlp.down_proj.scales, without which"),
        ("awq", _without("qzeros"), "lacks .*qzeros"),
        ("awq", _without("qweight"), r"lacks 1 tensors, e.g. model.layers.1.mlp.down_proj.weight"),
        ("awq", _changed("scales", lambda t: t[1:]), r"scales has shape \(2, 32\), .* means \(3, 32\)"),
        ("awq", _changed("qzeros", lambda t: t[:, :2]), r"qzeros has shape \(3, 2\), .* means \(3, 4\)"),
        ("awq", _changed("qweight", lambda t: t.float()), "qweight has dtype F32, not I32"),
        ("awq", _changed("qweight", lambda t: t[0]), r"qweight has shape \(4,\), a matrix is expected"),
        ("awq", _changed("qweight", lambda t: t[:47]), "has 47 inputs, which groups of 16 do not divide"),
        ("awq", _changed("scales", lambda t: t.int()), "scales has dtype I32, not F16 or BF16 or F32"),
        (
            "awq",
            _changed("scales", _first(float("nan"))),
            "down_proj.weight holds values that are not finite",
        ),
        (
            "awq",
            _changed("scales", _first(float("-inf"))),
            "down_proj.weight holds values that are not finite",
        ),
        ("gptq", _without("scales"), "lacks .*scales"),
        (
            "gptq",
            _changed("scales", _first(float("nan"))),
            "down_proj.weight holds values that are not finite",
        ),
        ("gptq", _changed("g_idx", _first(3)), "g_idx names groups outside 0 to 2"),
        ("gptq", _changed("g_idx", _first(-1)), "g_idx names groups outside 0 to 2"),
        ("gptq", _changed("g_idx", lambda t: t[1:]), r"g_idx has shape \(47,\), .* means \(48,\)"),
        ("gptq", _changed("qweight", lambda t: t[:, :31]), "has 31 outputs"),
        ("gptq", _changed("qweight", lambda t: t[:2]), "has shape"),
        ("fp8", _without("weight_scale_inv"), "lacks .*down_proj.weight_scale, without which"),
        ("fp8", _without("weight"), "lacks .*down_proj.weight, without which"),
        ("fp8", _changed("weight", lambda t: t.float()), "weight has dtype F32, not F8_E4M3"),
        (
            "fp8",
            _changed("weight", lambda t: t.float().to(torch.float8_e5m2)),
            "has dtype F8_E5M2, not F8_E4M3",
        ),
        ("fp8", _changed("weight_scale_inv", lambda t: t[:1]), r"has shape \(1, 3\), .* means \(2, 3\)"),
        ("fp8", _changed("weight_scale_inv", _first(float("nan"))), "holds values that are not finite"),
        (
            "fp8",
            _changed("weight", lambda t: torch.full_like(t, float("nan"))),
            "holds values that are not finite",
        ),
        ("fp8", _changed("weight_scale_inv", _first(1e30)), "not finite in float16"),
        ("packed", _without("weight_packed"), "lacks .*down_proj.weight_packed, without which"),
        ("packed", _without("weight_shape"), "lacks .*down_proj.weight_shape, without which"),
        ("packed", _without("weight_zero_point"), "lacks .*down_proj.weight_zero_point, without which"),
        ("packed", _without("weight_scale"), r"lacks 1 tensors, e.g. model.layers.1.mlp.down_proj.weight"),
        ("packed", _changed("weight_scale", lambda t: t[:, :2]), r"has shape \(32, 2\), .* means \(32, 3\)"),
        ("packed", _changed("weight_packed", lambda t: t[:, :5]), "means other bits"),
        ("packed", _changed("weight_shape", _first(31)), "says 31 x 48, weight_packed has 32 outputs"),
        ("packed", _changed("weight_zero_point", lambda t: t[:3]), r"\(3, 3\), .* means \(4, 3\)"),
        (
            "packed",
            _changed("weight_zero_point", lambda t: t.to(torch.int8)),
            r"\(4, 3\), .* means \(32, 3\)",
        ),
        ("packed", _changed("weight_g_idx", _first(3)), "weight_g_idx names groups outside 0 to 2"),
        ("packed", _changed("weight_g_idx", lambda t: t[1:]), r"has shape \(47,\), .* means \(48,\)"),
        ("packed", _changed("weight_scale", _first(float("nan"))), "holds values that are not finite"),
    ],
)
def test_parts_that_are_missing_damaged_or_of_another_size(models, change_files, method, change, message):
    _refused(change_files(models(method), change), message)


@pytest.mark.parametrize("method", ["awq", "gptq", "fp8"])
def test_a_config_that_means_other_groups(models, method):
    directory = models(method)
    raw = json.loads((directory / "config.json").read_text())["quantization_config"]
    _set_config(directory, raw | {"group_size": 8, "weight_block_size": [16, 8]})
    _refused(directory, "its quantization_config means")


def test_a_truncated_file(models):
    file = models("awq") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    _refused(file.parent, "is damaged")


def test_act_order_without_its_index(models, change_files):
    directory = change_files(models("gptq"), _without("g_idx"))
    _read(directory)
    _set_config(directory, GPTQ | {"desc_act": True})
    _refused(directory, "lacks .*g_idx")


def test_an_index_that_was_never_set(models, change_files):
    """The groups then follow each other."""
    directory = models("packed")
    _read(change_files(directory, _changed("weight_g_idx", lambda t: torch.full_like(t, -1))))
    found = Checkpoint(directory).tensor(f"{MODULE}.weight").clone()
    _read(change_files(directory, _without("weight_g_idx")))
    assert torch.equal(Checkpoint(directory).tensor(f"{MODULE}.weight"), found)


def test_quantised_tensors_that_the_config_says_nothing_of(models):
    directory = models("gptq")
    _set_config(directory, None)
    _refused(
        directory, "config.json has no quantization_config: copy it there from the file quantize_config.json"
    )


def test_scales_of_activations_are_left_out_in_silence(models, change_files, recwarn):
    def add(tensors):
        tensors[f"{MODULE}.input_scale"] = torch.tensor(0.5)
        tensors["model.layers.0.self_attn.k_scale"] = torch.tensor(0.5)

    _read(change_files(models("fp8"), add))
    assert not [warning for warning in recwarn.list if "ignored" in str(warning.message)]
