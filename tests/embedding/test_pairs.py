"""Pictures and texts of data to train on, embedded for a teacher: of which rows, once each, going on after a kill."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

import xmodal
from tests.embedding.conftest import pictures
from xmodal.data.source import open_pairs
from xmodal.embedding import embedder
from xmodal.embedding.embed import Config, run
from xmodal.embedding.parts import Parts
from xmodal.errors import InputError


@pytest.fixture
def told(dual: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Ten pictures, one of them broken and two of split val, with two captions each; captions come again."""
    monkeypatch.setattr(embedder, "SIZE", {"text": 4, "image": 4})
    folder = pictures(tmp_path / "pictures")
    (folder / "3.png").write_bytes(b"")
    lines = [f"pictures/{i}.png\ta {w}\t{'val' if i > 7 else 'train'}" for i in range(10) for w in (i // 2, "thing")]
    (tmp_path / "table.tsv").write_text("\n".join(["filepath\ttitle\tsplit", *lines]) + "\n")
    return {"model": dual, "data": str(tmp_path / "table.tsv"), "kind": "pairs", "output": tmp_path / "teacher"}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_it_holds_the_rows_of_training_each_picture_and_each_text_once(told: dict[str, Any]) -> None:
    about = run(Config(**told))
    source, _ = open_pairs(told["data"], None)
    folder, model = told["output"], xmodal.load(told["model"], device="cpu")
    assert json.loads((folder / "pairs.json").read_text()) == about
    assert (about["rows"], about["fingerprint"], about["scale"]) == (8, source.fingerprint(), model.scale)
    read = [0, 1, 2, 4, 5, 6, 7]
    images, texts = (parquet.read_table(folder / name / "items.parquet") for name in ("images", "texts"))
    assert images["row"].to_pylist() == read
    assert images["image"].to_pylist() == [f"pictures/{i}.png" for i in read]
    assert texts["text"].to_pylist() == ["a 0", "a thing", "a 1", "a 2", "a 3"]
    expected = model.encode_image([Path(told["data"]).parent / name for name in images["image"].to_pylist()])
    assert np.abs(np.load(folder / "images" / "embeddings.npy") - expected.numpy()).max() < 1e-6
    expected = model.encode_text(texts["text"].to_pylist())
    assert np.abs(np.load(folder / "texts" / "embeddings.npy") - expected.numpy()).max() < 1e-6
    assert not folder.with_name("teacher.parts").exists()


def test_what_was_interrupted_goes_on_and_ends_with_the_same_bytes(
    told: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(Config(**told))
    whole = contents(told["output"])
    shutil.rmtree(told["output"])
    write, done = Parts.write, []

    def stumble(self: Parts, part: Any, *rest: Any) -> None:
        if len(done) % 2:
            done.append(None)
            raise KeyboardInterrupt
        write(self, part, *rest)
        done.append((self.folder.name, part.number))

    monkeypatch.setattr(Parts, "write", stumble)
    while not told["output"].exists():
        try:
            run(Config(**told))
        except KeyboardInterrupt:
            assert not told["output"].exists()
    assert [one for one in done if one] == [(f"{n}.parts", i) for n in ("images", "texts") for i in range(2)]
    assert contents(told["output"]) == whole


def test_what_was_begun_of_other_data_or_another_model_is_refused(told: dict[str, Any], sentences: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xmodal.embedding.pairs.TextsOfPairs.parts", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(Config(**told))
    with pytest.raises(InputError, match="another dtype: 'float32' there, 'float16' now"):
        run(Config(**told, dtype="float16"))
    table = Path(told["data"])
    table.write_text(table.read_text().replace("a thing", "a toy"))
    with pytest.raises(InputError, match="another fingerprint"):
        run(Config(**told))
    assert run(Config(**told, overwrite=True))["rows"] == 8
    with pytest.raises(InputError, match="exists already"):
        run(Config(**told))
    assert run(Config(**told, overwrite=True))["rows"] == 8
    with pytest.raises(InputError, match="takes texts alone, and pairs have pictures"):
        run(Config(**{**told, "model": sentences, "output": table.with_name("other")}))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"column": "title"}, "pairs have two, --image-column and --caption-column"),
        ({"output": Path("out.npy")}, "a folder, whose name has no suffix"),
        ({"kind": "text", "caption_column": "title"}, "--caption-column is for --kind pairs; otherwise it is --column"),
    ],
)
def test_flags_that_mean_nothing_are_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Config(**{"model": "small", "data": "d", "output": Path("out"), "kind": "pairs", **flags}).check()
