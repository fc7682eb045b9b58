"""`--micro-batch auto`: the largest slice of a batch that can be encoded, and its gradient taken, in the memory left.

Memory that a slice takes grows with its rows, so two small ones tell how. With the largest slice that fits, gradient
caching also encodes least again: the last slice keeps its graph, and no number of smaller ones could keep more.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from xmodal import distributed
from xmodal.errors import InputError
from xmodal.machine import free_bytes
from xmodal.method import Batch, Method
from xmodal.sharding import local

PROBES = (4, 8)  # rows
# On a GPU the peak itself is measured and the rest is for what fragments. On a CPU what autograd keeps is counted; the
# peak was up to 1.4 times that (`small` and open_clip's ViT-B-32, forward and backward).
SHARE = {"cuda": 0.9, "cpu": 0.6}


def largest_slice(
    method: Method, batch: Batch, device: torch.device, autocast: Callable[[], AbstractContextManager]
) -> int:
    """Rows of a slice, at least 1 and at most the batch; the same on every process.

    Raises InputError where the system doesn't tell how much memory is free.
    """
    rows = len(next(iter(batch.values())))
    free = free_bytes(device)
    if free is None:
        raise InputError("--micro-batch auto: this system doesn't tell how much memory is free. Give a number.")
    # Gradients and the optimizer's two averages come with the first step.
    parameters = [p for p in method.parameters() if p.requires_grad]
    free = max(0, free - 3 * sum(local(p).nbytes for p in parameters))
    if device.type != "cuda":
        free //= distributed.processes()  # which share it
    few, many = (_bytes_of(method, batch, min(n, rows), device, autocast) for n in PROBES)
    a_row = (many - few) / max(1, min(PROBES[1], rows) - min(PROBES[0], rows))
    fits = rows if a_row <= 0 else int(SHARE.get(device.type, 0.6) * free / a_row)
    return min(distributed.gather_objects(max(1, min(rows, fits))))


def _bytes_of(
    method: Method, batch: Batch, rows: int, device: torch.device, autocast: Callable[[], AbstractContextManager]
) -> int:
    """Memory that encoding the first rows takes, with the backward pass; leaves the method as it was."""
    part = {
        name: value[:rows].to(device) if isinstance(value, Tensor) else value[:rows] for name, value in batch.items()
    }
    buffers = [(b, b.clone()) for b in method.buffers()]
    kept: dict[int, int] = {}
    own = {local(p).untyped_storage().data_ptr() for p in method.parameters()}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    with autocast(), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        encoded = [x for x in method.encode(part).values() if x.requires_grad]
    if device.type == "cuda":
        if encoded:
            torch.autograd.backward([x.sum() for x in encoded])
            method.zero_grad(set_to_none=True)
        size = torch.cuda.max_memory_allocated(device) - before
    else:
        size = sum(kept.values())
    with torch.no_grad():
        for buffer, value in buffers:
            buffer.copy_(value)
    return size
