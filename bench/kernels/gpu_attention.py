"""How near does attention on a GPU come to the roofs?"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor

from zweave.engine.gpu.backend import Backend, backend_of
from zweave.planner.gpu_cost import DeviceRates, rates_of

from ..harness.device_roofs import device_roof_providers
from ..harness.graph_clock import graph_clocks
from ..harness.harness import (
    ERROR_LIMITS,
    Outcome,
    Provider,
    WallClock,
    check,
    find,
    measure,
    ratio,
    row_error,
)
from ..harness.options import pace
from ..harness.prediction import prediction_keys
from ..harness.report import Column, Report, Row
from ..harness.roofs import Roofs, is_roof, roofline_keys
from ..serving.gpu.decoders import decoder_config
from ..serving.gpu.devices import check_device, notes_of
from .attention_case import AttentionCase, Heads
from .attention_forms import library_decode, library_prefill

# Tokens of a step of prompts: several short ones, or one.
PREFILL_TOKENS = 8192
# Operations a second that attention of prompts was predicted to reach, on an H100 or H200.
PREDICTED_PREFILL = 400e12
# Queries of a case that are held against float64.
CHECKED = 3
COLUMNS = (
    Column("kind", "kind"),
    Column("batch", "rows", "d"),
    Column("context", "context", "d"),
    Column("provider", "provider"),
    Column("seconds", "us", ".1f", 1e6),
    Column("gb_s", "GB/s", ".0f"),
    Column("gflop_s", "GFLOP/s", ".0f"),
    Column("roof", "roof"),
    Column("roof_pct", "% of it", ".0f"),
    Column("vs_sdpa", "x torch SDPA", ".2f"),
    Column("predicted_seconds", "predicted us", ".1f", 1e6),
    Column("vs_predicted", "measured / predicted", ".2f"),
    Column("error", "error", ".4f"),
)
Made = tuple[list[Provider], list[str]]


@torch.inference_mode()
def run(args: argparse.Namespace) -> Report:
    start = time.perf_counter()
    check_device(args.device)
    on_gpu = args.device == "cuda"
    attention = Attention(args.shapes, getattr(torch, args.dtype), backend_of(args.device))
    rates = rates_of(torch.cuda.get_device_name() if on_gpu else None)
    roof_candidates = [] if args.check else device_roof_providers(args.device, attention.dtype)
    rows: list[Row] = []
    roofs: list[Roofs] = []
    notes: dict[str, None] = {}
    for name, make in _cases(attention, args):
        if time.perf_counter() - start > args.stop_after:
            notes[f"Left out {name}: {args.stop_after:g} s are over."] = None
            continue
        try:
            case_rows, roof, missing = _measured(make, attention, roof_candidates, args, rates)
        except torch.OutOfMemoryError:
            notes[f"Left out {name}: the device has not enough memory."] = None
            continue
        notes |= dict.fromkeys(missing)
        rows += case_rows
        roofs += [roof] if roof else []
    return Report(
        "gpu-attention",
        f"Attention of a layer of {args.shapes} in {args.dtype}",
        COLUMNS,
        rows,
        sections=("kind", "context", "batch"),
        plot="roofline",
        roofs=(max(r.read for r in roofs), max(r.arithmetic for r in roofs)) if roofs else None,
        notes=[*notes, *notes_of(args.device)],
    )


def _measured(
    make: Callable[[], Made],
    attention: "Attention",
    roof_candidates: list[Provider],
    args: argparse.Namespace,
    rates: DeviceRates,
) -> tuple[list[Row], Roofs | None, list[str]]:
    """Rows of a case, the roofs beside them, and what was left out; the case's memory is free again."""
    providers, missing = make()
    if args.check:
        return [check(provider).row() for provider in providers], None, missing
    clocks = graph_clocks(attention.backend.capture) if args.device == "cuda" else WallClock
    outcomes = measure([*roof_candidates, *providers], pace(args), clocks)
    roofs = Roofs.of(outcomes)
    return _rows(outcomes, roofs, rates), roofs, missing


def _cases(attention: "Attention", args: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Made]]]:
    if "decode" in args.kinds:
        for context, batch in product(args.context, args.batch):
            yield f"{batch} rows of {context} tokens", partial(attention.decode, batch, context)
    if "prefill" in args.kinds:
        for length in args.prompt:
            yield f"prompts of {length} tokens", partial(attention.prefill, length)


