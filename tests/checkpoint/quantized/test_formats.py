"""Quantised checkpoints are the models that their dequantised matrices make, to the bit."""

import warnings
from functools import partial

import pytest
import torch

from zweave.checkpoint import Checkpoint, ModelConfig
from zweave.engine import Engine
from zweave.request import Request
from zweave.train.run import load_model

AWQ = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 16, "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False, "sym": False}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}


def compressed(**weights):
    group = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "symmetric": True, **weights}}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": group},
    }


def integers(format, bits=4, **weights):
    group = {"targets": ["Linear"], "weights": {"num_bits": bits, "type": "int", **weights}}
    return {"quant_method": "compressed-tensors", "format": format, "config_groups": {"group_0": group}}


CASES = {
    "awq": ("awq", {"group": 16}, AWQ),
    "awq rows": ("awq", None, AWQ | {"group_size": -1}),
    "gptq v1": ("gptq", {"group": 16}, GPTQ),
    "gptq v2": ("gptq", {"group": 16, "version": "gptq_v2"}, GPTQ | {"checkpoint_format": "gptq_v2"}),
    "gptq act order": ("gptq", {"group": 16, "act_order": True}, GPTQ | {"desc_act": True}),
    "gptq partial group": ("gptq", {"group": 20}, GPTQ | {"group_size": 20}),
    "gptq int8": ("gptq", {"group": 16, "bits": 8}, GPTQ | {"bits": 8}),
    "gptq int8 v2": (
        "gptq",
        {"group": 16, "bits": 8, "version": "gptq_v2"},
        GPTQ | {"bits": 8, "format": "gptq_v2"},
    ),
    "fp8 blocks": (
        "fp8",
        {"rows": 20, "columns": 24, "name": "weight_scale_inv"},
        FP8 | {"weight_block_size": [20, 24]},
    ),
    "fp8 bfloat16 scales": (
        "fp8",
        {"rows": 16, "columns": 16, "name": "weight_scale_inv", "scale_dtype": torch.bfloat16},
        FP8 | {"weight_block_size": [16, 16]},
    ),
    "fp8 tensor": ("fp8", {"rows": 99, "columns": 99}, FP8),
    "compressed tensor": ("fp8", {"rows": 99, "columns": 99}, compressed(strategy="tensor")),
    "compressed channel": ("fp8", {"rows": 1, "columns": 99}, compressed(strategy="channel")),
    "compressed group": ("fp8", {"rows": 1, "columns": 16}, compressed(strategy="group", group_size=16)),
    "compressed block": (
        "fp8",
        {"rows": 20, "columns": 24},
        compressed(strategy="block", block_structure=[20, 24]),
    ),
    "packed groups": (
        "compressed",
        {"group": 16},
        integers("pack-quantized", strategy="group", group_size=16, symmetric=True),
    ),
    "packed zeros": (
        "compressed",
        {"group": 16, "zeros": True},
        integers("pack-quantized", strategy="group", group_size=16, symmetric=False),
    ),
    "packed act order": (
        "compressed",
        {"group": 16, "act_order": True},
        integers("pack-quantized", group_size=16, actorder="group"),
    ),
    "packed partial group": ("compressed", {"group": 20}, integers("pack-quantized", group_size=20)),
    "packed channel int8": (
        "compressed",
        {"bits": 8, "zeros": True},
        integers("pack-quantized", 8, strategy="channel", symmetric=False),
    ),
    "bytes channel": (
        "compressed",
        {"bits": 8, "packed": False},
        integers("int-quantized", 8, strategy="channel"),
    ),
    "bytes channel zeros": (
        "compressed",
        {"bits": 8, "packed": False, "zeros": True},
        integers("int-quantized", 8, strategy="channel", symmetric=False),
    ),
    "bytes tensor": (
        "compressed",
        {"bits": 8, "packed": False, "per_output": False},
        integers("int-quantized", 8, strategy="tensor"),
    ),
    "bytes groups": (
        "compressed",
        {"bits": 4, "packed": False, "group": 16},
        integers("int-quantized", strategy="group", group_size=16),
    ),
}


@pytest.fixture
def make_case(formats, quantized_model):
    def make(case, dtype="float16", architecture="llama"):
        kind, options, quantization = CASES[case]
        if options is None:
            return quantized_model(
                lambda rng, m, n: formats[kind](rng, m, n, n), quantization, dtype, architecture
            )
        return quantized_model(partial(formats[kind], **options), quantization, dtype, architecture)

    return make


@pytest.mark.parametrize("case", CASES)
def test_matrices_are_dequantised_to_the_bit(make_case, case):
    quantized, plain = make_case(case)
    with warnings.catch_warnings():
        # No part of a matrix is taken for a tensor that the model does not have.
        warnings.simplefilter("error")
        found, expected = Checkpoint(quantized), Checkpoint(plain)
    assert found.is_quantized and not expected.is_quantized
    assert found.names() == expected.names()
    for name in found.names():
        assert found.tensor(name).is_contiguous()
        torch.testing.assert_close(found.tensor(name), expected.tensor(name), rtol=0, atol=0)
    # The digest is of the matrices, whatever stored them, and so is what belongs to it: factors and experts.
    assert found.digest() == Checkpoint(quantized).digest() == expected.digest()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", ["awq", "gptq v1", "fp8 blocks"])
def test_matrices_have_the_dtype_that_the_config_names(make_case, case, dtype):
    quantized, plain = make_case(case, dtype)
    found, expected = Checkpoint(quantized), Checkpoint(plain)
    for name in found.names():
        assert found.tensor(name).dtype == getattr(torch, dtype)
        torch.testing.assert_close(found.tensor(name), expected.tensor(name), rtol=0, atol=0)


@pytest.mark.parametrize(
    "case",
    ["gptq act order", *(pytest.param(case, marks=pytest.mark.slow) for case in CASES if "gptq" not in case)],
)
def test_the_engine_answers_as_on_the_dequantised_checkpoint(make_case, random_expert, case):
    directories = make_case(case, "bfloat16", "qwen3")
    answers = []
    for directory in directories:
        engine = Engine(directory, dtype="float32", kv_tokens=256)
        engine.load_expert("e", random_expert(ModelConfig.from_directory(directory).adapted_shapes(), seed=1))
        requests = [
            Request("some words", expert=expert, max_tokens=8, logprobs=3, ignore_eos=True)
            for expert in (None, "e")
        ]
        answers.append([(each.token_ids, each.logprobs) for each in engine.generate(requests)])
    assert answers[0] == answers[1]
    assert answers[0][0] != answers[0][1]


def test_training_sees_the_dequantised_matrices(make_case):
    quantized, plain = make_case("gptq v1")
    found = load_model(Checkpoint(quantized), torch.float32)
    expected = load_model(Checkpoint(plain), torch.float32)
    assert not found.training
    tokens = torch.arange(9).unsqueeze(0)
    with torch.inference_mode():
        assert torch.equal(found(tokens).logits, expected(tokens).logits)
