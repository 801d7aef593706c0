"""Keys that docs/checkpoints.md calls without effect: answers stay what they are, and nothing is said of them."""

import json
import shutil

import pytest

from zweave import Engine, Request

NONSENSE = {"of_nobody": {"deep": [1, None]}, "": 0.5}
KEYS = {
    # What other model families multiply by, and what steers training or generation elsewhere.
    "config.json": {
        "attention_dropout": 0.9,
        "attention_multiplier": 3.0,
        "attn_logit_softcapping": 0.1,
        "auto_map": {"AutoModelForCausalLM": "modeling.Evil"},
        "clip_qkv": 0.01,
        "embedding_multiplier": 12.0,
        "final_logit_softcapping": 0.1,
        "initializer_range": 9.0,
        "logits_scaling": 8.0,
        "max_length": 1,
        "num_local_experts": 8,
        "pretraining_tp": 2,
        "repetition_penalty": 9.0,
        "residual_multiplier": 0.2,
        "use_cache": False,
        "vision_config": {"hidden_size": 1},
    },
    "generation_config.json": {
        "bos_token_id": 7,
        "do_sample": True,
        "forced_eos_token_id": 5,
        "max_new_tokens": 1,
        "no_repeat_ngram_size": 1,
        "repetition_penalty": 9.0,
        "stop_strings": ["a", "e", " "],
        "suppress_tokens": list(range(3, 200)),
        "temperature": 2.0,
        "top_k": 50,
    },
    "tokenizer_config.json": {
        "add_bos_token": True,
        "add_eos_token": True,
        "add_prefix_space": True,
        "clean_up_tokenization_spaces": True,
        "do_lower_case": True,
        "legacy": False,
        "max_length": 2,
        "model_max_length": 2,
        "padding_side": "left",
        "split_special_tokens": True,
        "tokenizer_class": "LlamaTokenizer",
        "truncation_side": "left",
    },
}
METADATA = {
    "general.file_type": 7,
    "general.name": "of nobody",
    "general.quantization_version": 2,
    "llama.attention.clamp_kqv": 0.01,
    "llama.attn_logit_softcapping": 0.1,
    "llama.embedding_scale": 12.0,
    "llama.logit_scale": 8.0,
    "llama.residual_scale": 0.2,
    "llama.vocab_size": 3,
    "of.nobody": "",
    "tokenizer.chat_template.tool_use": "{{ raise_exception('no') }}",
    "tokenizer.ggml.remove_extra_whitespaces": True,
}


def answers(directory):
    """What a model answers to a chat and to a plain text, with its five likeliest tokens at each position."""
    engine = Engine(directory, kv_tokens=128)
    fields = {"max_tokens": 6, "logprobs": 5}
    chat = [{"role": "user", "content": "Hello,  world !"}]
    return engine.generate([Request(messages=chat, **fields), Request(" a<|im_end|> B", **fields)])


@pytest.mark.parametrize("name", KEYS)
def test_other_keys_of_a_directory_are_without_effect(tiny_model, tmp_path, caplog, name):
    source, target = tiny_model("llama"), tmp_path / "other"
    shutil.copytree(source, target)
    content = json.loads((source / name).read_text())
    (target / name).write_text(json.dumps(content | KEYS[name] | NONSENSE))
    assert answers(target) == answers(source)
    assert not caplog.records


def test_other_metadata_of_a_gguf_file_are_without_effect(
    gguf_model, write_gguf, converted, tmp_path, caplog
):
    def add(writer):
        kinds = {int: writer.add_uint32, float: writer.add_float32, bool: writer.add_bool}
        for key, value in METADATA.items():
            kinds.get(type(value), writer.add_string)(key, value)

    plain, other = (
        converted(write_gguf(tmp_path / f"{name}.gguf", gguf_model(), extra=extra), tmp_path / name)
        for name, extra in (("plain", None), ("other", add))
    )
    assert answers(other) == answers(plain)
    assert not caplog.records
