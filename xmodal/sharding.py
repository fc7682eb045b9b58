"""Towers too large for each device to hold with all that training adds: `--fsdp` leaves every process a part of each.

Torch's `fully_shard` (FSDP2) does it, in place and by hooks: the weights of a layer are gathered before its forward and
let go after it, gathered again for its backward, and then each process gets the sum over processes of the gradient of
its own rows. Beside `distributed` this is the only file that knows of it. What follows from it for the others:
- the sum is made, `distributed.sum_gradients` leaves these gradients alone;
- towers are called as a whole, by their forward: whoever takes a layer out of them finds no weights in it;
- every process calls them equally often, texts of different lengths in one piece (`lengths.by_length`);
- what is evaluated and exported is a plain copy, of `whole`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from xmodal import distributed
from xmodal.distributed import is_part

M = TypeVar("M", bound=nn.Module)

# Of each module that was sharded, what it was before, its weights on no device: sharded ones can't be copied.
_plain: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()


def shard(method: nn.Module, blocks: Callable[[nn.Module], list[nn.Module]], device: torch.device) -> None:
    """Leave this process its part of the method's `towers`, and of every copy of them in it: a teacher, an average.

    blocks: the layers of the towers, each of which is gathered by itself; what is around them stays together. The first
    process's weights count. They come from the CPU layer by layer, so that no device ever holds them all; what isn't
    sharded is moved there, too. On one process nothing is shared out.
    """
    if distributed.processes() > 1:
        distributed.take_from_first(method.state_dict().values(), device)
        for module in _copies_of_towers(method):
            _shard_one(module, blocks(module), device)
    method.to(device)


def _shard_one(module: nn.Module, blocks: list[nn.Module], device: torch.device) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    # Rows leave the towers as a view; no method changes them in place, of which torch warns.
    own = "TwoTower|SentenceEncoder|ImageEncoder"
    warnings.filterwarnings("ignore", rf"FSDP2-wrapped module \(FSDP({own})\) returned a view")
    on_nothing = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in module.parameters()}
    on_nothing |= {id(b): torch.empty_like(b, device="meta") for b in module.buffers()}
    _plain[module] = deepcopy(module, on_nothing)
    for p in module.parameters():
        p.data = p.data.contiguous()  # channels last is not for `fully_shard`
    mesh = init_device_mesh(device.type, (distributed.processes(),))
    scalars = {p for p in module.parameters() if p.ndim == 0}  # of which there are no rows to share out
    for part in (*blocks, module):
        # The outermost, too, lets go of its weights: else they would stay whole after a forward without backward.
        fully_shard(part, mesh=mesh, reshard_after_forward=True, ignored_params=scalars)
    for part in module.modules():
        if isinstance(part, FSDPModule):  # neither call reaches the modules inside
            part.set_gradient_divide_factor(1.0)  # a loss is a sum of shares, and its gradient is one
            part.set_force_sum_reduction_for_comms(True)


def _copies_of_towers(method: nn.Module) -> list[nn.Module]:
    """The towers, and each module with the same class and the same parameters."""

    def build(module: nn.Module) -> Any:
        return type(module), [(name, p.shape) for name, p in module.named_parameters()]

    towers: Any = method.towers
    return [m for m in method.modules() if type(m) is type(towers) and build(m) == build(towers)]


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` has shared out a module's weights."""
    return module in _plain


@torch.no_grad()
def whole(module: M) -> M:
    """A plain copy of a module that is sharded, with all of its weights; every process calls it, and each has one.

    The module itself if it isn't.
    """
    if module not in _plain:
        return module
    plain: Any = _plain[module]
    memo: dict[int, Any] = {}
    now = dict(module.named_parameters())
    for name, p in plain.named_parameters():
        weight = full(now[name])
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device=weight.device).copy_(weight), p.requires_grad)
    now = dict(module.named_buffers())
    memo |= {id(b): now[name].clone() for name, b in plain.named_buffers()}
    return deepcopy(plain, memo).train(module.training)


def apart(groups: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups for an optimizer, sharded and other parameters in groups of their own: no operation takes both kinds."""
    found = []
    for group in groups:
        for sharded in (True, False):
            if members := [p for p in group["params"] if is_part(p) == sharded]:
                found.append({**group, "params": members})
    return found


def rows_here(t: Tensor) -> range:
    """Which rows of a sharded tensor are this process's: equally many on each, but the last ones may have fewer."""
    size = -(-len(t) // distributed.processes())
    start = min(len(t), size * distributed.rank())
    return range(start, min(len(t), start + size))


def full(t: Tensor) -> Tensor:
    """All of a sharded tensor, which every process calls; any other tensor as it is."""
    return t.full_tensor() if is_part(t) else t  # pyright: ignore[reportAttributeAccessIssue]


def local(t: Tensor) -> Tensor:
    """The rows of a sharded tensor that are here; any other tensor as it is."""
    return t.to_local() if is_part(t) else t  # pyright: ignore[reportAttributeAccessIssue]


def from_local(rows: Tensor, like: Any) -> Tensor:
    """The sharded tensor of which these are the rows that are here; its shape and places are those of another."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        rows, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
