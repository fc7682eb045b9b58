"""A number for a text: a caption, an image's path."""

from __future__ import annotations

import hashlib


def stable_id(text: str) -> int:
    """Equal for equal texts, on every machine and for ever; int64. Two other texts share one with a chance of 2⁻⁶⁴."""
    # A file's name that is no UTF-8 comes as half surrogate pairs, which plain UTF-8 refuses.
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
