"""How byte-level BPE cuts a text into words, by the name that a GGUF file gives in `tokenizer.ggml.pre`.

The names and what they stand for are llama.cpp's (llama-vocab.cpp); where a model's own tokenizer.json says more than
llama.cpp can express, its expression stands here.
"""

import logging
import textwrap
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from ...errors import ZweaveError, shortened

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_IDEOGRAPHS = r"[一-龥ࠀ-一가-퟿]+"
_IDEOGRAPHS_KANA = "[一-龥\u3040-\u309f\u30a0-\u30ff]+"


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """A way of cutting a text into words.

    splits: regular expressions, one after the other; what matches is a word, and so is what lies between.
    ignore_merges: a word that is a token stays whole.
    add_bos: a begin token goes before a text, where the file does not say.
    normalise: Unicode's form NFC comes first.
    """

    splits: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    normalise: bool = False

    def set_up(self, tokenizer: Tokenizer) -> None:
        """Has a tokenizer cut its texts so."""
        splits = [pre_tokenizers.Split(Regex(split), "isolated") for split in self.splits]
        as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, as_bytes])
        if self.normalise:
            tokenizer.normalizer = normalizers.NFC()


_DEFAULT = PreTokenizer((r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"))
_KINDS = {
    ("default",): _DEFAULT,
    (
        "gpt-2",
        "phi-2",
        "a.x-4.0",
        "exaone4",
        "gigachat",
        "granite-docling",
        "jais",
        "mellum",
        "mpt",
        "olmo",
        "trillion",
    ): PreTokenizer((_GPT2,)),
    (
        "smollm",
        "codeshell",
        "command-r",
        "exaone",
        "mellum2",
        "minerva-7b",
        "refact",
        "starcoder",
    ): PreTokenizer((r"\p{N}", _GPT2)),
    (
        "llama-bpe",
        "llama3",
        "llama-v3",
        "falcon-h1",
        "falcon3",
        "lfm2",
        "midm-2.0",
        "pixtral",
    ): PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True),
    ("smaug-bpe", "chatglm-bpe", "dbrx", "glm4"): PreTokenizer((_LLAMA3,)),
    ("qwen2",): PreTokenizer((_QWEN2,), normalise=True),
    (
        "deepseek-r1-qwen",
        "f2llmv2",
        "grok-2",
        "hunyuan",
        "kormo",
        "megrez",
        "solar-open",
        "stablelm2",
    ): PreTokenizer((_QWEN2,)),
    ("tekken",): PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True),
    ("deepseek-coder",): PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _IDEOGRAPHS, r"\p{N}")),
    ("deepseek-v3", "hunyuan-dense"): PreTokenizer((r"\p{N}{1,3}", _IDEOGRAPHS_KANA, _DEEPSEEK3)),
}
PRE_TOKENIZERS = {name: kind for names, kind in _KINDS.items() for name in names}


def pre_tokenizer(name: str) -> PreTokenizer:
    """The one of a name; llama.cpp's default, with a warning, where a file names none.

    Raises ZweaveError for an unknown name.
    """
    if not name:
        logging.getLogger("zweave").warning(
            "the GGUF file does not say how its tokenizer cuts words (tokenizer.ggml.pre): llama.cpp's default is "
            "taken, and answers may be worse; a file that was converted anew is better"
        )
        return _DEFAULT
    if name not in PRE_TOKENIZERS:
        known = textwrap.shorten(", ".join(PRE_TOKENIZERS), 400, placeholder=" ...")
        raise ZweaveError(f"the GGUF pre-tokenizer {shortened(name)} is not supported: supported are {known}")
    return PRE_TOKENIZERS[name]
