"""Probes end to end on pictures whose class is their colour: what is said, what is written, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from xmodal.cli import main
from xmodal.data.few_labels import few_labels
from xmodal.data.pictures import open_pictures, open_to_judge
from xmodal.encoders.image_tower import open_image_tower
from xmodal.errors import InputError
from xmodal.eval.probe import Config, run
from xmodal.evaluators.evaluate_pictures import RawPixels
from xmodal.evaluators.knn import knn
from xmodal.evaluators.linear import linear
from xmodal.evaluators.probes import probe


def paint(folder: Path, kinds: dict[str, int], each: int, seed: int = 0) -> Path:
    """Class folders of pictures in noise, one channel of which is raised."""
    rng = np.random.default_rng(seed)
    for kind, channel in kinds.items():
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            pixels = rng.integers(0, 120, (16, 16, 3), dtype=np.uint8)
            pixels[..., channel] += 60
            Image.fromarray(pixels).save(folder / kind / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint(tmp_path_factory.mktemp("colours"), {"red": 0, "green": 1, "blue": 2}, 15)


def small(colours: Path, **given: Any) -> Config:
    return Config(model="small", data=str(colours), knn_k=5, image_size=16, **given)


def test_figures_are_those_of_the_functions(colours: Path) -> None:
    train, test = open_to_judge(str(colours), None, 0.2)
    found = probe(RawPixels(), train, test, k=5)
    pictures: list[Any] = [part.images(np.arange(len(part))) for part in (train, test)]
    rows = [RawPixels().encode_image(some) for some in pictures]
    unit = [torch.nn.functional.normalize(r, dim=1) for r in rows]
    assert train.labels is not None
    assert test.labels is not None
    for name, expected in (
        ("knn", knn(*(unit[0], train.labels, unit[1], test.labels), k=5)),
        ("linear", linear(unit[0], train.labels, unit[1], test.labels)),
    ):
        for figure in ("top1", "macro_precision", "macro_recall", "macro_f1"):
            score = found.scores[f"{name}/{figure}"]
            assert score["value"] == pytest.approx(expected[figure])
            assert score["low"] <= score["value"] <= score["high"]
        assert found.tables[name].sum() == len(test) == 9
    assert (found.protocol["pictures"], found.protocol["classes"]) == (9, 3)


def test_all_that_is_said(colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    output = tmp_path / "probe"
    told = run(
        small(colours, labels=(0.25, 1.0), pixels=True, json=tmp_path / "scores.json", output=output, epochs=1,
              probes=("knn", "linear", "finetune"), batch_size=8)
    )  # fmt: skip
    probes = [f"labels_{n}%/{p}" for n in (25, 100) for p in ("knn", "linear", "finetune")]
    expected = {f"{p}/top1" for p in probes} | {f"pixels/{p}/macro_f1" for p in probes if "finetune" not in p}
    expected |= {"features/alignment", "features/uniformity", "features/effective_rank"}
    assert expected <= set(told["scores"])
    assert set(told["classes"]) == set(told["confusion"]) == set(probes)
    assert told["scores"]["pixels/labels_100%/linear/top1"]["value"] == 1
    assert told["protocol"]["labels"] == {"25%": "9 pictures", "100%": "36 pictures"}
    assert set(told["protocol"]["penalty of linear"]) == {"labels_25%/linear", "labels_100%/linear"}
    assert "AdamW, 1 epochs, batch 8" in told["protocol"]["finetune"]
    said = capsys.readouterr().out
    assert "Fine-tuning on 36 pictures" in said
    assert "taken for" in said
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written == json.loads((output / "scores.json").read_text())
    assert written["classes"]["labels_100%/knn"]["red"]["support"] == 3
    assert np.array(written["confusion"]["labels_100%/linear"]).shape == (3, 3)
    assert "green" in (output / "report.html").read_text()
    assert not list(output.glob("*.safetensors"))


def test_the_tower_itself_stays_as_it_is(colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def remember(*given: Any, **options: Any) -> Any:
        opened.append(open_image_tower(*given, **options))
        opened.append({n: t.clone() for n, t in opened[0].encoder.state_dict().items()})
        return opened[0]

    monkeypatch.setattr("xmodal.encoders.image_tower.open_image_tower", remember)
    run(small(colours, probes=("finetune",), epochs=1, batch_size=64))
    tower, before = opened
    assert all(torch.equal(t, before[n]) for n, t in tower.encoder.state_dict().items())


def test_fine_tuning_learns(colours: Path) -> None:
    told = run(small(colours, probes=("linear", "finetune"), epochs=12, batch_size=12, lr=2e-3))
    assert told["scores"]["finetune/top1"]["value"] > 0.7


def test_few_labels(colours: Path, tmp_path: Path) -> None:
    pictures = open_pictures(str(colours))
    assert pictures.labels is not None
    some, more = few_labels(pictures, 0.2), few_labels(pictures, 0.6)
    assert np.bincount(pictures.labels[some]).tolist() == [3, 3, 3]
    assert set(some) < set(more)
    assert few_labels(pictures, 1).tolist() == list(range(45))
    assert np.bincount(pictures.labels[few_labels(pictures, 0.001)]).tolist() == [1, 1, 1]
    # By what a picture is called: beside others the same ones are chosen.
    paint(tmp_path / "more", {"red": 0, "green": 1, "blue": 2}, 15)
    paint(tmp_path / "more", {"amber": 0}, 4)
    grown = open_pictures(str(tmp_path / "more"))
    mine = {pictures.key(row) for row in some.tolist()}
    assert mine == {k for row in few_labels(grown, 0.2).tolist() if not (k := grown.key(row)).startswith("amber")}


def test_what_is_judged(colours: Path, tmp_path: Path) -> None:
    other = paint(tmp_path / "other", {"green": 1, "blue": 2, "black": 0}, 3, seed=5)
    train, test = open_to_judge(str(colours), str(other), 0.2)
    assert len(train) == 45
    assert test.labels is not None
    assert sorted(test.labels.tolist()) == [-1] * 3 + [0] * 3 + [1] * 3  # black is not learnt
    found = probe(RawPixels(), train, test, k=5)
    assert found.protocol["pictures with a class that is learnt"] == 6
    lines = [f"{colours}/{k}/{i}.png,{k},{s}" for k in ("red", "blue") for i, s in enumerate(("train", "val", "test"))]
    (tmp_path / "t.csv").write_text("filepath,label,split\n" + "\n".join(lines) + "\n")
    table = str(tmp_path / "t.csv")
    assert [part.name.rpartition(":")[2] for part in open_to_judge(table, None, 0.2)] == ["train", "test"]
    assert open_to_judge(table, "val", 0.2)[1].name.endswith("val")
    with pytest.raises(InputError, match="--test train: these are the pictures that are learnt from"):
        open_to_judge(table, "train", 0.2)


def test_wrong_input(colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    one = tmp_path / "one.csv"
    one.write_text("filepath,label\n" + "".join(f"{colours}/red/{i}.png,red\n" for i in range(4)))
    others = paint(tmp_path / "others", {"cyan": 1, "pink": 0}, 2)
    flat = paint(tmp_path / "deep", {"x": 0}, 3) / "x"
    cases = [
        (small(flat), "has no classes to probe for"),
        (small(one), "are of one class, 'red'"),
        (small(colours, test=str(others)), "has other classes than what is trained on"),
        (small(tmp_path / "nowhere"), "nowhere"),
        (replace(small(colours), model="st:all-MiniLM-L6-v2"), "has no image tower"),
    ]
    for config, said in cases:
        with pytest.raises(InputError, match=said):
            run(config)
    for given, said in (({"labels": (0.0, 1.0)}, "--labels is"), ({"labels": (1.0, 1.0)}, "names 1.0 twice"),
                        ({"hold_out": 1.0}, "--hold-out is 1.0"), ({"probes": ()}, "--probes is")):  # fmt: skip
        with pytest.raises(InputError, match=said):
            small(colours, **given).check()
    assert main(["eval", "probe", "small", "--data", str(flat), "--json", str(tmp_path / "x.json")]) == 2
    assert "error: " in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()
