"""Embedding into files: the same bytes however often it was killed, every form, and what is wrong with an input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet
from safetensors.numpy import load_file

import xmodal
from tests.embedding.conftest import pictures
from xmodal.embedding import embedder
from xmodal.embedding.embed import Config, run
from xmodal.embedding.parts import Parts
from xmodal.errors import InputError

WORDS = ["a", "the", "cat", "dog", "runs", "sleeps", "on", "in", "park", "house", "red", "blue"]
TEXTS = [" ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 2 + i % 9)) for i in range(50)]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedder, "SIZE", {"text": 8, "image": 4})


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    file = tmp_path / "lines.txt"
    file.write_text("\n".join(TEXTS) + "\n")
    return file


def contents(output: Path) -> dict[str, bytes]:
    files = sorted(output.iterdir()) if output.is_dir() else sorted(output.parent.glob(output.stem + ".*"))
    return {file.name: file.read_bytes() for file in files}


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".parquet", ""])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_form_holds_the_rows_in_the_input_s_order(
    suffix: str, dtype: Any, sentences: str, lines: Path, tmp_path: Path
) -> None:
    output = tmp_path / f"out{suffix}"
    about = run(Config(model=sentences, data=str(lines), output=output, dtype=dtype))
    expected = xmodal.load(sentences, device="cpu").encode(TEXTS, normalize_embeddings=True)
    if suffix == ".npy":
        found = np.load(output)
    elif suffix == ".safetensors":
        found = load_file(output)["embeddings"]
    elif suffix == ".parquet":
        table = parquet.read_table(output)
        assert table["text"].to_pylist() == TEXTS
        assert table["row"].to_pylist() == list(range(50))
        found = np.array(table["embedding"].to_pylist(), dtype=dtype)
    else:
        found = np.load(output / "embeddings.npy")
        assert parquet.read_table(output / "items.parquet")["text"].to_pylist() == TEXTS
        assert json.loads((output / "index.json").read_text()) == about
    assert found.dtype == dtype
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < (1e-6 if dtype == "float32" else 1e-3)
    assert not list(tmp_path.glob("*.parts"))
    assert (about["rows"], about["width"], about["skipped"]) == (50, 32, 0)


@pytest.mark.parametrize("suffix", [".npy", ".parquet", ""])
def test_what_was_interrupted_goes_on_and_ends_with_the_same_bytes(
    suffix: str, sentences: str, lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, torn = tmp_path / "whole" / f"out{suffix}", tmp_path / "torn" / f"out{suffix}"
    run(Config(model=sentences, data=str(lines), output=whole))
    write, done = Parts.write, []

    def stumble(self: Parts, part: Any, *rest: Any) -> None:
        if len(done) % 3 == 2:
            done.append(None)
            raise KeyboardInterrupt
        write(self, part, *rest)
        done.append(part.number)

    monkeypatch.setattr(Parts, "write", stumble)
    stops = 0
    while not torn.exists():
        try:
            run(Config(model=sentences, data=str(lines), output=torn))
        except KeyboardInterrupt:
            stops += 1
    assert stops == 3
    assert [n for n in done if n is not None] == list(range(7))  # nothing was computed twice
    assert contents(torn) == contents(whole)


def test_a_part_that_was_torn_is_computed_again(
    sentences: str, lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.npy"
    with monkeypatch.context() as patched:
        patched.setattr(Parts, "finished", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(Config(model=sentences, data=str(lines), output=output))
    torn = tmp_path / "out.npy.parts" / "part-000003.npy"
    torn.write_bytes(torn.read_bytes()[:-40])
    run(Config(model=sentences, data=str(lines), output=output))
    again = tmp_path / "again" / "out.npy"
    run(Config(model=sentences, data=str(lines), output=again))
    assert contents(output)["out.npy"] == contents(again)["out.npy"]


KILLED = """
import sys
from pathlib import Path
import numpy as np
from xmodal.embedding.inputs import Texts
from xmodal.embedding.outputs import assemble
from xmodal.embedding.parts import Parts

source, output = Texts(sys.argv[1]), Path(sys.argv[2])
parts = Parts(output)
parts.claim({"width": 64})
count = 0
for part in source.parts(10):
    count += 1
    if not parts.has(part):
        rows = np.array([[hash((len(t), i)) % 97 for i in range(64)] for t in part.items], dtype=np.float32)
        parts.write(part, rows, np.arange(len(rows)), {}, 0)
