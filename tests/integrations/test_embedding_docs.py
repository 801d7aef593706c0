"""The examples of the README's "Embed it" and of docs/embedding.md, run as they stand on a tiny model."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import zweave.kernels  # noqa: F401  registers the ops
from zweave.cli.main import main

ROOT = Path(__file__).parents[2]
pytest.importorskip("transformers")


def blocks(path: Path, heading: str = "") -> list[str]:
    """The Python blocks of a page, or of its section under a heading."""
    text = path.read_text(encoding="utf-8")
    if heading:
        text = text.split(f"\n{heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


PAGE = blocks(ROOT / "docs" / "embedding.md")
README = [block for block in blocks(ROOT / "README.md", "## Embed it") if "vllm" not in block]


@pytest.fixture(scope="module")
def names(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the examples' names in capitals stand for."""
    folder = tmp_path_factory.mktemp("embedding")
    model, expert = str(tiny_model("llama")), str(folder / "mine.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZWEAVE_CACHE", str(folder / "cache"))
        assert main(["expert", "new", expert, "--random", "0.3", "--model", model]) == 0
    return {"MODEL": model, "EXPERT": expert, "cache": str(folder / "cache")}


@pytest.mark.parametrize("code", [*PAGE, *README], ids=lambda code: code.splitlines()[0])
def test_an_example_runs(
    code: str, names: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZWEAVE_CACHE", names["cache"])
    filled = code.replace('"MODEL"', repr(names["MODEL"])).replace('"EXPERT"', repr(names["EXPERT"]))
    seen: dict[str, object] = {}
    exec(compile(filled, "example", "exec"), seen)
    if "y" in seen:
        y = seen["y"]
        assert isinstance(y, torch.Tensor) and y.isfinite().all() and not torch.equal(y[0], y[1])
    if "answers" in seen:
        assert isinstance(seen["answers"], torch.Tensor) and len(seen["answers"]) >= 2
    if "experts.save" in code:
        assert (tmp_path / "new.safetensors").stat().st_size > 0


def test_there_are_examples() -> None:
    assert len(PAGE) == 3 and len(README) >= 2
    assert all(len(block.strip().splitlines()) <= 9 for block in README)


SCHEMAS = {
    "pack": "zweave::pack(Tensor weight) -> Tensor",
    "linear": "zweave::linear(Tensor x, Tensor weight, Tensor? bias, int out_features, "
    "ScalarType? out_dtype=None) -> Tensor",
    "svf_linear": "zweave::svf_linear(Tensor x, Tensor vt, Tensor u, Tensor scale, Tensor slot, Tensor? bias, "
    "int out_features) -> Tensor",
    "svf_delta_linear": "zweave::svf_delta_linear(Tensor x, Tensor w, Tensor vt, Tensor u, Tensor delta, Tensor slot, "
    "Tensor? bias, int out_features, Tensor? vt_scale=None, Tensor? u_scale=None, int vt_group=0, int u_group=0) "
    "-> Tensor",
    "mix": "zweave::mix(Tensor table, Tensor alpha) -> Tensor",
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_promised_schemas_stand(name: str) -> None:
    """An argument may be added at the end with a default, and then here too; anything else breaks embedders."""
    assert str(getattr(torch.ops.zweave, name).default._schema) == SCHEMAS[name]
