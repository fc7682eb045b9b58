"""The page to try a model on: its answers, what it refuses, and the server around it."""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.zoo import bombs
from xmodal.cli import main
from xmodal.demo import classes as zero_shot
from xmodal.demo import gallery as gallery_module
from xmodal.demo.answers import Answers, best_of
from xmodal.demo.gallery import Gallery, evenly, open_gallery
from xmodal.encoders.image import open_image_encoder
from xmodal.encoders.sentence import SentenceEncoder
from xmodal.encoders.sentence_specs import small_sentences
from xmodal.encoders.small import small_towers
from xmodal.encoders.tokenizer import PiecesTokenizer
from xmodal.encoders.two_tower import TwoTower
from xmodal.errors import InputError

HOSTILE = "<img src=x onerror=alert(1)> ${alert(2)} {{value}} \x1b[31m"
with_gradio = pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed")


def tokenizer() -> PiecesTokenizer:
    return PiecesTokenizer.train(["a red thing", "something green", "blue, as the sea"] * 3, 64, length=12)


@pytest.fixture(scope="module")
def towers() -> TwoTower:
    torch.manual_seed(1)
    return small_towers(tokenizer(), side=32, d=16).eval()


@pytest.fixture(scope="module")
def sentences() -> SentenceEncoder:
    torch.manual_seed(2)
    return small_sentences(tokenizer, layers=1, dropout=0.0, pooling=None).eval()


@pytest.fixture(scope="module")
def dual(towers: TwoTower, colours: Path) -> Answers:
    return Answers(towers, "<model>", open_gallery(towers, str(colours), (), 100))


def texts_in(html: str) -> list[str]:
    return re.findall(r"<bdi>(.*?)</bdi>", html)


def test_pictures_of_a_caption_are_those_with_the_greatest_cosines_and_its_own_are_marked(
    dual: Answers, towers: TwoTower
) -> None:
    html = dual.pictures_for("a photo of a red.")
    cosines = [float(c.replace("−", "-")) for c in re.findall(r'class="cosine">(.*?)<', html)]
    every = (torch.as_tensor(dual.gallery.image) @ towers.encode_text(["a photo of a red."])[0]).tolist()
    assert len(cosines) in (16, 17)  # one more where no right one is among the sixteen
    assert cosines[:16] == pytest.approx(sorted(every, reverse=True)[:16], abs=0.006)
    assert 'class="right"' in html
    assert html.count("data:image/") == len(cosines)
    assert "right-key" not in dual.pictures_for("a photo of nobody's")


def test_a_picture_has_its_captions_and_the_probabilities_of_the_classes(dual: Answers, towers: TwoTower) -> None:
    asked = dual.a_picture(0)
    assert asked is not None
    assert asked.own is not None
    html = dual.captions_of(asked, "red\ngreen\nblue", "a photo of a {}.")
    assert texts_in(html)[1:4] != []
    own = dual.gallery.classes[int(dual.gallery.labels[asked.own])]
    rows = towers.encode_text([f"a photo of a {name}." for name in dual.gallery.classes])
    expected = torch.softmax(towers.scale * rows @ torch.from_numpy(asked.row), 0)
    shares = dict(re.findall(r"<bdi>(\w+)</bdi><span class=\"share\">([\d.]+) %", html))
    for name, value in zip(dual.gallery.classes, expected.tolist(), strict=True):
        assert float(shares[name]) == pytest.approx(100 * value, abs=0.06)
    assert re.search(rf'<li class="right"><bdi>{own}</bdi>', html)


def test_probabilities_of_the_sigmoid_loss_are_of_each_class_by_itself(towers: TwoTower) -> None:
    image, rows = torch.eye(3)[0], torch.eye(3)
    assert zero_shot.probabilities(towers, image, rows)[0].sum() == pytest.approx(1)
    towers.bias = torch.tensor(-1.0)
    try:
        values, kind = zero_shot.probabilities(towers, image, rows)
    finally:
        towers.bias = None
    assert values == pytest.approx(torch.sigmoid(torch.tensor([towers.scale - 1, -1, -1])).numpy())
    assert "sigmoid" in kind


