"""`zweave expert` and `zweave decompose`, called with the arguments of a command line."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from zweave.checkpoint import Checkpoint
from zweave.cli.parser import make_parser
from zweave.errors import ZweaveError
from zweave.experts import Expert, heatmap
from zweave.text import PromptTemplate

Q, UP, DOWN = (f"model.layers.{name}" for name in ("0.self_attn.q_proj", "1.mlp.up_proj", "1.mlp.down_proj"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZWEAVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def zweave(capsys):
    """Runs a command line; returns what it printed."""

    def run(*argv):
        argv = [str(arg) for arg in argv]
        args = make_parser(argv).parse_args(argv)
        assert args.run(args) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def files(tmp_path):
    """Two expert files, a.safetensors and b.safetensors."""
    generator = torch.Generator().manual_seed(0)
    z = {name: 1 + 0.05 * torch.randn(32, generator=generator) for name in (Q, UP, DOWN)}
    a = Expert(z={Q: z[Q], UP: z[UP]}, base_digest="a" * 64, description="first")
    b = Expert(z={UP: z[DOWN]}, training={"steps": 3})
    a.save(tmp_path / "a.safetensors")
    b.save(tmp_path / "b.safetensors")
    return tmp_path


def test_show_prints_facts_and_a_heat_map(zweave, files):
    printed = zweave("expert", "show", files / "a.safetensors")
    a = Expert.load(files / "a.safetensors")
    assert a.digest in printed and "first" in printed
    rows = [line.split() for line in printed.splitlines()]
    mean = 1e3 * float((a.z[Q] - 1).abs().mean())
    assert ["0", f"{mean:.2f}", *["-"] * 6] in rows
    mean = 1e3 * float((a.z[UP] - 1).abs().mean())
    assert ["1", *["-"] * 5, f"{mean:.2f}", "-"] in rows


def test_show_of_an_expert_that_changes_nothing(zweave, tmp_path):
    Expert(z={Q: torch.ones(4)}).save(tmp_path / "e.safetensors")
    assert "0.00" in zweave("expert", "show", tmp_path / "e.safetensors")


def test_show_does_not_pass_on_what_a_terminal_would_obey(zweave, tmp_path):
    Expert(z={Q: torch.ones(4)}, description="\x1b[2Jgone\n[red]", training={"k\x1b": "\x1b"}).save(
        tmp_path / "e.safetensors"
    )
    printed = zweave("expert", "show", tmp_path / "e.safetensors")
    assert "\x1b" not in printed and "gone [red]" in printed


def test_show_json(zweave, files):
    figures = json.loads(zweave("expert", "show", files / "a.safetensors", "--json"))
    a = Expert.load(files / "a.safetensors")
    assert figures["digest"] == a.digest and figures["values"] == 64 and figures["base"] == "a" * 64
    assert [entry["module"] for entry in figures["matrices"]] == [Q, UP]
    assert figures["matrices"][0]["mean"] == pytest.approx(float((a.z[Q] - 1).abs().mean()), rel=1e-6)
    assert figures["matrices"][0]["largest"] == pytest.approx(float((a.z[Q] - 1).abs().max()), rel=1e-6)


def test_the_heat_map_is_centred_at_the_base_and_named(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    drawn = []
    monkeypatch.setattr(heatmap, "write_png", lambda figure, path: drawn.append(figure))
    expert = Expert(
        z={Q: torch.tensor([0.8, 1.0]), UP: torch.tensor([1.0, 1.1])}, description="costs $5\nor $6"
    )
    heatmap.save_png(expert, tmp_path / "e.png")
    image = drawn[0].axes[0].images[0]
    low, high = image.get_clim()
    assert low + high == pytest.approx(2) and low == pytest.approx(0.9)
    assert (
        image.get_array()[0, 0] == pytest.approx(0.9) and drawn[0]._suptitle.get_text() == r"costs \$5 or \$6"
    )


def test_show_png(zweave, files):
    pytest.importorskip("matplotlib")
    zweave("expert", "show", files / "a.safetensors", "--png", files / "a.png")
    assert (files / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ZweaveError, match="there is no directory"):
        zweave("expert", "show", files / "a.safetensors", "--png", files / "none" / "a.png")


def test_show_png_without_matplotlib(zweave, files, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ZweaveError, match=r"pip install 'zweave\[plot\]'"):
        zweave("expert", "show", files / "a.safetensors", "--png", files / "a.png")


def test_new_changes_nothing(zweave, tmp_path, tiny_model):
    directory = tiny_model("llama")
    made = tmp_path / "new.safetensors"
    assert zweave("expert", "new", made, "--model", directory, "--description", "neutral") == f"{made}\n"
    neutral = Expert.load(made)
    checkpoint = Checkpoint(directory)
    neutral.check(checkpoint.config.adapted_shapes(), checkpoint.digest())
    assert len(neutral.z) == 14 and all((z == 1).all() for z in neutral.z.values())
    assert neutral.base_digest == checkpoint.digest() and neutral.description == "neutral"


def test_new_random(zweave, tmp_path, tiny_model):
    options = [
        "--model",
        tiny_model("llama"),
        "--random",
        "0.02",
        "--scope",
        "after_prompt",
        "--first-layer",
        "1",
    ]
    digests = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        path = tmp_path / f"{name}.safetensors"
        zweave("expert", "new", path, *options, "--seed", seed, "--renormalise", "--half")
        made = Expert.load(path)
        digests.append(made.digest)
        assert (
            made.scope == "after_prompt" and made.first_layer == 1 and made.renormalise and len(made.z) == 7
        )
        values = torch.cat(list(made.z.values()))
        assert 0.01 < values.std() < 0.03 and abs(values.mean() - 1) < 0.01
    assert digests[0] == digests[1] != digests[2]


def test_new_from_a_layer_that_is_not_there(zweave, tmp_path, tiny_model):
    with pytest.raises(ZweaveError, match="--first-layer 2 leaves none: the model has 2 layers"):
        zweave(
            "expert", "new", tmp_path / "e.safetensors", "--model", tiny_model("llama"), "--first-layer", 2
        )


def test_mix_writes_the_mixture(zweave, files):
    a, b = (Expert.load(files / f"{name}.safetensors") for name in "ab")
    out = files / "mixed.safetensors"
    zweave(
        "expert",
        "mix",
        out,
        f"{files}/a.safetensors=0.8",
        f"{files}/b.safetensors=0.1,-0.3",
        "--description",
        "m",
    )
    mixed = Expert.load(out)
    torch.testing.assert_close(mixed.z[Q], 0.8 * a.z[Q] + 0.1)
    torch.testing.assert_close(mixed.z[UP], 0.8 * a.z[UP] - 0.3 * b.z[UP])
    assert mixed.base_digest == "a" * 64 and mixed.description == "m"
    assert [part["weight"] for part in mixed.training["mixture"]] == [0.8, [0.1, -0.3]]
    assert [part["digest"] for part in mixed.training["mixture"]] == [a.digest, b.digest]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["a.safetensors"], "a part is EXPERT=WEIGHT"),
        (
            ["a.safetensors", "b.safetensors=0.5"],
            r"not 'a.safetensors': .* OUTPUT EXPERT=WEIGHT EXPERT=WEIGHT",
        ),
        (["a.safetensors=0.5,b.safetensors=1"], "spaces stand between the parts, not commas"),
        (["a.safetensors=x"], "a part is EXPERT=WEIGHT"),
        (["a.safetensors=nan"], "a part is EXPERT=WEIGHT"),
        (["=1"], "a part is EXPERT=WEIGHT"),
        (["a.safetensors=1,2,3"], "3 weights, and the model has 2 layers"),
        (["none.safetensors=1"], "no such file"),
        (["a.safetensors=0.5", "after.safetensors=0.5"], "cannot be mixed"),
        (["a.safetensors=0.5", "other.safetensors=0.5"], "trained for different weights"),
    ],
)
def test_mix_refuses(zweave, files, monkeypatch, parts, message):
    monkeypatch.chdir(files)
    Expert(z={Q: torch.ones(32)}, scope="after_prompt").save("after.safetensors")
    Expert(z={Q: torch.ones(32)}, base_digest="b" * 64).save("other.safetensors")
    with pytest.raises(ZweaveError, match=message):
        zweave("expert", "mix", "out.safetensors", *parts)
    assert not (files / "out.safetensors").exists()


def test_mix_without_an_output_writes_no_file_named_like_a_part(zweave, files, monkeypatch):
    monkeypatch.chdir(files)
    with pytest.raises(ZweaveError, match=r"a.safetensors=0.5 is a part, .* with the file to write first"):
        zweave("expert", "mix", "a.safetensors=0.5", "b.safetensors=0.5")
    assert not (files / "a.safetensors=0.5").exists()


def test_diff(zweave, files):
    a, b = (Expert.load(files / f"{name}.safetensors") for name in "ab")
    figures = json.loads(zweave("expert", "diff", files / "a.safetensors", files / "b.safetensors", "--json"))
    by_name = {entry["module"]: entry for entry in figures["matrices"]}
    assert list(by_name) == [Q, UP]
    assert by_name[Q]["distance"] == pytest.approx(float((a.z[Q] - 1).norm()), rel=1e-5)
    assert by_name[Q]["cosine"] is None
    assert by_name[UP]["distance"] == pytest.approx(float((a.z[UP] - b.z[UP]).norm()), rel=1e-5)
    cosine = torch.nn.functional.cosine_similarity(a.z[UP] - 1, b.z[UP] - 1, dim=0)
    assert by_name[UP]["cosine"] == pytest.approx(float(cosine), rel=1e-4)
    expected = sum(entry["distance"] ** 2 for entry in by_name.values()) ** 0.5
    assert figures["total"]["distance"] == pytest.approx(expected, rel=1e-6)
    printed = zweave("expert", "diff", files / "a.safetensors", files / "a.safetensors")
    assert ["total", "0.00000", "0.00000", "1.0000"] in [line.split() for line in printed.splitlines()]


def test_diff_tells_of_other_prompts(zweave, files):
    same, other = files / "a.safetensors", files / "asks.safetensors"
    replace(Expert.load(same), prompt_template=PromptTemplate("Sum: {text}")).save(other)
    assert "prompt templates differ" in zweave("expert", "diff", same, other)
    assert "prompt templates" not in zweave("expert", "diff", other, other)
    for file, is_same in ((same, False), (other, True)):
        assert json.loads(zweave("expert", "diff", file, other, "--json"))["same_prompt"] is is_same


def test_diff_is_a_summary_and_all_of_it_on_request(zweave, tmp_path):
    modules = [f"model.layers.{layer}.mlp.{kind}_proj" for layer in range(30) for kind in ("up", "down")]
    for name, step in (("a", 0.0), ("b", 0.1)):
        z = {module: torch.full((4,), 1 + step * (1 + i)) for i, module in enumerate(modules)}
        Expert(z=z).save(tmp_path / f"{name}.safetensors")
    files = (tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    lines = zweave("expert", "diff", *files).splitlines()
    assert len(lines) == 5 and lines[1].split()[0] == "total"
    assert [line.split()[0] for line in lines[2:4]] == [modules[59], modules[58]] and "60 matrices" in lines[
        4
    ]
    assert all(module in zweave("expert", "diff", *files, "--all") for module in modules)


def test_diff_of_different_models(zweave, files):
    Expert(z={Q: torch.ones(7)}).save(files / "c.safetensors")
    with pytest.raises(ZweaveError, match="different models"):
        zweave("expert", "diff", files / "a.safetensors", files / "c.safetensors")


def test_import(zweave, tmp_path, tiny_model):
    learnt = {f"learnable_params_module_list.{index}": torch.full((32,), float(index)) for index in range(6)}
    torch.save(learnt, tmp_path / "policy_params.pt")
    out = tmp_path / "imported.safetensors"
    zweave(
        "expert",
        "import",
        tmp_path / "policy_params.pt",
        out,
        "--model",
        tiny_model("llama"),
        "--max-mult",
        "2",
    )
    imported = Expert.load(out)
    assert imported.renormalise and imported.base_digest == Checkpoint(tiny_model("llama")).digest()
    assert imported.z["model.layers.0.mlp.gate_proj"].tolist() == [1.0] * 32


@pytest.mark.parametrize(
    "argv",
    [
        ("expert",),
        ("expert", "new", "x", "--model", "m", "--random", "-1"),
        ("expert", "new", "x", "--model", "m", "--random", "nan"),
        ("expert", "new", "x"),
        ("decompose", "m", "--workers", "0"),
        ("decompose", "m", "--workers", "two"),
        ("decompose", "m", "--memory", "inf"),
    ],
    ids=" ".join,
)
def test_wrong_usage(zweave, argv):
    with pytest.raises(SystemExit) as raised:
        zweave(*argv)
    assert raised.value.code == 2


def test_decompose_prints_figures(zweave, tiny_model):
    directory = tiny_model("llama")
    figures = json.loads(zweave("decompose", directory, "--json", "--memory", "0.5", "--workers", "2"))
    assert figures["digest"] == Checkpoint(directory).digest() and figures["matrices"] == 14
    assert 0 < figures["mean_error"] <= figures["max_error"] < 1e-5
    printed = zweave("decompose", directory)
    assert figures["digest"] in printed and "matrices  14" in printed and "relative" in printed


def test_decompose_refuses_an_unknown_device(zweave, tiny_model):
    with pytest.raises(ZweaveError, match="unknown device 'abacus': use 'cpu' or 'cuda'"):
        zweave("decompose", tiny_model("llama"), "--device", "abacus")


def test_decompose_with_too_little_memory(zweave, tiny_model):
    with pytest.raises(ZweaveError, match="allow more memory"):
        zweave("decompose", tiny_model("llama"), "--memory", "0.001")
