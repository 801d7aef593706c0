"""Answers that stay the same from version to version, seeded draws among them: tests/sameness in tokens alone.

Where they change on purpose, `python tests/test_sameness.py` writes them anew.
"""

import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).with_name("sameness")
EXPECTED = FOLDER / "answers.json"
pytest.importorskip("transformers")


def answers() -> list[list[int]]:
    """Token ids of a mixed batch of a tiny model in float32: last bits differ between machines, tokens do not."""
    import dispatched
    import models
    import served

    engine = models.tiny_engine("llama", "float32", kv_tokens=1024)
    requests = [*served.traffic(48), *dispatched.traffic(24, dispatched.STRATEGIES["all"]())]
    return [result.token_ids for result in engine.generate(requests)]


def test_answers_are_those_of_earlier_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    assert answers() == json.loads(EXPECTED.read_text())


if __name__ == "__main__":
    sys.path.insert(0, str(FOLDER))
    EXPECTED.write_text(json.dumps(answers()) + "\n")