def test_the_confusion_is_that_of_the_zero_shot_evaluation(dual: Answers, towers: TwoTower, colours: Path) -> None:
    from xmodal.data.labelled import read_labelled
    from xmodal.evaluators.evaluate import evaluate_zero_shot

    labelled = read_labelled(colours)
    _, scores, table = evaluate_zero_shot(towers, labelled, labelled.classes, ["a {}", "the {}"])
    rows = zero_shot.class_rows(zero_shot.Prompts(towers), labelled.classes, ["a {}", "the {}"])
    own = zero_shot.stands_for(labelled.classes, dual.gallery.classes)
    judged = zero_shot.judge(dual.gallery.image, dual.gallery.labels, own, rows)
    assert judged is not None
    assert (judged.confusion == table).all()
    assert judged.top1["value"] == scores["top1"]["value"]
    assert judged.top1["high"] == pytest.approx(scores["top1"]["high"], abs=0.06)  # other draws
    assert f"Top-1 {100 * scores['top1']['value']:.1f} %" in dual.judged("\n".join(labelled.classes), "a {}\nthe {}")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["cat", "dog"], [0, 1]),
        (["dog", "cat"], [1, 0]),  # in another order
        (["kitten", "dog"], [0, 1]),  # another name
        (["dog", "kitten"], [-1, 0]),  # the place of cat is taken by dog: nobody can tell that kitten is meant
        (["dog"], [-1, 0]),
        (["horse", "cat", "dog"], [1, 2]),  # a class that no picture has
    ],
)
def test_what_is_typed_stands_for_the_data_s_classes(typed: list[str], expected: list[int]) -> None:
    assert zero_shot.stands_for(typed, ["cat", "dog"]).tolist() == expected


def test_a_class_that_is_gone_takes_its_pictures_with_it(dual: Answers) -> None:
    html = dual.judged("red\ngreen", "{}")
    assert "Of 24 pictures" in html
    assert "12 more are left out" in html
    assert dual.judged("one\ntwo", "{}") == ""


