"""`zweave bench` as a user meets it, on a random model."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from zweave.bench.kernels import linear_forms
from zweave.bench.learning.candidates import MixedBatch
from zweave.bench.serving.engine import PROVIDERS
from zweave.bench.serving.engine_server import EngineServer
from zweave.bench.serving.fixtures import Fixtures
from zweave.bench.serving.two_pass import stream as two_pass_stream
from zweave.bench.serving.two_pass.strategies import AFTER, FIRST, HIDDEN, NAMED
from zweave.bench.serving.workload import Workload
from zweave.cli.main import main
from zweave.engine import Engine
from zweave.experts import Expert
from zweave.request import Result

ROW_KEYS = {"provider", "status", "error", "seconds", "rounds"}
LINEAR_KEYS = ROW_KEYS | {
    "model", "name", "shape", "M", "N", "R", "T", "E", "gb_s", "gflop_s", "roof", "roof_pct", "net_pct", "read_gb_s",
    "peak_gflop_s", "vs_f_linear", "vs_dense", "vs_bound", "vs_e1", "share",
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Roofs and rotations of a machine with hardly a cache."""
    for module in ("kernels.linear_case", "harness.cpu_roofs"):
        monkeypatch.setattr(f"zweave.bench.{module}.cache_bytes", lambda device="cpu": 1 << 16)
    monkeypatch.setattr("zweave.bench.harness.cpu_roofs.PRODUCTS", ((64, 64, 64),))
    monkeypatch.setattr("zweave.bench.kernels.linear.roof_providers.__defaults__", (1 << 20,))


@pytest.fixture
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", vocab_size=264)


def bench(capsys: pytest.CaptureFixture, *args: object) -> tuple[int, list[str], dict]:
    status = main(["bench", *map(str, args)])
    lines = capsys.readouterr().out.splitlines()
    return status, lines, json.loads(lines[-1])


