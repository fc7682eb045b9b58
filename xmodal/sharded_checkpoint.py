"""Tensors of which each process may hold some rows, as safetensors: written where they are, read where they are wanted.

`method.safetensors` has the tensors that every process holds whole. Of those that are sharded,
`method.2-of-4.safetensors` has the second process's rows, under the same names: such a tensor is the rows of all files
in the order of their numbers. Any number of processes reads them, each no more than it needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xmodal import distributed
from xmodal.distributed import is_part
from xmodal.errors import InputError
from xmodal.sharding import from_local, local, rows_here


def files_here(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The files of a kind ("method", "optimizer") that this process is to write, each with copies of its tensors."""
    found = {}
    if distributed.is_first():
        found[f"{kind}.safetensors"] = {name: _own(t) for name, t in tensors.items() if not is_part(t)}
    if sharded := {name: _own(local(t)) for name, t in tensors.items() if is_part(t)}:
        of = str(distributed.processes())
        found[f"{kind}.{distributed.rank() + 1:0{len(of)}}-of-{of}.safetensors"] = sharded
    return found


class Stored:
    """The tensors of a kind in a checkpoint's folder. Raises InputError for a damaged file."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.file = folder / f"{kind}.safetensors"  # by which messages name them all
        whole = _open(self.file)
        self._files: dict[str, list[Any]] = {name: [whole] for name in whole.keys()}  # noqa: SIM118, it is no dict
        for piece in map(_open, sorted(folder.glob(f"{kind}.*-of-*.safetensors"))):
            for name in piece.keys():  # noqa: SIM118
                self._files.setdefault(name, []).append(piece)
        self.shapes = {name: self._shape(name) for name in self._files}

    def read(self, name: str, like: Tensor) -> Tensor:
        """The tensor; its rows that are here where `like` is a sharded one of the same shape."""
        if not is_part(like) or self.shapes[name] != tuple(like.shape):
            parts = [file.get_tensor(name) for file in self._files[name]]
            return torch.cat(parts) if len(parts) > 1 else parts[0].clone()
        wanted, parts, start = rows_here(like), [], 0
        for file in self._files[name]:
            rows = file.get_slice(name)
            n = rows.get_shape()[0]
            here = [min(max(end - start, 0), n) for end in (wanted.start, wanted.stop)]
            parts.append(rows[here[0] : here[1]])
            start += n
        return from_local(torch.cat(parts).to(like.device), like)

    def _shape(self, name: str) -> tuple[int, ...]:
        shapes = [tuple(file.get_slice(name).get_shape()) for file in self._files[name]]
        return shapes[0] if len(shapes) == 1 else (sum(rows for rows, *_ in shapes), *shapes[0][1:])


def _open(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is damaged or no safetensors file: {error}") from None


def _own(t: Tensor) -> Tensor:
    """A contiguous copy on the CPU that shares memory with no other tensor, as safetensors asks."""
    return t.detach().to("cpu", copy=True).contiguous()
