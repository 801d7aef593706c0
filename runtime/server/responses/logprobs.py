"""Log-probabilities in the two forms that OpenAI has for them."""

from collections.abc import Sequence
from typing import Any

from ...request import TokenLogprob
from ...text.tokenizer import Tokenizer


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """That of chat: one object a token."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        text = tokenizer.decode([token_id], skip_special=False)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8"))}

    content = [
        {
            **entry(token.token_id, token.logprob),
            "top_logprobs": [entry(other, logprob) for other, logprob in token.top.items()],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    tokenizer: Tokenizer, tokens: Sequence[TokenLogprob], offset: int = 0, first: int | None = None
) -> dict[str, Any]:
    """That of completions: parallel lists.

    offset: characters of the choice before these tokens.
    first: a token before them that has no log-probability, since it is the first of a prompt.
    """
    before = [] if first is None else [first]
    token_ids = [*before, *(token.token_id for token in tokens)]
    texts = [tokenizer.decode([token_id], skip_special=False) for token_id in token_ids]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    top = [
        {tokenizer.decode([other], skip_special=False): logprob for other, logprob in token.top.items()}
        for token in tokens
    ]
    return {
        "tokens": texts,
        "token_logprobs": [*(None for _ in before), *(token.logprob for token in tokens)],
        "top_logprobs": [*(None for _ in before), *top],
        "text_offset": offsets,
    }
