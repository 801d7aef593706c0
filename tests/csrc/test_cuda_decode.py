"""The CUDA decode kernels without a GPU: their source runs in tests/csrc/cuda_emulator, under the sanitizers."""

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
EMULATOR = ROOT / "tests" / "csrc" / "cuda_emulator"
BUILD = [
    *("-std=c++20", "-O1", "-g1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
]
# tokens, outputs, inputs, rank
SHAPES = {
    "one": (1, 1, 1, 1),
    "one token": (1, 192, 576, 192),
    "8 tokens": (8, 40, 64, 40),
    "9 tokens": (9, 63, 200, 63),
    "16 tokens": (16, 1000, 72, 24),
    "17 tokens": (17, 199, 63, 5),
    "32 tokens": (32, 64, 1000, 64),
    "33 tokens": (33, 24, 48, 16),
    # Chunks enough that every slot of a warp's pipeline is filled anew.
    "deep": (3, 24, 5000, 40),
    "deep, 16 tokens": (12, 40, 3000, 16),
    "deep, out of line": (20, 24, 1999, 20),
    "many components": (3, 24, 40, 4000),
    "no components": (3, 20, 16, 0),
    "no inputs": (2, 8, 0, 4),
    # From 3584 outputs on two warps share the tokens' way, from 7168 on four.
    "two row warps": (5, 3600, 40, 8),
    "four row warps": (3, 7200, 24, 8),
}
WAYS = ("linear", "svf_linear", "svf_delta_linear")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")]


class Emulator:
    """The emulator, built with the kernels of a source tree, or with one instance of them: see decode.cpp."""

    def __init__(self, folder: Path, sources: Path, instance: str | None = None) -> None:
        self.folder = folder
        command = ["g++", *BUILD, f"-I{EMULATOR}", f"-I{sources}"]
        if instance:
            command.append(f"-DINSTANCE={instance}")
        subprocess.run([*command, "-o", folder / "decode", EMULATOR / "decode.cpp"], check=True)

    def __call__(
        self,
        p: SimpleNamespace,
        *,
        early: bool = False,
        seed: int = 0,
        x_gap: int = 0,
        gap: int = 0,
        depth: int = 1,
    ) -> Tensor:
        """y of a problem.

        early: asynchronous copies arrive at once.
        x_gap, gap: what rows are apart beyond their length.
        depth: linears one after the other, each of what the one before has made.
        """
        tokens, inputs = p.x.shape
        rank, slots = (0, 0) if p.u is None else (p.u.shape[1], p.scale.shape[0])
        flags = (p.w is not None, p.bias is not None, early)
        head = (tokens, p.outputs, inputs, rank, slots, *flags, seed, x_gap, gap, depth)
        operands = [spread(p.x, x_gap)] + [spread(t, gap) for t in (p.w, p.vt, p.u) if t is not None]
        operands += [t for t in (p.scale, p.slot, p.bias) if t is not None]
        raw = [torch.tensor(head, dtype=torch.int64), *operands]
        given, made = self.folder / "in", self.folder / "out"
        given.write_bytes(b"".join(t.reshape(-1).view(torch.uint8).numpy().tobytes() for t in raw))
        done = subprocess.run([self.folder / "decode", given, made], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        y = torch.frombuffer(bytearray(made.read_bytes()), dtype=torch.bfloat16)
        return y.view(tokens, p.outputs)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    return Emulator(tmp_path_factory.mktemp("emulator"), ROOT / "csrc")


def spread(matrix: Tensor, gap: int) -> Tensor:
    """The matrix's values in memory with NaN between the rows, but nothing after the last."""
    rows, columns = matrix.shape
    if gap == 0 or matrix.numel() == 0:
        return matrix
    apart = torch.nn.functional.pad(matrix, (0, gap), value=float("nan"))
    return apart.flatten()[: rows * (columns + gap) - gap]


def problem(
    way: str, tokens: int, outputs: int, inputs: int, rank: int, bias: bool = True
) -> SimpleNamespace:
    """Random operands with results of size one and three slots; what a way does not take is None."""
    random = torch.Generator().manual_seed(tokens + outputs + inputs)
    normal = lambda *shape: torch.randn(*shape, generator=random)  # noqa: E731
    is_svf, has_w = way != "linear", way != "svf_linear"
    scale = torch.rand(3, rank, generator=random) + 0.5
    if has_w:
        scale[0] = 0
    return SimpleNamespace(
        outputs=outputs,
        x=normal(tokens, inputs).bfloat16(),
        w=(normal(outputs, inputs) / max(inputs, 1) ** 0.5).bfloat16() if has_w else None,
        vt=(normal(rank, inputs) / max(inputs, 1) ** 0.5).bfloat16() if is_svf else None,
        u=(normal(outputs, rank) / max(rank, 1) ** 0.5).bfloat16() if is_svf else None,
        scale=scale if is_svf else None,
        slot=torch.randint(0, 3, (tokens,), generator=random, dtype=torch.int32) if is_svf else None,
        bias=normal(outputs).bfloat16() if bias else None,
    )


def expected(p: SimpleNamespace) -> Tensor:
    """The float64 result, rounded to bf16 between the products."""
    y = torch.zeros(p.x.shape[0], p.outputs, dtype=torch.float64)
    if p.w is not None:
        y += p.x.double() @ p.w.double().T
    if p.u is not None:
        hidden = p.x.double() @ p.vt.double().T * p.scale[p.slot.long()].double()
        y += hidden.bfloat16().double() @ p.u.double().T
    if p.bias is not None:
        y += p.bias.double()
    return y


@pytest.mark.parametrize("early", [False, True], ids=["late copies", "early copies"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_against_float64(shape, way, early, run, tolerance) -> None:
    p = problem(way, *shape, bias=early)
    y = run(p, early=early, seed=sum(shape))
    torch.testing.assert_close(y.double(), expected(p), **tolerance(torch.bfloat16))


@pytest.mark.parametrize(("x_gap", "gap"), [(8, 16), (3, 0), (0, 5)], ids=["aligned", "odd x", "odd weights"])
@pytest.mark.parametrize("way", WAYS)
def test_rows_may_lie_apart(way, x_gap, gap, run, tolerance) -> None:
    p = problem(way, 4, 40, 104, 24)
    y = run(p, x_gap=x_gap, gap=gap)
    torch.testing.assert_close(y.double(), expected(p), **tolerance(torch.bfloat16))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(40, 3000, 24), (63, 63, 63), (3600, 72, 16)], ids=str)
def test_a_row_depends_on_neither_its_batch_nor_the_order_of_threads(shape, way, run) -> None:
    whole = problem(way, 19, *shape)
    y = run(whole, seed=1)
    for tokens in (1, 9, 17):
        part = SimpleNamespace(**vars(whole) | {"x": whole.x[-tokens:]})
        if part.slot is not None:
            part.slot = whole.slot[-tokens:]
        assert torch.equal(run(part, seed=tokens), y[-tokens:]), tokens


@pytest.mark.parametrize("way", WAYS[1:])
def test_slots_outside_the_table_give_nan_and_are_not_read(way, run, tolerance) -> None:
    p = problem(way, 6, 40, 24, 24)
    right = expected(p)
    p.slot[[0, 2, 3, 5]] = torch.tensor([-1, 3, 2**31 - 1, -(2**31)], dtype=torch.int32)
    y = run(p)
    assert y[[0, 2, 3, 5]].isnan().all()
    torch.testing.assert_close(y[[1, 4]].double(), right[[1, 4]], **tolerance(torch.bfloat16))


def test_base_tokens_of_a_delta_get_the_plain_linear_bit_for_bit(run) -> None:
    p = problem("svf_delta_linear", 9, 63, 200, 40)
    p.slot[::2] = 0
    p.scale[0] = float("nan")
    p.x[2] = 0
    p.bias = -torch.zeros_like(p.bias)
    plain = SimpleNamespace(**vars(p) | {"vt": None, "u": None, "scale": None, "slot": None})
    assert torch.equal(run(p)[::2].view(torch.int16), run(plain)[::2].view(torch.int16))


def check_chain(run: Emulator, way: str) -> None:
    """Compares a chain of launches, of which every second starts early, with the linears one by one."""
    p = problem(way, 9, 200, 200, 24)
    one_by_one = SimpleNamespace(**vars(p))
    for _ in range(4):
        one_by_one.x = run(one_by_one)
    for seed in range(5):
        chain = run(p, seed=seed, depth=4)
        assert torch.equal(chain.view(torch.int16), one_by_one.x.view(torch.int16)), seed


@pytest.mark.parametrize("way", WAYS[1:])
def test_a_chain_of_dependent_launches_gives_what_linears_give_one_by_one(way, run) -> None:
    check_chain(run, way)


# A line of the kernel, what a mistake would make of it, and whether copies must arrive early for it to show.
MISTAKES = {
    "waits for one chunk too few": ("cp_async_wait<kAhead - 1>", "cp_async_wait<kAhead>", False),
    "refills a slot that is still to be read": ("(stage == 0 ? kAhead : stage - 1)", "stage", True),
    "reads tokens before they are written": (
        "if (chunk == dependent_) wait_on_dependency();",
        "",
        False,
    ),
    "adds sums that are not all there": ("__syncthreads();", "", False),
    "swaps registers of a fragment": ("low.x, high.x, low.y, high.y", "low.x, low.y, high.x, high.y", False),
    "reads behind a row": ("k < left ? 16 : 0", "16", False),
    "reads tokens that are none": ("token + i * 8, p.tokens", "token + i * 8, p.outputs", False),
    "reads a slot that is none": ("p.slot && !is_known(p, slot)", "false", False),
}


def check_one_instance(folder: Path, sources: Path, early: bool, tolerance) -> None:
    """Raises AssertionError for a wrong result, RuntimeError for what the sanitizers and the emulator find."""
    p = problem("svf_linear", 9, 40, 5000, 24)
    right = expected(p)
    p.slot[4] = 3
    y = Emulator(folder, sources, instance="1,2,1,true")(p, early=early)
    known = p.slot < 3
    torch.testing.assert_close(y[known].double(), right[known], **tolerance(torch.bfloat16))


def test_the_emulator_finds_nothing_where_no_mistake_is_planted(tmp_path, tolerance) -> None:
    check_one_instance(tmp_path, ROOT / "csrc", False, tolerance)


def with_mistake(folder: Path, right: str, wrong: str) -> Path:
    """The sources with a line of the kernel replaced."""
    sources = folder / "csrc"
    shutil.copytree(ROOT / "csrc" / "cuda", sources / "cuda")
    kernel = sources / "cuda" / "decode_product.cuh"
    text = kernel.read_text()
    assert text.count(right) == 1
    kernel.write_text(text.replace(right, wrong))
    return sources


@pytest.mark.parametrize(("right", "wrong", "early"), MISTAKES.values(), ids=MISTAKES)
def test_the_emulator_finds_planted_mistakes(right, wrong, early, tmp_path, tolerance) -> None:
    sources = with_mistake(tmp_path, right, wrong)
    with pytest.raises((AssertionError, RuntimeError)):
        check_one_instance(tmp_path, sources, early, tolerance)


def test_a_write_before_the_wait_shows_in_a_chain(tmp_path) -> None:
    """The launch before may still read what is there, which a single linear never does."""
    tile = "const Chunks<Traits> chunks(p, tile);"
    y = "p.y[(tile.first_token + token) * p.y_stride + tile.first_row + row]"
    write = f"if (p.follows) for_each_output(p, tile, [&](int token, int row) {{ {y} = 0; }});"
    sources = with_mistake(tmp_path, tile, f"{tile}\n  {write}")
    run = Emulator(tmp_path, sources, instance="1,2,1,true")
    p = problem("svf_linear", 9, 200, 200, 24)
    assert run(p).isfinite().all()
    with pytest.raises(AssertionError):
        check_chain(run, "svf_linear")
