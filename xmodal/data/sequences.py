"""Windows of long one-dimensional sequences: bytes of text, samples of sound, any row of numbers.

| spec | what |
|---|---|
| prose | the sentences of the built-in prose, one after the other, as bytes |
| FILE.txt | its bytes |
| FILE.wav | 16-bit samples, channels averaged |
| FILE.npy | numbers, (length,) or (n, length); of uint8 they are bytes |

Windows lie side by side. Of `prose` the test's sentences are held out, of a file its last windows.
"""

from __future__ import annotations

import hashlib
import wave
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from xmodal.data.order import positions_of_step, steps_per_epoch
from xmodal.data.orders import Shuffled
from xmodal.data.stand_ins import Skipped
from xmodal.errors import InputError


class Windows:
    """Some windows of sequences (n, length), uint8 or float32; `first` to `last` (excluded) of all that there are."""

    dropped: Mapping[str, int] = {}

    def __init__(self, name: str, values: np.ndarray, window: int, first: int = 0, last: int | None = None) -> None:
        self.name, self.values, self.window = name, values, window
        self.each = values.shape[1] // window  # windows of a sequence
        self.first = first
        self.last = len(values) * self.each if last is None else last

    def __len__(self) -> int:
        return self.last - self.first

    @property
    def of_bytes(self) -> bool:
        return self.values.dtype == np.uint8

    def scale(self) -> tuple[float, float]:
        """Mean and deviation of the numbers that can be in a window; 0 and 1 of bytes."""
        if self.of_bytes:
            return 0.0, 1.0
        values = self.read(np.arange(len(self))).double()
        return values.mean().item(), values.std().item() or 1.0

    def read(self, rows: np.ndarray) -> Tensor:
        """Rows (b,) -> (b, window)."""
        found = [self._window(row) for row in (self.first + rows).tolist()]
        return torch.from_numpy(np.stack(found) if found else np.empty((0, self.window), self.values.dtype))

    def _window(self, row: int) -> np.ndarray:
        sequence, place = divmod(row, self.each)
        return self.values[sequence, place * self.window : (place + 1) * self.window]

    def key(self, row: int) -> str:
        return f"{self.name}, window {self.first + row}"

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.window} {self.first} {self.last} {self.values.dtype}".encode())
        digest.update(np.ascontiguousarray(self.values).data)
        return digest.hexdigest()


class WindowBatches(Dataset):
    """Step -> this process's part of the global batch: sequence (b, window) uint8 or float32, row (b,) long."""

    def __init__(self, source: Windows, *, batch: int, part: tuple[int, int], seed: int) -> None:
        self.source, self.global_batch, self.part, self.seed = source, batch, part, seed
        self.order = Shuffled(len(source))
        self.steps_per_epoch = steps_per_epoch(len(source), batch)

    def __getitem__(self, step: int) -> tuple[dict[str, Tensor], list[Skipped]]:
        epoch, positions = positions_of_step(step, len(self.order), self.global_batch, self.part)
        rows = self.order.rows(positions, self.seed, epoch)
        return {"sequence": self.source.read(rows), "row": torch.from_numpy(rows)}, []


def open_windows(spec: str, window: int, fraction: float) -> tuple[Windows, Windows | None]:
    """What to train on, and what is held out: of a file this fraction of its windows, at least one; None for 0.

    Raises InputError for what holds no sequences, and where there are too few.
    """
    if spec == "prose":
        from xmodal.data.prose import Prose

        parts = [Prose(split) for split in ("train", "test")]
        train, held = (Windows(p.name, _bytes(" ".join(p.sentences).encode()), window) for p in parts)
        return train, held
    values = _read(Path(spec))
    n = len(Windows(spec, values, window))
    if n < 2:
        raise InputError(f"{spec} has {n} windows of {window}; expected two at least. Choose a smaller --window.")
    kept = n - min(n - 1, max(1, round(fraction * n))) if fraction else n
    held = Windows(f"{spec}, its last {n - kept} windows", values, window, kept) if kept < n else None
    return Windows(spec, values, window, 0, kept), held


def _bytes(text: bytes) -> np.ndarray:
    return np.frombuffer(text, dtype=np.uint8)[None]


def _read(path: Path) -> np.ndarray:
    """(n, length) uint8 or float32."""
    try:
        if path.suffix == ".txt":
            return _bytes(path.read_bytes())
        if path.suffix == ".wav":
            return _wav(path)
        values = np.load(path, allow_pickle=False)
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror or error}.") from None
    except (ValueError, EOFError, wave.Error) as error:
        raise InputError(f"{path} holds no sequences: {error}.") from None
    if values.ndim == 1:
        values = values[None]
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        raise InputError(f"{path} must hold numbers, (length,) or (n, length); found {values.shape} {values.dtype}.")
    if values.dtype == np.uint8:
        return values
    values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise InputError(f"{path} holds numbers that are not finite.")
    return values


def _wav(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        if file.getsampwidth() != 2:
            raise InputError(f"{path} has samples of {8 * file.getsampwidth()} bits; expected 16.")
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
        return (samples.reshape(-1, file.getnchannels()).mean(1) / 2**15).astype(np.float32)[None]
