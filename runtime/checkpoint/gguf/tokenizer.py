"""The tokenizer of a GGUF file as `tokenizer.json` and `tokenizer_config.json`.

SentencePiece vocabularies become BPE with merges by score, as transformers converts them.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, processors

from ...errors import ZweaveError
from .pre_tokenizers import PreTokenizer, pre_tokenizer
from .vocabulary import CONTROL, NORMAL, UNKNOWN, USER_DEFINED, GgufVocabulary

_PREFIX = "tokenizer.ggml."


class GgufTokenizer:
    """Builds the Hugging Face tokenizer from a GGUF file's metadata.

    Raises ZweaveError for an unknown kind of tokenizer and for metadata that do not fit together.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self.model = self._get("model", str, "none")
        self._vocabulary = GgufVocabulary(metadata, is_sentencepiece=self.model == "llama")

    @property
    def vocab_size(self) -> int:
        return len(self._vocabulary.tokens)

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
        for token, kind in zip(self._vocabulary.tokens, self._vocabulary.kinds, strict=True):
            if kind == CONTROL or (kind == UNKNOWN and self.model == "llama"):
                tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
            elif kind == USER_DEFINED:
                tokenizer.add_tokens([AddedToken(token, normalized=False, special=False)])
        self._add_around(tokenizer)
        return tokenizer

    def token_ids(self) -> dict[str, int | list[int]]:
        """The ids of special tokens by their keys in `config.json`; eos_token_id are all tokens that end an answer."""
        ids: dict[str, int | list[int]] = {}
        for name, role in (("bos", "bos"), ("unk", "unknown"), ("pad", "padding")):
            token = self._vocabulary.token_id(role)
            if token is not None:
                ids[f"{name}_token_id"] = token
        ends = self._vocabulary.end_ids()
        if ends:
            ids["eos_token_id"] = ends if len(ends) > 1 else ends[0]
        return ids

    def config(self) -> dict[str, Any]:
        """The content of `tokenizer_config.json`."""
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
        }
        for name, role in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
            token = self._vocabulary.token_id(role)
            # A name makes a token special: some files name a piece of text as padding.
            if token is not None and self._vocabulary.kinds[token] in (CONTROL, UNKNOWN):
                config[f"{name}_token"] = self._vocabulary.tokens[token]
        if self._vocabulary.template is not None:
            config["chat_template"] = self._vocabulary.template
        return config

    def _byte_level(self) -> tokenizers.Tokenizer:
        merges = self._metadata.get(_PREFIX + "merges")
        if not isinstance(merges, list) or not merges or not all(isinstance(pair, str) for pair in merges):
            raise ZweaveError(f"the GGUF file has no {_PREFIX}merges: take one that carries its tokenizer")
        pairs = [tuple(merge.split(" ")) for merge in merges]
        if any(len(pair) != 2 for pair in pairs):
            raise ZweaveError("the GGUF file's merges are not pairs of tokens: the file is damaged")
        words = self._pre_tokenizer
        tokenizer = tokenizers.Tokenizer(_bpe(self._index(), pairs, ignore_merges=words.ignore_merges))
        words.set_up(tokenizer)
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer

    @cached_property
    def _pre_tokenizer(self) -> PreTokenizer:
        return pre_tokenizer(self._get("pre", str, ""))

    def _sentencepiece(self) -> tokenizers.Tokenizer:
        scores = self._metadata.get(_PREFIX + "scores")
        if not isinstance(scores, list) or len(scores) != self.vocab_size:
            raise ZweaveError("the GGUF file's token scores do not fit its vocabulary: the file is damaged")
        vocabulary = self._index()
        unknown = self._vocabulary.token_id("unknown")
        tokenizer = tokenizers.Tokenizer(
            _bpe(
                vocabulary,
                _merges_by_score(vocabulary, scores, self._vocabulary.kinds),
                unk_token=None if unknown is None else self._vocabulary.tokens[unknown],
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
        begins = self.model == "llama" or self._pre_tokenizer.add_bos
        around = [
            self._vocabulary.token_id(role) if self._get(f"add_{role}_token", bool, default) else None
            for role, default in (("bos", begins), ("eos", False))
        ]
        words = [None if token is None else self._vocabulary.tokens[token] for token in around]
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

    def _index(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(self._vocabulary.tokens)}

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
    vocabulary: dict[str, int], scores: list[float], kinds: list[int]
) -> list[tuple[str, str]]:
    """SentencePiece joins the neighbours whose union scores highest: every split of a token is a merge."""
    merges = []
    for token, index in vocabulary.items():
        if kinds[index] != NORMAL:
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                merges.append((-scores[index], vocabulary[left], vocabulary[right], left, right))
    return [(left, right) for *_, left, right in sorted(merges)]
