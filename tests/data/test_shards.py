"""Tar shards: every row by offset, nothing executed or followed, and what is wrong told."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from xmodal.data.batches import Batches
from xmodal.data.shard_names import expand
from xmodal.data.source import Columns, open_pairs, open_source, splits
from xmodal.data.workers import loader
from xmodal.errors import BadSample, InputError


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def tar(path: Path, members: Mapping[str, bytes | str | tarfile.TarInfo]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                file.addfile(content)
                continue
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def shards(folder: Path, rows: int = 7) -> Path:
    """00000.tar with three rows, 00001.tar with the others."""
    for shard, numbers in enumerate((range(3), range(3, rows))):
        members: dict[str, bytes | str] = {}
        for i in numbers:
            members |= {f"{i:06}.png": png(i), f"{i:06}.txt": f"number {i}\n", f"{i:06}.json": json.dumps({"url": "x"})}
        tar(folder / f"{shard:05}.tar", members)
    return folder


def told(source: Any) -> dict[str, list[str]]:
    return {source.key(row): list(source.texts(row)) for row in range(len(source))}


EXPECTED = {f"{int(i > 2):05}.tar:{i:06}": [f"number {i}"] for i in range(7)}


@pytest.mark.parametrize("spec", ["", "/{00000..00001}.tar", "/{00000,00001}.tar", "/00000.tar::{}/00001.tar"])
def test_rows_are_there_in_order_by_any_name_of_the_shards(spec: str, tmp_path: Path) -> None:
    folder = shards(tmp_path / "s")
    source = open_source(f"{folder}{spec.replace('{}/', f'{folder}/')}")
    assert told(source) == EXPECTED
    pictures = source.images(np.array([6, 0, 3]))
    assert [np.asarray(picture)[0, 0, 0] for picture in pictures] == [6, 0, 3]
    assert len(set(source.image_id.tolist())) == 7
    train, tests = open_pairs(str(folder), None)
    assert (len(train), tests) == (7, {})
    copy = pickle.loads(pickle.dumps(source))  # as a worker that is spawned gets it
    assert np.asarray(copy.images(np.array([5]))[0])[0, 0, 0] == 5


def test_captions_come_from_text_or_from_a_key_of_json(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "a.tar",
        {
            "d/1.jpg": png(1),
            "d/1.txt": "first\n\nsecond\nfirst\n",
            "d/2.PNG": png(2),
            "d/2.json": json.dumps({"caption": ["a", "b"], "alt": "c"}),
            "3.webp": png(3),
            "3.txt": "  ",
            "3.json": "{",
            "4.txt": "alone",
            "5.png": png(5),
            "6.cls": "3",
        },
    )
    source = open_source(str(path))
    assert told(source) == {"a.tar:d/1": ["first", "second"], "a.tar:d/2": ["a", "b"]}
    assert source.dropped == {"no caption": 2, "no image": 1}
    assert told(open_source(str(path), None, Columns(caption="alt"))) == {"a.tar:d/2": ["c"]}


def member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_nothing_is_executed_extracted_or_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark, secret = tmp_path / "mark", tmp_path / "secret.txt"
    secret.write_text("secret")
    payload = pickle.dumps(Payload(mark))
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    path = tar(
        tmp_path / "evil.tar",
        {
            "1.png": png(1),
            "1.txt": "good",
            "1.pkl": payload,
            "1.pyd": payload,
            "1.pth": payload,
            "2.png": payload,
            "2.txt": "a pickle as a picture",
            "../../3.png": png(3),
            "../../3.txt": "up",
            "/tmp/4.png": png(4),
            "/tmp/4.txt": "absolute",
            "5.png": png(5),
            "5.txt": member("5.txt", tarfile.SYMTYPE, str(secret)),
            "6.png": png(6),
            "6.txt": member("6.txt", tarfile.LNKTYPE, str(secret)),
            "7.png": member("7.png", tarfile.FIFOTYPE),
            "7.txt": "a pipe",
            "8.png": member("8.png", tarfile.CHRTYPE),
            "8.txt": "a device",
            "9.png": png(9),
            "9.txt": "pipe:touch mark http://127.0.0.1:1/x.jpg \x1b[2J =cmd()",
        },
    )
    source = open_source(str(path))
    assert [key.partition(":")[2] for key in told(source)] == ["1", "2", "../../3", "/tmp/4", "9"]
    assert source.dropped == {"links and devices": 4, "no caption": 2, "no image": 2}
    pictures = source.images(np.arange(5))
    assert [p.reason if isinstance(p, BadSample) else "fine" for p in pictures] == ["fine", "no image", *["fine"] * 3]
    assert not mark.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evil.tar", "inside", "secret.txt"]
    assert not list(inside.iterdir())
    assert "secret" not in str(told(source))


def test_a_shard_that_was_cut_off_keeps_what_came_before(tmp_path: Path) -> None:
    path = shards(tmp_path / "s") / "00001.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as file:
        place = file.getmember("000005.png").offset_data
    path.write_bytes(whole[: place + 20])
    source = open_source(str(path))
    assert list(told(source).values()) == [["number 3"], ["number 4"]]
    assert source.dropped["end missing from a shard"] == 1


def test_the_fingerprint_changes_with_any_member(tmp_path: Path) -> None:
    base: dict[str, bytes | str] = {"1.png": png(1), "1.txt": "a", "2.png": png(2), "2.txt": "b"}
    changed = [base, {**base, "2.txt": "c"}, {**base, "2.png": png(2) + b"\0"}, {**base, "3.png": png(3), "3.txt": "c"}]
    prints = [open_source(str(tar(tmp_path / f"{i}" / "a.tar", m))).fingerprint() for i, m in enumerate(changed)]
    assert len(set(prints)) == 4
    assert open_source(str(tar(tmp_path / "again" / "a.tar", base))).fingerprint() == prints[0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pipe:touch {folder}/mark", "nothing is run because of a name"),
        ("a.tar::pipe:touch {folder}/mark", "nothing is run because of a name"),
        ("ssh://127.0.0.1/a.tar", "no address that is read here"),
        ("zip://a.tar::memory://b.zip", "no address that is read here"),
        ("{folder}/{00000..00005}.tar".replace("{folder}", "FOLDER"), "no shard .*00002.tar"),
        ("{folder}/none.tar", "no shard"),
        ("{folder}/pipe.tar", "no shard"),
        ("{folder}/keys.tar", r"its members end in \.img, \.lbl; expected \.jpg"),
        ("{folder}/empty.tar", "its members end in nothing"),
        ("{folder}/zero.tar", "is no tar file"),
        ("{folder}/text.tar", "is no tar file"),
        ("{folder}/a.tar.gz", "is compressed"),
        ("{folder}/{0..99999999}.tar".replace("{folder}", "FOLDER"), "more than 1,000,000 shards"),
    ],
)
def test_what_is_wrong_with_shards_is_told(spec: str, message: str, tmp_path: Path) -> None:

    shards(tmp_path)
    os.mkfifo(tmp_path / "pipe.tar")
    tar(tmp_path / "keys.tar", {"1.img": png(1), "1.lbl": "a"})
    tar(tmp_path / "empty.tar", {})
    (tmp_path / "zero.tar").touch()
    (tmp_path / "text.tar").write_text("no tar\n" * 200)
    (tmp_path / "a.tar.gz").touch()
    spec = spec.replace("{folder}", str(tmp_path)).replace("FOLDER", str(tmp_path))
    if spec.startswith("pipe:"):
        spec += ".tar"
    with pytest.raises(InputError, match=message):
        open_source(spec)
    assert not (tmp_path / "mark").exists()


def test_shards_of_one_name_in_two_places_are_told_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        shards(tmp_path / folder)
    source = open_source(f"{tmp_path / 'a'}::{tmp_path / 'b'}")
    assert len(set(source.image_id.tolist())) == len(source) == 14
    assert [source.key(row) for row in (0, 13)] == ["a/00000.tar:000000", "b/00001.tar:000006"]


def test_records_say_which_rows_have_one_picture(tmp_path: Path) -> None:
    record = [json.dumps({"caption": str(i), "image_id": which}) for i, which in enumerate((7, 7, 8, None, True))]
    for name, numbers in (("a", (0, 3)), ("b", (1, 2, 4))):
        members = {f"{i}.{kind}": (png(i), record[i])[kind == "json"] for i in numbers for kind in ("png", "json")}
        tar(tmp_path / "s" / f"{name}.tar", members)
    source = open_source(str(tmp_path / "s"))
    ids = dict(zip(("".join(source.texts(row)) for row in range(5)), source.image_id.tolist(), strict=True))
    assert ids["0"] == ids["1"]
    assert len(set(ids.values())) == 4


def test_folders_of_shards_are_splits(tmp_path: Path) -> None:
    shards(tmp_path / "train")
    shards(tmp_path / "validation", rows=4)
    (tmp_path / "test").mkdir()
    shards(tmp_path / "more")
    assert splits(str(tmp_path)) == ["train", "val"]
    train, tests = open_pairs(str(tmp_path), None)
    assert (len(train), {name: len(test) for name, test in tests.items()}) == (7, {"val": 4})
    assert len(open_source(str(tmp_path))) == 11
    with pytest.raises(InputError, match=r"has no split 'test'; it has train, val"):
        open_source(str(tmp_path), "test")


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("sizes", "batch"), [([7], 6), ([7], 4), ([1, 2, 4], 6)])
def test_fewer_shards_than_readers_and_odd_rows_hang_nowhere(sizes: list[int], batch: int, tmp_path: Path) -> None:
    """Two processes with three workers each, over one shard or one that is smaller than they are many."""
    first = 0
    for number, size in enumerate(sizes):
        members: dict[str, bytes | str] = {}
        for i in range(first, first + size):
            members |= {f"{i}.png": png(i), f"{i}.txt": f"number {i}"}
        tar(tmp_path / "s" / f"{number}.tar", members)
        first += size
    source = open_source(str(tmp_path / "s"))

    def view(pictures: Any, draws: Any) -> torch.Tensor:
        return torch.tensor([np.asarray(picture)[0, 0, 0] for picture in pictures])

    def tokens(texts: Any) -> torch.Tensor:
        return torch.ones(len(texts), 1)

    def part(first: int, stop: int) -> Batches:
        return Batches(source, batch=batch, part=(first, stop), seed=0, prepare_images=view, tokenize=tokens)

    steps = 3 * (7 // batch)
    ranks = [loader(part(*both), 0, steps, workers=3) for both in ((0, batch // 2), (batch // 2, batch))]
    for (step, one, _), (_, two, _), whole in zip(*ranks, map(part(0, batch).__getitem__, range(steps)), strict=True):
        rows = torch.cat([one["row"], two["row"]])
        assert torch.equal(rows, whole[0]["row"])
        assert torch.equal(torch.cat([one["image"], two["image"]]).long(), rows)
        assert len(set(rows.tolist())) == batch, step
    with pytest.raises(InputError, match="7 rows, fewer than one global batch of 8"):
        Batches(source, batch=8, part=(0, 4), seed=0, prepare_images=view, tokenize=tokens)


def test_one_shard_without_pairs_among_good_ones_is_named(tmp_path: Path) -> None:
    shards(tmp_path / "s")
    tar(tmp_path / "s" / "00002.tar", {"1.img": png(1), "1.lbl": "a"})
    with pytest.raises(
        InputError, match=r"00002.tar has no picture with a caption: its members end in \.img, \.lbl; exp"
    ):
        open_source(str(tmp_path / "s"))


def test_patterns_keep_their_zeros() -> None:
    assert list(expand("a/{08..11}-{x,y}.tar")) == [f"a/{i:02}-{c}.tar" for i in range(8, 12) for c in "xy"]
    assert list(expand("plain.tar")) == ["plain.tar"]


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_are_rows_or_an_input_error(tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(
        tar(tmp_path / "w" / "a.tar", {"1.png": png(1), "1.txt": "a", "2.png": png(2), "2.txt": "b"}).read_bytes()
    )
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "a.tar").write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        source = open_source(str(tmp_path / "a.tar"))
        source.images(np.arange(len(source)))
        told(source)
    except InputError:
        return
