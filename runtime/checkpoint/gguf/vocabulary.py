"""The tokens of a GGUF file: their texts, kinds and roles, in llama.cpp's meaning."""

import logging
import re
from collections.abc import Mapping
from typing import Any

from ...errors import ZweaveError
from ...validation import is_integer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
# In characters: merges are sought in time quadratic in the longest token.
_MAX_TOKEN = 1024
_PREFIX = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"
# -1, written as the unsigned number that the key's type wants.
_NONE = (-1, 2**32 - 1)
# What SentencePiece gives these tokens, where a file does not say.
_SENTENCEPIECE = {"unknown": 0, "bos": 1, "eos": 2}
# llama.cpp ends an answer at these, whatever a file says of its end tokens.
_ENDS = frozenset(
    (
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<end_of_utterance>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
        "</s>",
    )
)
_MARKUP = re.compile(r"<[|\uff5c].+[|\uff5c]>|\[/?[A-Z_]+\]")
_TAG = re.compile(r"</?[a-z_]+>")
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


class GgufVocabulary:
    """Texts and kinds of tokens, in the order of their ids, and the ids of those that have a role.

    tokens: the texts.
    kinds: NORMAL, CONTROL, ...; tokens that the chat template writes and that look it are never NORMAL.
    template: the chat template, None if the file has none.
    Raises ZweaveError for metadata that do not fit together.
    """

    def __init__(self, metadata: Mapping[str, Any], is_sentencepiece: bool) -> None:
        self._metadata = metadata
        self._default_ids = _SENTENCEPIECE if is_sentencepiece else {}
        self.tokens = self._read_tokens()
        template = metadata.get(_TEMPLATE)
        self.template = template if isinstance(template, str) else None
        ids = {role: self._read_id(role) for role in ("bos", "eos", "eot", "eom", "unknown", "padding")}
        self._ids = {role: token for role, token in ids.items() if token is not None}
        self.kinds = self._read_kinds()

    def token_id(self, role: str) -> int | None:
        """The id of the "bos", "eos", "eot", "eom", "unknown" or "padding" token."""
        return self._ids.get(role)

    def end_ids(self) -> list[int]:
        """All tokens that end an answer; the one that the file names first."""
        named = [self._ids[role] for role in ("eos", "eot", "eom") if role in self._ids]
        by_text = [index for index, token in enumerate(self.tokens) if token in _ENDS]
        return list(dict.fromkeys([*named, *by_text]))

    def _read_tokens(self) -> list[str]:
        values = self._metadata.get(_PREFIX + "tokens")
        if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
            raise ZweaveError(f"the GGUF file has no {_PREFIX}tokens: take one that carries its tokenizer")
        tokens = [token or f"[EMPTY_{index}]" for index, token in enumerate(values)]
        if len(set(tokens)) != len(tokens):
            raise ZweaveError("the GGUF file's vocabulary holds a token twice: the file is damaged")
        if max(map(len, tokens)) > _MAX_TOKEN:
            raise ZweaveError(f"the GGUF file's vocabulary holds a token of over {_MAX_TOKEN} characters")
        return tokens

    def _read_id(self, role: str) -> int | None:
        default = self._default_ids.get(role)
        if default is not None and default >= len(self.tokens):
            default = None
        token = self._metadata.get(f"{_PREFIX}{role}_token_id", default)
        if token is None or token in _NONE:
            return None
        if not is_integer(token):
            raise ZweaveError(f"the GGUF file's {role} token is {token!r}, not an id: the file is damaged")
        if not 0 <= token < len(self.tokens):
            _warn("the GGUF file's %s token %s is outside its vocabulary and is ignored", role, token)
            return None
        return token

    def _read_kinds(self) -> list[int]:
        kinds = self._metadata.get(_PREFIX + "token_type")
        if kinds is None:
            kinds = [BYTE if _BYTE_TOKEN.fullmatch(token) else NORMAL for token in self.tokens]
            if "unknown" in self._ids:
                kinds[self._ids["unknown"]] = UNKNOWN
        if not isinstance(kinds, list) or len(kinds) != len(self.tokens):
            raise ZweaveError("the GGUF file's token types do not fit its vocabulary: the file is damaged")
        right = [self._kind(index, kind) for index, kind in enumerate(kinds)]
        wrong = [token for token, old, new in zip(self.tokens, kinds, right, strict=True) if old != new]
        if wrong:
            names = ", ".join(wrong[:5]) + (", ..." if len(wrong) > 5 else "")
            _warn("the GGUF file does not say that %s are control tokens; they are taken for such", names)
        return right

    def _kind(self, index: int, kind: int) -> int:
        token = self.tokens[index]
        if token in _ENDS:
            return CONTROL
        if kind != NORMAL:
            return kind
        is_written = self.template is not None and token in self.template
        is_markup, is_tag = (bool(pattern.fullmatch(token)) for pattern in (_MARKUP, _TAG))
        has_role = index in (self._ids.get(role) for role in ("bos", "eos", "eot", "eom"))
        if (is_markup and is_written) or (has_role and (is_markup or is_tag)):
            return CONTROL
        # Such as <think>, which is a token of its own and part of the text.
        return USER_DEFINED if is_tag and is_written else kind


def _warn(message: str, *arguments: object) -> None:
    logging.getLogger("zweave").warning(message, *arguments)
