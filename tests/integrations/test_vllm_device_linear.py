"""The linear that vLLM's layers call on a GPU, by the references of its kernels: steps, their slots and modes."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from zweave.decomposition.svd import svd
from zweave.errors import ZweaveError
from zweave.integrations.vllm.linears import DeviceLinear, DeviceStep, Forms, Shard, forms_of, shard_factors
from zweave.integrations.vllm.linears.forms import FORMS
from zweave.integrations.vllm.linears.stacked_op import compute, mode_for, stacked_linear
from zweave.kernels import LIBRARY_FROM, REFERENCE_OPS, DeviceOps, LinearMode

N, OUTPUTS, ADAPTERS, ROOM = 40, (24, 8, 8), 3, LIBRARY_FROM + 20
DENSE, DELTA, FACTORED = LinearMode.DENSE, LinearMode.DELTA, LinearMode.FACTORED
# vLLM's numbers of adapters. The first two adapt leading components alone, of which the second has but one matrix.
FEW, ONE, ALL = 11, 12, 13
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
# What a row may lose by bytes: the deltas here are up to a third of it, and lose at most an eighth of that.
LOST = dict.fromkeys(FORMS, 0.0) | {"leading:int8": 0.04}


@dataclass(frozen=True)
class Mapping:
    index_mapping: tuple[int, ...]


class Wrapper:
    """A punica wrapper: what lies beyond a step's tokens is anything."""

    def __init__(self, device: str = "cpu") -> None:
        self._token_lora_indices = torch.full((ROOM,), 1 << 40, device=device)
        self.indices_len: list[int | None] = [None]

    def update_metadata(
        self, mapping: Mapping, lora_index_to_id: Sequence[int | None], max_loras: int, vocab_size: int
    ) -> None:
        found = [lora_index_to_id.index(id) if id else -1 for id in mapping.index_mapping]
        self._token_lora_indices[: len(found)] = torch.tensor(found)
        self.indices_len[0] = len(found)


