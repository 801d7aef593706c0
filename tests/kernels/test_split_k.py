"""Which plan the splits of a tile run by, and the semaphores that they meet at."""

from collections.abc import Callable, Iterator

import pytest
import torch

from zweave.kernels.linear import linear_triton
from zweave.kernels.triton.gemm_config import MAX_SPLITS, Device, split_size, tile_config
from zweave.kernels.triton.semaphores import BUFFER_SIZE
from zweave.kernels.triton.split_k import SplitK, split_k_plan

pytest.importorskip("triton")

HOPPER = Device((9, 0), 132)
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("tokens", "out_features", "in_features", "plan", "splits"),
    [
        (1, 4096, 4096, "parallel", 4),
        (64, 4096, 4096, "parallel", 4),
        (64, 1024, 4096, "parallel", 4),
        (64, 4096, 14336, "parallel", 4),
        (64, 14336, 4096, "serial", 1),
        (512, 4096, 4096, "serial", 4),
        (512, 1024, 4096, "serial", 4),
        (512, 4096, 14336, "serial", 4),
        (512, 14336, 4096, "serial", 1),
        (1, 576, 1536, "parallel", 4),
        # 80 tiles: two rounds and a reduction against three rounds.
        (1, 5120, 5120, "parallel", 3),
        # A split takes no longer than the reduction.
        (1, 8448, 512, "serial", 2),
        (1, 64, 512, "serial", 2),
    ],
)
def test_plan_of_a_layer(tokens, out_features, in_features, plan, splits) -> None:
    config = tile_config(tokens, out_features, torch.bfloat16, "none", HOPPER, True)
    size = split_size(out_features, in_features, HOPPER)
    count = -(-in_features // size)
    chosen = SplitK.plan_for(count, size, config.tiles(tokens, (out_features,)), config, HOPPER, CPU)
    assert (chosen.plan, count) == (plan, splits)


def test_no_plan_takes_more_than_a_buffer_has() -> None:
    for splits in range(1, 2 * MAX_SPLITS + 1):
        parallel = [tiles for tiles in range(1, 400) if split_k_plan(splits, 4096, tiles, 132) == "parallel"]
        assert max(parallel, default=0) <= 132 < BUFFER_SIZE


def test_a_device_of_few_sms_takes_another_plan_and_the_same_splits() -> None:
    """Or the tests of equal bits would compare two runs of one plan, or sums of another order."""
    few = Device((9, 0), 2)
    for out_features in (40, 60):
        assert split_size(out_features, 1000, HOPPER) == split_size(out_features, 1000, few) == 384
    config = tile_config(70, 40, torch.bfloat16, "none", HOPPER, False)
    plans = [
        SplitK.plan_for(3, 384, config.tiles(70, (40,)), config, device, CPU).plan for device in (HOPPER, few)
    ]
    assert plans == ["parallel", "serial"]


@pytest.fixture
def graph_buffer(interpreted) -> Iterator[Callable[[str], None]]:
    """Launches take a graph's buffer; runs statements of which `buffer` is a name."""
    state = "import zweave.kernels.triton.semaphores as s; buffer = getattr(s, 'buffer', None); "
    interpreted(
        exec,
        state + "s.buffer = s.new_semaphores('cpu'); s.inside = s.for_graph(s.buffer); s.inside.__enter__()",
    )
    yield lambda statement: interpreted(exec, state + statement)
    interpreted(exec, state + "s.inside.__exit__(None, None, None); del s.buffer, s.inside")


def test_a_graph_has_one_buffer_and_a_reset_mends_it(interpreted, graph_buffer, tolerance) -> None:
    random = torch.Generator().manual_seed(0)
    x, w = torch.randn(2, 1000, generator=random), torch.randn(8, 1000, generator=random) / 32
    right = interpreted(linear_triton, x, w)
    torch.testing.assert_close(right.double(), x.double() @ w.double().T, **tolerance(torch.float32))
    assert torch.equal(interpreted(linear_triton, x, w), right)
    graph_buffer("assert not buffer.any()")
    # As a launch leaves it that dies after a first program has arrived.
    graph_buffer("buffer[0] = 1")
    assert interpreted(linear_triton, x, w).isnan().any()
    graph_buffer("s.reset_semaphores()")
    assert torch.equal(interpreted(linear_triton, x, w), right)
    graph_buffer("assert not buffer.any()")
