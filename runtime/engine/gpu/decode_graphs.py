"""Steps that only decode, captured once for each bucket and mode, and replayed."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zweave.kernels import LinearMode

from ...model.gpu_model import GpuModel
from ...model.layer_schedule import LayerSchedule
from .backend import Backend, Work
from .packing import Array, Packing
from .step_input import StepInput, batch_of, packing_of, sampling_of

# Blocks in the table of a bucket: short contexts get narrower tables, whose kernels look at fewer splits.
_CONTEXT_BUCKETS = (2048, 8192)
# Pages of LoRAs that a bucket's kernels look for; none is a bucket of its own, and the largest is the pool's.
_PAGE_BUCKETS = (0, 32, 128, 512)


@dataclass(slots=True, eq=False)
class DecodeGraph:
    """A step of decoding for a bucket, on tensors that stay where they are.

    packing: of its input.
    input: on the device, where `packing` says.
    logits, tokens, finite: what it gives, on the device; of the last run.
    """

    packing: Packing
    input: Tensor
    run: Work
    logits: Tensor
    tokens: Tensor
    finite: Tensor


class DecodeGraphs:
    """The graphs of a model, captured when they are first needed.

    The number of experts is no part of a graph: slots are data, and a mode serves any number of them.

    model: whose steps they are.
    sampled: [max_sequences] int64, where a step's tokens go and the next step finds them.
    slot_of: see `GpuModel.forward`.
    max_blocks: entries of the block table of the longest sequence.
    max_pages: pages of the LoRAs that are resident at once.
    """

    def __init__(
        self,
        model: GpuModel,
        backend: Backend,
        sampled: Tensor,
        slot_of: Tensor,
        max_blocks: int,
        block_size: int,
        max_pages: int,
    ) -> None:
        self._model = model
        self._backend = backend
        self._sampled = sampled
        self._slot_of = slot_of
        self._buckets = batch_buckets(len(sampled))
        caps = [tokens // block_size for tokens in _CONTEXT_BUCKETS if tokens // block_size < max_blocks]
        self._widths = [*caps, max_blocks]
        self._pages = [*(pages for pages in _PAGE_BUCKETS if pages < max_pages), max_pages]
        self._graphs: dict[tuple[int, int, int, LinearMode], DecodeGraph] = {}

    def graph_for(self, step: StepInput, mode: LinearMode) -> tuple[DecodeGraph, Mapping[str, Array]]:
        """The graph of the smallest bucket that holds a step, and the step's arrays, padded to it."""
        rows, width = step.arrays["block_table"].shape
        bucket = next(size for size in self._buckets if size >= rows)
        blocks = next(size for size in self._widths if size >= width)
        pages = next(size for size in self._pages if size >= step.num_pages)
        key = bucket, blocks, pages, mode
        arrays = step.padded(bucket, blocks, pages)
        if key not in self._graphs:
            self._graphs[key] = self._make(packing_of(arrays), bucket, mode)
        return self._graphs[key], arrays

    def _make(self, packing: Packing, bucket: int, mode: LinearMode) -> DecodeGraph:
        buffer = torch.zeros(packing.size, dtype=torch.int32, device=self._backend.device)
        fields = packing.views(buffer)
        schedule = LayerSchedule.of(self._model.config.num_layers, bucket)
        batch = batch_of(fields, schedule, bucket, 0, ())
        empty = torch.empty(0, device=self._backend.device)
        graph = DecodeGraph(packing, buffer, lambda: None, empty, empty, empty)

        def run() -> None:
            graph.logits, _ = self._model.forward(batch, mode, self._sampled, self._slot_of)
            graph.tokens, graph.finite = self._backend.ops.sample(graph.logits, *sampling_of(fields))
            self._sampled[:bucket].copy_(graph.tokens)

        graph.run = self._backend.capture(run)
        return graph


def batch_buckets(max_sequences: int) -> list[int]:
    """Numbers of rows that graphs are captured for: 1, 2, 4, then every 8, and the largest that is needed."""
    return [size for size in (1, 2, 4, *range(8, max_sequences, 8)) if size < max_sequences] + [max_sequences]
