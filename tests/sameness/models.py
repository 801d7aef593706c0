"""The models and experts of the cases. They are written here and not by the tests' fixtures, which may change: records
of different commits must be of the same weights.
"""

import json
import string
import tempfile
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from surroundings import fixed_clock
from torch import Tensor

import zweave
from zweave import Engine, Expert

LAYERS = 3
VOCABULARY = 96
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# Architecture and what differs from the sizes above.
TINY: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("llama", {}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "odd": (
        "llama",
        {
            "hidden_size": 44,
            "intermediate_size": 70,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "yarn": (
        "llama",
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
    ),
    "mistral": ("mistral", {"sliding_window": 6}),
    "qwen2": ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 16}),
}
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{{ message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_FOLDER = tempfile.TemporaryDirectory()


@cache
def tiny(name: str) -> Path:
    """The directory of a random model of TINY, float32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    architecture, changes = TINY[name]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **{**SIZES, **changes}))
    fill(model)
    directory = Path(_FOLDER.name) / name
    model.to(torch.float32).save_pretrained(directory)
    _write_tokenizer(directory)
    return directory


def fill(model: torch.nn.Module) -> None:
    """Gives each parameter random values that follow from its name and shape alone."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = name.endswith("weight") and ("norm" in name or ".ln_" in name)
            parameter.copy_(randn(name, *parameter.shape) * 0.2 + is_norm)


def randn(seed: str, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(seed.encode())))


def _write_tokenizer(directory: Path) -> None:
    """A token a byte, of the most common ones."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    common = "ĠĊ" + string.ascii_letters + string.digits + string.punctuation
    tokens = [*special, *common][:VOCABULARY]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": special[0],
        "eos_token": special[2],
        "chat_template": CHATML,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def ranks(directory: Path) -> dict[str, int]:
    """Rank of each adapted matrix."""
    (file,) = directory.glob("*.safetensors")
    with safe_open(file, "pt") as tensors:
        shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    found = {
        name.removesuffix(".weight"): min(s) for name, s in shapes.items() if name.endswith("_proj.weight")
    }
    return dict(sorted(found.items()))


def layer_of(module: str) -> int:
    return int(module.split(".")[2])


def random_z(sizes: Mapping[str, int], seed: str, first_layer: int = 0) -> dict[str, Tensor]:
    """z around 1 of the matrices from a layer on."""
    return {m: 1 + 0.3 * randn(f"{seed} {m}", r) for m, r in sizes.items() if layer_of(m) >= first_layer}


def tiny_experts(name: str) -> dict[str, Expert]:
    """Experts of every kind for a model of TINY."""
    sizes = ranks(tiny(name))

    def full(seed: str, first_layer: int = 0, **fields: Any) -> Expert:
        return Expert(z=random_z(sizes, seed, first_layer), first_layer=first_layer, **fields)

    leading, sparse = random_z(sizes, "leading"), random_z(sizes, "sparse")
    for module in sizes:
        leading[module][2:] = 1
        sparse[module][randn(module, sizes[module]).argsort()[5:]] = 1
    return {
        "a": full("a"),
        "b": full("b"),
        "late": full("late", first_layer=1),
        "last": full("last", first_layer=2),
        "tail": full("tail", scope="after_prompt"),
        "tail-late": full("tail-late", first_layer=1, scope="after_prompt"),
        "leading": Expert(z=leading, support="leading:2"),
        "sparse": Expert(z=sparse, support="sparse:5"),
        "sum": full("sum", renormalise=True),
        "weak": Expert(z={module: 1 + (z - 1) / 50 for module, z in random_z(sizes, "weak").items()}),
        "queries": Expert(z={m: z for m, z in random_z(sizes, "queries").items() if m.endswith("q_proj")}),
    }


def tiny_engine(name: str, dtype: str, **options: Any) -> Engine:
    """An engine with the experts of `tiny_experts`."""
    with fixed_clock():
        engine = Engine(tiny(name), dtype=dtype, **{"kv_tokens": 512, "block_size": 4, **options})
    for expert, values in tiny_experts(name).items():
        engine.load_expert(expert, values)
    return engine


@cache
def bundled() -> dict[str, Path]:
    """Files of the experts that come with the package."""
    return {path.stem: path for path in sorted(Path(zweave.__file__).parent.rglob("*.safetensors"))}


def smollm2_engine(dtype: str, **options: Any) -> Engine:
    """An engine with the bundled experts, and two of them from a later layer on."""
    with fixed_clock():
        engine = Engine("smollm2", dtype=dtype, **options)
    for name in bundled():
        engine.load_expert(name)
    for name, whole, first in (("sst2-late", "sst2", 20), ("trec-middle", "trec", 10)):
        z = {m: values for m, values in Expert.load(bundled()[whole]).z.items() if layer_of(m) >= first}
        engine.load_expert(name, Expert(z=z, first_layer=first))
    return engine
