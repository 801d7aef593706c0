"""What is wrong with a command's arguments is told before anything heavy is loaded."""

import re
import subprocess
import sys
from importlib import import_module

import pytest

from zweave import names
from zweave.bench.arguments import engine as engine_arguments
from zweave.bench.arguments import gpu_linear as gpu_arguments
from zweave.bench.arguments import linear as linear_arguments
from zweave.bench.arguments import peers as peers_arguments
from zweave.bench.kernels import linear
from zweave.bench.serving import engine
from zweave.bench.serving.peers import peers
from zweave.checkpoint.pull import MODELS
from zweave.cli.arguments.bench import BENCHES
from zweave.cli.main import main
from zweave.cli.parser import COMMANDS, Deferred, make_parser
from zweave.engine.config import DTYPES
from zweave.experts import bundled_experts

MISTAKES = [
    ["generate", "--nonsense"],
    ["generate", "--input", "none.txt"],
    ["generate", "x", "--output", "none/x"],
    ["generate", "x", "--load", "none.safetensors"],
    ["chat", "--load", "a=none.safetensors"],
    ["chat", "--max-tokens", "x"],
    ["expert", "diff", "a"],
    ["expert", "search", "t"],
    ["eval", "sst2", "--samples", "0"],
    ["train"],
    ["train-describe", "--steps", "0"],
    ["describe", "x", "--generator", "none.safetensors", "-o", "e.safetensors"],
    ["plan", "--tokens", "0"],
    ["bench", "nonsense"],
    ["bench", "linear", "--nonsense"],
    ["bench", "gpu"],
    ["bench", "linear", "--providers", "magic"],
    ["bench", "peers", "--providers", "zweave8", "--experts", "4"],
    ["bench", "mix", "--experts", "0"],
    ["bench", "mix", "--plot", "none/x.png"],
    *(["bench", name, "--rounds", "0"] for name in BENCHES),
    *(["bench", name, "--help"] for name in BENCHES),
    *([command, "--help"] for command in COMMANDS),
]


def test_mistakes_and_help_load_no_torch() -> None:
    code = (
        "import io, sys\n"
        "from contextlib import redirect_stderr, redirect_stdout\n"
        "from zweave.cli.main import main\n"
        f"for words in {MISTAKES}:\n"
        "    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):\n"
        "        try:\n"
        "            status = main(words)\n"
        "        except SystemExit as left:\n"
        "            status = left.code\n"
        "    assert status in ((0,) if '--help' in words else (1, 2)), words\n"
        "    assert 'torch' not in sys.modules and 'numpy' not in sys.modules, words\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("9" * 5000, rf"'{'9' * 36}\.\.\., of 5000 digits, is too large"),
        ("x" * 5000, rf"'{'x' * 36}\.\.\. is not a whole number of at least 1"),
        ("0", "'0' is not a whole number of at least 1"),
    ],
    ids=["digits", "letters", "zero"],
)
def test_a_number_is_quoted_in_short(value: str, words: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["generate", "a", "--max-tokens", value])
    assert re.search(f"argument --max-tokens: {words}\n$", capsys.readouterr().err)


def test_what_the_options_offer_is_what_there_is() -> None:
    assert tuple(MODELS) == names.PULLED_MODELS
    assert sorted(names.DTYPES) == sorted(DTYPES)
    assert sorted(bundled_experts()) == list(names.BUNDLED_EXPERTS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_what_runs_it(name: str) -> None:
    lines = {"expert": [["diff", "a", "b"]], "bench": [["mix"]], "train": [["t"]], "eval": [["t"]]}
    lines |= {"describe": [["x", "-o", "e"]], "train-describe": [["--out", "g"]]}
    lines |= {"decompose": [["m"]], "quantize": [["m"]], "pull": [["m"]], "vllm-export": [["e"]]}
    for words in lines.get(name, [[]]):
        args = make_parser([name]).parse_args([name, *words])
        assert isinstance(args.run, Deferred) and callable(args.run.load())


def test_the_providers_that_benches_name_are_those_that_they_have() -> None:
    forms, integer = linear_arguments.FORMS, linear_arguments.INTEGER_FORMS
    assert (forms, (*forms, *integer)) == (tuple(linear.FORMS), tuple(linear.ALL))
    assert tuple(engine.PROVIDERS) == engine_arguments.PROVIDERS
    assert tuple(peers._peers(4)) == peers_arguments.peer_names(4)
    pytest.importorskip("triton")
    assert tuple(import_module("zweave.bench.kernels.gpu_forms").GPU_FORMS) == gpu_arguments.GPU_FORMS


def test_every_bench_says_its_question(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["bench", "--help"])
    printed = capsys.readouterr().out
    for name in BENCHES:
        assert name in printed
