"""Shards at an address: the rows of local ones, a window of shards at a time, by ranges; failures that say so."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

from tests.data.test_shards import png, shards, tar, told
from xmodal.data import remote_files
from xmodal.data.batches import Batches
from xmodal.data.orders import Windowed, order_of
from xmodal.data.shard_index import Index
from xmodal.data.source import Columns, form_of, open_pairs, open_source, splits
from xmodal.data.workers import loader, start_method
from xmodal.errors import BadSample, Failed, InputError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote_files, "PAUSE", 0.0)
    return tmp_path / "cache" / "xmodal" / "shards"


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[str]:
    """memory://… with 00000.tar and 00001.tar, and a folder for each of two splits."""
    there = fsspec.filesystem("memory")
    for folder, to in (("a", "s"), ("b", "split/train"), ("c", "split/validation")):
        for path in sorted(shards(tmp_path / folder).iterdir()):
            there.pipe(f"/{to}/{path.name}", path.read_bytes())
    yield "memory://"
    there.rm("/", recursive=True)


class Server:
    """HTTP with ranges from a folder. asked: what for; broken: how many more answers are refused."""

    def __init__(self, folder: Path) -> None:
        server = self
        self.asked: list[str] = []
        self.broken, self.ranges = 0, True

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._answer(body=False)

            def do_GET(self) -> None:
                self._answer(body=True)

            def _answer(self, body: bool) -> None:
                path = folder / self.path.partition("?")[0].lstrip("/")
                part = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
                server.asked.append(f"{self.command} {self.path} {part[0] if part else ''}".strip())
                if server.broken > 0 and body:
                    server.broken -= 1
                    self._send(503, b"", {})
                elif not path.is_file():
                    self._send(404, b"", {})
                else:
                    data = path.read_bytes()
                    more = {"ETag": f'"{path.stat().st_mtime_ns}"'}
                    if part and server.ranges:
                        stop = min(int(part[2] or len(data)), len(data) - 1)
                        more["Content-Range"] = f"bytes {part[1]}-{stop}/{len(data)}"
                        self._send(206, data[int(part[1]) : stop + 1], more, body)
                    else:
                        self._send(200, data, more, body)

            def _send(self, status: int, data: bytes, headers: dict[str, str], body: bool = True) -> None:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data if body else b"")

            def log_message(self, *_: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    found = Server(shards(tmp_path / "www"))
    yield found
    found.http.shutdown()
    found.http.server_close()


@pytest.mark.parametrize("spec", ["memory://s/{00000..00001}.tar", "memory://s", "memory://s/*.tar", "FILE", "HTTP"])
def test_rows_are_those_of_local_shards(spec: str, memory: str, server: Server, tmp_path: Path) -> None:
    local = open_source(str(tmp_path / "a"))
    spec = {"FILE": f"file://{tmp_path}/a", "HTTP": f"{server.address}/{{00000..00001}}.tar"}.get(spec, spec)
    source = open_source(spec)
    assert told(source) == told(local)
    assert source.fingerprint() == local.fingerprint()
    assert np.array_equal(source.image_id, local.image_id)
    pictures = source.images(np.array([6, 0, 3]))
    assert [np.asarray(picture)[0, 0, 0] for picture in pictures] == [6, 0, 3]
    assert isinstance(order_of(source), Windowed)
    assert form_of(spec) == "tar shards, 2 of them"


def test_a_folder_of_splits_and_sources_that_are_mixed(memory: str, tmp_path: Path) -> None:
    assert splits("memory://split") == ["train", "val"]
    train, tests = open_pairs("memory://split", None)
    assert (len(train), {name: len(test) for name, test in tests.items()}) == (7, {"val": 7})
    mixed = open_source(f"memory://s::{tmp_path / 'a'}", weights=[1, 2])
    assert len(mixed) == 14
    assert len(order_of(mixed)) == 21


def test_headers_are_gone_through_once_and_pictures_come_by_ranges(server: Server, own_cache: Path) -> None:
    spec = f"{server.address}/{{00000..00001}}.tar"
    open_source(spec)
    assert len(list(own_cache.iterdir())) == 3  # one for each, and both together
    server.asked.clear()
    source = open_source(spec)
    looked = [one for one in server.asked if "HEAD" not in one]  # pictures that tell the kind
    assert len(looked) == 7
    assert all("bytes=" in one for one in looked)
    path = own_cache.parents[2] / "www" / "00001.tar"
    path.write_bytes(path.read_bytes() + bytes(512))  # another size, another tag
    open_source(spec)
    assert len(list(own_cache.iterdir())) == 5
    for torn in list(own_cache.iterdir()):
        half = torn.read_bytes()[:100]
        torn.unlink()  # whoever has mapped it keeps it
        torn.write_bytes(half)
    assert told(open_source(spec)) == told(source)


def test_an_index_beside_a_shard_saves_the_pass(server: Server, tmp_path: Path, own_cache: Path) -> None:
    spec = f"{server.address}/{{00000..00001}}.tar"
    first = open_source(spec)
    for number, batch in enumerate(first._batches):  # pyright: ignore[reportAttributeAccessIssue]
        path = tmp_path / "www" / f"{number:05}.tar"
        Index([batch], path.stat().st_size, {"no image": 1}, f"{number}").write(path.with_name(f"{path.name}.index"))
    for kept in own_cache.iterdir():
        kept.unlink()
    server.asked.clear()
    again = open_source(spec)
    assert again.dropped == {"no image": 2}  # so it was read
    assert told(again) == told(first)
    assert open_source(spec, None, Columns(caption="url")).texts(0) == ["x"]  # of other captions it says nothing
    path = tmp_path / "www" / "00000.tar"
    path.write_bytes(path.read_bytes() + bytes(512))
    assert open_source(spec).dropped == {"no image": 1}  # of another shard, too


def test_a_read_that_fails_is_tried_again_and_then_names_the_shard(server: Server, tmp_path: Path) -> None:
    source = open_source(f"{server.address}/{{00000..00001}}.tar")
    server.broken = 3
    assert not any(isinstance(one, BadSample) for one in source.images(np.array([4])))
    server.broken = 100
    with pytest.raises(Failed, match=r"http://127.0.0.1:\d+/00001.tar, bytes from [\d,]+: .*503.* after 4 tries"):
        source.images(np.array([4]))
    server.broken, server.ranges = 0, False
    with pytest.raises(Failed, match="takes no ranges"):
        source.images(np.array([0, 4]))
    server.ranges = True
    (tmp_path / "www" / "00001.tar").write_bytes(b"short")
    with pytest.raises(Failed, match="00001.tar"):
        source.images(np.array([4]))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{server}/none.tar", "none.tar can't be read: it isn't there"),
        ("{server}/keys.tar", r"keys.tar has no picture with a caption: its members end in \.img"),
        ("{server}/text.tar", "text.tar is no tar file"),
        ("{server}/a.tar.gz", "is compressed"),
        ("{server}/a.csv", "a.csv is no tar shard"),
        ("http://127.0.0.1:1/a.tar", "in 4 tries: Cannot connect"),
        ("memory://nowhere", "nowhere is no tar shard"),
        ("memory://nowhere/*.tar", "has no .tar files in it"),
        ("github://a/b.tar", "no address that is read here: those begin with https"),
        ("simplecache::{server}/00000.tar", "No data 'simplecache'"),
        ("{server}/00000.tar::pipe:touch mark", "nothing is run"),
    ],
)
def test_what_is_wrong_with_an_address_is_told(spec: str, message: str, server: Server, tmp_path: Path) -> None:
    tar(tmp_path / "www" / "keys.tar", {"1.img": png(1), "1.lbl": "a"})
    (tmp_path / "www" / "text.tar").write_text("no tar\n" * 200)
    with pytest.raises(InputError, match=message):
        open_source(spec.replace("{server}", server.address))


