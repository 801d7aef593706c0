"""Puts a bare text into the words that its expert was trained on."""

from collections.abc import Mapping
from dataclasses import replace

from ..errors import ZweaveError
from ..request import Request
from ..text.prompt_template import PromptTemplate, Question
from ..text.tokenizer import Tokenizer


def in_own_words(
    request: Request, template: PromptTemplate | None, tokenizer: Tokenizer
) -> tuple[Request, Question | None]:
    """The request for a template's whole prompt, with its limit and stop strings, and what is asked so.

    The request as it was, and None, without a template, for a prompt that is no bare text, and for a message where the
    template is no chat's; ZweaveError for the latter two if the request names the template.
    """
    if template is None:
        return request, None
    text = None if request.messages is not None and not template.chat else _bare_text(request, tokenizer)
    if text is None:
        if request.template is not None:
            raise ZweaveError(
                f"the prompt does not fit into the template of {request.template!r}, which takes a text without "
                "special tokens or, of a chat's, one user message: leave the template out"
            )
        return request, None
    whole = replace(
        request,
        prompt=template.ids(tokenizer, tokenizer.escape(text) if request.escape_special else text),
        messages=None,
        tools=None,
        chat_template_kwargs=None,
        template=None,
        max_tokens=min(request.max_tokens, template.max_tokens),
        stop=(*request.stop_strings, *template.stop),
    )
    return whole, template.ask(text)


def _bare_text(request: Request, tokenizer: Tokenizer) -> str | None:
    """The text of a prompt that has no form yet.

    None for token ids, for a conversation of more than a user's message, or with tools, for text with special tokens in
    it that are not escaped, and for a request that asks to be taken as it is.
    """
    text: object = request.prompt
    if request.messages is not None and len(request.messages) == 1:
        text = _user_words(request.messages[0])
    if not isinstance(text, str) or request.raw or request.tools:
        return None
    return None if tokenizer.holds_special(text) and not request.escape_special else text


def _user_words(message: object) -> object:
    """A user's words; None for any other message, which the tokenizer may refuse with the reason."""
    return message.get("content") if isinstance(message, Mapping) and message.get("role") == "user" else None
