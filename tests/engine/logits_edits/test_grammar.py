"""The edit that follows an answer's format."""

import pytest
import torch

from zweave.engine.logits_edits.grammar import GrammarEdit
from zweave.text import Tokenizer
from zweave.text.structured import FormatCompiler, ResponseFormat


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return Tokenizer(tiny_model("llama"))


@pytest.fixture
def left(tokenizer):
    """The tokens, of a vocabulary of some size, that are left after an answer; their logits stay as they are."""
    edit = GrammarEdit(FormatCompiler(tokenizer, 259).matcher(ResponseFormat(choice=["aba", "abc", "ab"])))

    def after(text, size=264):
        before = torch.randn(size, generator=torch.Generator().manual_seed(0))
        logits = before.clone()
        edit.edit(logits, tokenizer.encode(text))
        kept = logits.isfinite()
        assert torch.equal(logits[kept], before[kept]) and bool((logits[~kept] == float("-inf")).all())
        return {tokenizer.decode([token], skip_special=False) for token in kept.nonzero().flatten().tolist()}

    return after


def test_only_what_the_format_allows_is_left(left):
    assert left("") == {"a"}
    assert left("a") == {"b"}
    assert left("ab") == {"a", "c", "<|im_end|>"}
    assert left("abc") == {"<|im_end|>"}


def test_the_state_follows_from_the_answer_alone(left):
    assert left("ab") == left("ab") == {"a", "c", "<|im_end|>"}
    assert left("a") == {"b"}
    assert left("aba") == {"<|im_end|>"}
    assert left("abc") == {"<|im_end|>"}
    assert left("") == {"a"}


def test_no_token_is_left_after_a_wrong_answer(left):
    assert left("x") == set()
    assert left("xy") == set()
    assert left("a") == {"b"}


def test_a_model_with_fewer_tokens_than_its_tokenizer(left):
    assert left("ab", size=3) == {"<|im_end|>"}