class Server:
    """A fused linear with three adapters.

    count: matrices in it
    columns: this worker's part of the inputs
    rows: its part of each matrix's outputs
    """

    def __init__(
        self,
        forms: Forms = "all",
        count: int = 3,
        dtype: torch.dtype = torch.float32,
        columns: Shard | None = None,
        rows: Sequence[Shard] | None = None,
        device: str = "cpu",
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.matrices = [torch.randn(M, N, generator=generator) for M in OUTPUTS[:count]]
        self.bias = torch.randn(sum(OUTPUTS[:count]), generator=generator).to(device, dtype)
        found = [svd(matrix) for matrix in self.matrices]
        self.factors = [(each.u, each.sigma, each.vt) for each in found]
        cut = []
        for index, (u, sigma, vt) in enumerate(self.factors):
            u, vt = shard_factors(u, vt, None if rows is None else rows[index], columns)
            cut.append((u, sigma, vt))
        dense = torch.cat(
            [shard_factors(w, w, rows and rows[i], None)[0] for i, w in enumerate(self.matrices)]
        )
        dense = (dense if columns is None else dense[:, columns.span]).contiguous().to(device, dtype)
        self.linear = DeviceLinear(dense, cut, ADAPTERS, forms)
        self.wrapper = Wrapper(device)
        self.step = self.linear.step_of(self.wrapper)
        self.ids: list[int | None] = [None] * ADAPTERS
        self.z: dict[int, list[Tensor | None]] = {}
        for index, id in enumerate((FEW, ONE) if forms.startswith("leading") else (FEW, ONE, ALL)):
            z = [1 + 0.3 * torch.randn(len(s), generator=generator) for _, s, _ in self.factors]
            if id != ALL:
                for values, rank in zip(z, (max(1, len(values) // 8) for values in z), strict=True):
                    values[rank:] = 1
            self.load(index, id, [z[0], *[None] * (count - 1)] if id == ONE else z)

    def load(self, index: int, id: int, z: Sequence[Tensor | None]) -> None:
        self.ids[index], self.z[id] = id, list(z)
        self.linear.write(index, z)

    def set(self, ids: Sequence[int]) -> None:
        """A step's tokens, each of an adapter, 0 for none."""
        self.wrapper.update_metadata(Mapping(tuple(ids)), self.ids, ADAPTERS + 1, 1000)

    def truth(self, x: Tensor, ids: Sequence[int]) -> Tensor:
        """Row by row in float64; rows beyond the ids are of the base model."""
        weights = {0: torch.cat(self.matrices).double()}
        for id, z in self.z.items():
            parts = [
                (u.double() * (s.double() * (1 if values is None else values.double()))) @ vt.double()
                for (u, s, vt), values in zip(self.factors, z, strict=True)
            ]
            weights[id] = torch.cat(parts)
        every = [*ids, *[0] * (len(x) - len(ids))]
        rows = [weights[id] @ row for id, row in zip(every, x.double().cpu(), strict=True)]
        return torch.stack(rows) + self.bias.double().cpu()


def inputs(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, N, generator=torch.Generator().manual_seed(3)).to(dtype)


def error(y: Tensor, expected: Tensor) -> float:
    """Of the worst row, relative to its length."""
    return float(((y.double().cpu() - expected).norm(dim=1) / expected.norm(dim=1)).max())


STEPS = {
    "base": [0, 0, 0],
    "one token": [FEW],
    "few components": [FEW, 0, ONE, FEW],
    "one matrix": [ONE, ONE],
    "mixed": [0, FEW, ALL, 0, ONE, ALL],
    "many tokens": [FEW, 0, ONE] * (LIBRARY_FROM // 3 + 1),
    "many mixed": [ALL, 0, ONE] * (LIBRARY_FROM // 3 + 1),
}


@pytest.mark.parametrize("count", [3, 1], ids=["fused", "one matrix"])
@pytest.mark.parametrize("forms", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_step_equals_float64(count: int, forms: Forms, dtype: torch.dtype, poisoned_outputs: None) -> None:
    server = Server(forms, count, dtype)
    for ids in STEPS.values():
        if forms.startswith("leading") and ALL in ids:
            continue
        server.set(ids)
        # As a graph is: filled up with rows that are none of the step's.
        x = inputs(len(ids) + 5, dtype)
        y = server.linear(x, server.step, server.bias)
        assert y.dtype == dtype
        assert error(y, server.truth(x, ids)) < max(LIMITS[dtype], LOST[forms])
        assert error(server.linear.base(x, server.bias), server.truth(x, [])) < 1e-2


def test_the_slots_of_a_step_stay_where_they_are() -> None:
    server = Server()
    assert DeviceStep.of(server.wrapper) is server.step
    address = server.step.slot.data_ptr(), server.step.mode.data_ptr()
    server.set([ALL, 0, FEW, ONE, ONE])
    assert server.step.slot[:7].tolist() == [3, 0, 1, 2, 2, 0, 0]
    server.set([0, ONE])
    assert server.step.slot.tolist() == [0, 2] + [0] * (ROOM - 2)
    assert address == (server.step.slot.data_ptr(), server.step.mode.data_ptr())


def test_a_step_needs_the_most_general_mode_of_its_adapters() -> None:
    server = Server()
    other = Server(count=1).linear
    other.step_of(server.wrapper)
    for ids, mode in (
        ([0, 0], DENSE),
        ([FEW, 0], DELTA),
        ([ONE], DELTA),
        ([FEW, ALL], FACTORED),
    ):
        server.set(ids)
        assert server.step.mode.item() == mode
    # A second linear of the model, which the first adapter changes throughout.
    other.write(0, [torch.full((len(server.factors[0][1]),), 2.0)])
    assert server.step.mode.item() == FACTORED  # until vLLM sets the next step
    server.set([ONE])
    assert server.step.mode.item() == DELTA
    server.set([FEW])
    assert server.step.mode.item() == FACTORED
    # An adapter that changes nothing is an adapter still: a graph that is captured without any is replayed without any.
    other.write(0, [None])
    server.linear.write(0, [None] * 3)
    server.set([FEW])
    assert server.step.mode.item() == DELTA


@pytest.mark.parametrize(
    ("needed", "forms", "eager", "captured"),
    [
        (DENSE, "all", DENSE, DENSE),
        (DELTA, "all", DELTA, FACTORED),
        (FACTORED, "all", FACTORED, FACTORED),
        (DENSE, "factors", FACTORED, FACTORED),
        (FACTORED, "factors", FACTORED, FACTORED),
        (DENSE, "leading", DENSE, DENSE),
        (DELTA, "leading", DELTA, DELTA),
        (FACTORED, "leading", DELTA, DELTA),  # which an adapter that was just loaded asks for
    ],
)
def test_a_graph_takes_the_mode_that_serves_all_its_replays(
    needed: LinearMode, forms: Forms, eager: LinearMode, captured: LinearMode
) -> None:
    keeps = forms != "factors", forms != "leading"
    assert mode_for(needed, *keeps, capturing=False) == eager
    assert mode_for(needed, *keeps, capturing=True) == captured


def test_adapters_come_and_go() -> None:
    server = Server()
    x, ids = inputs(4), [FEW, ALL, 0, ALL]
    server.load(0, FEW, [z if z is None else z.flip(0) for z in server.z[ALL]])
    server.set(ids)
    assert error(server.linear(x, server.step, server.bias), server.truth(x, ids)) < 1e-5
    server.load(2, ALL, [None] * 3)
    server.set(ids)
    assert error(server.linear(x, server.step, server.bias), server.truth(x, ids)) < 1e-5
    # What vLLM warms up with has more components than a server of leading ones keeps.
    leading = Server("leading")
    leading.load(2, ALL, [torch.zeros(len(sigma)) for _, sigma, _ in leading.factors])
    leading.set([FEW])
    assert error(leading.linear(x, leading.step, leading.bias), leading.truth(x, [FEW])) < 1e-5


@pytest.mark.parametrize("forms", FORMS)
@pytest.mark.parametrize("tokens", [6, LIBRARY_FROM])
def test_workers_share_a_linear(forms: Forms, tokens: int) -> None:
    ids = ([FEW, 0, ONE] if forms.startswith("leading") else [FEW, 0, ALL]) * (tokens // 3)
    x, outputs = inputs(tokens), []
    whole = Server(forms)
    for worker in range(2):
        rows = [Shard(worker, M // 2) for M in OUTPUTS]
        server = Server(forms, rows=rows)
        server.set(ids)
        outputs.append(server.linear(x, server.step).split([M // 2 for M in OUTPUTS], 1))
    together = torch.cat([part for matrix in zip(*outputs, strict=True) for part in matrix], 1)
    assert error(together + whole.bias, whole.truth(x, ids)) < max(1e-5, LOST[forms])
    total = torch.zeros_like(together)
    for worker in range(2):
        columns = Shard(worker, N // 2)
        server = Server(forms, columns=columns)
        server.set(ids)
        total += server.linear(x[:, columns.span], server.step, server.bias if worker == 0 else None)
    assert error(total, whole.truth(x, ids)) < max(1e-5, LOST[forms])


def graphs_of(forms: Forms) -> list[tuple[list[int], list[list[int]]]]:
    """Steps of which vLLM captures a graph, one without adapters and one with those of the most general mode, and some
    for which it then replays them."""
    leading = forms.startswith("leading")
    steps = [[0, FEW, ONE], [ONE] * 8, [0, 0], *([] if leading else [[ALL, FEW, 0]])]
    return [([0] * 8, [[0] * 3]), ([FEW if leading else ALL] * 8, steps)]


@pytest.mark.parametrize("forms", FORMS)
def test_a_mode_that_was_captured_serves_every_replay(forms: Forms) -> None:
    server = Server(forms)
    dense, _, _, scale, *_ = server.linear.weights
    x = inputs(8)
    for captured, replayed in graphs_of(forms):
        server.set(captured)
        mode = mode_for(
            LinearMode(int(server.step.mode)), dense is not None, scale is not None, capturing=True
        )
        held = torch.tensor([int(mode)])
        for ids in replayed:
            server.set(ids)
            y = stacked_linear(x, server.step.slot, held, *server.linear.weights, server.bias)
            assert error(y, server.truth(x, ids)) < max(1e-5, LOST[forms])


class Products(TorchDispatchMode):
    """Counts PyTorch's ops."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **kwargs or {})


@pytest.mark.parametrize(
    ("mode", "forms"),
    [(DENSE, "all"), (DELTA, "all"), (DELTA, "leading:int8"), (FACTORED, "all")],
    ids=["dense", "delta", "delta in bytes", "factored"],
)
@pytest.mark.parametrize("count", [3, 2, 1])
def test_launches_of_a_fused_linear(mode: LinearMode, forms: Forms, count: int) -> None:
    calls: Counter[str] = Counter()

    def counted(name: str) -> Callable[..., Any]:
        def call(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            # Theirs are no launches.
            with torch.utils._python_dispatch._disable_current_modes():
                return getattr(REFERENCE_OPS, name)(x, *args, **kwargs)

        return call

    ops = DeviceOps(**{field.name: counted(field.name) for field in fields(DeviceOps)})
    server = Server(forms, count)
    # Those of equal shape that follow each other are one batch.
    batches = len(list(groupby(OUTPUTS[:count])))
    slot = torch.ones(ROOM, dtype=torch.int32)
    for tokens in (5, LIBRARY_FROM):
        with Products() as products:
            compute(ops, inputs(tokens), slot, torch.tensor([int(mode)]), *server.linear.weights, server.bias)
        launches = (
            calls.total(),
            sum(products.calls[name] for name in ("mm", "addmm_", "bmm", "baddbmm_")),
        )
        if tokens < LIBRARY_FROM:
            assert launches == (1, 0)
        elif mode == DENSE:
            assert launches == (0, 1)
        elif forms == "leading:int8":
            assert launches == (1, 2 + batches)
        else:
            assert launches == (1, 1 + batches if mode == FACTORED else 1 + 2 * batches)
        assert products.calls["cat"] == 0
        calls.clear()


def test_the_op_is_registered_as_it_behaves() -> None:
    server = Server()
    server.set([FEW, 0])
    arguments = (inputs(4), server.step.slot, server.step.mode, *server.linear.weights, server.bias)
    torch.library.opcheck(stacked_linear, arguments, test_utils=("test_schema", "test_faketensor"))


def test_a_compiled_model_does_not_know_the_step() -> None:
    server = Server()
    frames = 0

    def backend(graph: torch.fx.GraphModule, example: list[Tensor]) -> Callable[..., Any]:
        nonlocal frames
        frames += 1
        return graph.forward

    def model(x: Tensor) -> Tensor:
        return server.linear(x, server.step, server.bias) * 2

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for ids in STEPS.values():
        server.set(ids)
        x = inputs(len(ids) + 2)
        assert error(compiled(x) / 2, server.truth(x, ids)) < 1e-5
    assert frames <= 2  # one token is a shape of its own


def test_forms_of_a_server() -> None:
    assert forms_of({}) == forms_of({"other": 1}) == forms_of(object()) == "all"
    assert forms_of({"zweave": {"forms": "leading"}}) == "leading"
    for wrong in ({"forms": "some"}, {"form": "all"}, "leading", {"forms": ["all"]}):
        with pytest.raises(ZweaveError, match="'all', 'factors', 'leading'"):
            forms_of({"zweave": wrong})


@pytest.mark.gpu
@pytest.mark.parametrize("forms", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_graphs_of_steps(forms: Forms, dtype: torch.dtype) -> None:
    server = Server(forms, dtype=dtype, device="cuda")
    limit = max(1e-2 if dtype == torch.bfloat16 else 5e-3, LOST[forms])
    for captured, replayed in graphs_of(forms):
        x = inputs(8, dtype).cuda()
        server.set(captured)
        server.linear(x, server.step, server.bias)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = server.linear(x, server.step, server.bias)
        for ids in replayed:
            server.set(ids)
            graph.replay()
            assert error(y, server.truth(x, ids)) < limit
