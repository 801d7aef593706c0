"""/tokenize and /detokenize."""

from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest

from ..errors import ApiError
from ..json_route import JsonRoute
from ..protocol.tokenize import DetokenizeBody, TokenizeBody
from ..served import served

router = APIRouter(tags=["tokens"], route_class=JsonRoute)


@router.post("/tokenize")
def tokenize(body: TokenizeBody, http: HttpRequest) -> dict[str, Any]:
    """The token ids of a text, or of a conversation in the chat template."""
    server = served(http)
    tokenizer, special = server.engine.tokenizer, body.add_special_tokens
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "give a prompt or messages, one of the two")
    if body.messages is not None:
        tokens = tokenizer.chat([message.plain() for message in body.messages], bool(special))
    else:
        tokens = tokenizer.encode(body.prompt or "", special is not False)
    return {"count": len(tokens), "max_model_len": server.engine.max_length, "tokens": tokens}


@router.post("/detokenize")
def detokenize(body: DetokenizeBody, http: HttpRequest) -> dict[str, Any]:
    """The text of token ids, special tokens included."""
    server = served(http)
    vocab_size = server.engine.model.config.vocab_size
    if any(not 0 <= token < vocab_size for token in body.tokens):
        raise ApiError(400, f"token ids must be from 0 to {vocab_size - 1}")
    return {"prompt": server.engine.tokenizer.decode(body.tokens, skip_special=False)}
