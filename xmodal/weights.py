"""Tensors into safetensors files, and out of one into a module, all of them or none; and which they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from xmodal.errors import InputError


def save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write a file with the permissions that any other new file would have; safetensors' own are the owner's alone."""
    from safetensors.torch import save_file

    file.unlink(missing_ok=True)
    file.touch()
    mode = file.stat().st_mode
    save_file({name: t.contiguous() for name, t in tensors.items()}, file, metadata={"format": "pt"})
    file.chmod(mode)


def digest(module: nn.Module) -> str:
    """SHA-256 over the names, shapes, types and values of all parameters and buffers that a checkpoint would hold."""
    import torch

    found = hashlib.sha256()
    for name, t in sorted(module.state_dict().items()):
        found.update(f"{name} {tuple(t.shape)} {t.dtype}\n".encode())
        found.update(t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def load_weights(module: nn.Module, file: Path) -> None:
    """Put the tensors of `file` into the parameters and buffers of the same names.

    Raises InputError, before anything is changed, for a damaged file and where a name or a shape differs.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(file)
    except SafetensorError as error:
        raise InputError(f"{file} is damaged or no safetensors file: {error}") from None
    refuse_other(module, {name: tuple(t.shape) for name, t in found.items()}, file)
    module.load_state_dict(found)


def refuse_other(module: nn.Module, there: Mapping[str, tuple[int, ...]], file: Path) -> None:
    """Raise InputError where names and shapes in a file are not those of the module's parameters and buffers."""
    here = {name: tuple(t.shape) for name, t in module.state_dict().items()}
    for name in [*here, *there]:
        if here.get(name) != there.get(name):
            in_file, in_model = there.get(name, "missing"), here.get(name, "missing")
            raise InputError(f"{file} is of another model: {name!r} is {in_file} in the file, {in_model} in the model.")
