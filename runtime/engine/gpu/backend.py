"""Where the steps of the GPU engine run: on a CUDA device, or on a CPU with references in the place of kernels."""

from collections import deque
from typing import Protocol

import torch
from torch import Tensor

from zweave.kernels import REFERENCE_OPS, DeviceOps

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


def backend_of(device: torch.device) -> Backend:
    """The backend of a device."""
    return ReferenceBackend()
