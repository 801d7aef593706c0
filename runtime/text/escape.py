"""Special tokens that a user's text writes out, kept plain text."""

import re

import tokenizers
from tokenizers import normalizers

from ..errors import ZweaveError

# No tokenizer or template knows it; it is removed after special tokens are recognised and before words are cut.
_MARK = "\ue000zweave-escape\ue001"


class SpecialTokenEscape:
    """Breaks up the special tokens in a text by a mark that the tokenizer then takes out again.

    The tokenizer is given a step that takes the mark out; texts without marks keep their tokens.
    Raises ZweaveError for a tokenizer that recognises special tokens only after that step.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        special = [token for token in tokenizer.get_added_tokens_decoder().values() if token.special]
        late = [token.content for token in special if token.normalized]
        if late:
            raise ZweaveError(
                f"escape_special: the tokenizer normalises {late[0]!r} before it looks for it, so it cannot be "
                "escaped: leave special tokens out of the text, or give token ids"
            )
        longest_first = sorted((token.content for token in special), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        removal = normalizers.Replace(_MARK, "")
        others = [tokenizer.normalizer] if tokenizer.normalizer is not None else []
        tokenizer.normalizer = normalizers.Sequence([removal, *others])

    def escape(self, text: str) -> str:
        """The text with marks around and inside its special tokens."""
        # Around them, too: their ends might be part of another one.
        escaped = self._pattern.sub(lambda match: _MARK + _MARK.join(match[0]) + _MARK, text)
        # A mark that begins a text would hide its beginning from tokenizers that put a space there.
        return escaped.removeprefix(_MARK)
