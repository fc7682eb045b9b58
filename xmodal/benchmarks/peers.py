"""The libraries that people use for the same: which version is there to be measured beside."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from xmodal.errors import InputError


def named(package: str) -> str:
    """ "lightly 1.6.0". Raises InputError where it isn't installed, with the command that does it."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        raise InputError(
            f'{package} is not installed, and this compares with it: pip install "xmodal[bench]"'
        ) from None
