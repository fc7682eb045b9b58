"""`xmodal eval compare`: models of each kind on the same items, the page, what runs recorded, what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import xmodal
from xmodal.cli import main
from xmodal.encoders.image import open_image_encoder
from xmodal.encoders.small import small_towers
from xmodal.encoders.tokenizer import PiecesTokenizer
from xmodal.errors import InputError
from xmodal.eval.compare import Config, run
from xmodal.evaluators.compare import kind_of
from xmodal.report.comparison import _places
from xmodal.report.maps import principal, turn
from xmodal.report.names import short_names

NAMES = ["red <b>", "green", "blue"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of sixty pictures in the colour of their class, each with a caption, half of them to test."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    lines = ["filepath,caption,label,split"]
    for i in range(60):
        pixels = rng.integers(0, 150, (20, 20, 3), dtype=np.uint8)
        pixels[..., i % 3] += 80
        Image.fromarray(pixels).save(folder / f"{i}.png")
        lines.append(f"{i}.png,a {NAMES[i % 3]} thing no {i},{NAMES[i % 3]},{'test' if i % 2 else 'train'}")
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    return folder / "t.csv"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Two image encoders and two dual encoders, as they come from nothing."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), PiecesTokenizer.train([f"a {n} thing no" for n in NAMES], 50)
    found: dict[str, list[str]] = {"image": [], "dual": []}
    for seed in (0, 1):
        torch.manual_seed(seed)
        for kind, model in (("image", open_image_encoder("small", 16)), ("dual", small_towers(tokenizer, 32, 16))):
            model.save(folder / f"{kind}-{seed}")
            found[kind].append(str(folder / f"{kind}-{seed}"))
    return found


def checked(page: Path) -> str:
    """The page: nothing in it runs or is fetched, and what data says is text."""
    text = page.read_text(encoding="utf-8")
    assert "default-src 'none'; img-src data:" in text
    assert not re.search(r"<script|javascript:|<iframe|<link|\son\w+=\"|src=\"(?!data:)|href=\"(?!#)|url\(", text)
    assert "red <b>" not in text
    assert not re.search(r"\{[{%]", text)
    return text


def test_image_encoders(models: dict[str, list[str]], pictures: Path, tmp_path: Path, capsys: Any) -> None:
    first, second = models["image"]
    page, file = tmp_path / "page.html", tmp_path / "out" / "d.json"
    given = (first, second, RAW_BEST)
    told = run(Config(models=given, data=str(pictures), html=page, json=file))
    assert set(told) == {"knn", "linear"}
    knn = told["knn"]
    assert {f"{second}/top1", f"{RAW_BEST}/macro_f1"} < set(knn["differences"])
    for model in given[1:]:
        difference = knn["differences"][f"{model}/top1"]
        values = [knn["scores"][f"{m}/top1"]["value"] for m in (first, model)]
        assert difference["value"] == pytest.approx(values[1] - values[0])
        test = knn["mcnemar"][model]
        assert difference["value"] == pytest.approx((test["only_second"] - test["only_first"]) / 30)
        assert difference["low"] <= difference["value"] <= difference["high"]
    assert knn["protocol"]["pictures"] == 30
    assert set(told["linear"]["protocol"]["penalty of linear"]) == set(given)
    assert len(told["linear"]["said"]) == 2
    said = capsys.readouterr().out
    assert all(sentence in said for sentence in told["linear"]["said"])
    text = checked(page)
    assert text.count("of the variance</span>") == 3
    assert "red &lt;b&gt;" in text
    assert "The same queries, side by side" in text
    assert json.loads(file.read_text())["knn"]["mcnemar"] == knn["mcnemar"]


RAW_BEST = "small"  # a fresh network is a model like any other


def test_dual_encoders(models: dict[str, list[str]], pictures: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    told = run(Config(models=tuple(models["dual"]), data=str(pictures), html=page))
    assert set(told) == {"retrieval"}
    second = models["dual"][1]
    assert f"{second}/text_to_image/R@1" in told["retrieval"]["differences"]
    assert told["retrieval"]["protocol"]["images"] == 30
    assert any("R@1 of text → image" in sentence for sentence in told["retrieval"]["said"])
    text = checked(page)
    assert "Captions for which dual-1 does better than dual-0" in text
    assert "a red &lt;b&gt; thing" in text
    told = run(Config(models=tuple(models["dual"]), data=str(pictures), tasks=("zeroshot", "linear"), html=page))
    assert set(told) == {"zeroshot", "linear"}
    assert told["zeroshot"]["protocol"]["classes"] == 3
    assert set(told["zeroshot"]["mcnemar"]) == {second}
    assert "dual-1" in checked(page)


def test_a_dual_encoder_beside_an_image_encoder(models: dict[str, list[str]], pictures: Path) -> None:
    mixed = (models["image"][0], models["dual"][0])
    assert set(run(Config(models=mixed, data=str(pictures)))) == {"knn", "linear"}


class Letters:
    def __init__(self, only: str) -> None:
        self.only = only

    def encode(self, sentences: list[str]) -> np.ndarray:
        return np.array([[s.count(letter) + 0.01 for letter in self.only] for s in sentences])


def test_sentence_encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    lines = ["sentence1,sentence2,score"]
    for _ in range(80):
        one, other = ("".join(rng.choice(list("abcdef"), 6)) for _ in range(2))
        same = len(set(one) & set(other))
        lines.append(f"{one} <i>,{other},{same * 5 / 6:.2f}")
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n")
    known = {"few": Letters("ab"), "all": Letters("abcdef")}
    monkeypatch.setattr(xmodal, "load", lambda spec, device=None: known[spec])
    page = tmp_path / "page.html"
    told = run(Config(models=("few", "all"), data=str(tmp_path / "pairs.csv"), tasks=("sts",), html=page))["sts"]
    assert told["differences"]["all/pairs"]["low"] > 0
    assert told["said"][0].startswith("all is better than few by ")
    text = checked(page)
    assert "Pairs that all puts nearer to their place" in text
    assert "&lt;i&gt;" in text


def test_what_runs_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n, run_name in enumerate(("one", "two")):
        folder = tmp_path / run_name
        folder.mkdir()
        score = {"value": 0.5 + 0.1 * n, "low": 0.4, "high": 0.7}
        (folder / "scores.json").write_text(json.dumps({"protocol": {}, "scores": {"knn/top1": score}}))
        steps = [{"step": s, "loss": 2 / s + n, "lr": 1e-3, "grad_norm": 1.0} for s in range(1, 400)]
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, steps)) + "\n")
    page = tmp_path / "page.html"
    told = run(Config(models=(str(tmp_path / "one"), str(tmp_path / "two")), html=page))
    assert told == {}
    assert "+10.0" in capsys.readouterr().out
    text = checked(page)
    assert "Recorded scores" in text
    panels = re.findall(r"<figcaption><b>([^<]+)", text)
    assert panels == ["Loss", "Learning rate", "Norm of the gradient, before clipping"]
    assert text.count('class="tone-1"') == 3
    with pytest.raises(InputError, match="Without --data there is nothing to compare"):
        run(Config(models=(str(tmp_path / "one"), str(tmp_path / "page.html"))))


def test_wrong_input(models: dict[str, list[str]], pictures: Path, tmp_path: Path, capsys: Any) -> None:
    image, dual = models["image"][0], models["dual"][0]
    unlabelled = tmp_path / "t.csv"
    unlabelled.write_text(f"filepath,caption\n{pictures.parent}/0.png,a thing\n{pictures.parent}/1.png,another\n")
    cases = [
        ([image], "Comparing takes two models or more"),
        ([image, image], "is given twice"),
        ([image, dual, "--tasks", "knn"], "--tasks without --data"),
        ([image, dual, "--hold-out", "2"], "--hold-out is 2.0"),
        ([image, "st:all-MiniLM-L6-v2", "--data", str(pictures)], "These models can't be asked the same"),
        ([image, dual, "--data", str(unlabelled)], "has no classes to probe for"),
        ([image, dual, "--data", str(tmp_path / "nowhere")], "nowhere"),
        ([image, dual, "--data", str(pictures), "--tasks", "retrieval"], "holds an image encoder"),
        ([image, str(tmp_path / "nothing"), "--data", str(pictures)], "nothing"),
    ]
    for argv, said in cases:
        page = tmp_path / "page.html"
        assert main(["eval", "compare", *argv, "--html", str(page)]) == 2, argv
        error = capsys.readouterr().err
        assert said in error
        assert error.startswith("error: ")
        assert not page.exists()


def test_kinds(models: dict[str, list[str]]) -> None:
    assert [kind_of(spec) for spec in (models["image"][0], models["dual"][0])] == ["image", "dual"]
    assert [kind_of(s) for s in ("timm:resnet18", "st:x", "open_clip:RN50", "small")] == [
        *("image", "sentence", "dual", "image"),
    ]


def test_maps_lie_on_each_other() -> None:
    rng = np.random.default_rng(0)
    rows = torch.tensor(rng.normal(size=(50, 8)) * [9, 5, 1, 1, 1, 1, 1, 1])
    points, share = principal(rows)
    assert 0.9 < share < 1
    assert np.abs(np.cov(points.T)[0, 1]) < 1e-9
    angle = 2.0
    turned = points @ np.array([[np.cos(angle), np.sin(angle)], [np.sin(angle), -np.cos(angle)]])  # mirrored, too
    assert np.allclose(turned @ turn(turned, points), points)
    assert principal(torch.ones(4, 3))[1] == 0
    assert principal(torch.arange(4.0)[:, None])[0].shape == (4, 2)


def test_names_and_places() -> None:
    assert short_names(["runs/a", "hf:org/b", "timm:c"]) == ["a", "b", "c"]
    assert short_names(["x/a", "y/a"]) == ["x/a", "y/a"]
    assert _places(np.array([3.0, 1.0, 1.0, 2.0])).tolist() == [87.5, 25, 25, 62.5]
