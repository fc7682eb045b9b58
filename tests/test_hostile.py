"""Nothing in data, models or texts is executed, followed, fetched or rendered; that each payload is live is shown."""

from __future__ import annotations

import csv
import importlib.util
import json
import pickle
import re
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests import attacks
from tests.forks import Forks


@pytest.fixture(scope="module")
def folder(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the attacks have been made."""
    folder = tmp_path_factory.mktemp("hostile")
    attacks.prepare(folder)
    forks.run("attacks.trained", folder=folder)
    before = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))
    forks.run("attacks.all_of_them", folder=folder)
    (folder / "before.json").write_text(json.dumps(before))
    return folder


@pytest.fixture
def found(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "found.json").read_text())


@pytest.fixture
def marks(folder: Path) -> Iterator[Path]:
    """Where payloads leave their marks; a control that has left one is tidied up after."""
    assert not list((folder / "marks").iterdir())
    yield folder / "marks"
    for mark in (folder / "marks").iterdir():
        mark.unlink()


REFUSED = {
    "a command as data": "is a command; nothing is run because of a name",
    "a pickle as a model": "evil.pt",
    "a folder with a pickle as a model": "a pickle, which can run code",
    "a pickle as a checkpoint": "method.safetensors is damaged or no safetensors file",
    "objects in a configuration": "is no YAML: line 1: could not determine a constructor",
    "a model with code": "code of its own, which isn't run here",
    "a module of another's": attacks.FOREIGN,
    "a dataset with code": "cannot be opened",
    "an array of objects": "is a damaged index",
}


@pytest.mark.parametrize("attack", REFUSED)
def test_what_can_t_be_trusted_is_refused(attack: str, found: dict[str, Any]) -> None:
    told = found[attack]
    if told["outcome"] != 2:  # of the command line; `load` raises
        assert str(told["outcome"]).startswith("InputError: ")
    assert re.search(REFUSED[attack], f"{told['said']} {told['outcome']}"), told
    assert "Traceback" not in told["said"]


@pytest.mark.parametrize("attack", attacks.ATTACKS)
def test_nothing_is_started_fetched_or_unpickled(attack: str, found: dict[str, Any]) -> None:
    assert found[attack]["events"] == []


def test_the_hook_sees_what_it_is_there_to_see(found: dict[str, Any]) -> None:
    seen = " ".join(found["the hook itself"]["events"])
    for event in ("open ", "socket.connect", "pickle.find_class", "os.system"):
        assert event in seen


def test_no_file_is_left_but_what_was_asked_for(folder: Path) -> None:
    now = {p.relative_to(folder).as_posix() for p in folder.rglob("*")}
    new = now - set(json.loads((folder / "before.json").read_text()))
    allowed = ("found", "cosines.csv", "before.json", "exchanged/", "__pycache__")
    assert {name for name in new if not name.startswith(allowed)} == set()
    assert not list((folder / "marks").iterdir())
    assert not list((folder / "inside").iterdir())
    assert not (folder.parent / "above.png").exists()


def test_a_shard_gives_its_good_rows_and_nothing_else(found: dict[str, Any]) -> None:
    def rows(attack: str) -> dict[str, list[str]]:
        told = found[attack]["outcome"]["rows"]
        return {key.partition(":")[2]: row for key, row in told.items()}

    good = {"0": ["good", "fine"]}
    assert rows("pickles in a tar") == {**good, "1": ["a pickle as a picture", "no image"]}
    assert rows("members above the folder") == {**good, "../../above": ["above", "fine"]}  # a key, and no path
    assert len(rows("absolute members")) == 2
    assert rows("links in a tar") == rows("devices in a tar") == good
    assert found["links in a tar"]["outcome"]["left out"]["links and devices"] == 2
    assert found["devices in a tar"]["outcome"]["left out"]["links and devices"] == 3
    assert found["a pipe as a picture"]["outcome"]["rows"]["fifo.png"] == ["a pipe", "not a file"]


# The controls: what opens the same file without care runs it, follows it or waits for ever.


def test_the_pickles_are_live(folder: Path, marks: Path) -> None:
    with tarfile.open(folder / "pickles.tar") as tar:
        for name in ("0.pkl", "1.png"):
            stream = tar.extractfile(name)
            assert stream is not None
            pickle.loads(stream.read())
    assert (marks / "tar").exists()
    for file, mark in ((folder / "evil.pt", "model"), (folder / "bin" / "pytorch_model.bin", "bin")):
        pickle.loads(file.read_bytes())
        assert (marks / mark).exists()
    pickle.loads((folder / "exchanged" / "checkpoints" / "step-3" / "method.safetensors").read_bytes())
    assert (marks / "checkpoint").exists()
    np.load(folder / "index" / "embeddings.npy", allow_pickle=True)
    assert (marks / "npy").exists()


def test_the_command_the_yaml_and_the_modules_are_live(folder: Path, marks: Path) -> None:
    subprocess.run(f"touch {marks / 'pipe.tar'}", shell=True, check=True)
    assert (marks / "pipe.tar").exists()
    yaml.unsafe_load((folder / "evil.yaml").read_text())
    assert (marks / "yaml").exists()
    for place in ("auto_map", "modules"):
        spec = importlib.util.spec_from_file_location("control", folder / place / f"{attacks.FOREIGN}.py")
        assert spec is not None
        assert spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
        assert (marks / "code").exists()
        (marks / "code").unlink()


def test_the_members_and_the_pipe_are_live(folder: Path, marks: Path, tmp_path: Path) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    for name in ("above", "absolute", "links"):
        with tarfile.open(folder / f"{name}.tar") as tar:
            members = [m for m in tar if m.name != "2.txt"]  # a hard link across file systems can't be made
            tar.extractall(inside, members, filter="fully_trusted")
    assert (tmp_path / "above.png").exists()
    assert (marks / "absolute.png").exists()
    assert (inside / "1.txt").read_text() == "secret"

    class Waited(Exception):
        pass

    def wake(*_: object) -> None:
        raise Waited

    before = signal.signal(signal.SIGALRM, wake)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(Waited):
            (folder / "fifo.png").read_bytes()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Page(HTMLParser):
    """What a browser would make of it: the tags, what their attributes are called, the title."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.titles = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.titles += tag == "title"
        self.attributes |= {name for name, _ in attrs}
        assert tag != "img" or str(dict(attrs)["src"]).startswith("data:image/")


@pytest.mark.parametrize("name", ["run/report.html", "found.html"])
def test_texts_in_a_page_are_text(name: str, folder: Path) -> None:
    text = (folder / name).read_text()
    page = Page(text)
    assert not page.tags & {"script", "iframe", "object", "embed", "link", "form", "base"}
    assert not any(attribute.startswith("on") for attribute in page.attributes)
    assert page.titles == 1
    assert "owned" in text
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "default-src 'none'" in text


def test_the_texts_are_live() -> None:
    live = Page(" ".join(attacks.HOSTILE_TEXTS).replace("src=x", "src=data:image/"))
    assert "script" in live.tags
    assert "onerror" in live.attributes


@pytest.mark.parametrize("attack", ["texts in a terminal", "texts that are listed", "texts in a page"])
def test_texts_in_a_terminal_are_text(attack: str, found: dict[str, Any]) -> None:
    said = found[attack]["said"]
    assert found[attack]["outcome"] == 0
    assert "cleared" in said or "onerror" in said
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", said)


def test_texts_in_a_table_are_no_formulas(folder: Path) -> None:
    with (folder / "cosines.csv").open(newline="") as stream:
        rows = list(csv.reader(stream))
    cells = [cell for row in rows[1:] for cell in row[:2]]
    assert "'=cmd|'/c calc'!A1" in cells
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]
    assert all(-1 <= float(row[2]) <= 1 for row in rows[1:])


def test_texts_that_name_files_and_addresses_are_embedded_as_texts(found: dict[str, Any]) -> None:
    assert found["texts that name files and addresses"]["outcome"] == [[6, 64], [6, 32]]
