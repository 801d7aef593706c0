"""Which tokens end an answer."""

import logging
from collections.abc import Iterable
from pathlib import Path

from ..checkpoint.hf_config import read_json
from ..errors import ZweaveError, shortened
from ..validation import is_integer


def end_token_ids(
    directory: Path, of_template: Iterable[int], of_tokenizer: Iterable[int], vocab_size: int | None
) -> tuple[int, ...]:
    """Every token that one of a model's files says ends an answer; the one that closes a turn of its template first.

    These are what `generation_config.json` says, or else `config.json`, and the tokenizer's own, as in vLLM, and the
    token after an answer in the chat template. Ids outside the vocabulary are left out with a warning.
    Raises ZweaveError for a malformed file.
    """
    ids = dict.fromkeys([*of_template, *_configured(directory), *of_tokenizer])
    outside = [token for token in ids if token < 0 or (vocab_size is not None and token >= vocab_size)]
    # -1 is how some files write none.
    if any(token != -1 for token in outside):
        logging.getLogger("zweave").warning(
            "%s: the end tokens %s are outside the vocabulary of %s tokens and are ignored",
            directory,
            outside,
            vocab_size,
        )
    return tuple(token for token in ids if token not in outside)


def _configured(directory: Path) -> list[int]:
    for name in ("generation_config.json", "config.json"):
        if (directory / name).is_file():
            value = read_json(directory / name).get("eos_token_id")
            ids = value if isinstance(value, list) else [] if value is None else [value]
            if not all(is_integer(token) for token in ids):
                raise ZweaveError(
                    f"{directory / name}: eos_token_id must be a token id or a list, not {shortened(value)}"
                )
            if ids:
                return ids
    return []
