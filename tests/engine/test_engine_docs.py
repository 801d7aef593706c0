"""docs/engine.md and docs/structured.md: the examples run, and tables name every option and every field of a Delta."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from zweave import Delta
from zweave.checkpoint import ModelConfig
from zweave.engine import EngineConfig
from zweave.experts import Expert

DOCS = Path(__file__).parents[2] / "docs"
TEXT, STRUCTURED = ((DOCS / name).read_text(encoding="utf-8") for name in ("engine.md", "structured.md"))
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", TEXT + STRUCTURED, flags=re.DOTALL | re.MULTILINE)
# Name and second column of each row of the tables.
ROWS = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", TEXT, flags=re.MULTILINE))


@pytest.mark.parametrize("code", EXAMPLES, ids=lambda code: code.splitlines()[-1])
def test_an_example_runs(
    code: str,
    tiny_model: Callable[..., Path],
    random_expert: Callable[..., Expert],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    model, expert = tiny_model("llama"), tmp_path / "sst2.safetensors"
    random_expert(ModelConfig.from_directory(model).adapted_shapes(), seed=1).save(expert)
    code = code.replace('"smollm2"', repr(str(model))).replace('"sst2")\n', f'"sst2", {str(expert)!r})\n')
    exec(compile(code, "example", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_the_options_are_all_there() -> None:
    for field in dataclasses.fields(EngineConfig):
        wanted = str(field.default) if isinstance(field.default, int | float) else repr(field.default)
        assert ROWS[field.name].strip("`").replace('"', "'") == wanted, field.name
    assert {field.name for field in dataclasses.fields(Delta)} <= set(ROWS)
