"""The page as a browser reads it: what is framed, what is missing, and that data stays data."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from xmodal import distributed
from xmodal.data.decode import decode
from xmodal.errors import BadSample
from xmodal.evaluators.embed import Embedded
from xmodal.evaluators.evaluate import score_retrieval, together
from xmodal.report import page as report
from xmodal.report.evaluated import Before, Classified, Evaluated
from xmodal.report.page import write_page
from xmodal.report.thumbnails import MOST_BYTES, SIDE, data_uri

HOSTILE = ("<img src=x onerror=alert(1)>", "</style><script>alert(1)</script>", "' onmouseover='alert(1)",
           '"><svg onload=alert(1)>', "{{ 7 * 7 }}\x1b]0;title\x07\u202e", "half \ud800", "&lt;b&gt;")  # fmt: skip


@dataclass
class Pictures:
    """A source of one picture for each row, each of another grey."""

    count: int = 6
    names: Sequence[str] = ()
    bad: tuple[int, ...] = ()
    side: int = 8
    noise: bool = False
    asked: list[int] = field(default_factory=list)

    def images(self, rows: np.ndarray) -> list[Any]:
        self.asked += rows.tolist()
        return [BadSample("truncated", "at 3") if row in self.bad else self.picture(int(row)) for row in rows]

    def picture(self, row: int) -> np.ndarray:
        shape = self.side, self.side, 3
        if self.noise:
            return np.random.default_rng(row).integers(0, 256, shape, dtype=np.uint8)
        return np.full(shape, 20 + row, dtype=np.uint8)

    def key(self, row: int) -> str:
        return self.names[row] if self.names else f"{row}.png"


class Reader(HTMLParser):
    """Elements with their attributes and, of each, the ones around it; and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def embedded(n: int = 6, texts: Sequence[str] = (), shift: int = 0) -> Embedded:
    """n pictures and texts, text i nearest to picture i + shift and right for picture i."""
    image = torch.nn.functional.normalize(torch.eye(n) + 0.1, dim=1)
    pairs = np.repeat(np.arange(n)[:, None], 2, axis=1)
    names = [*texts, *(f"caption {i}" for i in range(len(texts), n))]
    return Embedded(image, image.roll(-shift, 0), pairs, np.arange(n), names, 0)


def written(folder: Path, **more: Any) -> str:
    given: dict[str, Any] = {"title": "a run", "protocol": {}, "scores": {}, **more}
    path = write_page(folder, **given)
    assert path == folder / "report.html"
    assert not list(folder.glob("*.tmp"))
    return path.read_text(encoding="utf-8")


def scored(test: Embedded, source: Any = None, name: str = "val") -> dict[str, Any]:
    protocol, scores = together({name: score_retrieval(test, name)})
    return {"protocol": protocol, "scores": scores, "evaluated": {name: Evaluated(source or Pictures(), test)}}


def test_data_stays_data(tmp_path: Path) -> None:
    names = [*HOSTILE]
    n = len(names)
    (tmp_path / "config.yaml").write_text(f"model: {json.dumps(HOSTILE[0])}\n{json.dumps(HOSTILE[1])}: 1\n")
    (tmp_path / "metrics.jsonl").write_text(
        json.dumps({"step": 1, "loss": 1.0, HOSTILE[0]: 2.0, "warning": HOSTILE[1]}) + "\n"
    )
    given = scored(embedded(n, names), Pictures(n, names, bad=(2,)), HOSTILE[1])
    given["evaluated"][HOSTILE[0]] = Classified(names, np.ones((n, n), dtype=int))
    given["protocol"] = {HOSTILE[0]: {HOSTILE[1]: HOSTILE[3]}, "list": names}
    scan = {a: {f"{HOSTILE[0]}/top1": a} for a in (0.0, 1.0)}
    page = written(tmp_path, **{**given, "title": HOSTILE[1], "scan": scan})

    found = Reader(page)
    assert not {"script", "iframe", "object", "embed", "link", "base", "form", "svg"} & {t for t, _ in found.elements}
    for _, attributes in found.elements:
        assert not [name for name in attributes if name.startswith("on")]
        assert re.fullmatch(r"((--\w+: [\d.]+%?(; )?)*)", attributes.get("style", ""))
        for name in ("src", "srcset"):
            assert attributes.get(name, "data:image/png;").startswith(
                ("data:image/png;", "data:image/jpeg;", "data:image/svg+xml;")
            )
        assert attributes.get("href", "#").startswith("#")
        assert not {"action", "formaction", "background", "poster", "data"} & set(attributes)
    assert len(found.all("style")) == 1
    assert "url(" not in page
    assert "@import" not in page
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert {"http-equiv": "Content-Security-Policy", "content": policy} in found.all("meta")
    for hostile in (*HOSTILE[:4], "{{ 7 * 7 }}", "&lt;b&gt;"):
        assert " ".join(hostile.split()) in found.text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", page)


