"""What the host tells the device of a step: the batch, and how its tokens are sampled."""

from collections.abc import Mapping
from collections.abc import Sequence as Seq

import numpy as np
from torch import Tensor

from ...model.gpu_batch import GpuBatch
from ...model.layer_schedule import LayerSchedule
from ...scheduler.chunk import Chunk
from ...scheduler.sequence import Sequence
from ..step_arrays import StepArrays, row_ranges
from .choosing import ChoiceInput
from .packing import Array, Packing

# What stands in rows that fill up a bucket, if not 0. The position says that they are none.
_PADDING = {"position": -1, "top_p": 1.0}
_BATCH = (
    "token_ids",
    "slot",
    "position",
    "kv_index",
    "block_table",
    "query_start",
    "first_position",
    "sampled",
)
# Far more than any vocabulary holds.
_MOST = np.iinfo(np.int32).max
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seed", "index")


class StepInput:
    """A step's arrays, for one copy to the device.

    chunks: in the order of the batch.
    places: where the step before samples the next token of a sequence; for tokens in flight.
    num_decode: chunks of one token that come first, as `GpuBatch` has them.
    choices: what is chosen in the step.
    pages: of the LoRAs of the step's slots.

    arrays: by name, those of `GpuBatch`, of `sample` and of the choices.
    max_query_len: see `GpuBatch`.
    chunk_starts: see `GpuBatch`.
    """

    def __init__(
        self,
        chunks: Seq[Chunk],
        arrays: StepArrays,
        places: Mapping[Sequence, int],
        num_decode: int,
        choices: ChoiceInput,
        pages: Seq[int] = (),
    ) -> None:
        self.choices = choices
        self.num_decode = num_decode
        self.max_query_len = max((chunk.count for chunk in chunks[num_decode:]), default=0)
        self.chunk_starts = [*(first for first, _ in row_ranges(chunks)), len(arrays.position)]
        starts = np.array(self.chunk_starts[num_decode:], dtype=np.int32)
        self.arrays: Mapping[str, Array] = {
            "token_ids": _with_places(chunks, arrays, places),
            "slot": arrays.slot,
            "position": arrays.position,
            "kv_index": arrays.kv_index,
            "block_table": arrays.block_table,
            "query_start": starts - starts[0],
            "first_position": np.array([chunk.start for chunk in chunks[num_decode:]], dtype=np.int32),
            "sampled": arrays.sampled,
            **_sampling([chunk for chunk in chunks if chunk.complete]),
            **choices.arrays,
        }
        self.num_pages = len(pages)
        if pages:
            self.arrays = {**self.arrays, "pages": np.array([len(pages), *pages], dtype=np.int32)}

    def padded(self, rows: int, blocks: int, pages: int) -> Mapping[str, Array]:
        """The arrays of a step of decoding, for a bucket of so many rows, entries of the block table and pages."""
        padded = {name: _pad(name, array, rows) for name, array in self.arrays.items()}
        if pages:
            padded["pages"] = _pad("pages", self.arrays["pages"], 1 + pages)
        table = padded["block_table"]
        return padded | {
            "block_table": np.pad(table, ((0, 0), (0, blocks - table.shape[1]))),
            "query_start": self.arrays["query_start"],
            "first_position": self.arrays["first_position"],
            "sampled": np.arange(rows),
        }


def packing_of(arrays: Mapping[str, Array]) -> Packing:
    """The packing of a step's arrays."""
    return Packing.of({name: (array.shape, array.dtype.type) for name, array in arrays.items()})


def batch_of(
    fields: Mapping[str, Tensor],
    schedule: LayerSchedule,
    num_decode: int,
    max_query_len: int,
    chunk_starts: Seq[int],
) -> GpuBatch:
    """The batch whose tensors lie in a buffer on the device."""
    return GpuBatch(
        **{name: fields[name] for name in _BATCH},
        pages=fields.get("pages"),
        num_decode=num_decode,
        max_query_len=max_query_len,
        schedule=schedule,
        chunk_starts=chunk_starts,
    )


def sampling_of(fields: Mapping[str, Tensor]) -> list[Tensor]:
    """The arguments of `sample` behind the logits."""
    return [fields[name] for name in _SAMPLING]


def _with_places(chunks: Seq[Chunk], arrays: StepArrays, places: Mapping[Sequence, int]) -> Array:
    """Token ids, with -1 - i for the token that the step before samples as its i-th."""
    token_ids = arrays.token_ids.copy()
    for row in np.flatnonzero(token_ids < 0):
        token_ids[row] = -1 - places[chunks[arrays.chunk[row]].sequence]
    return token_ids


def _sampling(chunks: Seq[Chunk]) -> dict[str, Array]:
    """How the token after each chunk is sampled, in the types that `sample` takes."""
    asked = [chunk.sequence.request.sampling for chunk in chunks]
    return {
        "temperature": np.array([sampling.temperature for sampling in asked], dtype=np.float32),
        "top_k": np.array([min(sampling.top_k, _MOST) for sampling in asked], dtype=np.int32),
        "top_p": np.array([sampling.top_p for sampling in asked], dtype=np.float32),
        "min_p": np.array([sampling.min_p for sampling in asked], dtype=np.float32),
        "seed": np.array([chunk.sequence.seed for chunk in chunks], dtype=np.uint64).view(np.int64),
        "index": np.array([chunk.num_generated for chunk in chunks], dtype=np.int64),
    }


def _pad(name: str, array: Array, rows: int) -> Array:
    rest = ((0, max(0, rows - len(array))), *[(0, 0)] * (array.ndim - 1))
    return np.pad(array, rest, constant_values=_PADDING.get(name, 0))
