"""The finished files: rows alone, rows with their items, or an index folder, each written row by row from the parts.

| --output | holds |
|---|---|
| OUT.npy | rows (n, d); OUT.json beside it |
| OUT.safetensors | the tensor "embeddings" (n, d); OUT.json beside it |
| OUT.parquet | columns row, text or image, embedding (a list of fixed size) |
| OUT (a folder) | embeddings.npy, items.parquet, index.json: what `xmodal search` opens |
| OUT of --kind pairs | two such folders, images and texts, and pairs.json: what `xmodal train clip --distill` opens |

row is the item's number in the input. What could not be read is in none of them; skipped.jsonl (OUT.skipped.jsonl)
names it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from xmodal.durable import replace_text, sync
from xmodal.embedding.inputs import Kind
from xmodal.embedding.parts import Parts, Record
from xmodal.errors import InputError

SUFFIXES = (".npy", ".safetensors", ".parquet")
TENSOR = "embeddings"
ABOUT, ROWS, ITEMS, SKIPPED = "index.json", "embeddings.npy", "items.parquet", "skipped.jsonl"
PAIRS = "pairs.json"  # of a folder with two indexes, images and texts


def check(output: Path, overwrite: bool) -> None:
    """InputError for a name of no known form, and for one that is taken."""
    if output.suffix and output.suffix not in SUFFIXES:
        raise InputError(
            f"--output {output}: a name ends in {', '.join(SUFFIXES)}, or in nothing, which is an index folder."
        )
    if output.exists() and not overwrite:
        raise InputError(f"{output} exists already and stays as it is; another --output, or --overwrite.")
    if output.suffix and output.is_dir():
        raise InputError(f"{output} is a folder.")
    ours = any((output / name).is_file() for name in (ABOUT, PAIRS))
    if output.is_dir() and any(output.iterdir()) and not ours:
        raise InputError(f"{output} is a folder of something else; --overwrite replaces index folders alone.")


def assemble(parts: Parts, records: Sequence[Record], output: Path, kind: Kind, about: Mapping[str, Any]) -> None:
    """Write the output from finished parts, beside it first; what it replaces is there until then."""
    beside = parts.folder / "finished"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    told = json.dumps(about, indent=1, ensure_ascii=False) + "\n"
    skipped = "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for r in records for one in r.skipped)
    shape = (sum(len(record.items) for record in records), int(about["width"]))
    if not output.suffix:
        _npy(parts, shape, beside / ROWS)
        _parquet(parts, records, beside / ITEMS, kind, with_rows=False)
        replace_text(beside / ABOUT, told)
        if skipped:
            replace_text(beside / SKIPPED, skipped)
        if output.is_dir():
            shutil.rmtree(output)
        beside.rename(output)
        sync(output.parent)
        return
    file = beside / output.name
    if output.suffix == ".parquet":
        _parquet(parts, records, file, kind, with_rows=True, about=about)
    else:
        (_npy if output.suffix == ".npy" else _safetensors)(parts, shape, file)
        replace_text(output.with_suffix(".json"), told)
    if skipped:
        replace_text(output.with_suffix(".skipped.jsonl"), skipped)
    sync(file)
    file.replace(output)
    sync(output.parent)


def _npy(parts: Parts, shape: tuple[int, int], file: Path) -> None:
    with file.open("wb") as stream:
        header = {"descr": np.lib.format.dtype_to_descr(_dtype(parts)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        for rows in parts:
            rows.tofile(stream)
    sync(file)


def _safetensors(parts: Parts, shape: tuple[int, int], file: Path) -> None:
    """By hand, since the library wants the whole tensor in memory: the header's length, the header, data."""
    dtype = _dtype(parts)
    kind = {"float32": "F32", "float16": "F16"}[dtype.name]
    told = {TENSOR: {"dtype": kind, "shape": shape, "data_offsets": [0, shape[0] * shape[1] * dtype.itemsize]}}
    header = json.dumps(told).encode()
    header += b" " * (-len(header) % 8)  # data begins at a multiple of eight
    with file.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        for rows in parts:
            rows.tofile(stream)
    sync(file)


def _parquet(
    parts: Parts,
    records: Sequence[Record],
    file: Path,
    kind: Kind,
    *,
    with_rows: bool,
    about: Mapping[str, Any] | None = None,
) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    columns = {"row": pa.int64(), kind: pa.large_string()}
    if with_rows and about is not None:
        columns["embedding"] = pa.list_(pa.from_numpy_dtype(_dtype(parts)), about["width"])
    schema = pa.schema(columns, {"xmodal": json.dumps(about)} if about else None)
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for record, rows in zip(records, parts, strict=True):
            cells = [pa.array(record.rows, pa.int64()), pa.array(record.items, pa.large_string())]
            if with_rows:
                flat = pa.array(np.ascontiguousarray(rows).reshape(-1))
                cells.append(pa.FixedSizeListArray.from_arrays(flat, rows.shape[1]))
            writer.write_table(pa.table(cells, schema))
    sync(file)


def _dtype(parts: Parts) -> np.dtype:
    return next(iter(parts)).dtype
