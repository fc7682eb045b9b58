"""Weights in pickles, read only where the user says that they are to be trusted, and never more than tensors.

A pickle can run code when it is opened. `torch.load(weights_only=True)` opens a small part of what a pickle can be; it
has had holes (CVE-2025-32434, CVE-2026-24747), so it is not done unasked.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from xmodal.encoders.two_tower import TwoTower
from xmodal.errors import InputError
from xmodal.interop.weight_map import State

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
PREFIXES = ("_orig_mod.", "module.")  # of torch.compile and of torch's data parallelism
FLAG = "--trust-pickle"
# Which file of several open_clip takes; it would take a pickle before a model.safetensors.
_OPEN_CLIPS_FIRST = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
_OPEN_CLIPS_PICKLES = ("open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth", "pytorch_model.bin")
_SCALARS = {"logit_scale": "log_scale", "logit_bias": "bias"}
# What belongs to a model beside its weights.
_BESIDE = ("*.json", "*.txt", "*.model")


def pickles_of(spec: str) -> tuple[str, Path, list[Path]]:
    """A spec's kind, its folder, and the pickles it would be opened from: none where safetensors are there."""
    for kind in ("open_clip:local-dir:", "hf:"):
        folder = Path(spec.removeprefix(kind))
        if spec.startswith(kind) and folder.is_dir():
            if kind == "hf:":
                safe = any(folder.glob("*.safetensors"))
                return kind, folder, [] if safe else sorted(folder.glob("pytorch_model*.bin"))  # one, or its parts
            if any((folder / name).is_file() for name in _OPEN_CLIPS_FIRST):
                return kind, folder, []
            found = sorted(file for file in folder.iterdir() if file.suffix in PICKLES)
            named = [folder / name for name in _OPEN_CLIPS_PICKLES if (folder / name).is_file()]
            return kind, folder, (named or found)[:1]
    return "", Path(), []


@contextmanager
def as_safetensors(kind: str, folder: Path, files: list[Path], trusted: bool) -> Iterator[str]:
    """The spec of a copy of a folder whose weights are safetensors, for as long as the context lasts."""
    from safetensors.torch import save_file

    state: State = {}
    for file in files:
        state |= read_state(file, trusted)
    with tempfile.TemporaryDirectory() as copy:
        for pattern in _BESIDE:
            for file in folder.glob(pattern):
                shutil.copy(file, copy)
        name = "open_clip_model.safetensors" if kind.startswith("open_clip") else "model.safetensors"
        whole = {key: tensor.clone().contiguous() for key, tensor in state.items()}  # pickles share memory, these can't
        save_file(whole, Path(copy) / name, metadata={"format": "pt"})
        yield f"{kind}{copy}"


def read_state(file: Path, trusted: bool) -> State:
    """The tensors of a checkpoint: a state dict, or open_clip_train's `{"state_dict": …}`, without wrappers' prefixes.

    Raises InputError without the user's trust, and for a file that holds more than tensors and plain values.
    """
    refuse_untrusted(file, trusted)
    if file.suffix == ".safetensors":
        return _bare(_safetensors(file))
    if torch.__version__ < "2.10":
        raise InputError(f"torch {torch.__version__} has holes in what it opens of pickles: pip install -U torch")
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch says it by many classes
        raise InputError(
            f"{file} holds more than tensors and plain values, so it isn't opened: {_line(error)}"
        ) from error
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not found or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise InputError(f"{file} holds no weights: expected tensors by name, or those below 'state_dict'.")
    return _bare(found)


def refuse_untrusted(file: Path, trusted: bool) -> None:
    """Raise InputError for a file that may be a pickle, unless the user trusts it."""
    if file.suffix != ".safetensors" and not trusted:
        raise InputError(f"{file} is a pickle, which can run code when it is opened. If you trust it: {FLAG}")


def put(towers: TwoTower, state: State, name: Path) -> None:
    """Put the tensors of one of open_clip's models into towers of open_clip. Raises InputError where one differs."""
    from open_clip.model import convert_to_custom_text_state_dict

    state = convert_to_custom_text_state_dict(dict(state))
    ours: State = {}
    for key, tensor in state.items():
        part, _, rest = key.partition(".")
        if part in ("visual", "text"):
            ours[f"{'image' if part == 'visual' else 'text'}.{rest}"] = tensor.float()
        else:
            ours[_SCALARS.get(key, key)] = tensor.float().squeeze()
    if "bias" in ours and towers.bias is None:
        towers.bias = torch.zeros(())
    here = {key: tuple(tensor.shape) for key, tensor in towers.state_dict().items()}
    there = {key: tuple(tensor.shape) for key, tensor in ours.items()}
    for key in [*here, *there]:
        if here.get(key) != there.get(key):
            in_file, in_model = there.get(key, "missing"), here.get(key, "missing")
            raise InputError(f"{name} is of another model: {key!r} is {in_file} in the file, {in_model} in the model.")
    towers.load_state_dict(ours)


def _safetensors(file: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise InputError(f"{file} is damaged or no safetensors file: {error}") from None


def _bare(state: dict[str, Any]) -> State:
    """Without the prefixes that every name has."""
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in state)), ""):
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


def _line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