def test_the_right_picture_is_framed(tmp_path: Path) -> None:
    """Text i is nearest to picture i + 1, its own comes second to last: never among the five of eight."""
    page = written(tmp_path, **scored(embedded(8), Pictures(8)))
    for query, shelf in queries(page):
        assert framed(shelf) == [f"{query}.png"]
        assert "rank 1</span> of 8" in shelf
        assert shelf.count("<li") == 5
    page = written(tmp_path, **scored(embedded(8, shift=1), Pictures(8)))
    some = list(queries(page))
    assert len(some) == 6  # two of a kind
    for query, shelf in some:
        assert titles(shelf)[0] == f"{(query + 1) % 8}.png"
        assert framed(shelf) == [f"{query}.png"]
        assert "rank 8</span> of 8" in shelf or 'class="right missed"' not in shelf


def test_a_thumbnail_is_of_its_row(tmp_path: Path) -> None:
    """The embeddings' third picture is the source's row 8."""
    test = dataclasses.replace(embedded(3), rows=np.array([2, 5, 8]))
    page = written(tmp_path, **scored(test, Pictures(9)))
    shown = {a["title"]: a["src"] for a in Reader(page).all("img") if a.get("title")}
    assert set(shown) == {"2.png", "5.png", "8.png"}
    for name, uri in shown.items():
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
        assert (pixels == 20 + int(name[0])).all()


def test_the_other_direction(tmp_path: Path) -> None:
    page = written(tmp_path, **scored(embedded(6)))
    part = page[page.index('class="group image_to_text') :]
    articles = re.findall(r"<article.*?</article>", part, re.S)
    assert len(articles) == 6
    for article in articles:
        query = titles(article)[0].removesuffix(".png")
        assert re.findall(r'<li class="right">.*?<bdi>caption (\d)</bdi>', article, re.S) == [query]
        assert article.count("<li") == 5


def test_unreadable_pictures(tmp_path: Path) -> None:
    page = written(tmp_path, **scored(embedded(6), Pictures(bad=tuple(range(6)))))
    assert "truncated" in Reader(page).text
    assert not Reader(page).all("img")


@pytest.mark.parametrize("n", [1, 2])
def test_hardly_any_pictures(tmp_path: Path, n: int) -> None:
    page = written(tmp_path, **scored(embedded(n), Pictures(n)))
    assert len(list(queries(page))) == n
    assert ("Similarities of" in page) == (n > 1)


def test_an_empty_run(tmp_path: Path) -> None:
    found = Reader(written(tmp_path))
    assert "This run was not evaluated." in found.text
    assert not found.all("img")


