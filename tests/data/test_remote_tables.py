"""Parquet far away: the rows of the downloaded data, each row group fetched once for a host, failures that say so."""

from __future__ import annotations

import json
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.data.parquet_files import GROUP, reds, table, told
from tests.data.test_hf_pictures import png
from tests.data.test_remote_shards import Server
from tests.forks import Forks
from tests.stream_children import numbers, red
from xmodal.cli import main
from xmodal.data import row_groups
from xmodal.data.batches import Batches
from xmodal.data.mixture import Mixture
from xmodal.data.pictures import PictureColumns, hold_out, open_parts, open_pictures
from xmodal.data.source import Columns, form_of, open_pairs, open_source, splits
from xmodal.data.workers import loader
from xmodal.errors import BadSample, Failed, InputError
from xmodal.pretrain import view_batches

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """48 rows in two files of train, 8 of validation."""
    table(tmp_path / "www" / "train-0.parquet", range(24))
    table(tmp_path / "www" / "train-1.parquet", range(24, 48))
    table(tmp_path / "www" / "validation-0.parquet", range(48, 56))
    found = Server(tmp_path / "www")
    yield found
    found.http.shutdown()
    found.http.server_close()


def pictures_asked(server: Server, folder: Path) -> Counter[tuple[str, int]]:
    """How often each row group's pictures were fetched, by file and number."""
    places = {}
    for path in folder.glob("*.parquet"):
        footer = pq.read_metadata(path)
        for number in range(footer.num_row_groups):
            column = footer.row_group(number).column(0)
            start = column.dictionary_page_offset or column.data_page_offset
            places[f"/{path.name}", start, start + column.total_compressed_size] = (path.name, number)
    found = Counter[tuple[str, int]]()
    for one in server.asked:
        method, path, *part = one.split()
        if method == "GET" and part and (match := re.fullmatch(r"bytes=(\d+)-(\d+)", part[0])):
            place = places.get((path, int(match[1]), int(match[2]) + 1))
            found.update([place] if place else [])
    return found


def batches(source: Any, batch: int = 6, part: tuple[int, int] | None = None) -> Batches:
    part = part or (0, batch)
    return Batches(source, batch=batch, part=part, seed=0, prepare_images=red, tokenize=numbers)


@pytest.mark.parametrize("form", ["pattern", "star", "folder", "https with a query"])
def test_rows_captions_and_classes_are_those_of_the_downloaded_data(form: str, server: Server, tmp_path: Path) -> None:
    www = tmp_path / "www"
    spec = {
        "pattern": f"{server.address}/train-{{0..1}}.parquet",
        "star": f"file://{www}/train-*.parquet",
        "folder": f"file://{www}",
        "https with a query": f"{server.address}/train-0.parquet?download=true",
    }[form]
    (tmp_path / "local").mkdir()
    n = 24 if "query" in form else 48
    (tmp_path / "local" / "train-0.parquet").write_bytes((www / "train-0.parquet").read_bytes())
    if n == 48:
        (tmp_path / "local" / "train-1.parquet").write_bytes((www / "train-1.parquet").read_bytes())
    local, source = open_source(str(tmp_path / "local"), "train"), open_source(spec, "train")
    assert told(source) == told(local)
    assert reds(source, [n - 1, 0, 5]) == [n - 1, 0, 5]
    assert (source.photographs, source.dropped) == (local.photographs, local.dropped)
    assert source.key(n - 3) == f"train-{n // 24 - 1}.parquet, row 21"
    pictures, ours = open_pictures(spec, "train"), open_pictures(str(tmp_path / "local"), "train")
    assert pictures.classes == ours.classes == ["cat", "hot dog"]
    assert pictures.labels is not None
    assert pictures.labels.tolist() == [row % 2 for row in range(n)]
    assert reds(pictures, [2, n - 2]) == [2, n - 2]
    assert "parquet" in form_of(spec)


