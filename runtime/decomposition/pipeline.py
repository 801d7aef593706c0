"""One matrix after another on an accelerator, out of core: the next is read, and the last written, meanwhile."""

from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ..checkpoint.weight_source import WeightSource
from .cache_entry import Matrix
from .factoring import factor, read, write
from .solver import Solver


def pipelined(source: WeightSource, directory: Path, solver: Solver) -> Generator[tuple[str, Matrix]]:
    """Decomposes all matrices into `directory`; yields each one's entry of the index, in layer order.

    The device holds one matrix, the host at most two weights (one read ahead) and three sets of factors (one being
    written, one of an earlier run read ahead): within `working_bytes` of the largest, however many matrices there
    are. A loop that is left early waits for the read and the write under way.
    """
    modules = list(source.adapted_shapes())
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        reading = reader.submit(read, source, modules[0], directory)
        writing: Future[tuple[str, Matrix]] | None = None
        for following in [*modules[1:], None]:
            matrix = reading.result()
            if following:
                reading = reader.submit(read, source, following, directory)
            factored = factor(matrix, solver)
            # The device waits here for a slow disk; otherwise factors would pile up.
            if writing:
                yield writing.result()
            writing = writer.submit(write, factored, directory)
        if writing:
            yield writing.result()