def test_files_that_are_wrong(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": null}\n{"step": 2, "lo')
    (tmp_path / "config.yaml").write_text("model: [")
    found = Reader(written(tmp_path, scores={"val/image_to_text/R@1": {"value": None, "low": None, "high": None}}))
    assert "config.yaml could not be read" in found.text
    assert "val, image → text" in found.text


def test_settings_and_curves(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: small\nval: null\noutput: /home/me/run\nbeta1: 0.9\n")
    lines = [{"step": s, "loss": 1 / s, "lr": 1e-3, "floor": 0.0} for s in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = written(tmp_path)
    found = Reader(page)
    assert "model small" in found.text
    assert "steps done 3" in found.text
    assert "beta1 0.9" in found.text
    assert "/home/me" not in page
    assert [a["alt"].split(",")[0] for a in found.all("img")] == ["Plot: Loss", "Plot: Learning rate"]
    assert len(found.all("source")) == 2  # the same in the dark


@pytest.mark.parametrize(("image_loss", "distill"), [("simclr", "null"), ("none", "rows/teacher")])
def test_what_is_learnt_beside_the_pairs_is_among_the_first_settings(
    tmp_path: Path, image_loss: str, distill: str
) -> None:
    (tmp_path / "config.yaml").write_text(f"model: small\nimage_loss: {image_loss}\ndistill: {distill}\nlora: null\n")
    first = Reader(written(tmp_path)).text.partition("Protocol and settings")[0]
    assert ("image loss simclr" in first) == (image_loss == "simclr")
    assert ("distill rows/teacher" in first) == (distill != "null")
    assert "image loss none" not in first


def test_what_the_guards_warned_of_is_in_a_table(tmp_path: Path) -> None:
    lines = [{"step": s, "warning": f"collapse: mean cosine 0.98{s}"} for s in range(1, 7)] + [{"step": 9, "loss": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = Reader(written(tmp_path))
    assert "after step warning 1, 2, 3, 4 … 6 collapse: mean cosine 0.986" in " ".join(found.text.split())
    (tmp_path / "metrics.jsonl").write_text(json.dumps(lines[-1]) + "\n")
    assert 'id="warnings"' not in written(tmp_path)


def test_before_and_after(tmp_path: Path) -> None:
    now, then = embedded(6), embedded(6, shift=1)
    given = scored(now)
    before = Before(scored(then)["scores"], {"val": Evaluated(Pictures(), then)})
    page = written(tmp_path, **given, before=before)
    for article in re.findall(r"<article.*?</article>", page, re.S):
        old, new = re.findall(r'<div class="shelf">.*?</ol>', article, re.S)
        assert "<b>before</b>" in old
        assert "<b>after</b>" in new
        assert "rank 1<" in new
        assert "rank 1<" not in old
    for query, shelf in queries(page):  # its last shelf
        assert framed(shelf) == [f"{query}.png"]
    assert re.search(r'<td class="better">\s*<span class="value">\+100\.0<', page)
    assert page.count("cosines from") == 2


def test_before_of_other_pictures(tmp_path: Path) -> None:
    then = dataclasses.replace(embedded(6), rows=np.arange(1, 7))
    before = Before(scored(then)["scores"], {"val": Evaluated(Pictures(7), then)})
    page = written(tmp_path, **scored(embedded(6)), before=before)
    assert "nothing to set beside these" in " ".join(page.split())
    assert "<b>before</b>" not in page
    assert "<h2>Before and after</h2>" in page


def test_confusion_small_and_large(tmp_path: Path) -> None:
    names = ["cat", "dog", "emu"]
    table = np.array([[7, 2, 0], [0, 9, 0], [1, 0, 8]])
    before = Before({}, {"zero_shot": Classified(names, table.T)})
    page = written(tmp_path, evaluated={"zero_shot": Classified(names, table)}, before=before)
    was, now = (re.findall(r'<td style="--heat: ([\d.]+)"[^>]*>(\d*)</td>', t) for t in page.split("<b>after</b>"))
    assert now == [("0.78", "7"), ("0.22", "2"), ("0.00", ""), ("0.00", ""), ("1.00", "9"), ("0.00", ""),
                   ("0.11", "1"), ("0.00", ""), ("0.89", "8")]  # fmt: skip
    assert was[1] == ("0.00", "")
    many = 300
    page = written(tmp_path, evaluated={"zero_shot": Classified([str(i) for i in range(many)], np.eye(many) * 3)})
    assert "Confusion matrix" in page
    assert len(page) < 100_000


def test_several_tests_of_noise_stay_within_the_limit(tmp_path: Path) -> None:
    """Noise is what compresses worst, and before doubles the pictures; queries give way until the page is small."""
    n, tests = 60, [f"test_{i}" for i in range(5)]
    rows = torch.nn.functional.normalize(torch.randn(4, n, 8, generator=torch.Generator().manual_seed(0)), dim=2)
    now, then = (dataclasses.replace(embedded(n), image=rows[i], text=rows[i + 1]) for i in (0, 2))
    source = Pictures(n, side=SIDE, noise=True)
    evaluated = {name: Evaluated(source, now) for name in tests}
    page = written(tmp_path, evaluated=evaluated, before=Before({}, {t: Evaluated(source, then) for t in tests}))
    assert len(page.encode()) < 3_000_000
    assert "Without a gallery, for the sake of the page's size: test 4." in page
    assert page.count("<article") >= 4 * 6


def test_the_limit_lessens_the_queries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(list(queries(written(tmp_path, **scored(embedded(12), Pictures(12)))))) == 9
    monkeypatch.setattr(report, "MOST_BYTES", 1)
    assert len(list(queries(written(tmp_path, **scored(embedded(12), Pictures(12)))))) == 3


def test_thumbnails_are_small_and_bare() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 500, 3), dtype=np.uint8))
    noise.info["comment"] = b"where I live"
    data = base64.b64decode(data_uri(noise).partition(",")[2])
    assert len(data) <= MOST_BYTES
    assert max(Image.open(io.BytesIO(data)).size) == SIDE
    assert b"where I live" not in data
    drawn = decode(np.zeros((20, 20), dtype=np.uint8))
    assert data_uri(drawn).startswith("data:image/png")


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "is_first", lambda: False)
    assert write_page(tmp_path, title="", protocol={}, scores={}) == tmp_path / "report.html"
    assert not list(tmp_path.iterdir())


def queries(page: str) -> list[tuple[int, str]]:
    """The captions that ask for pictures, by number, each with its last shelf."""
    start = page.index('class="group text_to_image')
    part = page[start : page.index("A picture and the captions", start)]
    found = []
    for article in re.findall(r"<article.*?</article>", part, re.S):
        (number,) = re.findall(r'<p class="query"><bdi>caption (\d+)</bdi>', article)
        found.append((int(number), re.findall(r'<div class="shelf">.*?</ol>', article, re.S)[-1]))
    return found


def titles(part: str) -> list[str]:
    return [a["title"] for a in Reader(part).all("img")]


def framed(shelf: str) -> list[str]:
    """The names of the pictures that have the frame of what is right."""
    return [name for item in re.findall(r'<li class="right[^"]*">.*?</li>', shelf, re.S) for name in titles(item)]
