"""What a search found, as a page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from xmodal import __version__
from xmodal.data.decode import decode_each
from xmodal.durable import replace_text
from xmodal.errors import BadSample, InputError
from xmodal.report.templates import environment
from xmodal.report.thumbnails import Thumbnail, thumbnails

if TYPE_CHECKING:
    from xmodal.embedding.index import Index


def write_search_page(path: Path, index: Index, answers: Sequence[Mapping[str, Any]], *, exact: bool) -> None:
    """answers: as `xmodal search` returns them. Raises InputError where the page can't be written."""
    asked = [Path(answer["query"]["image"]) for answer in answers if "image" in answer["query"]]
    places = [hit["place"] for answer in answers for hit in answer["hits"]] if index.kind == "image" else []
    page = (
        environment()
        .get_template("search.html.j2")
        .render(
            title=f"Search in {index.folder.name}",
            version=__version__,
            about=index.about,
            rows=len(index),
            exact=exact,
            kind=index.kind,
            answers=answers,
            asked=_by_name(asked),
            pictures=thumbnails(index, places),
        )
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, page)
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror}.") from None


class _Named:
    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def images(self, rows: np.ndarray) -> list[Image.Image | np.ndarray | BadSample]:
        return decode_each(self.paths[row] for row in rows.tolist())

    def key(self, row: int) -> str:
        return self.paths[row].name


def _by_name(paths: Sequence[Path]) -> dict[str, Thumbnail]:
    made = thumbnails(_Named(paths), range(len(paths)))
    return {str(path): made[i] for i, path in enumerate(paths)}
