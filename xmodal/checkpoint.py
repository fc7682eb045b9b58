"""Run folders and checkpoints: atomic, verified, safetensors and JSON only.

A checkpoint is written into `checkpoints/step-N.tmp`, its files are synced, the manifest with sizes and hashes comes
last, then the folder is renamed and older ones are removed. What is loaded is the newest one whose manifest holds.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from xmodal.durable import sha256, sync
from xmodal.errors import Failed, InputError
from xmodal.weights import load_weights, save_tensors

MANIFEST = "manifest.json"
ROOM_FOR_HEADERS = 2**20  # of the files and the manifest


@dataclass(frozen=True)
class Checkpoint:
    """A complete one: `step` optimizer steps are done; `state` is what the loop wrote beside the tensors."""

    folder: Path
    step: int
    state: dict[str, Any]

    def restore(self, method: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put the tensors back. Raises InputError where the method has other tensors than the one that was saved."""
        from safetensors.torch import load_file

        load_weights(method, self.folder / "method.safetensors")
        file = self.folder / "optimizer.safetensors"
        _restore_optimizer(method, optimizer, load_file(file), self.state["optimizer"], file)


def is_restart() -> bool:
    """Whether torchrun or Slurm started this job again after a failure or a requeue."""
    return any(int(os.environ.get(f"{who}_RESTART_COUNT", "0") or 0) > 0 for who in ("TORCHELASTIC", "SLURM"))


def claim(folder: Path, resume: bool) -> Checkpoint | None:
    """Check a run folder before anything is written: new or empty without `resume`, else its newest checkpoint.

    A resume of a folder that is missing or empty, or of a run without a checkpoint yet, begins anew. Raises InputError
    for a folder in use, and for a resume of a folder that holds something else than a run.
    """
    if folder.is_file():
        raise InputError(f"{folder} is a file; --output takes a folder.")
    used = folder.is_dir() and any(folder.iterdir())
    if resume or is_restart():
        if used and not (folder / "config.yaml").is_file():
            raise InputError(f"{folder} is not empty and no run folder: it lacks config.yaml. Choose another --output.")
        return newest(folder)
    if used:
        raise InputError(f"{folder} is not empty. Go on with that run by --resume, or choose another --output.")
    return None


def newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint of a run folder that is whole, or None; torn ones are passed over with a line."""
    for step, path in sorted(_steps(folder), reverse=True):
        problem = damage(path)
        if problem is None:
            return Checkpoint(path, step, json.loads((path / "state.json").read_text()))
        print(f"Checkpoint {path} is passed over: {problem}.", flush=True)
    return None


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files by its manifest, or None."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError):
        return f"it has no readable {MANIFEST}"
    for name, expected in manifest.items():
        file = checkpoint / name
        if not file.is_file() or file.stat().st_size != expected["bytes"]:
            return f"{name} is missing or has another size"
        if sha256(file) != expected["sha256"]:
            return f"{name} has other bytes than were written"
    return None


def save(
    folder: Path,
    step: int,
    method: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    keep: int = 2,
) -> Path:
    """Write `checkpoints/step-N` of a run folder, then remove all but the newest `keep`.

    Raises Failed where there is no room for it or it can't be written; the earlier ones are as they were.
    """
    final = folder / "checkpoints" / f"step-{step}"
    beside = final.with_name(final.name + ".tmp")
    tensors, numbers = _optimizer_state(method, optimizer)
    weights = {name: _own(t) for name, t in method.state_dict().items()}
    told = json.dumps({**state, "step": step, "optimizer": numbers}, indent=1)
    needed = sum(t.nbytes for t in (*weights.values(), *tensors.values())) + len(told) + ROOM_FOR_HEADERS
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        _require_room(beside, needed)
        save_tensors(weights, beside / "method.safetensors")
        save_tensors(tensors, beside / "optimizer.safetensors")
        (beside / "state.json").write_text(told)
        _complete(beside, final, step)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise Failed(
            f"The checkpoint of step {step} can't be written to {final.parent}: {error}\nIt takes {_mib(needed)}; "
            f"{_mib(_free(folder))} are free. Earlier checkpoints are as they were."
        ) from error
    for _, old in sorted(_steps(folder))[:-keep]:
        shutil.rmtree(old)
    return final


def _complete(beside: Path, final: Path, step: int) -> None:
    """Hold the files on disk, then their sizes and hashes, then give the folder its name."""
    files = {}
    for file in sorted(beside.iterdir()):
        sync(file)
        files[file.name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
    (beside / MANIFEST).write_text(json.dumps({"step": step, "files": files}, indent=1))
    sync(beside / MANIFEST)
    sync(beside)
    before = final.with_name(final.name + ".before")
    if final.exists():  # the same step, written again after a resume
        shutil.rmtree(before, ignore_errors=True)
        final.rename(before)
    beside.rename(final)
    sync(final.parent)
    shutil.rmtree(before, ignore_errors=True)


def _require_room(folder: Path, needed: int) -> None:
    if (free := _free(folder)) < needed:
        raise OSError(errno.ENOSPC, f"No space left on the disk: {_mib(needed - free)} are missing")


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _steps(folder: Path) -> list[tuple[int, Path]]:
    found = (folder / "checkpoints").glob("step-*")
    return [(int(p.name[5:]), p) for p in found if p.name[5:].isdigit() and p.is_dir()]


def _optimizer_state(method: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's state by parameter name: tensors as `kind/name`, plain numbers beside them."""
    names = {id(p): name for name, p in method.named_parameters()}
    tensors, numbers = {}, {}
    for p, state in optimizer.state.items():
        for kind, value in state.items():
            key = f"{kind}/{names[id(p)]}"
            if isinstance(value, Tensor):
                tensors[key] = _own(value)
            else:
                numbers[key] = value
    return tensors, numbers


def _restore_optimizer(
    method: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], numbers: dict[str, Any], file: Path
) -> None:
    names = {id(p): name for name, p in method.named_parameters()}
    places = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **numbers}.items():
        kind, name = key.split("/", 1)
        if name not in places:
            raise InputError(f"{file} holds the state of {name!r}, which was trained then and is not now.")
        state.setdefault(places.index(name), {})[kind] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _own(t: Tensor) -> Tensor:
    """A contiguous copy on the CPU that shares memory with no other tensor, as safetensors asks."""
    return t.detach().to("cpu", copy=True).contiguous()
