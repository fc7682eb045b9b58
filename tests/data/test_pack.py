"""`xmodal data pack`: the same rows, captions, ids and splits; small pictures; the same bytes however it was run."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.test_shards import shards
from xmodal.cli import main
from xmodal.data import shards as reading
from xmodal.data.pack import told
from xmodal.data.shrink import shrunk
from xmodal.data.source import open_pairs, open_source
from xmodal.errors import BadSample


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def table(folder: Path) -> Path:
    """Ten pictures of which one is none, some with several captions, in three splits."""
    folder.mkdir()
    rows = ["image,caption,split"]
    for i in range(10):
        (folder / f"{i}.jpg").write_bytes(encoded(noise(40 + i, 30, i), "JPEG"))
        rows += [f"{i}.jpg,{i} {k},{('train', 'train', 'validation', 'test')[i % 4]}" for k in range(1 + i % 3)]
    (folder / "5.jpg").write_bytes(b"<html>")
    (folder / "t.csv").write_text("\n".join([*rows, 'odd.jpg,"two\nlines",train']) + "\n")
    (folder / "odd.jpg").write_bytes(encoded(noise(20, 20), "JPEG"))
    return folder / "t.csv"


def rows(source: Any) -> list[tuple[list[str], tuple[int, int]]]:
    found = []
    for row in range(len(source)):
        picture = source.images(np.array([row]))[0]
        if not isinstance(picture, BadSample):
            found.append((list(source.texts(row)), picture.size))
    return found


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_what_was_packed_has_the_rows_captions_and_splits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = table(tmp_path / "t"), tmp_path / "out"
    assert main(["data", "pack", str(path), str(out), "--shard-size", "3", "--workers", "0", "--size", "32"]) == 0
    printed = capsys.readouterr().out
    assert "10 pictures in 5 shards; 1 can't be read: 1 no image." in printed
    assert f"xmodal train clip --data {out}" in printed
    lines = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert lines == [{"split": "train", "row": 3, "key": "5.jpg", "reason": "no image"}]
    monkeypatch.setattr(reading, "scan", None)  # the index beside says all
    (before, before_tests), (after, after_tests) = open_pairs(str(path), None), open_pairs(str(out), None)
    assert rows(after) == rows(before)
    assert [rows(test) for test in after_tests.values()] == [rows(test) for test in before_tests.values()]
    assert rows(open_source(str(out), "test")) == rows(open_source(str(path), "test"))
    assert ["two\nlines"] in [texts for texts, _ in rows(after)]


def test_headers_say_the_same_as_the_index(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["data", "pack", str(table(tmp_path / "t")), str(out), "--workers", "0"]) == 0
    first = open_source(str(out))
    for index in out.rglob("*.index"):
        index.unlink()
    again = open_source(str(out))
    assert again.fingerprint() == first.fingerprint()
    assert np.array_equal(again.image_id, first.image_id)
    assert rows(again) == rows(first)


def test_rows_of_one_picture_still_share_its_id(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pictures = [encoded(noise(8, 8, i), "PNG") for i in range(4)]
    pq.write_table(
        pa.table({"image": pictures, "caption": list("abcd"), "image_id": [1, 2, 1, 3]}), tmp_path / "p.parquet"
    )
    assert main(["data", "pack", str(tmp_path / "p.parquet"), str(tmp_path / "out"), "--workers", "0"]) == 0
    ids = open_source(str(tmp_path / "out")).image_id.tolist()
    assert ids[0] == ids[2]
    assert len(set(ids)) == 3


def test_bytes_depend_on_neither_workers_nor_kills_and_tell_of_nobody(tmp_path: Path) -> None:
    path = str(table(tmp_path / "t"))
    flags = ["--shard-size", "2", "--size", "32"]
    for name, workers in (("a", "0"), ("b", "2")):
        assert main(["data", "pack", path, str(tmp_path / name), *flags, "--workers", workers]) == 0
    whole = everything(tmp_path / "a")
    assert everything(tmp_path / "b") == whole
    killed = tmp_path / "b" / "train"
    (killed / "00001.tar.index").unlink()
    (killed / "00002.tar").rename(killed / "00002.tar.tmp")
    kept = (killed / "00000.tar").stat().st_mtime_ns
    assert main(["data", "pack", path, str(tmp_path / "b"), *flags, "--workers", "0"]) == 0
    assert everything(tmp_path / "b") == whole
    assert (killed / "00000.tar").stat().st_mtime_ns == kept
    for tar in (tmp_path / "a").rglob("*.tar"):
        with tarfile.open(tar) as file:
            assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in file} == {(0, 0, 0, "", "", 0o644)}
    assert str(tmp_path).encode() not in b"".join(whole.values())


def test_a_folder_of_something_else_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = table(tmp_path / "t"), tmp_path / "out"
    pack = ["data", "pack", str(path), str(out), "--workers", "0"]
    assert main(pack) == 0
    before = everything(out)
    assert main([*pack, "--size", "64"]) == 2
    path.write_text(path.read_text() + "0.jpg,more,train\n")
    assert main(pack) == 2
    assert main(["data", "pack", str(path), str(tmp_path / "t"), "--workers", "0"]) == 2
    assert [line for line in capsys.readouterr().err.splitlines() if line] == [
        f"error: {out} was packed with another size; name another folder.",
        f"error: {out} was packed with another data; name another folder.",
        f"error: {tmp_path / 't'} is not empty and stays as it is; name another folder.",
    ]
    assert everything(out) == before


def test_a_shard_of_bad_pictures_alone_is_empty(tmp_path: Path) -> None:
    path = table(tmp_path / "t")
    for i in (0, 1):
        (path.parent / f"{i}.jpg").write_bytes(b"")
    out = tmp_path / "out"
    for _ in range(2):
        assert main(["data", "pack", str(path), str(out), "--shard-size", "2", "--workers", "0"]) == 0
    train, _ = open_pairs(str(out), None)
    assert rows(train) == rows(open_pairs(str(path), None)[0])


def test_shards_and_built_in_pictures_are_packed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(str(shards(tmp_path / "s")))
    assert main(["data", "pack", str(tmp_path / "s"), str(tmp_path / "out"), "--workers", "0"]) == 0
    assert rows(open_source(str(tmp_path / "out"))) == rows(source)
    suffix, data = shrunk(np.full((8, 8), 7, dtype=np.uint8), 256)
    assert suffix == "png"
    assert np.asarray(Image.open(io.BytesIO(data)))[0, 0].tolist() == [7, 7, 7]


def turned(image: Image.Image) -> dict[str, Any]:
    exif = image.getexif()
    exif[0x0112] = 6
    return {"exif": exif}


PHOTO, DRAWING = noise(60, 40), Image.new("RGB", (60, 40), "red")


@pytest.mark.parametrize(
    ("data", "suffix", "size"),
    [
        (encoded(PHOTO, "JPEG"), "jpg", (30, 20)),
        (encoded(PHOTO, "PNG"), "jpg", (30, 20)),
        (encoded(PHOTO, "TIFF"), "jpg", (30, 20)),
        (encoded(PHOTO, "JPEG", **turned(PHOTO)), "jpg", (20, 30)),
        (encoded(DRAWING, "PNG"), "png", (30, 20)),
        (encoded(DRAWING, "GIF"), "png", (30, 20)),
        (encoded(PHOTO.convert("RGBA"), "PNG"), "png", (30, 20)),
        (encoded(noise(400, 25), "JPEG"), "jpg", (320, 20)),
    ],
)
def test_pictures_shrink_to_their_short_side(data: bytes, suffix: str, size: tuple[int, int]) -> None:
    found, small = shrunk(data, 20)
    assert (found, Image.open(io.BytesIO(small)).size) == (suffix, size)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_pictures_that_are_small_stay_as_they_are(format: str) -> None:
    data = encoded(PHOTO, format)
    assert shrunk(data, 40) == ({"JPEG": "jpg"}.get(format, format.lower()), data)
    with pytest.raises(BadSample):
        shrunk(data[:-300], 40)


def test_small_pictures_that_others_may_not_read_are_written_anew() -> None:
    assert shrunk(encoded(PHOTO, "BMP"), 256)[0] == "jpg"
    suffix, data = shrunk(encoded(PHOTO, "JPEG", **turned(PHOTO)), 256)
    assert (suffix, Image.open(io.BytesIO(data)).size) == ("jpg", (40, 60))


@pytest.mark.parametrize(
    ("texts", "image_id", "kind"),
    [
        (["a cat"], None, "txt"),
        (["a cat"], 7, "json"),
        (["a", "b"], None, "json"),
        (["a\nb"], None, "json"),
        (["a\u2028b"], None, "json"),
        (["\ufeffa"], None, "json"),
    ],
)
def test_captions_are_plain_text_where_that_says_all(texts: list[str], image_id: int | None, kind: str) -> None:
    found, data = told(texts, image_id)
    assert found == kind
    if kind == "json":
        assert json.loads(data) == {"captions": texts} | ({} if image_id is None else {"image_id": image_id})
    else:
        assert data.decode() == texts[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "pack"], "needs DATA"),
        (["data", "pack", "nowhere", "OUT"], "No data 'nowhere'"),
        (["data", "pack", "glyphs", "OUT", "--size", "2"], "at least 16"),
    ],
)
def test_wrong_input_is_told(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "out") if a == "OUT" else a for a in arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_splits_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """But where there is none that has a place, nothing is left out."""
    for name, splits in {"some": ["train", "extra", "extra", ""], "all": ["extra", "extra", "more"]}.items():
        folder = tmp_path / name
        folder.mkdir()
        for i in range(len(splits)):
            (folder / f"{i}.jpg").write_bytes(encoded(noise(20, 20, i), "JPEG"))
        lines = [f"{i}.jpg,{i} {k},{split}" for i, split in enumerate(splits) for k in range(2)]
        (folder / "t.csv").write_text("\n".join(["image,caption,split", *lines]) + "\n")
        assert main(["data", "pack", str(folder / "t.csv"), str(tmp_path / f"{name} packed"), "--workers", "0"]) == 0
        printed = capsys.readouterr().out
        if name == "some":
            assert f"Left out of {folder / 't.csv'}, pictures of other splits: 2 of extra, 1 of no split." in printed
            assert "1 pictures in 1 shard" in printed
        else:
            assert "Left out" not in printed
            assert "3 pictures in 1 shard" in printed
