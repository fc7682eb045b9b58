"""The texts of a source, each once: captions come again, and are embedded once."""

from __future__ import annotations

import numpy as np

from xmodal.data.source import Source, captions
from xmodal.data.stable_id import stable_id


def distinct_texts(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Ids (m,) of the distinct texts, rising, and where among all captions (m,) each comes first.

    Sixteen bytes a caption, whatever their length.
    """
    return np.unique(np.fromiter(map(stable_id, captions(source)), dtype=np.int64), return_index=True)
