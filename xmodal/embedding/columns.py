"""A model as a function of tables: what Ray Data's `map_batches`, `datasets.map` and pandas call with a batch of rows.

    from xmodal.embedding import Embedder

    dataset.map_batches(Embedder, fn_constructor_args=["runs/clip", "caption"], concurrency=4, num_gpus=1)  # Ray Data
    dataset.map(Embedder("runs/clip", "image"), batched=True, batch_size=256)  # datasets
    frame = Embedder("st:all-MiniLM-L6-v2", "sentence")(frame)  # pandas

None of these is imported here. Texts and pictures go through the same code as those of `xmodal embed`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from xmodal.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from xmodal.embedding.inputs import Kind


class Embedder:
    """Called with a batch, it gives the batch back with a column of embeddings.

    A batch is a dict of columns (NumPy arrays, lists), a pyarrow.Table, or a pandas.DataFrame, and comes back as what
    it was: the new column is an array (n, d), a list of fixed size, or a row of numbers in each cell.

    model: any model spec, or an encoder that is open already. column: of texts, or of pictures: paths, the bytes of
    files, what `datasets` makes of either ({"bytes": …, "path": …}), PIL images, arrays (h, w, 3).
    output: the name of the new column. kind: what the column holds; told by its first cell if not given.
    bad: what becomes of a picture that can't be read: "raise" ends with an InputError that says which one, "nan" makes
    its row NaN. The other settings are those of `xmodal embed`.

    It is pickled as its arguments: a process that gets one opens the model by itself.
    """

    def __init__(
        self,
        model: Any,
        column: str,
        *,
        output: str = "embedding",
        kind: Kind | None = None,
        bad: Literal["raise", "nan"] = "raise",
        batch_size: int | None = None,
        precision: Literal["fp32", "bf16"] = "fp32",
        normalize: bool = True,
        prompt_name: str | None = None,
        device: str | None = None,
    ) -> None:
        import torch

        from xmodal import load
        from xmodal.embedding.embedder import Setting, check

        self._arguments = (
            (model, column),
            {
                "output": output,
                "kind": kind,
                "bad": bad,
                "batch_size": batch_size,
                "precision": precision,
                "normalize": normalize,
                "prompt_name": prompt_name,
                "device": device,
            },
        )
        if bad not in ("raise", "nan"):
            raise InputError(f"bad={bad!r}: expected 'raise' or 'nan'.")
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model = load(model, device=device) if isinstance(model, str) else model
        self.column, self.output, self.kind, self.bad = column, output, kind, bad
        self.setting = Setting(batch_size, precision, normalize, prompt_name)
        check(self.model, kind or "text", self.setting)

    def __reduce__(self) -> tuple[Any, ...]:
        positional, named = self._arguments
        return _again, (positional, named)

    def __call__(self, batch: Any) -> Any:
        """Raises InputError for a column that isn't there and for cells that are neither texts nor pictures."""
        cells = self._cells(batch)
        return _with_column(batch, self.output, self.rows(cells))

    def rows(self, cells: Sequence[Any]) -> np.ndarray:
        """Texts or pictures (n) -> (n, d) float32."""
        from xmodal.embedding.embedder import check, embed_some

        kind: Any = _kind(cells, self.model) if self.kind is None else self.kind
        check(self.model, kind, self.setting)
        if kind == "image":
            return self._pictures(cells)
        for number, cell in enumerate(cells):
            if not isinstance(cell, str):
                raise InputError(f"Column {self.column!r}, row {number} of the batch: {_shown(cell)} is no text.")
        return embed_some(self.model, [str(cell) for cell in cells], self.setting)

    def _pictures(self, cells: Sequence[Any]) -> np.ndarray:
        import numpy as np

        from xmodal.embedding.embedder import embed_pictures
        from xmodal.errors import BadSample

        pixels, kept = [], []
        for number, cell in enumerate(cells):
            try:
                pixels.append(self.model.preparation(_picture(cell)))
                kept.append(number)
            except BadSample as problem:
                if self.bad == "raise":
                    raise InputError(
                        f"Column {self.column!r}, row {number} of the batch can't be read: {problem.reason}, {problem}."
                    ) from None
        found = embed_pictures(self.model, pixels, self.setting)
        rows = np.full((len(cells), found.shape[1]), np.nan, dtype=np.float32)
        rows[kept] = found
        return rows

    def _cells(self, batch: Any) -> Sequence[Any]:
        names = list(batch.column_names if hasattr(batch, "column_names") else batch)
        if self.column not in names:
            raise InputError(f"The batch has no column {self.column!r}; it has {', '.join(map(str, names)) or 'none'}.")
        if self.output in names:
            raise InputError(f"The batch has a column {self.output!r} already; choose another output.")
        cells = batch[self.column]
        return cells.to_pylist() if hasattr(cells, "to_pylist") else list(cells)


def _again(positional: tuple[Any, ...], named: dict[str, Any]) -> Embedder:
    return Embedder(*positional, **named)


def _kind(cells: Sequence[Any], model: Any) -> Literal["text", "image"]:
    """Strings are texts, unless they end like the name of a picture and the model can see."""
    from xmodal.data.decode import SUFFIXES
    from xmodal.encoders.two_tower import TwoTower

    first = next(iter(cells), "")
    if not isinstance(first, str):
        return "image"
    return "image" if isinstance(model, TwoTower) and first.lower().endswith(SUFFIXES) else "text"


def _picture(cell: Any) -> Any:
    """What a cell holds, as `decode` takes it. Raises BadSample where it is nothing."""
    import numpy as np
    from PIL import Image

    from xmodal.data.decode import decode
    from xmodal.errors import BadSample

    if isinstance(cell, Mapping):  # as `datasets` stores a picture that isn't decoded
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes | bytearray | memoryview):
        return decode(bytes(cell))
    if isinstance(cell, str | Path):
        return Path(cell)
    if isinstance(cell, Image.Image | np.ndarray):
        return cell
    raise BadSample("no image", f"{_shown(cell)} is no picture")


def _with_column(batch: Any, name: str, rows: np.ndarray) -> Any:
    """The batch with one column more."""
    if hasattr(batch, "append_column"):  # pyarrow
        import pyarrow as pa

        flat = pa.array(rows.reshape(-1))
        return batch.append_column(name, pa.FixedSizeListArray.from_arrays(flat, rows.shape[1]))
    if hasattr(batch, "assign"):  # pandas
        return batch.assign(**{name: list(rows)})
    batch = copy(batch)  # not into a dict: of what `datasets` hands over, pictures nobody asked for would be decoded
    batch[name] = rows
    return batch


def _shown(cell: Any) -> str:
    text = repr(cell)
    return text if len(text) <= 60 else text[:60] + "…"