class Attention:
    """The providers of a case, for the heads of a decoder."""

    def __init__(self, shapes: str, dtype: torch.dtype, backend: Backend) -> None:
        config = decoder_config(shapes)
        self.heads = Heads(config.num_heads, config.num_kv_heads, config.head_dim)
        self.dtype = dtype
        self.backend = backend

    def decode(self, batch: int, context: int) -> Made:
        """Of rows of one token each, behind `context` - 1 others."""
        case = AttentionCase.of(self.heads, batch, context, self.dtype, self.backend.device)
        q = case.queries(batch)
        position = torch.full((batch,), context - 1, dtype=torch.int32, device=q.device)
        scale = self.heads.D**-0.5

        def ours(table: Tensor) -> Tensor:
            return self.backend.ops.decode_attention(q, case.keys, case.values, table, position, scale)

        rows = _some(batch)
        truth = torch.stack([case.truth(q[row], row, context - 1) for row in rows])
        fields = {
            "moved": self.heads.moved(batch * context, batch, self.dtype.itemsize),
            "flops": self.heads.flops(batch * context),
            "labels": {"kind": "decode", "batch": batch, "context": context},
        }
        providers = [self._provider("zweave", [partial(ours, t) for t in case.tables], rows, truth, fields)]
        missing = []
        for name, calls in library_decode(case, q):
            provider = self._provider(name, calls, rows, truth, fields)
            missing += _add(providers, provider)
        return providers, missing

    def prefill(self, length: int) -> Made:
        """Of whole prompts."""
        sequences = max(1, PREFILL_TOKENS // length) if self.backend.device.type == "cuda" else 2
        case = AttentionCase.of(self.heads, sequences, length, self.dtype, self.backend.device)
        tokens = sequences * length
        q = case.queries(tokens)
        start = torch.arange(sequences + 1, dtype=torch.int32, device=q.device) * length
        first = torch.zeros(sequences, dtype=torch.int32, device=q.device)
        scale = self.heads.D**-0.5

        def ours(table: Tensor) -> Tensor:
            return self.backend.ops.prefill_attention(
                q, case.keys, case.values, table, start, first, scale, 0, length
            )

        rows = _some(tokens)
        truth = torch.stack([case.truth(q[row], row // length, row % length) for row in rows])
        fields = {
            "moved": self.heads.moved(tokens, tokens, self.dtype.itemsize),
            "flops": self.heads.flops(sequences * length * (length + 1) // 2),
            "labels": {"kind": "prefill", "batch": sequences, "context": length},
        }
        providers = [self._provider("zweave", [partial(ours, t) for t in case.tables], rows, truth, fields)]
        missing = []
        for name, calls in library_prefill(case, q):
            provider = self._provider(name, calls, rows, truth, fields)
            missing += _add(providers, provider)
        return providers, missing

    def _provider(
        self,
        name: str,
        calls: list[Callable[[], Tensor]],
        rows: list[int],
        truth: Tensor,
        fields: dict[str, object],
    ) -> Provider:
        def error() -> float:
            y = calls[0]()
            if y.dim() == 4:
                # PyTorch's heads come before the tokens.
                y = y.transpose(1, 2).flatten(0, 1)
            return row_error(y[rows].flatten(1), truth.flatten(1))

        return Provider(name, calls, error, ERROR_LIMITS[self.dtype], **fields)  # type: ignore[arg-type]


def _some(count: int) -> list[int]:
    """The first, the last and some in between."""
    return sorted({index * (count - 1) // max(1, CHECKED - 1) for index in range(CHECKED)})


def _add(providers: list[Provider], baseline: Provider) -> list[str]:
    """Adds another's provider if it can run; why it cannot."""
    try:
        baseline.calls[0]()
    except (ImportError, RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        return [f"Left out {baseline.name}: {reason[:120]}"]
    providers.append(baseline)
    return []


def _rows(outcomes: list[Outcome], roofs: Roofs, rates: DeviceRates) -> list[Row]:
    sdpa = find(outcomes, "torch SDPA")
    return [
        outcome.row()
        | roofline_keys(outcome, roofs)
        | {"read_gb_s": roofs.read / 1e9, "vs_sdpa": ratio(sdpa, outcome)}
        | prediction_keys(outcome, _predicted(outcome, rates), rates.name)
        for outcome in outcomes
        if not is_roof(outcome)
    ]


def _predicted(outcome: Outcome, rates: DeviceRates) -> float | None:
    """Seconds that ours was predicted to take."""
    provider = outcome.provider
    if provider.name != "zweave":
        return None
    if provider.labels["kind"] == "prefill":
        return provider.flops / PREDICTED_PREFILL + rates.small
    # A second kernel adds up the splits.
    return provider.moved / rates.attention + 2 * rates.small