def test_linear(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    plot = tmp_path / "roofline.png"
    status, lines, line = bench(
        capsys, "linear", "--shapes", "smollm2", "--tokens", "1,4", "--experts", "1,4", "--rounds", 1, "--plot", plot
    )  # fmt: skip
    assert status == 0
    assert len(lines) > 20
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert line["bench"] == "linear"
    assert all(row.keys() >= LINEAR_KEYS for row in line["rows"])
    at_four = [row for row in line["rows"] if (row["M"], row["N"], row["T"]) == (576, 576, 4)]
    counted = {name: sum(row["provider"] == name for row in at_four) for name in ("dense", "factored")}
    assert counted == {"dense": 1, "factored": 2}


def test_a_wrong_linear_is_refused(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    right = linear_forms.svf_linear
    monkeypatch.setattr(linear_forms, "svf_linear", lambda *args: right(*args) * 1.05)
    status, _, line = bench(
        capsys, "linear", "--shapes", "smollm2", "--tokens", 1, "--providers", "dense,factored", "--rounds", 1,
        "--json",
    )  # fmt: skip
    assert status == 1
    statuses = {row["provider"]: row["status"] for row in line["rows"]}
    assert statuses == {"dense": "ok", "factored": "wrong"}
    assert all(row["seconds"] is None for row in line["rows"] if row["status"] == "wrong")


def test_mix_prints_one_line_of_json(capsys: pytest.CaptureFixture) -> None:
    args = ("--experts", "1,3", "--mixtures", 2, "--components", 1000, "--rounds", 1, "--json")
    status, lines, line = bench(capsys, "mix", *args)
    assert status == 0 and len(lines) == 1
    assert {(row["E"], row["provider"]) for row in line["rows"]} == {
        (E, name) for E in (1, 3) for name in ("mix", "matmul", "expert by expert")
    }
    assert all(row.keys() >= ROW_KEYS | {"vs_matmul", "components", "B"} for row in line["rows"])


def test_engine(capsys: pytest.CaptureFixture, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    names = ",".join(name for name in PROVIDERS if name != "leading")
    status, _, line = bench(
        capsys, "engine", "--model", model, "--dtype", "float32", "--requests", 4, "--prompt", 8, "--new", 6,
        "--experts", 2, "--rounds", 1, "--providers", names, "--plot", tmp_path / "bars.png",
    )  # fmt: skip
    assert status == 0, line["rows"]
    keys = ROW_KEYS | {"requests", "prompt", "new", "experts", "tok_s", "vs_transformers", "vs_recompose"}
    assert all(row.keys() >= keys for row in line["rows"])
    batch = [(row["provider"], row["experts"]) for row in line["rows"] if row["requests"] == 4]
    assert ("zweave", 2) in batch and ("recompose", 2) in batch and ("PEFT LoRA rank 16", 2) in batch
    assert ("transformers", 0) in [(r["provider"], r["experts"]) for r in line["rows"] if r["requests"] == 1]
    assert (tmp_path / "bars.png").is_file()


def test_answers_under_the_wrong_expert_are_refused(
    capsys: pytest.CaptureFixture, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EngineServer, "expert", lambda self, index: None)
    status, _, line = bench(
        capsys, "engine", "--model", model, "--dtype", "float32", "--requests", 4, "--prompt", 8, "--new", 6,
        "--rounds", 1, "--providers", "base,many", "--no-single",
    )  # fmt: skip
    assert status == 1
    assert {row["provider"]: row["status"] for row in line["rows"]} == {
        "zweave base": "ok",
        "zweave": "wrong",
    }


@pytest.mark.slow
def test_peers(
    capsys: pytest.CaptureFixture, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    monkeypatch.delenv("ZWEAVE_VLLM_PYTHON", raising=False)
    status, lines, line = bench(
        capsys, "peers", "--model", model, "--dtype", "float32", "--requests", 4, "--prompt", 8, "--new", 6,
        "--experts", 2, "--rounds", 1, "--plot", tmp_path / "bars.png", "--providers",
        "zweave2,vllm-zweave2,transformers,transformers-zweave2,transformers-zweave2-leading,peft-lora2-r16",
    )  # fmt: skip
    assert status == 0, line["rows"]
    keys = ROW_KEYS | {"requests", "prompt", "new", "experts", "tok_s", "vs_vllm", "vs_transformers"}
    assert all(row.keys() >= keys for row in line["rows"])
    assert {row["provider"]: row["experts"] for row in line["rows"]} == {
        "zweave2": 2, "transformers": 0, "transformers-zweave2": 2, "transformers-zweave2-leading": 2,
        "peft-lora2-r16": 2,
    }  # fmt: skip
    assert (tmp_path / "bars.png").is_file()
    left_out = [text for text in lines if text.startswith("Left out vllm-zweave2")]
    assert len(left_out) == 1 and "bench/serving/peers/vllm_environment.sh" in left_out[0]


def test_a_peer_that_ends_gets_no_time(
    capsys: pytest.CaptureFixture, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZWEAVE_VLLM_PYTHON", "/bin/false")
    status, _, line = bench(
        capsys, "peers", "--model", model, "--requests", 2, "--rounds", 1, "--providers", "vllm"
    )
    assert status == 1
    assert line["rows"][0]["status"] == "failed" and "ended with 1" in line["rows"][0]["note"]


@pytest.mark.slow
def test_our_engine_on_the_grid_among_peers(
    capsys: pytest.CaptureFixture,
    tiny_model: Callable[..., Path],
    to_grid: Callable[..., Path],
    tmp_path: Path,
) -> None:
    model = tiny_model("llama", vocab_size=264, hidden_size=64, intermediate_size=96)
    names = "zweave0-grid,zweave2-grid,zweave2-leading-grid"
    sizes = ("--dtype", "float32", "--requests", 2, "--prompt", 8, "--new", 6, "--experts", 2, "--rounds", 1)
    on_grid = to_grid(model, tmp_path / "model", lambda name: "Q8_0")
    _, _, line = bench(capsys, "peers", "--model", on_grid, *sizes, "--providers", names)
    errors = {row["provider"]: row["error"] for row in line["rows"]}
    assert set(errors) == set(names.split(",")) and errors["zweave0-grid"] < 1e-3, line["rows"]
    # Experts have their components in int8 and int4.
    assert all(error < 0.2 for error in errors.values()), errors
    few_bits = f"{names},zweave2-refit"
    _, lines, line = bench(capsys, "peers", "--model", model, *sizes, "--providers", few_bits)
    assert not line["rows"] and sum("has no matrix on a grid" in text for text in lines) == 3
    assert sum(text.startswith("Left out zweave2-refit") for text in lines) == 1


def test_step_and_experts(capsys: pytest.CaptureFixture, model: Path) -> None:
    common = ("--model", model, "--dtype", "float32", "--prompt", 8, "--rounds", 2, "--json")
    status, _, line = bench(capsys, "step", *common, "--tokens", "1,3", "--experts", 2)
    assert status == 0, line["rows"]
    assert {(row["tokens"], row["provider"]) for row in line["rows"]} == {
        (T, name) for T in (1, 3) for name in ("zweave base", "zweave", "transformers")
    }
    status, _, line = bench(
        capsys, "experts", *common, "--requests", 4, "--new", 4, "--experts", "1,4", "--registered", 70
    )
    assert status == 0, line["rows"]
    batches, first = line["rows"][:4], line["rows"][4:]
    assert [(row["experts"], row.get("registered")) for row in batches] == [
        (1, None),
        (4, None),
        (0, 4),
        (0, 70),
    ]
    assert batches[0]["vs_one"] == batches[2]["vs_one"] == 1
    assert [row["state"] for row in first] == ["resident", "prepared", "not prepared"]
    assert first[0]["delay_seconds"] == 0


def test_leading_experts_are_one_outside_their_components(model: Path) -> None:
    from zweave.bench.serving.workload import random_expert
    from zweave.errors import ZweaveError

    fixtures = Fixtures(str(model), "float32")
    try:
        expert = random_expert(fixtures.config, 0, leading=8)
    except ZweaveError as error:
        pytest.skip(str(error))
    for z in expert.z.values():
        assert (z[len(z) // 8 :] == 1).all() and (z[: len(z) // 8] != 1).all()
    assert Workload(2, 3, 4).prompts(fixtures.config) == Workload(2, 3, 4).prompts(fixtures.config)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("linear", "--plot", "missing/out.png"), "missing"),
        (("engine", "--model", "gpt-17"), "gpt-17"),
        (("gpu-linear",), "CUDA"),
        (("few-shot", "mpqa", "--data", "/nowhere"), "mpqa.all"),
        (("few-shot", "--experts", "nobody", "--model", "gpt-17"), "no expert 'nobody'"),
        (("two-pass", "--data", "/nowhere"), "sst2_train.tsv"),
    ],
    ids=str,
)
def test_bad_input_gives_one_line(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], words: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["bench", *args]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and errors[0].startswith("zweave: error: ") and words in errors[0]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("linear", "--shapes", "gpt-17"), "gpt-17"),
        (("linear", "--tokens", "1,x"), "--tokens"),
        (("linear", "--experts", "0"), "--experts"),
        (("linear", "--providers", "magic"), "magic"),
        (("engine", "--providers", "magic"), "magic"),
        (
            ("peers", "--providers", "zweave8", "--experts", "4"),
            "there is no 'zweave8': use zweave0, zweave4,",
        ),
        (("mix", "--mixtures", ""), "--mixtures"),
        (("two-pass", "--prompts", "64,x"), "--prompts"),
        (("transfer", "--pairs", "magic"), "use seeds, rounded"),
    ],
    ids=str,
)
def test_lists_are_checked_with_the_arguments(
    capsys: pytest.CaptureFixture, args: tuple[str, ...], words: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["bench", *args])
    assert words in capsys.readouterr().err


def test_usage() -> None:
    for args in (["bench"], ["bench", "magic"], ["bench", "linear", "--rounds", "0"], ["bench", "gpu"]):
        with pytest.raises(SystemExit) as leaving:
            main(args)
        assert leaving.value.code == 2


def test_prefix_tree(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    args = ("prefix-tree", "--cached", 20, "--tokens", 40, "--shared", 10, "--block-size", 4, "--rounds", 2)
    status, _, line = bench(capsys, *args)
    assert status == 0
    assert len(line["rows"]) == 3
    # 2 blocks are the same, 8 a prompt are not.
    assert all(row["nodes"] == 2 + 20 * 8 and row["error"] == 0 for row in line["rows"])
    monkeypatch.setattr("zweave.kv_cache.prefix_tree.common_prefix_length", lambda one, other: 0)
    status, _, line = bench(capsys, *args, "--tokens", 42)
    assert status == 1
    with pytest.raises(SystemExit):
        main(["bench", "prefix-tree", "--cached", "0"])
    assert main(["bench", "prefix-tree", "--shared", "3000"]) == 1


@pytest.fixture
def few_shot(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture) -> tuple[object, ...]:
    """A small search's options, with two experts."""
    files = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for seed, file in enumerate(files):
        new = ("expert", "new", file, "--random", "0.3", "--seed", seed, "--model", model)
        assert main([str(part) for part in new]) == 0
    capsys.readouterr()
    sizes = ("--shots", 4, "--population", 3, "--rebuilt", 2, "--rounds", 1, "--dtype", "float32")
    return ("subtraction", "--model", model, "--experts", *files, *sizes, "--json")


def test_few_shot(capsys: pytest.CaptureFixture, few_shot: tuple[object, ...]) -> None:
    status, _, line = bench(capsys, "few-shot", *few_shot)
    rows = {row["provider"]: row for row in line["rows"]}
    assert status == 0, line["rows"]
    assert len(rows) == 4 and rows.pop("rebuilt, transformers bfloat16")["error"] < 0.1
    assert all(row["error"] < 1e-3 and row["vs_rebuilt"] > 0 for row in rows.values())
    assert {(row["task"], row["shots"], row["candidates"]) for row in rows.values()} == {
        ("subtraction", 4, 3)
    }


def test_the_scores_of_other_candidates_are_refused(
    capsys: pytest.CaptureFixture, few_shot: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = MixedBatch.__call__
    monkeypatch.setattr(MixedBatch, "__call__", lambda self, *args: right(self, *args[:2], args[2][::-1]))
    status, _, line = bench(capsys, "few-shot", *few_shot)
    statuses = {row["provider"]: row["status"] for row in line["rows"]}
    assert status == 1 and statuses["zweave"] == "wrong"
    assert statuses["rebuilt, transformers float32"] == "ok"


def test_train(capsys: pytest.CaptureFixture, model: Path) -> None:
    options = ("--model", model, "--dtype", "float32", "--batch", 3, "--prompt", 12, "--rounds", 1)
    status, _, line = bench(capsys, "train", *options)
    assert status == 0
    rows = {row["provider"]: row for row in line["rows"]}
    assert len(rows) == 4 and rows["rebuilt weights"]["vs_recomposed"] == 1.0
    assert all(row["seconds"] > 0 and row["error"] < 1e-3 for row in rows.values())


def test_train_together(capsys: pytest.CaptureFixture, model: Path) -> None:
    options = ("--model", model, "--dtype", "float32", "--batch", 2, "--prompt", 9, "--rounds", 1)
    status, _, line = bench(capsys, "train-together", *options, "--trainings", 2)
    assert status == 0
    rows = {row["provider"]: row for row in line["rows"]}
    assert len(rows) == 4 and all(row["status"] == "ok" and row["error"] == 0 for row in rows.values())
    assert rows["alone, full"]["vs_alone"] == 1.0 and rows["together, leading:R/8"]["vs_alone"] > 0


@pytest.fixture
def two_pass(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, random_expert: Callable[..., Expert]
) -> tuple[object, ...]:
    """Small sizes, a few lines of the tasks' files, and random experts instead of the bundled ones."""
    for split in ("train", "test"):
        lines = [f"{split} film {i} is {'good' if i % 2 else 'bad'}\t{i % 2}" for i in range(200)]
        (tmp_path / f"sst2_{split}.tsv").write_text("\n".join(lines))
        lines = [f"{i % 6} What is the {split} number {i} ?" for i in range(200)]
        (tmp_path / f"TREC.{split}.all").write_text("\n".join(lines))

    def experts_of(engine: Engine, reuse: str) -> list[str]:
        names = [f"{reuse}-of-{task}" for task in two_pass_stream.TASKS]
        shapes = engine.model.config.adapted_shapes()
        for seed, name in enumerate(names):
            engine.load_expert(name, random_expert(shapes, seed=seed, scope=reuse))
        return names

    monkeypatch.setattr(two_pass_stream, "experts_of", experts_of)
    monkeypatch.setattr(two_pass_stream, "SHOTS", 30)
    sizes = ("--prompts", "70,200", "--new", 3, "--guess", 2, "--samples", 4, "--in-flight", 3, "--layer", 1)
    return ("two-pass", "--model", model, "--dtype", "float32", *sizes, "--rounds", 1, "--data", tmp_path)


TWO_PASS_KEYS = ROW_KEYS | {
    "workload", "strategy", "reuse", "prompt_tokens", "first_pass_share", "oracle_ratio", "prompt_tokens_recomputed",
    "second_pass_seconds",
}  # fmt: skip


def test_two_pass(capsys: pytest.CaptureFixture, two_pass: tuple[object, ...]) -> None:
    status, _, line = bench(capsys, *two_pass)
    assert status == 0, line["rows"]
    assert all(row.keys() >= TWO_PASS_KEYS for row in line["rows"])
    rows = {
        (row["workload"], row["prompt_tokens"], row["reuse"], row["strategy"]): row for row in line["rows"]
    }
    strategies = (NAMED, HIDDEN, AFTER, FIRST)
    # A token a byte, one for each of the template's three special tokens.
    template = len("|user\n") + len("|\n|assistant\n")
    for length in (70, 200):
        for reuse in ("after_prompt", "first_layer", "always"):
            twice = [rows["alone", length, reuse, name]["prompt_tokens_recomputed"] for name in strategies]
            print(length, reuse, twice)
            once = [0, 0, 0, length - template]
            # But for the template's beginning and a first letter that another prompt has, too.
            wanted = [0, *[length - template] * 3] if reuse == "always" else once
            assert all(
                one == other == 0 or abs(one - other) <= 6 for one, other in zip(twice, wanted, strict=True)
            )
            named = rows["alone", length, reuse, NAMED]
            assert (named["first_pass_share"], named["oracle_ratio"]) == (0, 1)
            assert all(rows["alone", length, reuse, name]["vs_reference"] > 0 for name in strategies)
        reference = rows["alone", length, "always", "reference"]
        parts = reference["seconds"] - reference["second_pass_seconds"] - reference["rebuild_seconds"]
        assert parts == pytest.approx(
            reference["first_pass_share"] * reference["second_pass_seconds"], rel=1e-3
        )
    stream = [row for row in line["rows"] if row["workload"] == "stream"]
    assert len(stream) == 8 and all(0 <= row["accuracy"] <= 1 and row["requests"] == 12 for row in stream)
    for row in stream:
        assert row["oracle_accuracy"] == next(
            one["accuracy"] for one in stream if (one["reuse"], one["strategy"]) == (row["reuse"], NAMED)
        )
        none = row["strategy"] == NAMED or (row["reuse"], row["strategy"]) in {
            ("after_prompt", HIDDEN),
            ("after_prompt", AFTER),
        }
        assert (row["prompt_tokens_recomputed"] == 0) == none


def test_answers_under_another_expert_than_was_chosen_are_refused(
    capsys: pytest.CaptureFixture, two_pass: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Engine.generate

    def wrong(self: Engine, requests: object) -> list[Result]:
        results = right(self, requests)
        return [replace(result, expert=None) if result.dispatch else result for result in results]

    monkeypatch.setattr(Engine, "generate", wrong)
    monkeypatch.delenv("ZWEAVE_DATA", raising=False)
    status, lines, line = bench(capsys, *two_pass[: two_pass.index("--data")], "--prompts", 70)
    assert status == 1 and any("Left out the stream" in text for text in lines)
    statuses = {(row["reuse"], row["strategy"]): row["status"] for row in line["rows"]}
    wrong_rows = {key for key, status in statuses.items() if status == "wrong"}
    assert {
        (reuse, name) for reuse in ("after_prompt", "always") for name in (HIDDEN, AFTER, FIRST)
    } <= wrong_rows
    # Of the upper half alone some experts answer as the base does.
    assert not any(name == NAMED for _, name in wrong_rows)
    assert any(reuse == "first_layer" for reuse, _ in wrong_rows)
