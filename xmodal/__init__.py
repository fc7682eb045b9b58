"""xmodal: contrastive learning across images and text.

Importing the package imports nothing heavy; `load` brings torch in when it is called.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("xmodal")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__", "load"]


def load(spec: str, **options: object) -> Any:
    """Open a model spec: a run folder, `hub:…`, `open_clip:…`, `hf:…`, `st:…`.

    Returns an encoder in evaluation mode: one of images and texts with `encode_image` and `encode_text`
    (`encoders.two_tower.TwoTower`), or one of sentences with `encode` (`encoders.sentence.SentenceEncoder`).
    Raises `xmodal.errors.InputError` for a spec that names nothing.
    """
    from xmodal.encoders import load as load_encoder

    return load_encoder(spec, **options)
