"""Gradient checkpointing: what a backward pass computes again runs under the experts of its forward pass.

Autograd's graph is the memory: each linear leaves its rows with the node of its output. A forward pass inside a
backward pass finds them there, upstream of the node whose saved tensors are wanted.
"""

from collections import deque
from typing import Any

import torch
from torch import Tensor

from ...errors import ZweaveError

# torch.utils.checkpoint with use_reentrant=True: the one node that stands for a whole region knows no rows.
_REENTRANT = "CheckpointFunctionBackward"


def backward_pass() -> int | None:
    """The number of the backward pass that this thread is in the midst of; None outside of one."""
    number: int = torch._C._current_graph_task_id()
    return None if number < 0 else number


def remember(y: Tensor, key: object, value: object) -> None:
    """Leaves a value under a key with the node that computed y, if y has one."""
    node: Any = y.grad_fn
    if node is not None:
        node.metadata[key] = value


def recall(key: object) -> Any:
    """The value that was left under a key by the forward pass which the running backward pass repeats.

    Raises ZweaveError if none was, and for checkpoints with use_reentrant=True.
    """
    node: Any = torch._C._current_autograd_node()
    if node is not None and node.name() != _REENTRANT:
        found = _nearest(node, key)
        if found is not None:
            # The linears of one region all ask from the same node.
            node.metadata[key] = found.metadata[key]
            return found.metadata[key]
    raise ZweaveError(
        "gradient checkpointing keeps a forward pass's experts with use_reentrant=False only: "
        "give gradient_checkpointing_kwargs={'use_reentrant': False}"
    )


def _nearest(node: Any, key: object) -> Any:
    """The nearest node upstream, the node itself included, that has a value under a key; None if there is none."""
    seen, waiting = {node}, deque([node])
    while waiting:
        node = waiting.popleft()
        if key in node.metadata:
            return node
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return None
