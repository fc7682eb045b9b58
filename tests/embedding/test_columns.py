"""`Embedder`: batches as Ray Data, datasets, arrow and pandas hand them over, by the protocol of each."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

import xmodal
from tests.embedding.conftest import pictures
from xmodal.embedding import Embedder
from xmodal.errors import InputError

TEXTS = ["a cat", "the dog runs", "", "a cat on the house"]


@pytest.fixture(scope="module")
def texts(sentences: str) -> Embedder:
    return Embedder(sentences, "text", output="rows", device="cpu")


@pytest.fixture(scope="module")
def images(dual: str) -> Embedder:
    return Embedder(dual, "image", device="cpu")


def test_a_batch_comes_back_as_what_it_was_with_a_column_more(texts: Embedder, sentences: str) -> None:
    expected = xmodal.load(sentences, device="cpu").encode(TEXTS, normalize_embeddings=True)
    number = np.arange(4)
    arrays = texts({"text": np.array(TEXTS, dtype=object), "number": number})  # Ray's default
    assert list(arrays) == ["text", "number", "rows"]
    assert arrays["number"] is number
    assert (arrays["rows"].dtype, arrays["rows"].shape) == (np.float32, (4, 32))
    np.testing.assert_allclose(arrays["rows"], expected, atol=1e-6)
    lists = texts({"text": TEXTS})["rows"]
    table = texts(pa.table({"text": TEXTS, "number": number}))
    assert table.schema.field("rows").type == pa.list_(pa.float32(), 32)
    frame = texts(pd.DataFrame({"text": TEXTS}, index=[7, 5, 3, 1]))
    assert list(frame.index) == [7, 5, 3, 1]
    for rows in (lists, table["rows"].to_pylist(), np.stack(frame["rows"].to_list())):
        np.testing.assert_array_equal(np.asarray(rows, dtype=np.float32), arrays["rows"])
    assert texts({"text": []})["rows"].shape == (0, 32)


def test_pictures_in_every_form_are_the_same(images: Embedder, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures", 3)
    files = [folder / f"{i}.png" for i in range(3)]
    expected = images.model.encode_image(files).numpy()
    data = [file.read_bytes() for file in files]
    arrays = [np.asarray(Image.open(io.BytesIO(one))) for one in data]
    for cells in (
        [str(file) for file in files],
        files,
        data,
        [{"bytes": one, "path": None} for one in data],
        [{"bytes": None, "path": str(file)} for file in files],
        [Image.open(file) for file in files],
        arrays,
        np.stack(arrays),  # as Ray reads pictures of one size
    ):
        np.testing.assert_allclose(images({"image": cells})["embedding"], expected, atol=1e-6)
    stored = pa.table({"image": pa.array([{"bytes": one, "path": None} for one in data])})
    rows = images(stored)["embedding"].to_pylist()
    np.testing.assert_allclose(np.asarray(rows, dtype=np.float32), expected, atol=1e-6)


def test_datasets_maps_it(texts: Embedder, tmp_path: Path) -> None:
    import datasets

    found = datasets.Dataset.from_dict({"text": TEXTS}).map(
        texts, batched=True, batch_size=3, cache_file_name=str(tmp_path / "cache.arrow")
    )
    np.testing.assert_allclose(np.array(found["rows"][:]), texts({"text": TEXTS})["rows"], atol=1e-6)


def test_it_is_pickled_as_its_arguments(texts: Embedder) -> None:
    told = pickle.dumps(texts)
    assert len(told) < 2000
    again = pickle.loads(told)
    np.testing.assert_array_equal(again({"text": TEXTS})["rows"], texts({"text": TEXTS})["rows"])


def test_a_picture_that_cannot_be_read_is_named_or_a_row_of_nan(images: Embedder, dual: str, tmp_path: Path) -> None:
    file = pictures(tmp_path / "pictures", 1) / "0.png"
    cells: list[Any] = [file, b"no picture", None]
    with pytest.raises(InputError, match="Column 'image', row 1 of the batch can't be read: no image"):
        images({"image": cells})
    rows = Embedder(images.model, "image", bad="nan")({"image": cells})["embedding"]
    np.testing.assert_array_equal(np.isnan(rows).all(1), [False, True, True])
    np.testing.assert_allclose(rows[:1], images({"image": [file]})["embedding"], atol=1e-6)


def test_what_does_not_fit_is_named(texts: Embedder, sentences: str) -> None:
    with pytest.raises(InputError, match="no column 'text'; it has caption, url"):
        texts({"caption": [], "url": []})
    with pytest.raises(InputError, match="has a column 'rows' already"):
        texts({"text": [], "rows": []})
    with pytest.raises(InputError, match="Column 'text', row 1 of the batch: None is no text"):
        texts({"text": ["a", None]})
    with pytest.raises(InputError, match="takes texts alone"):
        texts({"text": [np.zeros((4, 4, 3), dtype=np.uint8)]})
    with pytest.raises(InputError, match="no prompt 'passage'"):
        Embedder(sentences, "text", prompt_name="passage")
    with pytest.raises(InputError, match="expected 'raise' or 'nan'"):
        Embedder(sentences, "text", bad="skip")  # type: ignore[arg-type]


def test_importing_it_imports_nothing_heavy() -> None:
    told = (
        "import sys; from xmodal.embedding import Embedder; print({'torch', 'ray', 'pandas', 'numpy'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_ray_maps_it(sentences: str, texts: Embedder) -> None:
    data = pytest.importorskip("ray.data")
    found = (
        data.from_items([{"text": text} for text in TEXTS])
        .map_batches(Embedder, fn_constructor_args=[sentences, "text"], batch_size=2, concurrency=1)
        .to_pandas()
    )
    rows = dict(zip(found["text"], found["embedding"], strict=True))
    expected = texts({"text": TEXTS})["rows"]
    np.testing.assert_allclose(np.stack([rows[text] for text in TEXTS]), expected, atol=1e-6)