def test_only_what_is_named_is_asked_for(server: Server, tmp_path: Path) -> None:
    """Nothing in captions, keys or records is opened."""
    inside = f"{server.address}/inside.tar"
    tar(tmp_path / "www" / "evil.tar", {"1.png": png(1), "1.txt": inside, "1.json": f'{{"url": "{inside}"}}'})
    source = open_source(f"{server.address}/evil.tar")
    source.images(np.arange(1))
    assert source.texts(0) == [inside]
    assert {one.split()[1] for one in server.asked} == {"/evil.tar", "/evil.tar.index"}


def view(pictures: Sequence[Any], draws: np.ndarray) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.asarray(p).copy()).permute(2, 0, 1) for p in pictures])


def lengths(texts: Sequence[str]) -> torch.Tensor:
    return torch.tensor([[int(text.split()[-1])] for text in texts])


def read(data: Batches, steps: Sequence[int]) -> list[list[int]]:
    return [data[step][0]["text"].flatten().tolist() for step in steps]


def test_parts_of_a_batch_are_the_whole(server: Server) -> None:
    source = open_source(f"{server.address}/{{00000..00001}}.tar")
    whole, *parts = (
        Batches(source, batch=3, part=part, seed=0, prepare_images=view, tokenize=lengths)
        for part in ((0, 3), (0, 1), (1, 3))
    )
    halves = zip(*(read(part, range(6)) for part in parts), strict=True)
    assert [a + b for a, b in halves] == read(whole, range(6))


def test_workers_have_clients_of_their_own_and_failures_come_from_them_as_they_are(server: Server) -> None:
    """They are not forked, since the clients here have threads."""
    source = open_source(f"{server.address}/{{00000..00001}}.tar")
    assert start_method(source, 1) == ("forkserver" if multiprocessing.get_start_method() == "fork" else None)
    data = Batches(source, batch=3, part=(0, 3), seed=0, prepare_images=view, tokenize=lengths)
    steps = loader(data, 0, 12, workers=1)
    found = [next(steps)[1]["text"].flatten().tolist() for _ in range(4)]
    assert found == read(data, range(4))
    server.broken = 10_000
    with pytest.raises(Failed, match=r"Can't read http://.*after 4 tries"):
        list(steps)
