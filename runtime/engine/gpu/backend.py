"""Where the steps of the GPU engine run: on a CUDA device, or on a CPU with references in the place of kernels."""

from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from zweave.kernels import REFERENCE_OPS, DeviceOps, triton_ops
from zweave.kernels.triton.pdl import dependent_launches
from zweave.kernels.triton.semaphores import for_graph, new_semaphores, reset_semaphores

from ...io.submit import Work


class Backend(Protocol):
    """A device that does work in the order in which it is submitted, while the host goes on.

    device: of the tensors.
    ops: the kernels.
    """

    device: torch.device
    ops: DeviceOps

    def submit(self, work: Work) -> None:
        """Has work done after all that was submitted before. The work must not wait for the device."""

    def mark(self) -> Work:
        """A function that returns when everything submitted so far is done."""

    def capture(self, work: Work) -> Work:
        """A function that does the work again, on the same tensors; to be submitted."""

    def host_buffer(self, size: int) -> Tensor:
        """[size] int32 on the host, which the device reads while the host goes on."""

    def to_host(self, tensor: Tensor) -> Tensor:
        """A copy on the host, made as part of submitted work: to be read after a mark."""


class ReferenceBackend:
    """A CPU in the place of a device, and as late as one can be: nothing is done before somebody waits for it.

    So what the host changes too early, under work that is in flight, shows in the results.
    """

    device = torch.device("cpu")
    ops = REFERENCE_OPS

    def __init__(self) -> None:
        self._queue: deque[Work] = deque()
        self._num_done = 0

    def submit(self, work: Work) -> None:
        self._queue.append(work)

    def mark(self) -> Work:
        last = self._num_done + len(self._queue)
        return lambda: self._run_until(last)

    def capture(self, work: Work) -> Work:
        return work

    def host_buffer(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.int32)

    def to_host(self, tensor: Tensor) -> Tensor:
        return tensor.clone()

    def _run_until(self, last: int) -> None:
        while self._num_done < last:
            self._queue[0]()
            self._queue.popleft()
            self._num_done += 1


@dataclass(frozen=True, slots=True)
class GraphMemory:
    """What graphs that never run at once share.

    pool: of torch's allocator.
    semaphores: of split-K.
    """

    pool: Any
    semaphores: Tensor


class CudaBackend:
    """A CUDA device: kernels queue up on its current stream, and steps that repeat become graphs.

    All graphs share their memory, since never two of them run at once.

    dependent: whether kernels that can start while the one before them ends.
    """

    def __init__(self, device: torch.device, dependent: bool = False) -> None:
        self.device = device
        self._dependent = dependent
        self.ops = triton_ops()
        # What an engine that died in a launch may have left behind.
        reset_semaphores()
        self._memory = GraphMemory(torch.cuda.graph_pool_handle(), new_semaphores(device))

    def submit(self, work: Work) -> None:
        with torch.cuda.device(self.device), dependent_launches(self._dependent):
            work()

    def mark(self) -> Work:
        with torch.cuda.device(self.device):
            event = torch.cuda.Event()
            event.record()
        return event.synchronize

    def capture(self, work: Work) -> Work:
        return _Graph(work, self._memory)

    def host_buffer(self, size: int) -> Tensor:
        # PyTorch keeps pinned memory that a copy still reads from being handed out again.
        return torch.empty(size, dtype=torch.int32, pin_memory=True)

    def to_host(self, tensor: Tensor) -> Tensor:
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)


class _Graph:
    """Work that is done once as it is, which compiles its kernels, then captured, and replayed from then on."""

    def __init__(self, work: Work, memory: GraphMemory) -> None:
        self._work = work
        self._memory = memory
        self._is_warm = False
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        if not self._is_warm:
            self._work()
            self._is_warm = True
            return
        if self._graph is None:
            graph = torch.cuda.CUDAGraph()
            # Other threads may pin memory meanwhile, for experts that they load.
            capture = torch.cuda.graph(graph, pool=self._memory.pool, capture_error_mode="thread_local")
            with for_graph(self._memory.semaphores), capture:
                self._work()
            self._graph = graph
        self._graph.replay()


def backend_of(device: str, dependent: bool = False) -> Backend:
    """The backend of a device, as `EngineConfig` names it; dependent: as `CudaBackend` has it."""
    return ReferenceBackend() if device == "reference" else CudaBackend(torch.device(device), dependent)