assemble(parts, parts.finished(count), output, "text", {"width": 64})
parts.remove()
"""


def test_killed_at_any_moment_the_index_is_the_same(tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("".join(f"{'x' * (i % 300)}\n" for i in range(3000)))

    def start(output: Path) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", KILLED, str(lines), str(output)], stderr=subprocess.PIPE)

    began = time.monotonic()
    process = start(tmp_path / "whole")
    assert process.wait() == 0, process.stderr and process.stderr.read()
    lasts = time.monotonic() - began
    rng = np.random.default_rng(0)
    kills = 0
    for _ in range(8):
        process = start(tmp_path / "torn")
        time.sleep(lasts * rng.uniform(0.3, 0.95))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() != 0
    while not (tmp_path / "torn").exists() or (tmp_path / "torn.parts").exists():
        assert not (tmp_path / "torn").exists() or contents(tmp_path / "torn") == contents(tmp_path / "whole")
        assert start(tmp_path / "torn").wait() == 0
    assert kills > 0
    assert contents(tmp_path / "torn") == contents(tmp_path / "whole")


def test_parts_of_another_setting_model_or_input_are_refused(
    sentences: str, dual: str, lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    config = Config(model=sentences, data=str(lines), output=output)
    with monkeypatch.context() as patched:
        patched.setattr(Parts, "finished", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(config)
    with pytest.raises(InputError, match="another dtype: 'float32' there, 'float16' now"):
        run(Config(model=sentences, data=str(lines), output=output, dtype="float16"))
    with pytest.raises(InputError, match="another weights"):
        run(Config(model=dual, data=str(lines), output=output))
    lines.write_text("\n".join([*TEXTS[:20], "another", *TEXTS[21:]]))
    with pytest.raises(InputError, match="rows from 16 on are others"):
        run(config)
    lines.write_text("\n".join(TEXTS[:16]))
    with pytest.raises(InputError, match="it was longer"):
        run(config)
    assert run(Config(model=sentences, data=str(lines), output=output, overwrite=True))["rows"] == 16
    with pytest.raises(InputError, match="exists already"):
        run(config)


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_that_cannot_be_read_are_left_out_and_named(workers: int, dual: str, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures")
    for i in (4, 5, 6, 7):  # a whole part
        (folder / f"{i}.png").write_text("<html>")
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_bytes(b"")
    about = run(Config(model=dual, data=str(folder), output=tmp_path / "index", workers=workers))
    assert (about["kind"], about["rows"], about["skipped"]) == ("image", 6, 4)
    left = [0, 1, 2, 3, 8, 9]
    items = parquet.read_table(tmp_path / "index" / "items.parquet")
    assert items["image"].to_pylist() == [f"{i}.png" for i in left]
    assert items["row"].to_pylist() == left
    skipped = [json.loads(line) for line in (tmp_path / "index" / "skipped.jsonl").read_text().splitlines()]
    assert skipped == [{"row": i, "item": f"{i}.png", "reason": "no image"} for i in (4, 5, 6, 7)]
    expected = xmodal.load(dual, device="cpu").encode_image([folder / f"{i}.png" for i in left]).numpy()
    assert np.abs(np.load(tmp_path / "index" / "embeddings.npy") - expected).max() < 1e-6


def test_a_table_has_pictures_or_texts(dual: str, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures", 3)
    both = tmp_path / "both.csv"
    both.write_text("image,caption\n" + "".join(f"pictures/{i}.png,a cat {i}\n" for i in (2, 0, 1, 2)))
    texts = run(Config(model=dual, data=str(both), output=tmp_path / "texts"))
    assert (texts["kind"], texts["rows"]) == ("text", 4)
    images = run(Config(model=dual, data=str(both), output=tmp_path / "images", kind="image"))
    assert (images["kind"], images["rows"]) == ("image", 3)
    alone = tmp_path / "alone.csv"
    alone.write_text("image,source\n" + "pictures/1.png,web\n")
    assert run(Config(model=dual, data=str(alone), output=tmp_path / "alone"))["kind"] == "image"
    assert folder.is_dir()


def test_what_is_no_text_is_replaced_and_what_is_too_long_is_cut_and_both_are_counted(
    sentences: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_bytes(b"a cat\nnul \0 here\nbroken \xff\n" + b"dog " * 25_000 + b"\n/etc/passwd\n")
    about = run(Config(model=sentences, data=str(lines), output=tmp_path / "out"))
    assert (about["rows"], about["replaced"], about["truncated"]) == (5, 2, 2)  # the path, too, has many pieces
    told = capsys.readouterr().out
    assert "longer than the model takes and are cut: 2" in told
    assert "(U+FFFD stands for it): 2" in told
    assert parquet.read_table(tmp_path / "out" / "items.parquet")["text"].to_pylist()[4] == "/etc/passwd"


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"data": "nowhere.txt"}, "No file 'nowhere.txt'"),
        ({"data": "empty.txt"}, "is empty"),
        ({"data": "bare.csv"}, "has nothing to embed"),
        ({"output": Path("out.csv")}, "a name ends in .npy"),
        ({"output": Path("full")}, "stays as it is"),
        ({"output": Path("full"), "overwrite": True}, "a folder of something else"),
        ({"data": "pictures"}, "takes texts alone"),
        ({"data": "full"}, "has no pictures in it"),
        ({"data": "lines.txt", "kind": "image"}, "pictures come from a folder"),
        ({"prompt_name": "passage"}, "no prompt .passage.; it has document, query"),
        ({"data": "table.csv", "column": "txt"}, "did you mean 'text'"),
    ],
)
def test_wrong_input_is_told_in_a_line(
    told: dict[str, Any], message: str, sentences: str, lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").touch()
    Path("bare.csv").write_text("text,title\n")
    Path("full").mkdir()
    Path("full/file").touch()
    Path("table.csv").write_text("text,title\na,b\n")
    pictures(tmp_path / "pictures", 1)
    with pytest.raises(InputError, match=message):
        run(Config(**{"model": sentences, "data": "lines.txt", "output": Path("out"), **told}))
    assert sorted(os.listdir("full")) == ["file"]
    assert not Path("out.parts").exists()


def test_a_folder_of_pictures_alone_that_are_bad_is_an_error(dual: str, tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match="No picture of .* can be read; the first: a.png, empty"):
        run(Config(model=dual, data=str(folder), output=tmp_path / "out"))
