"""Processes: gather with gradient, sums, and the one all-reduce of a step. The only file that knows ranks,
beside `sharding`, where each process holds a part of the weights, and `attendance`, where one is missed.

A loss is a sum of shares, one a process. Each process computes its share from its own rows and from rows that
`gather` brought; the backward of `gather` and `reduce` sums what all processes say about them, so that every
process ends with d(global loss)/d(its rows), and `sum_gradients` adds up the parameters'. On one process all of
it is the identity.

The scope is all processes; `with alone():` narrows it to this one. What ran forward in a scope runs backward in it.
Every process of the scope calls these functions in the same order, also with no rows.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from xmodal import attendance
from xmodal.errors import InputError, nearest

if TYPE_CHECKING:
    from accelerate import Accelerator

# Torch 2.14 has new names for these and warns of the old ones.
GATHER = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
REDUCE_SCATTER = "reduce_scatter_single" if hasattr(dist, "reduce_scatter_single") else "reduce_scatter_tensor"

_alone: ContextVar[bool] = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process is all there is: validation on one process, a notebook, a reference computation."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def processes() -> int:
    """How many processes are in scope."""
    return 1 if _alone.get() or not dist.is_initialized() else dist.get_world_size()


def rank() -> int:
    """The number of this process in its scope, from 0."""
    return 0 if processes() == 1 else dist.get_rank()


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


def part(n: int) -> slice:
    """Which of n things are this process's when they are dealt out in order and as evenly as can be."""
    return slice(n * rank() // processes(), n * (rank() + 1) // processes())


@dataclass(frozen=True)
class Rows:
    """How the rows of a batch are spread over the processes; rows of all processes stand in the order of ranks."""

    sizes: tuple[int, ...]  # how many rows each process has
    rank: int

    @property
    def total(self) -> int:
        return sum(self.sizes)

    @property
    def here(self) -> slice:
        """Where the local rows stand among all."""
        return slice(sum(self.sizes[: self.rank]), sum(self.sizes[: self.rank + 1]))

    def numbers(self, device: torch.device | None = None) -> Tensor:
        """The same as numbers, (b,) long."""
        return torch.arange(self.here.start, self.here.stop, device=device)

    def facing(self) -> list[tuple[range, range]]:
        """This process's share of a symmetric matrix over all rows: blocks of rows against columns.

        The first is the square of its own rows; then its rows against those of the ⌊W/2⌋ ranks that follow. Where two
        processes face each other (W even), each takes half of their block.
        """
        starts = [sum(self.sizes[:r]) for r in range(len(self.sizes) + 1)]
        own, world = range(starts[self.rank], starts[self.rank + 1]), len(self.sizes)
        found = [(own, own)]
        for ahead in range(1, world // 2 + 1):
            other = (self.rank + ahead) % world
            rows, columns = own, range(starts[other], starts[other + 1])
            if 2 * ahead == world:  # the lower rank takes its first rows, the other the rest of the columns
                if self.rank < other:
                    rows = own[: len(own) // 2]
                else:
                    columns = columns[len(columns) // 2 :]
            found.append((rows, columns))
        return found


def rows(b: int) -> Rows:
    """How many rows each process has, b of them here."""
    if processes() == 1:
        return Rows((b,), 0)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    every = torch.empty(processes(), dtype=torch.long, device=device)
    getattr(dist, GATHER)(every, torch.tensor([b], device=device))
    return Rows(tuple(every.tolist()), dist.get_rank())


def one_row_each() -> Rows:
    """How rows are spread where every process has one, such as a sum of its own; nothing is exchanged."""
    return Rows((1,) * processes(), rank())


def count(b: int) -> int:
    """Rows on all processes, of which `b` are here."""
    return rows(b).total


def row_numbers(b: int, device: torch.device | None = None) -> Tensor:
    """Where the local rows stand among those of `gather`, (b,) long."""
    return rows(b).numbers(device)


def all_gather(x: Tensor, spread: Rows) -> Tensor:
    """(b, …) on each process -> (B, …), without gradient; uneven numbers of rows travel padded to the largest.

    spread: `rows(b)`; what was counted in a scope is gathered in it.
    """
    if len(spread.sizes) == 1:
        return x
    most, home = max(spread.sizes), x.device
    if dist.get_backend() == "nccl":  # which carries nothing that lies on a CPU
        x = x.cuda()
    sent = _padded(x, most).contiguous()
    received = x.new_empty((most * len(spread.sizes), *x.shape[1:]))
    if most:
        getattr(dist, GATHER)(received, sent)
    if min(spread.sizes) < most:
        received = torch.cat([part[:n] for part, n in zip(received.split(most), spread.sizes, strict=True)])
    return received.to(home)


def reduce_scatter(x: Tensor, spread: Rows) -> Tensor:
    """(B, …) on each process -> the sum over processes of the rows that are this one's, (b, …), without gradient."""
    if len(spread.sizes) == 1:
        return x
    most = max(spread.sizes)
    if not most:
        return x
    if min(spread.sizes) < most:
        x = torch.cat([_padded(part, most) for part in x.split(spread.sizes)])
    received = x.new_empty((most, *x.shape[1:]))
    getattr(dist, REDUCE_SCATTER)(received, x.contiguous())
    return received[: spread.sizes[spread.rank]]


def _padded(x: Tensor, n: int) -> Tensor:
    return x if len(x) == n else torch.cat([x, x.new_zeros((n - len(x), *x.shape[1:]))])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.spread = rows(len(x))
        return all_gather(x, ctx.spread)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return reduce_scatter(gradients[0], ctx.spread)


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _summed(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _summed(gradients[0])


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: Tensor) -> Tensor:
        return _summed(share)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def _summed(x: Tensor) -> Tensor:
    y = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(y)
    return y


def gather(x: Tensor) -> Tensor:
    """Rows of all processes in the order of ranks, (b, …) -> (B, …). Backward sums over processes; b may differ."""
    return x if processes() == 1 else _Gather.apply(x)  # pyright: ignore[reportReturnType]


def gather_parts(parts: Sequence[Tensor]) -> Tensor:
    """Parts (b, d) float32 of each process -> (B, d); one that has no part learns the width from the others."""
    width = max(gather_objects(parts[0].shape[1] if parts else 0))
    return gather(torch.cat([torch.empty(0, width), *parts]))


def reduce(x: Tensor) -> Tensor:
    """The sum over processes of tensors of one shape. Backward sums too: each process's use of the sum counts."""
    return x if processes() == 1 else _Reduce.apply(x)  # pyright: ignore[reportReturnType]


def total(share: Tensor) -> Tensor:
    """The sum of the shares of a loss, the same number on every process; ends every loss.

    Backward is the identity: d(total)/d(own share) is 1, and the other shares are the other processes' to derive.
    """
    return share if processes() == 1 else _Total.apply(share)  # pyright: ignore[reportReturnType]


def is_part(t: Tensor) -> bool:
    """Whether a tensor is sharded (`xmodal.sharding`): rows of it are here, others elsewhere."""
    return hasattr(t, "device_mesh")  # as torch's DTensor has, whose module takes half a second to import


def all_reduce(x: Tensor, how: str = "sum") -> None:
    """Add up, or take the largest of, the processes' tensors of one shape, in place and without gradient."""
    if processes() > 1:
        dist.all_reduce(x, dist.ReduceOp.MAX if how == "max" else dist.ReduceOp.SUM)


@torch.no_grad()
def sum_gradients(parameters: Iterable[Tensor], extra: Tensor | None = None) -> Tensor | None:
    """Add up the gradients of all processes in place, in one all-reduce for each type and device.

    A flag for each parameter travels along, so that a gradient which is None everywhere stays None (weight decay
    and momentum leave it alone, as on one process). `extra` (k,) float numbers ride with them; their sum is returned.
    Gradients of sharded parameters are sums already.
    """
    if processes() == 1:
        return extra
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for p in parameters:
        if p.requires_grad and not is_part(p):
            groups.setdefault((p.dtype, p.device), []).append(p)
    if extra is not None and not groups:
        groups[extra.dtype, torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")] = []
    summed = extra
    for (dtype, device), members in groups.items():
        pieces = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in members]
        flags = torch.tensor([p.grad is not None for p in members], dtype=dtype, device=device)
        riding = flags.new_empty(0) if extra is None else extra.to(device, dtype)
        flat = torch.cat([*pieces, flags, riding])
        dist.all_reduce(flat)
        *sums, flags, ridden = flat.split([*(p.numel() for p in members), len(members), len(riding)])
        for p, piece, given in zip(members, sums, flags.tolist(), strict=True):
            p.grad = piece.view_as(p).clone() if given else None
        if extra is not None:
            summed, extra = ridden.to(extra), None
    return summed


def any_of(flag: bool, meanwhile: Callable[[], None] | None = None) -> bool:
    """Whether it is so on any process. meanwhile: is called while others are waited for; signals are heard then."""
    if processes() == 1:
        return flag
    told = torch.tensor(int(flag), device="cuda" if dist.get_backend() == "nccl" else "cpu")
    work = dist.all_reduce(told, async_op=meanwhile is not None)
    if work is not None and meanwhile is not None:
        began = time.perf_counter()
        while not work.is_completed():
            meanwhile()
            time.sleep(min(0.01, (time.perf_counter() - began) / 8))
        work.wait()
    return bool(told.item())


def gather_objects(value: Any) -> list[Any]:
    """A small picklable value from every process, in the order of ranks."""
    if processes() == 1:
        return [value]
    values: list[Any] = [None] * processes()
    dist.all_gather_object(values, value)
    return values


def first_says(value: Any) -> Any:
    """The first process's value, on every process."""
    if processes() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


@torch.no_grad()
def take_from_first(tensors: Iterable[Tensor], device: torch.device | None = None) -> None:
    """Overwrite tensors with the first process's, in place; device: by way of which each travels, if not its own."""
    if processes() > 1:
        for t in tensors:
            travels = t if device is None else t.to(device)
            dist.broadcast(travels, src=0)
            t.copy_(travels)


def wait() -> None:
    """Until every process is here."""
    if processes() > 1:
        dist.barrier()


def start(
    precision: str = "auto",
    track: Iterable[str] = (),
    folder: str | os.PathLike[str] | None = None,
    timeout: float = attendance.TIMEOUT,
) -> Accelerator:
    """Accelerate's device, launch, autocast, clipping and trackers; nothing of it wraps the model.

    precision: "auto" takes bf16 where the device computes in it, float32 elsewhere.
    timeout: seconds that processes wait for each other.
    Raises InputError where the launcher promised more processes than there are.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import InitProcessGroupKwargs, LoggerType, ProjectConfiguration

    AcceleratorState._reset_state()  # a second run of this Python process may have another precision
    known = [tracker.value for tracker in LoggerType]
    for name in track:
        if name not in known:
            raise InputError(f"accelerate has no tracker {name!r}; {nearest(name, known)}")
    attendance.join_again()
    bf16 = precision == "bf16" or (precision == "auto" and computes_bf16())
    accelerator = Accelerator(
        cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()),  # or it starts no processes there
        mixed_precision="bf16" if bf16 else "no",
        log_with=list(track) or None,
        project_config=ProjectConfiguration(str(folder or "."), logging_dir=os.path.join(folder or ".", "trackers")),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=max(timeout, attendance.FIRST_STEP)))],
    )
    promised = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != promised:
        raise InputError(
            f"The launcher promised {promised} processes, {accelerator.num_processes} came up. "
            "On a CPU start them with: torchrun --nproc_per_node N -m xmodal.train.NAME"
        )
    attendance.begin(timeout)
    return accelerator


def computes_bf16() -> bool:
    """Whether the device has arithmetic for bfloat16: GPUs that say so, CPUs with AVX512_BF16 or AMX."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.backends.mps.is_available():
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
