"""xmodal: contrastive learning across images and text.

Importing the package imports nothing heavy; `load` brings torch in when it is called.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xmodal.encoders.two_tower import TwoTower

try:
    __version__ = version("xmodal")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__", "load"]


def load(spec: str, **options: object) -> TwoTower:
    """Open a model spec: a run folder, `small`, `open_clip:…`.

    Returns an encoder in evaluation mode with `encode_image` and `encode_text`.
    Raises `xmodal.errors.InputError` for a spec that names nothing.
    """
    from xmodal.encoders import load as load_encoder

    return load_encoder(spec, **options)
