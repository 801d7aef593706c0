"""The linear that vLLM's layers call on a CPU: every mode against float64, and the rule by which workers share it."""

import socket
import subprocess
import sys
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, distributed

from zweave.decomposition.svd import svd
from zweave.integrations.vllm.linears import CpuLinear, Part, Shard, StepTokens, Tokens, shard_factors
from zweave.kernels import LinearMode, pack
from zweave.planner.planner import hosted_plan

N, OUTPUTS, ADAPTERS = 40, (24, 8, 8), 3


def make(
    seed: int = 0,
) -> tuple[list[Tensor], list[tuple[Tensor, Tensor, Tensor]], list[list[Tensor]], Tensor]:
    """Matrices, their factors, z of three adapters, the first of them of few leading components, and a bias."""
    generator = torch.Generator().manual_seed(seed)
    matrices = [torch.randn(M, N, generator=generator) for M in OUTPUTS]
    found = [svd(matrix) for matrix in matrices]
    factors = [(each.u, each.sigma, each.vt) for each in found]
    z = [[1 + 0.3 * torch.randn(len(s), generator=generator) for _, s, _ in factors] for _ in range(3)]
    for values in z[0]:
        values[hosted_plan((len(values), len(values))).delta_rank :] = 1
    return matrices, factors, z, torch.randn(sum(OUTPUTS), generator=generator)


def truth(x: Tensor, index: Sequence[int], matrices, factors, z, bias: Tensor) -> Tensor:
    """Row by row in float64; index -1 is W itself."""
    rows = []
    for t, row in enumerate(index):
        weights = [
            matrix.double()
            if row < 0
            else (u.double() * (sigma.double() * z[row][part].double())) @ vt.double()
            for part, (matrix, (u, sigma, vt)) in enumerate(zip(matrices, factors, strict=True))
        ]
        rows.append(torch.cat(weights) @ x[t].double() + bias.double())
    return torch.stack(rows)


