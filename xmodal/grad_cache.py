"""The gradient of one step, in slices or in one piece: the same to rounding."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from xmodal import distributed
from xmodal.data.order import key
from xmodal.errors import InputError
from xmodal.method import Batch, Method, Progress

Autocast = Callable[[], AbstractContextManager]


def gradients(
    method: Method,
    batch: Batch,
    progress: Progress,
    device: torch.device,
    seed: int,
    micro_batch: int | None,
    autocast: Autocast,
) -> tuple[Tensor, dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Leave this process's part of the global gradient in `.grad`; `distributed.sum_gradients` adds up the parts.

    With `micro_batch` rows a slice this is gradient caching (Gao et al. 2021, arXiv:2101.06983): every slice is
    encoded without a graph, the objective gives the gradient of the representations, and each slice is encoded
    again, with the same random draws, to carry it on to the parameters. The last slice keeps its first graph.

    Returns the global loss (), the objective's metrics, representations (b, …) and targets (b, …), all detached.
    """
    rows = len(next(iter(batch.values())))
    size = micro_batch or rows
    bounds = [(a, min(a + size, rows)) for a in range(0, rows, size)] or [(0, 0)]
    parts = [{name: _to(value[a:b], device) for name, value in batch.items()} for a, b in bounds]

    def encode(number: int) -> dict[str, Tensor]:
        # A context of its own: the casts that autocast caches without a graph must not serve a pass with one.
        torch.manual_seed(key(seed, progress.step, distributed.rank(), number) % 2**63)
        with autocast():
            return _checked(method.encode(parts[number]), bounds[number])

    last = len(parts) - 1
    encoded = []
    for number in range(last):
        with torch.no_grad():
            versions = _buffer_versions(method)
            encoded.append(encode(number))
            _refuse_changed_buffers(versions, _buffer_versions(method))
    encoded.append(encode(last))
    with torch.no_grad(), autocast():
        aims = [_checked(method.targets(part), bound) for part, bound in zip(parts, bounds, strict=True)]
        targets = {name: torch.cat([aim[name] for aim in aims]) for name in aims[0]}

    if last == 0:
        representations = encoded[0]
        loss, metrics = method.objective(representations, targets, progress)
        loss.backward()
    else:
        representations = {name: torch.cat([e[name].detach() for e in encoded]).requires_grad_() for name in encoded[0]}
        loss, metrics = method.objective(representations, targets, progress)
        loss.backward()
        cached = {name: r.grad for name, r in representations.items() if r.grad is not None}
        for number in [last, *range(last)]:
            replayed = encoded.pop() if number == last else encode(number)
            a, b = bounds[number]
            pairs = [(r, cached[name][a:b]) for name, r in replayed.items() if name in cached and r.requires_grad]
            torch.autograd.backward([r for r, _ in pairs], [g for _, g in pairs])
            del replayed, pairs
    return loss.detach(), metrics, {name: r.detach() for name, r in representations.items()}, targets


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value


def _checked(outputs: dict[str, Tensor], bound: tuple[int, int]) -> dict[str, Tensor]:
    rows = bound[1] - bound[0]
    for name, value in outputs.items():
        if len(value) != rows:
            raise ValueError(f"{name!r} must have the slice's {rows} rows first, its shape is {tuple(value.shape)}")
    return outputs


def _buffer_versions(method: Method) -> dict[str, tuple[int, int]]:
    """Torch counts the changes of a tensor in place; a buffer that was replaced has another address."""
    return {name: (b._version, id(b)) for name, b in method.towers.named_buffers()}


def _refuse_changed_buffers(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> None:
    changed = [name for name in before if before[name] != after[name]]
    if changed:
        raise InputError(
            f"--micro-batch would change the result: encoding updates statistics of the batch in "
            f"{changed[0].rpartition('.')[0]!r}, so a slice is not encoded as the batch would be. "
            "Leave the flag out for this model."
        )
