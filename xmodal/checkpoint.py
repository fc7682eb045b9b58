"""Run folders and checkpoints: atomic, verified, safetensors and JSON only.

A checkpoint is written into `checkpoints/step-N.tmp`, its files are synced, the manifest with sizes and hashes comes
last, then the folder is renamed and older ones are removed, their names first. What is loaded is the newest one whose
manifest holds. Where towers are sharded every process writes its part; all of them succeed or none.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from xmodal import distributed
from xmodal.durable import sha256, sync
from xmodal.errors import Failed, InputError
from xmodal.sharded_checkpoint import Stored, files_here
from xmodal.weights import refuse_other, save_tensors

T = TypeVar("T")

MANIFEST = "manifest.json"
UNFINISHED, GONE = ".tmp", ".gone"  # behind the name of one that is being written, or removed
ROOM_FOR_HEADERS = 2**20  # of the files and the manifest


@dataclass(frozen=True)
class Checkpoint:
    """A complete one: `step` optimizer steps are done; `state` is what the loop wrote beside the tensors."""

    folder: Path
    step: int
    state: dict[str, Any]

    def restore(self, method: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put the tensors back. Raises InputError where the method has other tensors than the one that was saved."""
        stored = Stored(self.folder, "method")
        refuse_other(method, stored.shapes, stored.file)
        method.load_state_dict({name: stored.read(name, like=t) for name, t in method.state_dict().items()})
        _restore_optimizer(method, optimizer, Stored(self.folder, "optimizer"), self.state["optimizer"])


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
        return distributed.first_says(newest(folder) if distributed.is_first() else None)
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
    """Write `checkpoints/step-N` of a run folder, then remove all but the newest `keep`. Every process calls it.

    Raises Failed, on all of them, where there is no room for it or one can't write; the earlier ones are as they were.
    """
    final = folder / "checkpoints" / f"step-{step}"
    beside = final.with_name(final.name + UNFINISHED)
    tensors, numbers = _optimizer_state(method, optimizer)
    files = {**files_here("method", method.state_dict()), **files_here("optimizer", tensors)}
    told = json.dumps({**state, "step": step, "optimizer": numbers}, indent=1)
    here = sum(t.nbytes for file in files.values() for t in file.values()) + len(told) + ROOM_FOR_HEADERS
    needed = sum(distributed.gather_objects(here))
    try:
        _everywhere(lambda: _begin(folder, beside, needed))
        written = _everywhere(lambda: _write(beside, files, told))
        _everywhere(lambda: _complete(beside, final, step, written))
    except OSError as error:
        if distributed.is_first():
            shutil.rmtree(beside, ignore_errors=True)
        raise Failed(
            f"The checkpoint of step {step} can't be written to {final.parent}: {error}\nIt takes {_mib(needed)}; "
            f"{_mib(_free(folder))} are free. Earlier checkpoints are as they were."
        ) from error
    if distributed.is_first():
        for _, old in sorted(_steps(folder))[:-keep]:
            _remove(old)
    return final


def _everywhere(act: Callable[[], T]) -> list[T]:
    """What it gives on each process. Raises OSError on all of them if it fails on one, so that none waits for it."""
    found, problem = None, None
    try:
        found = act()
    except (OSError, SafetensorError) as error:
        problem = str(error)
    everywhere = distributed.gather_objects((found, problem))
    for number, (_, problem) in enumerate(everywhere):
        if problem is not None:
            raise OSError(problem if len(everywhere) == 1 else f"{problem} (process {number})")
    return [found for found, _ in everywhere]


def _begin(folder: Path, beside: Path, needed: int) -> None:
    if distributed.is_first():
        _clear(folder)
        beside.mkdir(parents=True)
        _require_room(beside, needed)


def _write(beside: Path, files: Mapping[str, Mapping[str, Tensor]], told: str) -> dict[str, dict[str, Any]]:
    """Write this process's files and hold them on disk; their sizes and hashes by name."""
    for name, tensors in files.items():
        save_tensors(tensors, beside / name)
    names = list(files)
    if distributed.is_first():
        (beside / "state.json").write_text(told)
        names.append("state.json")
    for name in names:
        sync(beside / name)
    return {name: {"bytes": (beside / name).stat().st_size, "sha256": sha256(beside / name)} for name in names}


def _complete(beside: Path, final: Path, step: int, written: list[dict[str, dict[str, Any]]]) -> None:
    """Sizes and hashes of all processes' files, once these are on disk; then the folder gets its name."""
    if not distributed.is_first():
        return
    files = {name: told for process in written for name, told in sorted(process.items())}
    for name in files:
        if not (beside / name).is_file():
            raise OSError(f"{name} was written and is not there: all processes must share the folder")
    (beside / MANIFEST).write_text(json.dumps({"step": step, "files": files}, indent=1))
    sync(beside / MANIFEST)
    sync(beside)
    if final.exists():  # a damaged one, or the run would have gone on from it
        _remove(final)
    beside.rename(final)
    sync(final.parent)


def _remove(checkpoint: Path) -> None:
    """Its name goes first, at once: a kill on the way leaves no checkpoint that lacks half of its files."""
    gone = checkpoint.with_name(checkpoint.name + GONE)
    checkpoint.rename(gone)
    shutil.rmtree(gone)


def _clear(folder: Path) -> None:
    """Remove what earlier saves were killed over."""
    for left in (folder / "checkpoints").glob("step-*"):
        if left.name.endswith((UNFINISHED, GONE)):
            shutil.rmtree(left, ignore_errors=True)


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
                tensors[key] = value
            else:
                numbers[key] = value
    return tensors, numbers


def _restore_optimizer(
    method: nn.Module, optimizer: torch.optim.Optimizer, stored: Stored, numbers: dict[str, Any]
) -> None:
    names = {id(p): name for name, p in method.named_parameters()}
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    places = {names[id(p)]: n for n, p in enumerate(trained)}
    state: dict[int, dict[str, Any]] = {}
    for key in [*stored.shapes, *numbers]:
        kind, name = key.split("/", 1)
        if name not in places:
            raise InputError(f"{stored.file} holds the state of {name!r}, which was trained then and is not now.")
        n = places[name]
        value = stored.read(key, like=trained[n]) if key in stored.shapes else numbers[key]
        state.setdefault(n, {})[kind] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