@pytest.mark.parametrize("count", [3, 1], ids=["fused", "one matrix"])
@pytest.mark.parametrize(
    "index",
    [[-1, 0, 1, -1, 2, 0], [2, 1, 1], [-1, -1], [1], [-1], [0, 0], [0, 2]],
    ids=["mixed", "experts", "base", "one", "one base", "few components", "few components beside all"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_each_token_takes_its_own_mode(
    count: int,
    index: list[int],
    dtype: torch.dtype,
    tolerance: Callable,
    poisoned_outputs: None,
) -> None:
    matrices, factors, z, bias = make()
    matrices, factors, z = matrices[:count], factors[:count], [values[:count] for values in z]
    bias = bias[: sum(OUTPUTS[:count])]
    served = CpuLinear(
        pack(torch.cat(matrices).to(dtype)), [Part.of(*each, dtype) for each in factors], ADAPTERS
    )
    for row in range(3):
        served.write(row, z[row])
    assert list(served.tables.modes) == [0, 1, 2, 2]
    x = torch.randn(len(index), N, generator=torch.Generator().manual_seed(3)).to(dtype)
    y = served(x, lambda count: Tokens(torch.tensor(index)), bias.to(dtype))
    expected = truth(x, index, matrices, factors, z, bias)
    if dtype == torch.float32:
        torch.testing.assert_close(y.double(), expected, **tolerance(dtype))
    else:
        # Weights are rounded too, so a row is held against its length.
        error = (y.double() - expected).norm(dim=1) / expected.norm(dim=1)
        assert error.max() < 1e-2


def test_a_row_that_is_reset_is_the_base() -> None:
    matrices, factors, z, _ = make()
    served = CpuLinear(
        pack(torch.cat(matrices)), [Part.of(*each, torch.float32) for each in factors], ADAPTERS
    )
    tables = served.tables
    served.write(1, z[0])
    served.write(1, [None, z[0][1], None])
    assert torch.equal(tables.scales[0][2], factors[0][1]) and torch.equal(tables.scales[2][2], factors[2][1])
    assert not torch.equal(tables.scales[1][2], factors[1][1])
    # So are the base's slot and those of adapters that were never loaded.
    sigma = torch.cat([sigma for _, sigma, _ in factors])
    assert all(torch.equal(tables.scale[slot], sigma) for slot in (0, 1, 3))


class Wrapper:
    """What a punica wrapper shows of a step."""

    def __init__(self) -> None:
        self.index = torch.full((8,), 7)
        self.indices_len: list[int | None] = [None]

    @property
    def token_lora_indices(self) -> Tensor:
        return self.index[: self.indices_len[0]]

    def update_metadata(self, rows: list[int]) -> None:
        self.index[: len(rows)] = torch.tensor(rows)
        self.indices_len[0] = len(rows)


def test_tokens_follow_the_step_and_padding_is_the_base() -> None:
    wrapper = Wrapper()
    tokens = StepTokens.of(wrapper)
    assert StepTokens.of(wrapper) is tokens
    modes = np.array(
        [LinearMode.DENSE, LinearMode.FACTORED, LinearMode.FACTORED, LinearMode.DELTA], dtype=np.uint8
    )

    def found(count: int) -> list[tuple]:
        groups = tokens(count).groups(modes)
        return [(g.mode, None if g.index is None else g.index.tolist(), g.slot.tolist()) for g in groups]

    assert found(4) == [(LinearMode.DENSE, None, [0, 0, 0, 0])]
    assert found(0) == []
    wrapper.update_metadata([0, 1])
    assert found(2) == [(LinearMode.FACTORED, None, [1, 2])]
    assert found(4) == [(LinearMode.DENSE, [2, 3], [0, 0]), (LinearMode.FACTORED, [0, 1], [1, 2])]
    wrapper.update_metadata([2, -1, 1])
    assert found(3) == [
        (LinearMode.DENSE, [1], [0]),
        (LinearMode.DELTA, [0], [3]),
        (LinearMode.FACTORED, [2], [2]),
    ]
    # An adapter that was loaded in the place of another since.
    modes[3] = LinearMode.FACTORED
    assert found(3) == [(LinearMode.DENSE, [1], [0]), (LinearMode.FACTORED, [0, 2], [3, 2])]


def test_a_shard_beyond_the_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="beyond"):
        shard_factors(torch.zeros(8, 4), torch.zeros(4, 6), rows=Shard(2, 4))


def work(rank: int, workers: int, port: int) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers
    )
    try:
        matrices, factors, z, bias = make()
        whole = [Part.of(*each, torch.float32) for each in factors]
        x = torch.randn(5, N, generator=torch.Generator().manual_seed(3))
        tokens = Tokens(torch.tensor([0, 1, -1, 1, 2]))
        expected = run(CpuLinear(pack(torch.cat(matrices)), whole, ADAPTERS), z, x, tokens, bias)

        # Column-parallel: each worker has its part of the outputs of every fused matrix.
        rows = [Shard(rank, M // workers) for M in OUTPUTS]
        parts = [cut(each, rows=shard) for each, shard in zip(factors, rows, strict=True)]
        dense = torch.cat([matrix[shard.span] for matrix, shard in zip(matrices, rows, strict=True)])
        mine = bias.split(OUTPUTS)
        own_bias = torch.cat([b[shard.span] for b, shard in zip(mine, rows, strict=True)])
        y = run(CpuLinear(pack(dense), parts, ADAPTERS), z, x, tokens, own_bias)
        gathered = [torch.empty_like(y) for _ in range(workers)]
        distributed.all_gather(gathered, y)
        sizes = [shard.size for shard in rows]
        by_matrix = zip(*(part.split(sizes, dim=1) for part in gathered), strict=True)
        together = torch.cat([torch.cat(each, dim=1) for each in by_matrix], dim=1)
        torch.testing.assert_close(together, expected, rtol=0, atol=0)

        # Row-parallel: each has its part of the inputs, the bias is one worker's, and the outputs are summed.
        columns = Shard(rank, N // workers)
        parts = [cut(each, columns=columns) for each in factors]
        dense = torch.cat(matrices)[:, columns.span].contiguous()
        own = x[:, columns.span].contiguous()
        y = run(CpuLinear(pack(dense), parts, ADAPTERS), z, own, tokens, bias if rank == 0 else None)
        distributed.all_reduce(y)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    finally:
        distributed.destroy_process_group()


def cut(factors: tuple[Tensor, Tensor, Tensor], **shards: Shard) -> Part:
    u, sigma, vt = factors
    u, vt = shard_factors(u, vt, **shards)
    return Part.of(u, sigma, vt, torch.float32)


def run(served: CpuLinear, z, x: Tensor, tokens: Tokens, bias: Tensor | None) -> Tensor:
    for row, values in enumerate(z):
        served.write(row, values)
    return served(x, lambda count: tokens, bias)


def test_two_workers_give_what_one_gives() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, str(port)]
    workers = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for rank in range(2)
    ]
    outputs = [worker.communicate(timeout=300)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(outputs)
    assert [output.splitlines()[-1] for output in outputs] == ["equal", "equal"]


if __name__ == "__main__":
    work(rank=int(sys.argv[2]), workers=2, port=int(sys.argv[1]))
    print("equal")
