"""Search: the right hits in a fixed order, both ways between pictures and texts, as table, JSON and page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xmodal
from tests.embedding.conftest import pictures
from xmodal.cli import main
from xmodal.embedding.embed import Config, run
from xmodal.embedding.index import open_index
from xmodal.embedding.search import Config as Search
from xmodal.embedding.search import run as search

TEXTS = ["a cat", "the dog runs", "a red house", "a cat", "<b>the</b> \x1b[31m park", "/etc/passwd", ""]


@pytest.fixture(scope="module")
def texts(sentences: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    (folder / "lines.txt").write_text("\n".join(TEXTS) + "\n\n")
    run(Config(model=sentences, data=str(folder / "lines.txt"), output=folder / "index"))
    return folder / "index"


@pytest.fixture(scope="module")
def images(dual: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    (pictures(folder / "pictures") / "0.png").write_bytes(b"")
    run(Config(model=dual, data=str(folder / "pictures"), output=folder / "index"))
    return folder / "index"


def test_hits_are_the_cosines_of_all_rows_best_first_and_ties_in_the_input_s_order(texts: Path, sentences: str) -> None:
    model = xmodal.load(sentences, device="cpu")
    expected = model.similarity(model.encode_query(["a cat"]), model.encode(TEXTS))[0].numpy()
    (answer,) = search(Search(index=texts, queries=("a cat",), top=100))
    assert [hit["rank"] for hit in answer["hits"]] == list(range(1, 9))
    scores = [hit["score"] for hit in answer["hits"]]
    assert scores == sorted(scores, reverse=True)
    for hit in answer["hits"]:
        if hit["row"] < len(TEXTS):
            assert hit["item"] == TEXTS[hit["row"]]
            assert hit["score"] == pytest.approx(float(expected[hit["row"]]), abs=1e-5)
    rows = [hit["row"] for hit in answer["hits"]]
    assert rows.index(0) + 1 == rows.index(3)  # the same text twice


def test_a_prompt_called_query_is_put_before_queries(sentences: str, tmp_path: Path) -> None:
    folder = tmp_path / "prompted"
    shutil.copytree(sentences.removeprefix("st:"), folder)
    told = json.loads((folder / "config_sentence_transformers.json").read_text())
    told["prompts"] = {"query": "red house ", "document": ""}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(told))
    (tmp_path / "lines.txt").write_text("red house a cat\na cat\n")
    run(Config(model=f"st:{folder}", data=str(tmp_path / "lines.txt"), output=tmp_path / "index"))
    first = [
        search(Search(index=tmp_path / "index", queries=("a cat",), prompt_name=name))[0]["hits"][0]
        for name in (None, "document")
    ]
    assert [hit["item"] for hit in first] == ["red house a cat", "a cat"]
    assert [hit["score"] for hit in first] == pytest.approx([1, 1], abs=1e-5)


def test_texts_find_pictures_and_pictures_find_themselves(images: Path, dual: str) -> None:
    model = xmodal.load(dual, device="cpu")
    files = [images.parent / "pictures" / f"{i}.png" for i in range(1, 10)]
    by_text, by_image = search(Search(index=images, queries=("a dog",), image=(files[4],), top=9))
    cosines = (model.encode_text(["a dog"]) @ model.encode_image(files).T)[0].tolist()
    assert {hit["item"]: hit["score"] for hit in by_text["hits"]} == pytest.approx(
        {f"{i}.png": c for i, c in enumerate(cosines, 1)}, abs=1e-5
    )
    assert by_text["hits"][0]["row"] == int(np.argmax(cosines)) + 1  # 0.png is bad and has no row
    assert (by_image["hits"][0]["item"], by_image["hits"][0]["row"]) == ("5.png", 5)
    assert by_image["hits"][0]["score"] == pytest.approx(1, abs=1e-5)


def test_a_picture_finds_texts(dual: str, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("a cat\na dog\n")
    run(Config(model=dual, data=str(tmp_path / "lines.txt"), output=tmp_path / "index"))
    picture = pictures(tmp_path / "pictures", 1) / "0.png"
    (answer,) = search(Search(index=tmp_path / "index", image=(picture,)))
    assert {hit["item"] for hit in answer["hits"]} == {"a cat", "a dog"}


def test_faiss_finds_the_same_among_few_and_is_built_once(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("faiss")
    queries = ("a cat", "the park")
    exact = search(Search(index=texts, queries=queries, top=3))
    for _ in range(2):
        found = search(Search(index=texts, queries=queries, top=3, faiss=True))
        for a, b in zip(found, exact, strict=True):
            assert [h["score"] for h in a["hits"]] == pytest.approx([h["score"] for h in b["hits"]], abs=1e-5)
    assert capsys.readouterr().out.count("Building") == 1
    (texts / "hnsw.faiss").write_bytes(b"nothing")
    assert main(["search", str(texts), "a cat", "--faiss"]) == 2
    (texts / "hnsw.faiss").unlink()


def test_the_table_json_and_page_show_text_as_text(
    texts: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = ["--json", str(tmp_path / "hits.json"), "--html", str(tmp_path / "hits.html"), "--top", "9"]
    assert main(["search", str(texts), *outputs, "<script>x</script>"]) == 0
    printed = capsys.readouterr().out
    assert "<b>the</b>  [31m park" in printed
    assert "\x1b" not in printed
    told = json.loads((tmp_path / "hits.json").read_text())
    assert told["exact"] is True
    assert len(told["answers"][0]["hits"]) == 8
    page = (tmp_path / "hits.html").read_text()
    assert "&lt;script&gt;x&lt;/script&gt;" in page
    assert "&lt;b&gt;the&lt;/b&gt;" in page
    assert "<script" not in page
    assert "\x1b" not in page

    shutil.move(images.parent / "pictures" / "3.png", tmp_path / "elsewhere.png")
    asked = ["--image", str(images.parent / "pictures" / "1.png"), "--html", str(tmp_path / "pictures.html")]
    assert main(["search", str(images), *asked]) == 0
    page = (tmp_path / "pictures.html").read_text()
    assert page.count("data:image/") == 9  # eight of nine hits are there still, and the query
    assert ">missing</span>" in page
    assert "http:" not in page
    assert "https:" not in page
    shutil.move(tmp_path / "elsewhere.png", images.parent / "pictures" / "3.png")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["INDEX"], "needs something to ask with"),
        (["nowhere", "a"], "nowhere is no folder; make one: xmodal embed"),
        (["INDEX", "a", "--top", "0"], "--top is 0; expected at least 1"),
        (["INDEX", "--image", "a.png"], "takes texts alone"),
        (["INDEX", "a", "--model", "DUAL"], "gives 24 numbers, the rows of"),
        (["INDEX", "a", "--prompt-name", "passage"], "no prompt 'passage'"),
        (["IMAGES", "--image", "nowhere.png"], "--image: missing"),
    ],
)
def test_wrong_input_is_told_in_a_line(
    flags: list[str], message: str, texts: Path, images: Path, dual: str, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {"INDEX": str(texts), "IMAGES": str(images), "DUAL": dual}
    assert main(["search", *(known.get(flag, flag) for flag in flags)]) == 2
    assert message in capsys.readouterr().err


def damaged(index: Path, how: str) -> None:
    about = json.loads((index / "index.json").read_text())
    if how == "rows":
        (index / "embeddings.npy").write_bytes((index / "embeddings.npy").read_bytes()[:-4])
    elif how == "fewer":
        np.save(index / "embeddings.npy", np.load(index / "embeddings.npy")[1:])
    elif how == "pickle":
        np.save(index / "embeddings.npy", np.array([{}], dtype=object), allow_pickle=True)
    elif how == "items":
        (index / "items.parquet").write_bytes(b"PAR1")
    elif how == "raw":
        (index / "index.json").write_text(json.dumps({**about, "normalized": False}))
    else:
        (index / "index.json").write_text(json.dumps({**about, "weights": "0" * 64}))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("rows", "damaged index"),
        ("fewer", "of other sizes"),
        ("pickle", "damaged index"),
        ("items", "damaged index"),
        ("raw", "rows that are not unit"),
        ("weights", "other weights now"),
    ],
)
def test_an_index_that_does_not_hold_is_refused(
    how: str, message: str, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(texts, tmp_path / "index")
    damaged(tmp_path / "index", how)
    assert main(["search", str(tmp_path / "index"), "a"]) == 2
    assert message in capsys.readouterr().err


def test_rows_stay_on_disk(texts: Path) -> None:
    index: Any = open_index(texts)
    assert isinstance(index.rows, np.memmap)