def test_splits_are_in_the_names_of_files(server: Server, tmp_path: Path) -> None:
    folder = f"file://{tmp_path / 'www'}"
    assert splits(folder) == ["train", "val"]
    train, tests = open_pairs(folder, None)
    assert (len(train), {name: told(test)[0] for name, test in tests.items()}) == (48, {"val": ["number 48"]})
    images, judged = open_parts(folder, None, 0.1)
    assert (len(images), judged and len(judged)) == (48, 8)
    with pytest.raises(InputError, match=r"no split 'test'; there are: train, val"):
        open_source(folder, "test")
    table(tmp_path / "mixed" / "a.parquet", range(3))
    table(tmp_path / "mixed" / "test.parquet", range(3, 5))
    assert splits(f"file://{tmp_path / 'mixed'}") == []  # one file doesn't say, so all are one
    assert len(open_source(f"file://{tmp_path / 'mixed'}")) == 5
    both = open_source(f"{folder}/train-0.parquet::{server.address}/train-1.parquet", None, None, [1, 2])
    assert len(both) == 48
    assert told(both)[24] == ["number 24"]


def test_an_epoch_fetches_each_row_group_once_and_the_next_none(server: Server, tmp_path: Path) -> None:
    source = open_source(f"{server.address}/train-{{0..1}}.parquet")
    asked = sum("GET" in one for one in server.asked)
    assert asked < 8  # footers, captions, the first pictures
    data = batches(source)
    seen = [value for step in range(8) for value in data[step][0]["text"].flatten().tolist()]
    assert sorted(seen) == list(range(48))
    assert seen != sorted(seen)
    fetched = pictures_asked(server, tmp_path / "www")
    assert len(fetched) == 12
    assert sum(fetched.values()) <= 13  # the first is looked into before, which is as much as all of so small a one
    server.asked.clear()
    other = batches(open_source(f"{server.address}/train-{{0..1}}.parquet"))  # another run: all is here
    assert sorted(value for step in range(8, 16) for value in other[step][0]["text"].flatten().tolist()) == list(
        range(48)
    )
    assert sum("GET" in one for one in server.asked) == 1  # to look into it


def test_processes_of_a_host_share_what_they_fetch(server: Server, tmp_path: Path, forks: Forks) -> None:
    """Three that take steps in turn, as workers do; two that take a part of each, as ranks do."""
    spec = f"{server.address}/train-{{0..1}}.parquet"

    def read(name: str, shares: list[tuple[list[int], tuple[int, int]]]) -> list[dict[str, list[int]]]:
        cache, files = tmp_path / f"cache of {name}", [tmp_path / f"{name} {i}.json" for i in range(len(shares))]
        server.asked.clear()
        children = [
            forks.start(
                *("stream_children.read_steps", {"XDG_CACHE_HOME": str(cache)}),
                **{"spec": spec, "output": file, "steps": steps, "part": part, "window": 1},
            )
            for file, (steps, part) in zip(files, shares, strict=True)
        ]
        for child in children:
            assert child.wait() == 0, child.said[-3000:]
        fetched = pictures_asked(server, tmp_path / "www")
        assert len(fetched) == 12
        assert {number: n for number, n in fetched.items() if n > 1}.keys() <= {("train-0.parquet", 0)}
        footers = [one for one in server.asked if one.startswith("GET") and "bytes=0-" in one]
        assert len(footers) == 2
        return [json.loads(file.read_text()) for file in files]

    data = batches(open_source(spec))
    whole = {str(step): data[step][0]["text"].flatten().tolist() for step in range(8)}
    workers = read("workers", [(list(range(i, 8, 3)), (0, 6)) for i in range(3)])
    assert {step: rows for one in workers for step, rows in one.items()} == whole
    first, second = read("ranks", [(list(range(8)), (0, 3)), (list(range(8)), (3, 6))])
    assert {step: first[step] + second[step] for step in first} == whole


def test_a_resume_fetches_the_row_groups_of_its_window_alone(server: Server, tmp_path: Path) -> None:
    spec = f"{server.address}/train-{{0..1}}.parquet"
    whole = batches(open_source(spec), batch=2)
    wanted = whole[20][0]["text"].flatten().tolist()
    for path in (tmp_path / "cache" / "xmodal" / "spool").iterdir():
        path.unlink()
    data = batches(open_source(spec), batch=2)
    data.order.tell = lambda groups: None  # pyright: ignore[reportAttributeAccessIssue]
    server.asked.clear()
    assert data[20][0]["text"].flatten().tolist() == wanted
    assert {name for name, _ in pictures_asked(server, tmp_path / "www")}
    assert len(pictures_asked(server, tmp_path / "www")) <= 2  # of two rows


