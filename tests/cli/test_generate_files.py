"""`zweave generate` and its files: what an interrupted run left is gone on from, and a wrong line stops only itself."""

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from zweave import Engine
from zweave.cli.main import main
from zweave.cli.result_lines import finished, open_results, result_line
from zweave.errors import ZweaveError
from zweave.request import Result


@pytest.fixture
def generate(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    monkeypatch.chdir(tmp_path)
    model = str(tiny_model("llama", vocab_size=96))
    rows = [{"prompt": [1, 2, i], "max_tokens": 1, "ignore_eos": True} for i in range(3, 7)]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return lambda *args: main(["generate", "--model", model, "--jsonl", *args])


def read(path: Path) -> dict[int, dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == len({line["index"] for line in lines})
    return {line["index"]: line for line in lines}


def test_resume_answers_what_is_missing(
    generate: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out.jsonl"
    arguments = ("--input", "in.jsonl", "--output", "out.jsonl")
    assert generate(*arguments, "--resume") == 0
    whole = read(out)
    assert sorted(whole) == [0, 1, 2, 3]
    out.write_text(f"{json.dumps(whole[2])}\n{json.dumps(whole[0])[:-9]}")
    assert generate(*arguments) == 1 and "--overwrite" in capsys.readouterr().err
    assert generate(*arguments, "--resume") == 0
    assert {i: line["token_ids"] for i, line in read(out).items()} == {
        i: line["token_ids"] for i, line in whole.items()
    }
    assert "3 requests" in capsys.readouterr().err
    assert generate(*arguments, "--resume") == 0 and "all 4 results are there" in capsys.readouterr().err


def test_resume_tries_again_what_failed(
    generate: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """With a cache that is larger, or a line that was mended."""
    rows = [{"prompt": [1] * 60, "max_tokens": 1}, {"prompt": [2, 3], "max_tokens": 1}, {"prompt": 5}]
    (tmp_path / "odd.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ("--input", "odd.jsonl", "--output", "out.jsonl", "--on-error", "line")
    assert generate(*arguments, "--kv-tokens", "32") == 1
    assert [line["finish_reason"] == "error" for _, line in sorted(read(tmp_path / "out.jsonl").items())] == [
        True,
        False,
        True,
    ]
    rows[2] = {"prompt": [5], "max_tokens": 1}
    (tmp_path / "odd.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert generate(*arguments, "--kv-tokens", "32", "--resume") == 1
    assert generate(*arguments, "--resume") == 0
    assert "1 request," in capsys.readouterr().err
    results = read(tmp_path / "out.jsonl")
    assert sorted(results) == [0, 1, 2] and not any(line["error"] for line in results.values())


def test_results_that_are_replaced_stay_until_the_new_ones_are_whole(
    generate: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    arguments = ("--input", "in.jsonl", "--output", "out.jsonl", "--overwrite")
    out.write_text("old")
    with monkeypatch.context() as patch:
        run = Engine.run

        def interrupted(engine: Engine, *args: Any) -> Iterator[tuple[int, Result]]:
            for count, found in enumerate(run(engine, *args)):
                if count == 2:
                    raise KeyboardInterrupt
                yield found

        patch.setattr(Engine, "run", interrupted)
        assert generate(*arguments) == 130
    assert out.read_text() == "old" and len(read(partial)) == 2
    assert generate(*arguments) == 1 and "out.jsonl.partial is there" in capsys.readouterr().err
    assert generate("--input", "in.jsonl", "--output", str(partial), "--resume") == 0
    assert len(read(partial)) == 4 and out.read_text() == "old"
    partial.unlink()
    assert generate(*arguments) == 0 and len(read(out)) == 4 and not partial.exists()


def test_resume_of_other_input_is_refused(
    generate: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, arguments = tmp_path / "out.jsonl", ("--output", "out.jsonl")
    assert generate("--input", "in.jsonl", *arguments) == 0
    before = out.read_bytes()
    rows = (tmp_path / "in.jsonl").read_text().splitlines()
    (tmp_path / "other.jsonl").write_text("\n".join(reversed(rows)))
    monkeypatch.delattr("zweave.cli.generate.open_engine")
    capsys.readouterr()
    for other in (("--input", "other.jsonl"), ("--input", "in.jsonl", "--temperature", "1")):
        assert generate(*other, *arguments, "--resume") == 1
        assert "answers another request" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert generate("--input", "in.jsonl", *arguments, "--resume") == 0


def test_on_error_line_answers_the_others(
    generate: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    bad = ['{"prompt": "a", "max_tokens": 1}', '{"prompt": 3}', '{"prompt": "a", "expert": "nobody"}', "{"]
    (tmp_path / "bad.jsonl").write_text("\n".join(bad))
    arguments = ("--input", "bad.jsonl", "--output", "out.jsonl")
    assert generate(*arguments) == 1
    assert "bad.jsonl, line 2: prompt must be text" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()
    assert generate(*arguments, "--on-error", "line") == 1
    found = read(tmp_path / "out.jsonl")
    assert found[0]["error"] is None and len(found[0]["token_ids"]) == 1
    assert [found[i]["finish_reason"] for i in (1, 2, 3)] == ["error"] * 3
    assert "no expert 'nobody'" in found[2]["error"] and "not JSON" in found[3]["error"]
    assert "bad.jsonl, line 3: there is no expert 'nobody'" in capsys.readouterr().err


def test_an_unknown_expert_names_its_line_before_the_model_loads(
    generate: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr("zweave.cli.generate.open_engine")
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n\n{"prompt": "b", "expert": "nobody"}\n')
    assert generate("--input", "in.jsonl") == 1
    assert "in.jsonl, line 3: there is no expert 'nobody'" in capsys.readouterr().err
    (tmp_path / "in.jsonl").write_text('{"prompt": "b", "expert": {"sst2": 1, "no/such.safetensors": 1}}')
    assert generate("--input", "in.jsonl") == 1
    assert "in.jsonl, line 1: no/such.safetensors: there is no such file" in capsys.readouterr().err


def test_names_of_load_are_checked_before_the_model_loads(
    generate: Callable[..., int], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("zweave.engine.engine.Engine.__init__")
    assert generate("--input", "in.jsonl", "--load", "base=in.jsonl") == 1
    assert "the expert name 'base' is reserved" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("mine\n", "line 1 is no result"),
        ('{"index": 1, "request": "b"}\n{"index": "2", "request": "c"}\n', "line 2 is no result"),
        ('{"index": 4, "request": "a"}\n', "line 1 answers request 4, and the input has 4"),
        (
            '{"index": 3, "request": null}\n{"index": 1, "request": "c"}\n',
            "line 2 answers another request 1 than",
        ),
    ],
)
def test_a_file_of_anything_else_is_not_gone_on_with(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "out").write_text(content)
    with pytest.raises(ZweaveError, match=words):
        finished(tmp_path / "out", ["a", "b", "c", None])
    assert (tmp_path / "out").read_text() == content


def test_resume_needs_a_file_of_json(generate: Callable[..., int], capsys: pytest.CaptureFixture) -> None:
    assert generate("--input", "in.jsonl", "--resume") == 1
    assert "--resume goes on with the results in --output FILE" in capsys.readouterr().err


RESULT = Result("naïve \ud800", [1], None, None, "stop", 2)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "utf_8", "utf-16"])
def test_every_line_is_json_whatever_the_stream_can_show(encoding: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="backslashreplace", newline="")
    stream.write(result_line(0, None, RESULT, stream))
    stream.flush()
    assert json.loads(raw.getvalue().decode(encoding))["text"] == RESULT.text


def test_what_utf8_cannot_hold_is_escaped_in_files(tmp_path: Path) -> None:
    with open_results(tmp_path / "out", resume=False) as output:
        output.write(result_line(0, None, RESULT, output))
    assert json.loads((tmp_path / "out").read_text())["text"] == RESULT.text


def test_unknown_names_are_said_with_the_known_ones(
    generate: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "typo.jsonl").write_text('{"prompt": "a", "sampling": {"temp": 5}}')
    assert generate("--input", "typo.jsonl") == 1
    assert (
        "unknown field of sampling 'temp': use frequency_penalty, logit_bias, min_p"
        in capsys.readouterr().err
    )
    (tmp_path / "my exp.safetensors").write_bytes(b"")
    assert generate("--input", "in.jsonl", "--expert", "my exp.safetensors") == 1
    assert (
        "cannot be an expert's name: load the file under one by --load NAME=FILE" in capsys.readouterr().err
    )
    with pytest.raises(ZweaveError, match="unknown engine option 'foo': use dtype, weights, device"):
        Engine("smollm2", foo=1)


def test_a_bias_is_an_id_and_a_number(
    generate: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert generate("one", "--max-tokens", "2", "--logit-bias", "40=100", "--output", "out.jsonl") == 0
    [line] = read(tmp_path / "out.jsonl").values()
    assert line["token_ids"] == [40, 40]
    for wrong, message in (("40", "must be ID=BIAS"), ("x=1", "token ids as its keys"), ("1=101", "to 100")):
        capsys.readouterr()
        with contextlib.suppress(SystemExit):
            assert generate("one", "--logit-bias", wrong) == 1
        assert message in " ".join(capsys.readouterr().err.split())


def test_several_answers_stand_in_one_result(
    generate: Callable[..., int],
    tiny_model: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    options = ("--n", "3", "--temperature", "1", "--seed", "5", "--max-tokens", "4")
    assert generate("one", *options, "--output", "out.jsonl") == 0
    assert "1 request, 12 tokens" in capsys.readouterr().err.replace("\n", " ")
    [line] = read(tmp_path / "out.jsonl").values()
    texts = [sample["text"] for sample in line["samples"]]
    assert len(texts) == 3 and line["text"] == texts[0] and len({*texts}) > 1
    model = str(tiny_model("llama", vocab_size=96))
    assert main(["generate", "--model", model, "one", *options]) == 0
    shown = capsys.readouterr().out
    assert shown == "> one\n" + "\n\n".join(f"[{i}] {text}" for i, text in enumerate(texts)) + "\n\n"


@pytest.mark.parametrize("as_file", [True, False])
def test_the_form_of_answers(
    as_file: bool, tiny_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": [17]}')
    form = ("--json-schema", str(schema)) if as_file else ("--regex", "17")
    row = {"prompt": "b", "response_format": {"type": "json_schema", "json_schema": {"schema": {"const": 5}}}}
    (tmp_path / "in.jsonl").write_text(f'{{"prompt": "a"}}\n{json.dumps(row)}')
    arguments = [
        "generate",
        "--model",
        str(tiny_model("llama")),
        "--jsonl",
        "--input",
        str(tmp_path / "in.jsonl"),
    ]
    assert main([*arguments, *form]) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {result["index"]: result["text"] for result in results} == {0: "17", 1: "5"}
    schema.write_text('{"enum": ')
    assert main([*arguments, "--json-schema", str(schema)]) == 1
    assert f"{schema}: json_schema is no JSON" in capsys.readouterr().err
