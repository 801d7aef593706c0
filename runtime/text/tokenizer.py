"""Text to token ids and back, and the model's chat template."""

import codecs
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import tokenizers

from ..checkpoint.hf_config import read_json
from ..errors import ZweaveError
from ..validation import has_lone_surrogate, is_integer
from .chat_template import ChatTemplate
from .end_tokens import end_token_ids
from .escape import SpecialTokenEscape
from .messages import each_text, plain_messages
from .special_tokens import SpecialTokens
from .token_bytes import TokenBytes

# Characters from which on a text takes milliseconds to encode.
_LONG_TEXT = 10_000
# Conversations that share nothing but the template's own words around them.
_PROBES = ("Why is it so?", "42", "alpha beta\n", "(x)", "été")


class Tokenizer:
    """The tokenizer of a Hugging Face directory (`tokenizer.json`, `tokenizer_config.json`, chat template).

    assistant_header: the token ids that the chat template puts between the end of the user's words and the
        beginning of the assistant's; empty without a chat template.
    user_opening: the token ids that the chat template puts before the user's first words.
    eos_ids: the tokens that end an answer, the one that closes a turn first.
    token_bytes: the bytes that each token stands for.
    Raises ZweaveError for missing or malformed files.
    """

    def __init__(self, directory: str | PathLike[str]) -> None:
        self.directory = Path(directory)
        self._tokenizer = _load(self.directory / "tokenizer.json")
        config_file = self.directory / "tokenizer_config.json"
        config = read_json(config_file) if config_file.is_file() else {}
        special = SpecialTokens.from_directory(self.directory, config)
        vocab_size = _vocab_size(self.directory / "config.json")
        special.add_to(self._tokenizer, vocab_size)
        self.token_bytes = TokenBytes(self._tokenizer)
        self._around = self._encode("", special=True)
        self._has_warned = False
        self._escaping: SpecialTokenEscape | None = None
        self._template = ChatTemplate.from_directory(self.directory, config, special.named)
        of_tokenizer = self._ids_of(special.named.get("eos_token"))
        self.eos_ids = end_token_ids(self.directory, self._turn_end(), of_tokenizer, vocab_size)
        self.user_opening, self.assistant_header = self._probe_headers()
        self._header_words = self._without_trailing_space(self.assistant_header)
        self._user_header = self._without_trailing_space(self._last_turn(self.user_opening))

    def encode(self, text: str, special: bool = True, escape_special: bool = False) -> list[int]:
        """Token ids of a text. Special tokens written out in it are recognised.

        special: whether to add what the tokenizer puts around every text, for instance a begin-of-text token; a text
            that begins with it gets it twice, and a warning.
        escape_special: take special tokens that are written out as plain text.
        """
        ids = self._encode(self.escape(text) if escape_special else text, special)
        if special and ids[:2] == self._around[:1] * 2 and not self._has_warned:
            self._has_warned = True
            logging.getLogger("zweave").warning(
                "a prompt begins with %s, which the tokenizer puts before every text too: the model sees it twice; "
                "leave it out of the prompt, or give add_special_tokens=False",
                self.decode(ids[:1], skip_special=False),
            )
        return ids

    def holds_special(self, text: str) -> bool:
        """Whether special tokens are written out in a text, as they are in a prompt with its chat markup."""
        return any(not self.token_bytes.of(token, True) for token in self.encode(text, special=False))

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of token ids; bytes that are no UTF-8 become U+FFFD. Ids outside the vocabulary are empty."""
        text = b"".join(self.token_bytes.of(token, skip_special) for token in ids).decode("utf-8", "replace")
        return text[1:] if self.token_bytes.strips_first_space and text.startswith(" ") else text

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        special: bool = False,
        escape_special: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of a conversation, with the assistant's turn opened.

        A final assistant message is continued: its turn is opened with its words and not closed.
        special: whether to add what the tokenizer puts around every text; most templates write it themselves.
        escape_special: take special tokens that are written out in a message or a tool as plain text.
        tools: JSON schemas of the functions that the model may call.
        template_kwargs: further variables of the template; those that it does not know have no effect.
        Raises ZweaveError without a chat template, for malformed messages, and for what the template refuses.
        """
        messages = plain_messages(messages)
        if self._template is None:
            raise ZweaveError(f"{self.directory} has no chat template: give a prompt instead of messages")
        if escape_special:
            messages, tools, template_kwargs = each_text([messages, tools, template_kwargs], self.escape)
        return self.encode(self._template.render(messages, tools, template_kwargs or {}), special)

    def to_json(self) -> str:
        """The tokenizer as `tokenizer.json` has it, with the tokens that the files beside it add."""
        return self._tokenizer.to_str()

    def after_prompt_start(self, ids: Sequence[int]) -> int:
        """Index of the first token that an `after_prompt` expert acts on.

        That is the begin of the last assistant header, or the last token if there is none.
        """
        start = _last_occurrence(self._header_words, list(ids))
        return max(len(ids) - 1, 0) if start is None else start

    def user_text_start(self, ids: Sequence[int], end: int) -> int:
        """Index after the last user's header in ids[:end]; 0 if there is none."""
        start = _last_occurrence(self._user_header, list(ids[:end]))
        return 0 if start is None else start + len(self._user_header)

    def _encode(self, text: str, special: bool) -> list[int]:
        if has_lone_surrogate(text):
            raise ZweaveError("the text holds a lone surrogate, which is no character: remove it")
        with _one_line(self.directory / "tokenizer.json"):
            if len(text) <= _LONG_TEXT:
                return self._tokenizer.encode(text, add_special_tokens=special).ids
            # Other threads go on meanwhile, as they do not while one text is encoded by itself.
            (encoded,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=special)
            return encoded.ids

    def escape(self, text: str) -> str:
        """The text with its special tokens changed so that they are read as plain text, and look the same."""
        if self._escaping is None:
            self._escaping = SpecialTokenEscape(self._tokenizer)
        return self._escaping.escape(text)

    def _probe_headers(self) -> tuple[list[int], list[int]]:
        """The longest beginning and end that conversations with different user messages have in common."""
        if self._template is None:
            return [], []
        try:
            chats = [self.chat([{"role": "user", "content": probe}]) for probe in _PROBES]
        except ZweaveError:
            return [], []
        return _common_beginning(chats), _common_beginning([chat[::-1] for chat in chats])[::-1]

    def _turn_end(self) -> list[int]:
        """The token that the chat template puts after an answer; none if it puts words there, or nothing."""
        closing = "" if self._template is None else self._template.closing().lstrip()
        first = self.encode(closing, special=False)[:1]
        return [token for token in first if self.token_bytes.is_added(token)]

    def _last_turn(self, opening: list[int]) -> list[int]:
        """The opening from its last special token on: what stands before a user's words in any turn."""
        special = [index for index, token in enumerate(opening) if not self.decode([token])]
        return opening[special[-1] :] if special else opening

    def _without_trailing_space(self, ids: list[int]) -> list[int]:
        """Leaves out a header's last line break: with white space after it, it becomes part of another token."""
        end = len(ids)
        while end and self.decode(ids[end - 1 : end], skip_special=False).isspace():
            end -= 1
        return ids[:end]

    def _ids_of(self, token: str | None) -> tuple[int, ...]:
        found = None if token is None else self._tokenizer.token_to_id(token)
        return () if found is None else (found,)