def test_what_comes_next_is_fetched_meanwhile(server: Server, tmp_path: Path, own_cache: Path) -> None:
    data = batches(open_source(f"{server.address}/train-{{0..1}}.parquet"), batch=2)
    data[0]
    until(lambda: len(list((own_cache / "spool").glob("*.arrow"))) >= 5)
    asked = len(pictures_asked(server, tmp_path / "www"))
    order, seen = data.order, set[int]()
    for step in range(4):
        seen |= set((order.rows(np.arange(2 * step, 2 * step + 2), 0, 0) // GROUP).tolist())
    assert asked >= len(seen)
    server.broken = 10_000  # what is fetched ahead fails in silence, and aloud once it is asked for
    with pytest.raises(Failed, match="503"):
        [data[step] for step in range(24)]


def until(true: Any) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_spool_is_no_larger_than_it_may_be(
    server: Server, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = f"{server.address}/train-{{0..1}}.parquet"
    monkeypatch.setattr(row_groups, "AHEAD", 0)
    source: Any = open_source(spec)
    needed = source._groups.spool.most
    monkeypatch.setattr(row_groups, "SPOOL", 1)
    source = open_source(spec)
    most = source._groups.spool.most
    assert most < needed == 16_000_000_000
    source._groups.spool.most = most = 12_000  # a file of the spool is some kilobytes however little is in it
    data = batches(source)
    found = sorted(value for step in range(8) for value in data[step][0]["text"].flatten().tolist())
    assert found == list(range(48))
    kept = [path.stat().st_size for path in (own_cache / "spool").iterdir()]
    assert max(kept) < 3000
    assert sum(kept) <= most
    monkeypatch.setenv("XMODAL_SPOOL_GB", "0.0000001")
    with pytest.raises(InputError, match=r"XMODAL_SPOOL_GB=0.0000001 is too few: up to 0.0 GB"):
        open_source(spec)
    monkeypatch.setenv("XMODAL_SPOOL_GB", "much")
    with pytest.raises(InputError, match="'much' is no number of gigabytes"):
        open_source(spec)
    monkeypatch.setenv("XMODAL_SPOOL_GB", "3")
    source = open_source(spec)
    assert source._groups.spool.most == 3_000_000_000


def test_captions_of_several_forms_and_rows_without_one(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", range(4), captions=[["x", "y"], [""], [" z "], []], cocoid=[7, 8, 7, 9])
    source = open_source(f"file://{path}")
    assert told(source) == [["x", "y"], ["z"]]
    assert source.dropped == {"no caption": 2}
    assert reds(source, [1, 0]) == [2, 0]
    assert source.image_id[0] == source.image_id[1]
    assert told(open_source(f"file://{path}", None, Columns(caption="label")))[1] == ["a photo of a hot dog."]
    assert open_pictures(f"file://{path}", None, PictureColumns(label="cocoid")).classes == ["7", "8", "9"]


def test_pictures_that_cannot_be_read_come_back_as_the_reason_and_no_path_is_opened(tmp_path: Path) -> None:
    """A path in a table from elsewhere is no reason to open a file here."""
    (tmp_path / "here.png").write_bytes(png(9))
    cells = [{"bytes": png(1), "path": None}, {"bytes": None, "path": str(tmp_path / "here.png")}, None]
    cells.append({"bytes": b"<html>", "path": None})
    rows = {"image": cells, "caption": ["a", "b", "c", "d"]}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(tmp_path / "a.parquet")
    found = open_source(f"file://{tmp_path / 'a.parquet'}").images(np.arange(4))
    assert [one.reason if isinstance(one, BadSample) else "fine" for one in found] == [
        *("fine", "empty", "empty", "no image")
    ]


def test_the_fingerprint_is_of_what_the_files_hold_and_not_of_where_they_lie(server: Server, tmp_path: Path) -> None:
    near, far = (open_source(f"{where}/train-0.parquet") for where in (f"file://{tmp_path / 'www'}", server.address))
    server.asked.clear()
    assert near.fingerprint() == far.fingerprint()
    assert not server.asked
    prints = {near.fingerprint()}
    for i, (captions, values) in enumerate([(["a"] * 24, range(24)), (None, range(1, 25)), (None, range(20))]):
        path = table(tmp_path / f"{i}" / "train-0.parquet", values, captions)
        prints.add(open_source(f"file://{path}").fingerprint())
        prints.add(open_pictures(f"file://{path}").fingerprint())
    assert len(prints) == 7


def test_what_stands_in_for_a_bad_picture_was_fetched_with_it(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", range(48), bad=range(0, 48, 5))
    source = open_source(f"file://{path}")
    for data in (batches(source), batches(Mixture("both", [("a", source), ("b", source)]))):
        for step in range(8):
            told, skipped = data[step]
            wanted = data.order.rows(np.arange(6 * step, 6 * step + 6), 0, 0)
            assert len(skipped) >= np.isin(wanted % 48, range(0, 48, 5)).sum()
            assert (told["row"].numpy() // GROUP).tolist() == (wanted // GROUP).tolist()
            assert told["image"].flatten().tolist() == (told["row"] % 48).tolist()


def test_batches_by_class_are_refused_where_row_groups_come_and_go(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = f"{server.address}/train-{{0..1}}.parquet"
    config: Any = SimpleNamespace(augment="drawings", data=spec)
    this: Any = SimpleNamespace(share=lambda _: {"batch": 4, "part": (0, 4)})
    pictures: Any = open_pictures(spec)
    assert pictures.order.slides
    rest: Any = hold_out(pictures, 0.1)[0]
    assert rest.order.slides
    with pytest.raises(InputError, match="batches by class take pictures from all"):
        view_batches(config, this, pictures, config, None, k=2)
    monkeypatch.setattr(row_groups, "WINDOW", 2_000_000_000)
    pictures = open_pictures(spec)
    assert not pictures.order.slides  # all are there at once
    assert reds(pictures, [40]) == [40]


def test_pictures_that_are_held_out_leave_the_rest_in_an_order_that_slides(server: Server) -> None:
    whole = open_pictures(f"{server.address}/train-{{0..1}}.parquet")
    rest, held = hold_out(whole, 0.25)
    order: Any = rest.order  # pyright: ignore[reportAttributeAccessIssue]
    rows = order.rows(np.arange(len(rest)), 0, 0)
    assert np.array_equal(np.sort(rows), np.arange(len(rest)))
    assert reds(rest, rows[:5]) == rest.rows[rows[:5]].tolist()
    assert len(set((rest.rows[rows[:8]] // GROUP).tolist())) <= 6
    assert not set(rest.rows.tolist()) & set(held.rows.tolist())


def test_a_read_that_fails_is_tried_again_and_then_names_the_file(server: Server, tmp_path: Path) -> None:
    source = open_source(f"{server.address}/train-{{0..1}}.parquet")
    server.broken = 3
    assert reds(source, [30]) == [30]
    server.broken = 1000
    with pytest.raises(Failed, match=r"Can't read http://.*train-1.parquet, bytes from [\d,]+: .*503.* after 4 tries"):
        source.images(np.array([44]))
    server.broken = 0
    assert reds(source, [44]) == [44]


def test_a_file_that_changes_meanwhile_is_told(server: Server, tmp_path: Path) -> None:
    source = open_source(f"{server.address}/train-{{0..1}}.parquet")
    table(tmp_path / "www" / "train-1.parquet", range(100, 112))
    with pytest.raises(Failed, match=r"train-1.parquet has changed since it was opened: it had [\d,]+ bytes and are"):
        source.images(np.array([44]))
    assert told(open_source(f"{server.address}/train-{{0..1}}.parquet"))[24] == ["number 100"]


def test_a_row_group_that_is_damaged_is_told(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "www" / "train-0.parquet"
    data, column = bytearray(path.read_bytes()), pq.read_metadata(path).row_group(2).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + 60] = bytes(60)
    path.write_bytes(data)
    source = open_source(f"{server.address}/train-0.parquet")
    assert reds(source, [0, 23]) == [0, 23]
    with pytest.raises(Failed, match=r"Can't read http://.*/train-0.parquet, row group 2, in 2 tries: "):
        source.images(np.array([8]))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{server}/none.parquet", "none.parquet can't be read: it isn't there"),
        ("{server}/text.parquet", "text.parquet is no parquet file, or its end is missing"),
        ("{server}/cut.parquet", "cut.parquet is no parquet file, or its end is missing"),
        ("{server}/footer.parquet", "footer.parquet is no parquet file: "),
        ("{server}/train-0.parquet?a::{server}/none.parquet", "none.parquet can't be read: it isn't there"),
        ("{server}/{train-0,other}.parquet", "other.parquet has no column 'caption'; there are: image, words"),
        ("{server}/{train-0,numbers}.parquet", "numbers.parquet: caption can't be read as in the first file"),
        ("{server}/words.parquet", "has no column of pictures"),
        ("{server}/empty.parquet", "has no row with a picture and a caption"),
        ("http://127.0.0.1:1/a.parquet", "in 4 tries: Cannot connect"),
        ("memory://nowhere/*.parquet", "has no parquet files in it"),
        ("github://a/b.parquet", "no address that is read here"),
        ("hf-dataset:{www},streaming", "lies here and is mapped, not streamed: leave ',streaming' away"),
    ],
)
def test_what_is_wrong_is_told(spec: str, message: str, server: Server, tmp_path: Path) -> None:
    www = tmp_path / "www"
    (www / "text.parquet").write_text("no parquet\n" * 20)
    (www / "cut.parquet").write_bytes((www / "train-0.parquet").read_bytes()[:-20])
    (www / "footer.parquet").write_bytes(bytes(200) + (100).to_bytes(4, "little") + b"PAR1")
    rows = {"image": [png(1)], "words": ["a"]}
    datasets.Dataset.from_dict(rows).to_parquet(www / "other.parquet")
    datasets.Dataset.from_dict({"words": ["a"]}).to_parquet(www / "words.parquet")
    datasets.Dataset.from_dict({"image": rows["image"], "caption": [[1.5]]}).to_parquet(www / "numbers.parquet")
    datasets.Dataset.from_dict({"image": rows["image"], "caption": [""]}).to_parquet(www / "empty.parquet")
    with pytest.raises(InputError, match=message):
        open_source(spec.replace("{server}", server.address).replace("{www}", str(www)))


def test_memory_and_other_file_systems_are_read_too(tmp_path: Path) -> None:
    there = fsspec.filesystem("memory")
    there.pipe("/t/data/a.parquet", table(tmp_path / "a.parquet", range(9)).read_bytes())
    try:
        assert reds(open_source("memory://t"), [8, 1]) == [8, 1]
    finally:
        there.rm("/t", recursive=True)


@pytest.mark.slow
def test_workers_have_the_rows_of_one_process(server: Server, tmp_path: Path) -> None:
    """They are not forked, since the clients here have threads."""
    source = open_source(f"{server.address}/train-{{0..1}}.parquet")
    data = batches(source)
    server.asked.clear()
    found = [told["text"].flatten().tolist() for _, told, _ in loader(data, 0, 8, workers=3)]
    assert sum(pictures_asked(server, tmp_path / "www").values()) == 12
    assert found == [data[step][0]["text"].flatten().tolist() for step in range(8)]


def test_inspect_looks_into_a_few_row_groups_and_check_into_all(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = f"{server.address}/train-{{0..1}}.parquet"
    assert main(["data", "inspect", spec]) == 0
    said = capsys.readouterr().out
    assert "form: parquet at an address, 2 files" in said
    assert "captions: 48, 1 a picture" in said
    assert "(16 looked at)" in said
    assert "train-0.parquet, row 0: number 0" in said
    assert len(pictures_asked(server, tmp_path / "www")) == 4
    assert main(["data", "check", spec, "--workers", "0"]) == 0
    assert "48 pictures with captions, 0 can't be read." in capsys.readouterr().out
    fetched = pictures_asked(server, tmp_path / "www")
    assert len(fetched) == 12
    assert sum(fetched.values()) <= 14  # the first is looked into by each of the two


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_is_killed_and_goes_on_ends_as_the_undisturbed_one(
    processes: int, server: Server, forks: Forks, tmp_path: Path
) -> None:
    told = {
        **{"data": f"{server.address}/train-{{0..1}}.parquet", "batch_size": 8 // processes, "workers": 0},
        **{"model": "small", "preset": "quick", "steps": 8, "save_every": 2, "precision": "fp32", "vocabulary": 64},
    }
    forks.run_ranks("train", processes=processes, config={**told, "output": tmp_path / "whole"})
    more: list[dict[str, Any]] = [{"meet": ("step", 5)}, {}][:processes]
    children = forks.ranks("train", more, config={**told, "output": tmp_path / "killed"})
    assert children[0].wait() == -signal.SIGKILL, children[0].said[-3000:]
    for other in children[1:]:
        other.kill(signal.SIGKILL)
        other.wait()
    forks.run_ranks("train", processes=processes, config={**told, "output": tmp_path / "killed", "resume": True})
    for name in ("model.safetensors", "scores.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    table(tmp_path / "www" / "train-1.parquet", range(24, 48), bad=[30])
    child = forks.start("train", config={**told, "output": tmp_path / "killed", "resume": True, "steps": 12})
    assert child.wait() == 2
    assert "--allow-changed-data" in child.said
