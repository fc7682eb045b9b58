"""How one-dimensional sequences are named: known without opening them."""

from __future__ import annotations

SUFFIXES = (".npy", ".wav", ".txt")


def is_sequences(spec: str) -> bool:
    """Whether a data spec is of sequences; see `xmodal.data.sequences`."""
    return spec == "prose" or spec.endswith(SUFFIXES)
