"""Tokens that the files beside `tokenizer.json` add to it or name, as transformers reads them."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from ..checkpoint.hf_config import read_json
from ..errors import ZweaveError, shortened
from ..validation import is_integer

# In the order in which transformers adds those that tokenizer.json lacks.
_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """What `tokenizer_config.json` says of tokens; without its `added_tokens_decoder`, the older files beside it too.

    named: name ("bos_token", ..., or a name of the model's own such as "image_token") to text.
    added: every token that must be there, and its id where the files give one.
    """

    named: dict[str, str]
    added: tuple[tuple[AddedToken, int | None], ...]

    @classmethod
    def from_directory(cls, directory: Path, config: Mapping[str, Any]) -> "SpecialTokens":
        """Raises ZweaveError for a token that is malformed."""
        values = dict(config)
        decoder = values.get("added_tokens_decoder")
        if decoder is None:
            values |= _optional_json(directory / "special_tokens_map.json")
        extra = values.get("extra_special_tokens") or values.get("additional_special_tokens") or []
        named = {name: values.get(name) for name in _NAMES}
        named |= {name: value for name, value in values.items() if name.endswith("_token")}
        named |= extra if isinstance(extra, dict) else {}
        texts = {name: text for name, value in named.items() if (text := _text(value)) is not None}
        listed = [] if isinstance(extra, dict) else [_special(token) for token in _list(extra)]
        special = [*map(_special, texts.values()), *listed]
        if decoder is None:
            known = {token.content for token in special}
            numbered = list(_from_added_tokens(directory / "added_tokens.json", known))
        else:
            numbered = list(_from_decoder(decoder))
        added = [*sorted(numbered, key=lambda pair: pair[1]), *((token, None) for token in special)]
        return cls(texts, tuple(added))

    def add_to(self, tokenizer: tokenizers.Tokenizer, vocab_size: int | None) -> None:
        """Adds the tokens that a tokenizer lacks, and corrects how it treats those that it has.

        vocab_size: the model's, None if it is not known; tokens beyond it are left out with a warning.
        Raises ZweaveError if a new token gets another id than the files say.
        """
        present = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
        left_out: list[str] = []
        for token, wanted in self.added:
            known = present.get(token.content)
            if known is not None and (known.special if wanted is None else repr(known) == repr(token)):
                continue
            is_new = tokenizer.token_to_id(token.content) is None
            if is_new and vocab_size is not None and tokenizer.get_vocab_size() >= vocab_size:
                left_out.append(token.content)
                continue
            tokenizer.add_tokens([token])
            present[token.content] = token
            found = tokenizer.token_to_id(token.content)
            if is_new and wanted not in (None, found):
                raise ZweaveError(
                    f"tokenizer_config.json gives {token.content!r} the id {wanted}, tokenizer.json the id {found}: "
                    "write both again with transformers' AutoTokenizer.save_pretrained"
                )
        if left_out:
            logging.getLogger("zweave").warning(
                "the tokens %s are beyond the model's vocabulary of %s and are left out", left_out, vocab_size
            )


def _from_decoder(decoder: Any) -> Iterator[tuple[AddedToken, int]]:
    if not isinstance(decoder, dict):
        raise ZweaveError(f"added_tokens_decoder must map ids to tokens, not {shortened(decoder)}")
    for number, value in decoder.items():
        if not number.isdecimal():
            raise ZweaveError(f"added_tokens_decoder has {shortened(number)} where a token id belongs")
        yield _token(value, special=False), int(number)


def _from_added_tokens(path: Path, special: set[str]) -> Iterator[tuple[AddedToken, int]]:
    for text, number in _optional_json(path).items():
        if not text or not is_integer(number):
            raise ZweaveError(f"{path} must map tokens to ids, not {shortened(text)} to {shortened(number)}")
        yield _token(text, special=text in special), number


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ZweaveError(f"extra_special_tokens must be a list or an object, not {shortened(value)}")
    return value


def _text(value: Any) -> str | None:
    """The text of a named token; None for a name that stands for none."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) and text else None


def _special(value: Any) -> AddedToken:
    token = _token(value, special=True)
    token.special = True
    return token


def _token(value: Any, special: bool) -> AddedToken:
    """A token from its text, or from an object with its text and flags."""
    text = _text(value)
    if text is None:
        raise ZweaveError(f"the tokenizer's files have {shortened(value)} where a token belongs")
    flags = {key: value[key] for key in _FLAGS if key in value} if isinstance(value, dict) else {}
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise ZweaveError(
            f"the flags of the token {shortened(text)} must be true or false: {shortened(flags, 80)}"
        )
    return AddedToken(text, **{"special": special, **flags})