def test_prompts_are_embedded_once(towers: TwoTower, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    encode = towers.encode_text
    monkeypatch.setattr(towers, "encode_text", lambda texts: asked.extend(texts) or encode(texts))
    prompts = zero_shot.Prompts(towers)
    first = zero_shot.class_rows(prompts, ["cat", "dog"], ["a {}", "{}"])
    again = zero_shot.class_rows(prompts, ["dog", "horse"], ["a {}", "{}"])
    assert sorted(asked) == ["a cat", "a dog", "a horse", "cat", "dog", "horse"]
    assert torch.allclose(first[1], again[0])
    monkeypatch.setattr(zero_shot, "KEPT", 2)
    prompts(["x", "y", "z"])
    assert list(prompts.rows) == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("classes", "templates", "told"),
    [
        ("\n \n", "{}", "no classes"),
        ("cat\ndog\ncat", "{}", "“cat” is there twice"),
        ("cat", "", "no templates"),
        ("cat", "{}\na photo of a", "“a photo of a” has no {}"),
        ("x" * 300, "{}", "300 letters"),
        ("\n".join(map(str, range(3000))), "{}\na {}", "6,000 prompts"),
    ],
)
def test_what_can_t_be_classes_is_said(dual: Answers, classes: str, templates: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        dual.judged(classes, templates)


@pytest.mark.parametrize(("text", "told"), [("  ", "Write something"), ("x" * 3000, "3,000 letters")])
def test_what_can_t_be_asked_is_said(dual: Answers, text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        dual.pictures_for(text)


def test_what_is_dropped_is_decoded_by_our_own_decoder(dual: Answers, tmp_path: Path) -> None:
    drawn = tmp_path / "drawn.png"
    Image.fromarray(np.full((20, 30, 4), 128, np.uint8)).save(drawn)
    asked = dual.read(str(drawn))
    assert asked.row.shape == (16,)
    assert asked.picture.name == "drawn.png"
    bomb = bombs()["bomb_30000.png"].file
    assert isinstance(bomb, bytes)
    for name, content, told in (
        ("page.jpg", b"<html><script>alert(1)</script></html>", "no picture"),
        ("nothing.png", b"", "empty"),
        ("half.png", drawn.read_bytes()[:-30], "half way|damaged"),
        ("bomb.png", bomb, "megapixels"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=told):
            dual.read(str(tmp_path / name))
    with pytest.raises(InputError, match="missing"):
        dual.read(str(tmp_path / "gone.png"))


class Blank:
    """White pictures with a hostile name."""

    def images(self, rows: np.ndarray) -> list[np.ndarray]:
        return [np.full((8, 8), 255, np.uint8) for _ in rows]

    def key(self, row: int) -> str:
        return HOSTILE


def test_texts_are_shown_as_text(towers: TwoTower) -> None:
    rows = torch.nn.functional.normalize(torch.randn(3, 16), dim=1)
    pairs, labels = np.array([[0, 0]]), np.zeros(3, int)
    gallery = Gallery(HOSTILE, rows, Blank(), rows[:1], lambda row: HOSTILE, pairs, labels, [HOSTILE])
    answers = Answers(towers, HOSTILE, gallery)
    asked = answers.a_picture(0)
    pages = [
        answers.header(),
        answers.pictures_for(HOSTILE),
        answers.captions_of(asked, HOSTILE, "{}"),
        answers.likely(asked, HOSTILE, "{}"),
        answers.judged(HOSTILE, "{}"),
        answers.problem(InputError(HOSTILE)),
    ]
    for page in pages:
        assert "&lt;img src=x" in page
        assert not re.search(r"<img src=x|\x1b", page)


def test_the_rank_of_a_right_answer_that_is_not_shown() -> None:
    rows = torch.tensor([[1.0, 0], [0.9, 0], [0.5, 0], [0.5, 0], [0.2, 0]])
    query = torch.tensor([[1.0, 0]])
    assert best_of(query, rows, [4]) == (pytest.approx(0.2), 4, 5)
    assert best_of(query, rows, [2]) == (pytest.approx(0.5), 2, 4)  # a tie is lost
    assert best_of(query, rows, [4, 1], own=0) == (pytest.approx(0.9), 1, 1)


def test_a_sentence_encoder_finds_texts(sentences: SentenceEncoder, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("a red thing\n\nsomething green\na red thing\nblue, as the sea\n")
    answers = Answers(sentences, "model", open_gallery(sentences, str(tmp_path / "lines.txt"), (), 3))
    assert answers.finds_texts
    assert not answers.takes_pictures
    assert texts_in(answers.texts_for("something green"))[0] == "something green"
    assert len(answers.gallery.text) == 2  # three lines are read, one is there twice
    assert "the first 2" in answers.header()


def test_an_image_encoder_finds_pictures_and_not_the_one_it_was_asked_with(colours: Path) -> None:
    torch.manual_seed(3)
    model = open_image_encoder("small").eval()
    answers = Answers(model, "model", open_gallery(model, str(colours), (), 100))
    asked = answers.a_picture(0)
    assert asked is not None
    html = answers.pictures_like(asked)
    assert html.count("data:image/") >= 17
    own = np.asarray(answers.gallery.image) @ asked.row
    assert own.argmax() == asked.own
    shown = [float(c.replace("−", "-")) for c in re.findall(r'class="cosine">(.*?)<', html)]
    assert shown[0] == pytest.approx(np.sort(own)[-2], abs=0.006)
    assert "what has its class" in html


def test_indexes_are_searched_as_they_are(towers: TwoTower, colours: Path, tmp_path: Path) -> None:
    from xmodal.embedding.embed import Config, run

    towers.save(tmp_path / "run")
    (tmp_path / "lines.txt").write_text("a red thing\nsomething green\n")
    for data, output in ((colours / "red", "pictures"), (tmp_path / "lines.txt", "texts")):
        run(Config(model=str(tmp_path / "run"), data=str(data), output=tmp_path / output, workers=0))
    gallery = open_gallery(towers, None, (tmp_path / "pictures", tmp_path / "texts"), 1)
    assert gallery.image.shape == (12, 16)
    answers = Answers(towers, "run", gallery)
    assert answers.pictures_for("a red thing").count("data:image/") == 12
    asked = answers.a_picture(1)
    html = answers.captions_of(asked, "", "{}")
    assert set(texts_in(html)) >= {"a red thing", "something green"}
    assert "no classes" in html
    with pytest.raises(InputError, match="second of a kind"):
        open_gallery(towers, None, (tmp_path / "texts", tmp_path / "texts"), 1)
    torch.manual_seed(9)
    with pytest.raises(InputError, match="other weights"):
        open_gallery(small_towers(tokenizer(), side=32, d=16), None, (tmp_path / "pictures",), 1)


def test_a_part_of_the_data_is_spread_over_it_and_said(towers: TwoTower, colours: Path) -> None:
    assert evenly(10, 3).tolist() == [0, 4, 9]
    assert evenly(2, 5).tolist() == [0, 1]
    gallery = open_gallery(towers, str(colours), (), 7)
    assert len(gallery.image) == 7
    assert sorted(set(gallery.labels.tolist())) == [0, 1, 2]
    assert gallery.said[0].startswith("7 of 36 pictures")


def test_without_data_it_searches_in_what_is_built_in(
    towers: TwoTower, sentences: SentenceEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery_module, "of_pairs", lambda model, spec, most: spec)
    assert open_gallery(towers, None, (), 7) == "glyphs/unseen_typeface"
    monkeypatch.setattr(gallery_module, "of_texts", lambda model, spec, most: spec)
    assert open_gallery(sentences, None, (), 7) == "prose"


def test_wrong_input_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def said(*flags: str) -> str:
        assert main(["demo", *flags]) == 2
        return capsys.readouterr().err

    assert "give one" in said("run", "--data", "x", "--index", "y")
    assert "ends in .png" in said("run", "--screenshot", "page.gif")
    assert "between 0 and 65535" in said("run", "--port", "70000")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "5.9")
    assert "5.9 is installed" in said("run")
    monkeypatch.setattr(importlib.metadata, "version", _missing)
    assert 'pip install "xmodal[demo]"' in said("run")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "6.31.0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port}: Address already in use; another: --port {port + 1}" in said("run", "--port", str(port))
    assert "Cannot listen on 203.0.113.1" in said("run", "--host", "203.0.113.1", "--port", "0")
    assert "No model" in said(str(tmp_path / "none"), "--port", "0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no Chromium" in said("run", "--screenshot", "page.png")


def _missing(name: str) -> str:
    raise importlib.metadata.PackageNotFoundError(name)


@pytest.fixture
def strangers() -> Iterator[list[Any]]:
    """Whom else this process spoke to, or looked up, while the test ran."""
    found: list[Any] = []
    listening = [True]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if listening and event in ("socket.connect", "socket.getaddrinfo"):
            host = arguments[1][0] if event == "socket.connect" else arguments[0]
            if host not in ("127.0.0.1", "localhost", b"127.0.0.1"):
                found.append((event, host))

    sys.addaudithook(hook)  # it can't be taken away again
    yield found
    listening.clear()


@with_gradio  # uvicorn comes with it, and is what the gate stands before
@pytest.mark.parametrize(("headers", "sent"), [([(b"content-length", b"99999999999")], []), ([], [0.6, 0.6])])
def test_a_request_that_is_too_long_is_not_read_to_its_end(headers: list[Any], sent: list[float]) -> None:
    from xmodal.demo.server import MOST_ASKED, Gate

    said: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        said.extend([(await receive())["type"] for _ in sent])

    async def receive() -> Any:
        return {"type": "http.request", "body": bytes(int(sent[0] * MOST_ASKED)), "more_body": True}

    async def send(message: Any) -> None:
        said.append(message.get("status"))

    scope = {"type": "http", "path": "/gradio_api/upload", "headers": headers}
    asyncio.run(Gate(app, None)(scope, receive, send))
    assert said == (["http.request", "http.disconnect"] if sent else [413, None])


def events_of(http: Any, path: str) -> str:
    """What the server says to a page that gives this for the picture that was dropped."""
    asked = next(one for one in http.get("/config").json()["dependencies"] if one["api_name"] == "captions")
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    session = f"session {path}"
    data = {"data": [file, None, "red", "{}"], "fn_index": asked["id"], "session_hash": session}
    assert http.post("/gradio_api/queue/join", json=data).status_code == 200
    return http.get("/gradio_api/queue/data", params={"session_hash": session}, timeout=60).text


@with_gradio
def test_the_server_answers_gradio_s_client_and_nobody_it_has_no_use_for(
    dual: Answers, strangers: list[Any], tmp_path: Path
) -> None:
    import gradio_client
    import httpx

    from xmodal.demo.screenshot import running
    from xmodal.demo.server import listen, server

    (tmp_path / "red.png").write_bytes(b"")
    Image.fromarray(np.full((20, 20, 3), (200, 10, 10), np.uint8)).save(tmp_path / "red.png")
    (tmp_path / "page.jpg").write_text("<html>")
    listening = listen("127.0.0.1", 0)
    with server(dual, listening) as serving, running(serving, listening) as address:
        assert strangers == []
        client = gradio_client.Client(address, verbose=False, analytics_enabled=False)
        assert "&lt;b&gt;" not in client.predict("a <b>red</b> thing", api_name="/pictures")
        assert "Write something" in client.predict("", api_name="/pictures")
        typed = "red\ngreen", "{}"
        _, said, likely, judged = client.predict(
            gradio_client.handle_file(tmp_path / "red.png"), *typed, api_name="/captions"
        )
        assert "red.png" in said
        assert "data:image/" in likely
        assert "Top-1" in judged
        told = client.predict(gradio_client.handle_file(tmp_path / "page.jpg"), *typed, api_name="/captions")
        assert "no picture" in told[1]
        said, likely, _ = client.predict("red\ngreen\nblue", "no braces", api_name="/classes")
        assert "has no {}" in likely
        client.close()
        strangers.clear()  # the client looks its own maker's hub up

        with httpx.Client(base_url=address, trust_env=False) as http:
            page = http.get("/")
            assert page.status_code == 200
            assert "default-src 'self'" in page.headers["content-security-policy"]
            assert "fonts.googleapis" not in page.text
            for path in (
                "/gradio_api/file=/etc/passwd",
                "/gradio_api/proxy=http://x/",
                "/docs",
                "/monitoring",
                "/../x",
            ):
                assert http.get(path).status_code == 404, path
            assert http.get("/", headers={"host": f"elsewhere.example:{address.rpartition(':')[2]}"}).status_code == 421
    assert strangers == []


@pytest.mark.slow
@with_gradio
def test_chromium_shows_it_and_asks_no_other_host(dual: Answers, tmp_path: Path) -> None:
    from xmodal.demo.chromium import find_chromium
    from xmodal.demo.screenshot import take
    from xmodal.demo.server import listen, server

    try:
        find_chromium()
    except InputError:
        pytest.skip("no Chromium")
    listening = listen("127.0.0.1", 0)
    with server(dual, listening) as serving:
        take(serving, listening, tmp_path / "page.png")  # raises Failed where the page asked another host
    picture = Image.open(tmp_path / "page.png")
    assert picture.width == 1280
    assert len(picture.convert("RGB").getcolors(1 << 20) or ()) > 20
    assert (tmp_path / "page.png").stat().st_size < 150_000
