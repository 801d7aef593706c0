"""JSON that others wrote: a key that stands twice is refused, but in a checkpoint's files."""

from pathlib import Path

import pytest

from zweave.checkpoint.hf_config import read_json
from zweave.cli.request_lines import json_request
from zweave.errors import ZweaveError
from zweave.io.json_text import parse_json


def test_a_byte_order_mark_is_skipped() -> None:
    assert parse_json('\ufeff{"a": 1}') == {"a": 1}


@pytest.mark.parametrize("text", ['{"a": 1, "b": 2, "a": 1}', '[{"c": {"a": 1, "a": 2}}]'])
def test_a_key_that_stands_twice_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="the key 'a' stands twice in one object"):
        parse_json(text)


def test_a_number_that_python_does_not_read_is_cut_short() -> None:
    with pytest.raises(ZweaveError, match=r"^not JSON: the number 9{20}\.\.\. of 5000 digits is too large$"):
        json_request('{"prompt": "a", "max_tokens": ' + "9" * 5000 + "}", {})


def test_a_request_with_two_prompts_is_refused() -> None:
    with pytest.raises(ZweaveError, match="the key 'prompt' stands twice"):
        json_request('{"prompt": "a", "prompt": "b"}', {})


def test_a_checkpoint_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a": 1, "a": 2}')
    assert read_json(tmp_path / "config.json") == {"a": 2}
