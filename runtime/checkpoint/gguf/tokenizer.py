"""The tokenizer of a GGUF file as `tokenizer.json` and `tokenizer_config.json`.

Byte-level BPE pre-tokenizers follow the models' own tokenizer.json files; SentencePiece vocabularies become
BPE with merges by score, as transformers converts them.
"""

from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from ...errors import ZweaveError
from ...validation import is_integer

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
# In characters: merges are sought in time quadratic in the longest token.
_MAX_TOKEN = 1024
_PRE_TOKENIZERS = ("smollm", "gpt-2", "llama-bpe", "qwen2")
_PREFIX = "tokenizer.ggml."


class GgufTokenizer:
    """Builds the Hugging Face tokenizer from a GGUF file's metadata.

    Raises ZweaveError for an unknown kind of tokenizer and for metadata that do not fit together.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self.model = self._get("model", str, "none")
        self._tokens = self._strings("tokens")
        if len(set(self._tokens)) != len(self._tokens):
            raise ZweaveError("the GGUF file's vocabulary holds a token twice: the file is damaged")
        if max(map(len, self._tokens)) > _MAX_TOKEN:
            raise ZweaveError(f"the GGUF file's vocabulary holds a token of over {_MAX_TOKEN} characters")
        self._types = metadata.get(_PREFIX + "token_type", [1] * len(self._tokens))
        if not isinstance(self._types, list) or len(self._types) != len(self._tokens):
            raise ZweaveError("the GGUF file's token types do not fit its vocabulary: the file is damaged")

    @property
    def vocab_size(self) -> int:
        return len(self._tokens)

    def build(self) -> tokenizers.Tokenizer:
        """The tokenizer, with its special tokens and what it puts around a text."""
        if self.model == "gpt2":
            tokenizer = self._byte_level()
        elif self.model == "llama":
            tokenizer = self._sentencepiece()
        else:
            raise ZweaveError(
                f"the GGUF tokenizer {self.model!r} is not supported: supported are gpt2 and llama"
            )
        for token, kind in zip(self._tokens, self._types, strict=True):
            if kind == _CONTROL or (kind == _UNKNOWN and self.model == "llama"):
                tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
            elif kind == _USER_DEFINED:
                tokenizer.add_tokens([AddedToken(token, normalized=False, special=False)])
        self._add_around(tokenizer)
        return tokenizer

    def token_ids(self) -> dict[str, int | list[int]]:
        """The ids of special tokens by their keys in `config.json`; eos_token_id are all tokens that end an answer."""
        ids: dict[str, int | list[int]] = {}
        for name, key in (("bos", "bos"), ("unk", "unknown"), ("pad", "padding")):
            token = self._token_id(key)
            if token is not None:
                ids[f"{name}_token_id"] = token
        ends = [token for token in map(self._token_id, ("eos", "eot", "eom")) if token is not None]
        if ends:
            distinct = list(dict.fromkeys(ends))
            ids["eos_token_id"] = distinct if len(distinct) > 1 else distinct[0]
        return ids

    def config(self) -> dict[str, Any]:
        """The content of `tokenizer_config.json`."""
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
        }
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
            token = self._token_id(key)
            if token is not None:
                config[f"{name}_token"] = self._tokens[token]
        template = self._metadata.get("tokenizer.chat_template")
        if isinstance(template, str):
            config["chat_template"] = template
        return config

    def _byte_level(self) -> tokenizers.Tokenizer:
        pre = self._get("pre", str, "default")
        merges = [tuple(merge.split(" ")) for merge in self._strings("merges")]
        if pre not in _PRE_TOKENIZERS:
            raise ZweaveError(
                f"the GGUF pre-tokenizer {pre!r} is not supported: supported are {', '.join(_PRE_TOKENIZERS)}"
            )
        if any(len(merge) != 2 for merge in merges):
            raise ZweaveError("the GGUF file's merges are not pairs of tokens: the file is damaged")
        # Llama 3's own tokenizer.json ignores merges for words that are tokens.
        tokenizer = tokenizers.Tokenizer(_bpe(self._vocabulary(), merges, ignore_merges=pre == "llama-bpe"))
        bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        if pre == "gpt-2":
            tokenizer.pre_tokenizer = words
        elif pre == "smollm":
            digits = pre_tokenizers.Digits(individual_digits=True)
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
        else:
            split = pre_tokenizers.Split(Regex(_LLAMA3 if pre == "llama-bpe" else _QWEN2), "isolated")
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])
        if pre == "qwen2":
            tokenizer.normalizer = normalizers.NFC()
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer

    def _sentencepiece(self) -> tokenizers.Tokenizer:
        scores = self._metadata.get(_PREFIX + "scores")
        if not isinstance(scores, list) or len(scores) != len(self._tokens):
            raise ZweaveError("the GGUF file's token scores do not fit its vocabulary: the file is damaged")
        vocabulary = self._vocabulary()
        unknown = self._token_id("unknown")
        tokenizer = tokenizers.Tokenizer(
            _bpe(
                vocabulary,
                _merges_by_score(vocabulary, scores, self._types),
                unk_token=None if unknown is None else self._tokens[unknown],
                fuse_unk=True,
                byte_fallback=True,
            )
        )
        prefixed = self._get("add_space_prefix", bool, True)
        spaces = normalizers.Replace(" ", "▁")
        tokenizer.normalizer = (
            normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefixed else spaces
        )
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        tokenizer.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * prefixed)
        return tokenizer

    def _add_around(self, tokenizer: tokenizers.Tokenizer) -> None:
        """Puts the begin and end tokens around a text where the file asks for them."""
        begins = self.model == "llama" or self._metadata.get(_PREFIX + "pre") == "llama-bpe"
        around = [
            self._token_id(key) if self._get(f"add_{key}_token", bool, default) else None
            for key, default in (("bos", begins), ("eos", False))
        ]
        words = [None if token is None else self._tokens[token] for token in around]
        if words == [None, None]:
            return
        begin, end = ([] if word is None else [word] for word in words)
        special = [(word, token) for word, token in zip(words, around, strict=True) if word is not None]
        try:
            tokenizer.post_processor = processors.TemplateProcessing(
                single=[*begin, "$A", *end],
                pair=[*begin, "$A", *end, *begin, "$B", *end],
                special_tokens=special,
            )
        except ValueError as error:
            raise ZweaveError(
                f"the GGUF file's begin and end tokens {words} are malformed ({error})"
            ) from None

    def _vocabulary(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(self._tokens)}

    def _token_id(self, name: str) -> int | None:
        token = self._metadata.get(f"{_PREFIX}{name}_token_id")
        if token is None:
            return None
        if not (is_integer(token) and 0 <= token < len(self._tokens)):
            raise ZweaveError(
                f"the GGUF file's {name} token {token!r} is not in its vocabulary: the file is damaged"
            )
        return token

    def _strings(self, key: str) -> list[str]:
        values = self._metadata.get(_PREFIX + key)
        if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
            raise ZweaveError(f"the GGUF file has no {_PREFIX}{key}: take one that carries its tokenizer")
        return values

    def _get(self, key: str, kind: type, default: Any) -> Any:
        value = self._metadata.get(_PREFIX + key, default)
        if not isinstance(value, kind):
            raise ZweaveError(f"the GGUF file's {_PREFIX}{key} is {value!r}: the file is damaged")
        return value


def _bpe(vocabulary: dict[str, int], merges: list[Any], **options: Any) -> models.BPE:
    try:
        return models.BPE(vocab=vocabulary, merges=merges, **options)
    # The library raises bare Exception for merges of unknown tokens.
    except Exception as error:
        raise ZweaveError(f"the GGUF file's merges do not fit its vocabulary ({error})") from None


def _merges_by_score(
    vocabulary: dict[str, int], scores: list[float], types: list[int]
) -> list[tuple[str, str]]:
    """SentencePiece joins the neighbours whose union scores highest: every split of a token is a merge."""
    merges = []
    for token, index in vocabulary.items():
        if types[index] != _NORMAL:
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                merges.append((-scores[index], vocabulary[left], vocabulary[right], left, right))
    return [(left, right) for *_, left, right in sorted(merges)]
