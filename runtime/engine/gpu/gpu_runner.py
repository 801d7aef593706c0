"""Runs chunks of sequences through the model on a GPU, ahead of their results."""

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from zweave.kernels import LinearMode

from ...experts.slot_tables import SlotTables
from ...kv_cache.block_pool import KVCache
from ...model.gpu_model import GpuModel
from ...model.layer_schedule import LayerSchedule, StateCapture
from ...scheduler.chunk import Chunk
from ..step import LaunchedStep
from ..step_arrays import StepArrays, capture_schedule, layer_schedule
from .backend import Backend
from .decode_graphs import DecodeGraphs
from .packing import Array, Packing
from .step_edits import StepEdits
from .step_input import StepInput, batch_of, packing_of, sampling_of
from .step_output import StepOutput


class GpuRunner:
    """Launches a step while the one before is still running.

    A token that is not known yet stands in the next step as a place among those that the step before samples, where
    the device finds it. All else follows from what the host knows, and goes to the device in one copy. The device does
    everything in one order, so blocks and slots may be given away while a step that reads them is in flight: whoever
    gets them writes after it.

    tables: of the bank, written in the backend's order.
    cache: where keys and values go, copied in the backend's order.
    """

    lookahead = 1

    def __init__(
        self,
        model: GpuModel,
        tables: SlotTables,
        cache: KVCache,
        backend: Backend,
        max_length: int,
        max_sequences: int,
    ) -> None:
        self.model = model
        self.cache = cache
        self.max_length = max_length
        self._tables = tables
        self._backend = backend
        self._sampled = torch.zeros(max_sequences, dtype=torch.int64, device=backend.device)
        max_blocks = cache.blocks_for(max_length)
        self._graphs = DecodeGraphs(model, backend, self._sampled, max_blocks, cache.block_size)
        self._places: Mapping[int, int] = {}

    def launch(self, chunks: Iterable[Chunk]) -> LaunchedStep:
        """See `Runner`."""
        ordered = sorted(chunks, key=_batch_order)
        arrays = StepArrays.of(ordered, self.cache.block_size)
        schedule = layer_schedule(ordered, self.model.config.num_layers)
        num_decode = _num_decode(ordered) if len(schedule.segments) == 1 else 0
        step = StepInput(ordered, arrays, self._places, num_decode)
        output = StepOutput(ordered, self._backend)
        edits = StepEdits(output.complete)
        if num_decode == len(ordered) == len(output.complete) and not edits:
            self._replay(step, self._mode(arrays), output)
        else:
            self._launch(step, self._mode(arrays), schedule, output, edits)
        self._places = {chunk.sequence.request_id: row for row, chunk in enumerate(output.complete)}
        output.wait = self._backend.mark()
        return LaunchedStep(ordered, output.output_of)

    def states(self, chunks: Seq[Chunk], layers: Seq[int]) -> Mapping[StateCapture, Tensor]:
        """See `Runner`."""
        arrays = StepArrays.of(chunks, self.cache.block_size)
        schedule = capture_schedule(chunks, layers, self.model.config.num_layers)
        output = StepOutput((), self._backend)
        self._launch(StepInput(chunks, arrays, {}, 0), self._mode(arrays), schedule, output, StepEdits(()))
        self._backend.mark()()
        return output.states

    def _mode(self, arrays: StepArrays) -> LinearMode:
        """The mode that serves all slots of a step."""
        slots = torch.from_numpy(arrays.slot).unique().long()
        return LinearMode(int(self._tables.modes[:, slots].max()))

    def _packed(self, packing: Packing, arrays: Mapping[str, Array]) -> Tensor:
        """A step's arrays on the host, where the device can read them."""
        host = self._backend.host_buffer(packing.size)
        packing.write(host, arrays)
        return host

    def _replay(self, step: StepInput, mode: LinearMode, output: StepOutput) -> None:
        """Launches a step of decoding as a graph."""
        graph, arrays = self._graphs.graph_for(step, mode)
        host = self._packed(graph.packing, arrays)

        def work() -> None:
            graph.input.copy_(host, non_blocking=True)
            graph.run()
            output.receive(graph.logits, graph.tokens, graph.finite)

        self._backend.submit(work)

    def _launch(
        self,
        step: StepInput,
        mode: LinearMode,
        schedule: LayerSchedule,
        output: StepOutput,
        edits: StepEdits,
    ) -> None:
        """Launches any step, kernel by kernel."""
        packing = packing_of(step.arrays)
        host = self._packed(packing, step.arrays)

        def work() -> None:
            fields = packing.views(host.to(self._backend.device, non_blocking=True))
            batch = batch_of(fields, schedule, step.num_decode, step.max_query_len, step.chunk_starts)
            logits, states = self.model.forward(batch, mode, self._sampled)
            output.receive_states(states)
            if output.complete:
                tokens, finite = self._backend.ops.sample(edits.edited(logits), *sampling_of(fields))
                self._sampled[: len(tokens)].copy_(tokens)
                output.receive(logits, tokens, finite)

        self._backend.submit(work)


def _batch_order(chunk: Chunk) -> tuple[int, ...]:
    """Late entries first and early exits last, as LayerSchedule wants it; then single tokens before prompts."""
    exit_layer = chunk.sequence.exit_layer
    depth = (0, -chunk.entry_layer) if exit_layer is None else (1, -exit_layer)
    return *depth, int(chunk.count > 1)


def _num_decode(chunks: Seq[Chunk]) -> int:
    """Chunks of one token, which come first."""
    return sum(chunk.count == 1 for chunk in chunks)