def _last_occurrence(header: list[int], ids: list[int]) -> int | None:
    """Index at which a header stands for the last time; None if it is empty or nowhere."""
    starts = range(len(ids) - len(header), -1, -1) if header else ()
    return next((start for start in starts if ids[start : start + len(header)] == header), None)


def _common_beginning(lists: Sequence[list[int]]) -> list[int]:
    length = 0
    while length < min(map(len, lists)) and len({one[length] for one in lists}) == 1:
        length += 1
    return lists[0][:length]


def _load(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise ZweaveError(
            f"{path.parent} has no tokenizer.json: write it with transformers' AutoTokenizer.save_pretrained"
        )
    with _one_line(path):
        tokenizer = tokenizers.Tokenizer.from_buffer(path.read_bytes().removeprefix(codecs.BOM_UTF8))
    # Settings of the call that saved the file, not of the model.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if isinstance(tokenizer.model, tokenizers.models.BPE):
        tokenizer.model.dropout = None
    return tokenizer


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Turns what the library raises over a malformed file into a ZweaveError."""
    try:
        yield
    # It raises bare Exception, and where its Rust code panics, a BaseException of its own.
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ZweaveError(f"{path} is damaged ({str(error)[:200]}): download the model again") from None


def _vocab_size(config_file: Path) -> int | None:
    """The model's; None for a directory that holds a tokenizer alone."""
    size = read_json(config_file).get("vocab_size") if config_file.is_file() else None
    return size if is_integer(size) else None
