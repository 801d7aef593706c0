"""Runs chunks of sequences through the model on a GPU, ahead of their results."""

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from zweave.kernels import LinearMode

from ...experts.bank import Bank
from ...kv_cache.block_pool import KVCache
from ...model.gpu_model import GpuModel
from ...model.layer_schedule import LayerSchedule, StateCapture
from ...scheduler.chunk import Chunk
from ...scheduler.sequence import Sequence
from ..step import LaunchedStep
from ..step_arrays import StepArrays, capture_schedule, late_chunks, layer_schedule
from .backend import Backend
from .choosing import ChoiceInput, ExpertChooser
from .decode_graphs import DecodeGraphs
from .packing import Array, Packing
from .step_edits import StepEdits
from .step_input import StepInput, batch_of, packing_of, sampling_of
from .step_output import StepOutput


class GpuRunner:
    """Launches a step while the one before is still running.

    A token that is not known yet stands in the next step as a place among those that the step before samples, where
    the device finds it; so does the slot of an expert that the device chooses. All else follows from what the host
    knows, and goes to the device in one copy. The device does everything in one order, so blocks and slots may be given
    away while a step that reads them is in flight: whoever gets them writes after it.

    bank: whose tables and pages of LoRAs are written in the backend's order.
    cache: where keys and values go, copied in the backend's order.
    """

    lookahead = 1

    def __init__(
        self,
        model: GpuModel,
        bank: Bank,
        cache: KVCache,
        backend: Backend,
        max_length: int,
        max_sequences: int,
    ) -> None:
        self.model = model
        self.cache = cache
        self.max_length = max_length
        self._tables, self._components = bank.tables, bank.components
        self._backend = backend
        self._sampled = torch.zeros(max_sequences, dtype=torch.int64, device=backend.device)
        self._num_slots = len(bank.tables.scale)
        self._chooser = ExpertChooser(self._num_slots, max_sequences, model.config.hidden_size, backend)
        max_blocks = cache.blocks_for(max_length)
        self._graphs = DecodeGraphs(
            model,
            backend,
            self._sampled,
            self._chooser.slot_of,
            max_blocks,
            cache.block_size,
            max_pages=self._components.num_pages if self._components else 0,
        )
        self._places: Mapping[Sequence, int] = {}

    def launch(self, chunks: Iterable[Chunk]) -> LaunchedStep:
        """See `Runner`."""
        ordered = _in_batch_order(chunks)
        arrays = StepArrays.of(ordered, self.cache.block_size)
        schedule = layer_schedule(ordered, self.model.config.num_layers)
        num_decode = _num_decode(ordered) if len(schedule.segments) == 1 else 0
        choices = ChoiceInput.of(ordered)
        slots = self._slots(arrays, ordered)
        step = StepInput(ordered, arrays, self._places, num_decode, choices, self._pages(slots))
        mode = self._mode(slots)
        output = StepOutput(ordered, self._backend)
        edits = StepEdits(output.complete)
        if num_decode == len(ordered) == len(output.complete) and not edits:
            self._replay(step, mode, output)
        else:
            self._launch(step, mode, schedule, output, edits)
        self._places = {chunk.sequence: row for row, chunk in enumerate(output.complete)}
        output.wait = self._backend.mark()
        return LaunchedStep(ordered, output.output_of, output.wait)

    def states(self, chunks: Seq[Chunk], layers: Seq[int]) -> Mapping[StateCapture, Tensor]:
        """See `Runner`."""
        arrays = StepArrays.of(chunks, self.cache.block_size)
        schedule = capture_schedule(chunks, layers, self.model.config.num_layers)
        output = StepOutput((), self._backend)
        slots = self._slots(arrays, ())
        step = StepInput(chunks, arrays, {}, 0, ChoiceInput.of(()), self._pages(slots))
        self._launch(step, self._mode(slots), schedule, output, StepEdits(()))
        self._backend.mark()()
        return output.states

    def _slots(self, arrays: StepArrays, chunks: Seq[Chunk]) -> list[int]:
        """All slots of a step, those of candidates included."""
        slots = {*arrays.slot[arrays.slot < self._num_slots].tolist()}
        for chunk in chunks:
            if chunk.sequence.choice is not None and not chunk.pools:
                slots |= {*chunk.sequence.choice.slots}
        return sorted(slots)

    def _mode(self, slots: Seq[int]) -> LinearMode:
        """The mode that serves all of some slots."""
        return LinearMode(int(self._tables.modes[:, slots].max()))

    def _pages(self, slots: Seq[int]) -> Seq[int]:
        """The pages of the LoRAs of some slots."""
        return () if self._components is None else self._components.pages_of(slots)

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
        choices = step.choices
        classifier = None if choices.classifier is None else self._chooser.on_device(choices.classifier)

        def work() -> None:
            fields = packing.views(host.to(self._backend.device, non_blocking=True))
            batch = batch_of(fields, schedule, step.num_decode, step.max_query_len, step.chunk_starts)

            def pool(x: Tensor, residual: Tensor) -> None:
                self._chooser.pool(fields, choices.seeds, x, residual)
                if classifier is not None and choices.choosing:
                    output.receive_choices(choices.choosing, *self._chooser.choose(fields, classifier))

            logits, states = self.model.forward(batch, mode, self._sampled, self._chooser.slot_of, pool)
            output.receive_states(states, self.model.logits_of)
            if output.complete:
                tokens, finite = self._backend.ops.sample(edits.edited(logits), *sampling_of(fields))
                self._sampled[: len(tokens)].copy_(tokens)
                output.receive(logits, tokens, finite)

        self._backend.submit(work)


def _in_batch_order(chunks: Iterable[Chunk]) -> list[Chunk]:
    """Late entries first and early exits last, as LayerSchedule wants it; then single tokens before prompts.

    Chunks that wait for a choice in the same step come between those and early exits.
    """
    listed = list(chunks)
    late = late_chunks(listed)

    def order(chunk: Chunk) -> tuple[int, ...]:
        exit_layer = chunk.sequence.exit_layer
        depth = (0, -chunk.entry_layer) if exit_layer is None else (2, -exit_layer)
        return *((1, 0) if chunk in late else depth), int(chunk.count > 1)

    return sorted(listed, key=order)


def _num_decode(chunks: Seq[Chunk]) -> int:
    """Chunks of one token, which come first."""
    return sum(chunk.count == 1 for chunk in chunks)
