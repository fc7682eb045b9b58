"""CLIP_benchmark's sets, written by its own exporter, and its figures and open_clip's, computed by their own code."""

from __future__ import annotations

import io
import json
import re
import tarfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from clip_benchmark import webdataset_builder as exporter
from clip_benchmark.datasets.builder import build_dataset, image_captions_collate_fn
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from open_clip_train import zero_shot
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.interop.small_models import of_open_clip
from xmodal.cli import main
from xmodal.data.clip_benchmark import is_set, read_captioned, read_classified
from xmodal.data.decode import decode
from xmodal.errors import BadSample, InputError
from xmodal.evaluators.clip_benchmark import classification_hits, plain, retrieval_hits
from xmodal.evaluators.zeroshot import zero_shot as zero_shot_of_ours

# Two classes have one name, so that they are tied, and one has none.
CLASSES = ["red thing", "green thing", "dog", "green thing", "", "a cat in a house", "barking street", "two dogs"]
TEMPLATES = ["a photo of a {c}.", "the {c}", "{c}, very long caption"]
BATCH = 16


class Listed:
    """What the exporter takes: pairs of a file and a label or captions."""

    def __init__(self, rows: list[Any], **about: Any) -> None:
        self.rows = rows
        self.__dict__.update(about)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Any:
        return self.rows[i]


def pictures(folder: Path, n: int) -> list[str]:
    """Every fifth lies on its side and says so, every seventh is transparent."""
    folder.mkdir()
    rng, paths = np.random.default_rng(0), []
    for i in range(n):
        pixels = np.kron(rng.integers(0, 256, (6, 5, 4)), np.ones((7, 9, 1))).astype(np.uint8)
        path = folder / (f"{i}.png" if i % 7 == 0 else f"{i}.jpg")
        exif = Image.Exif()
        exif[0x0112] = 6
        if i % 7 == 0:
            Image.fromarray(pixels).save(path)
        else:
            Image.fromarray(pixels[..., :3]).save(path, **({"exif": exif} if i % 5 == 0 else {}))
        paths.append(str(path))
    return paths


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter starts eight processes; CLIP_benchmark 1.6.2 and open_clip 3.3 call float() on arrays of one number,
    which NumPy 2.4 refuses.
    """
    monkeypatch.setattr(exporter.torch.utils.data, "DataLoader", partial(_loader, exporter.torch.utils.data.DataLoader))
    for theirs in (zeroshot_classification, zero_shot):
        monkeypatch.setattr(theirs, "float", lambda array: array.item(), raising=False)


def _loader(kind: Any, *args: Any, **options: Any) -> Any:
    return kind(*args, **{**options, "num_workers": 0})


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its weights are random, and what all pictures have in common is taken out, so that they are of all classes."""
    folder = tmp_path_factory.mktemp("model") / "clip"
    spec = of_open_clip(folder)
    weights = load_file(folder / "open_clip_model.safetensors")
    weights["visual.conv1.weight"] *= 30
    save_file(weights, folder / "open_clip_model.safetensors")
    model, _, transform = open_clip.create_model_and_transforms(spec.removeprefix("open_clip:"))
    seen: list[torch.Tensor] = []
    model.visual.ln_post.register_forward_hook(lambda *told: seen.append(told[-1]))
    paths = pictures(folder / "files", 40)
    with torch.no_grad():
        model.encode_image(torch.stack([transform(Image.open(path).convert("RGB")) for path in paths]))
    weights["visual.ln_post.bias"] -= seen[0][:, 0].mean(0)  # of the class token
    save_file(weights, folder / "open_clip_model.safetensors")
    return spec


@pytest.fixture
def classified(tmp_path: Path) -> Path:
    rows = [(path, i % len(CLASSES)) for i, path in enumerate(pictures(tmp_path / "files", 60))]
    for split, part in (("test", rows[:48]), ("train", rows[48:])):
        exporter.convert_dataset(
            Listed(part, classes=CLASSES, templates=TEMPLATES),
            split,
            str(tmp_path / "set"),
            transform=exporter.path_to_bytes,
            max_count=4,  # twelve shards, of which 10.tar comes after 9.tar
            verbose=False,
        )
    return tmp_path / "set"


@pytest.fixture
def captioned(tmp_path: Path) -> Path:
    words = ["a dog runs", "two cats sleep", "the old man", "a dog runs ", "a street", "a dog runs", "very long"]
    rows = [
        (path, [f"{words[(i + j) % 7]}{'' if (i + j) % 7 in (0, 3, 5) else f' {i}'}" for j in range(1 + i % 5)])
        for i, path in enumerate(pictures(tmp_path / "files", 40))
    ]
    rows[3] = (rows[3][0], ["twice", "twice"])
    exporter.convert_retrieval_dataset(
        Listed(rows), "test", str(tmp_path / "set"), transform=exporter.path_to_bytes, max_count=30, verbose=False
    )
    return tmp_path / "set"


def theirs(spec: str, folder: Path) -> tuple[Any, Any, Any]:
    """Their model, tokenizer and dataset."""
    name = spec.removeprefix("open_clip:")
    model, _, transform = open_clip.create_model_and_transforms(name)
    dataset = build_dataset("wds/set", root=str(folder), transform=transform, split="test", task="")
    return model.eval(), open_clip.get_tokenizer(name), dataset


def scores(*argv: str) -> dict[str, float]:
    file = Path(argv[argv.index("--json") + 1])
    assert main(["eval", *argv]) == 0
    return {name: score["value"] for name, score in json.loads(file.read_text())["scores"].items()}


def test_classification_is_theirs_to_the_last_digit(spec: str, classified: Path, tmp_path: Path) -> None:
    told = ("zeroshot", spec, "--data", str(classified), "--batch-size", str(BATCH), "--json", str(tmp_path / "s.json"))
    mine = scores(*told, "--protocol", "clip_benchmark")
    model, tokenizer, dataset = theirs(spec, classified)
    assert (dataset.classes, dataset.templates) == (CLASSES, TEMPLATES)
    loader = torch.utils.data.DataLoader(dataset.batched(BATCH), batch_size=None)
    assert mine == zeroshot_classification.evaluate(
        model, loader, tokenizer, dataset.classes, dataset.templates, "cpu", amp=False
    )
    assert 0 < mine["acc1"] < mine["acc5"] < 1
    protocol = json.loads((tmp_path / "s.json").read_text())["protocol"]
    assert protocol["templates"] == f"3 ({classified / 'zeroshot_classification_templates.txt'})"
    assert protocol["images"] == 48

    prompts = [template.replace("{c}", "{}") for template in TEMPLATES]
    classifier = open_clip.build_zero_shot_classifier(model, tokenizer, CLASSES, prompts, device="cpu")
    args = SimpleNamespace(device="cpu", batch_size=BATCH, precision="fp32")
    assert zero_shot.run(model, classifier, loader, args) == (mine["acc1"], mine["acc5"])

    ours = scores(*told)  # upright, on white, ties lost
    assert [ours[name] for name in ("top1", "top5", "macro_recall")] != list(mine.values())


def test_retrieval_is_theirs_to_the_last_digit(spec: str, captioned: Path, tmp_path: Path) -> None:
    told = ("retrieval", spec, "--data", str(captioned), "--batch-size", str(BATCH), "--json", str(tmp_path / "s.json"))
    mine = scores(*told, "--protocol", "clip_benchmark")
    model, tokenizer, dataset = theirs(spec, captioned)
    loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH, collate_fn=image_captions_collate_fn)
    found = zeroshot_retrieval.evaluate(model, loader, tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10])
    assert {name: np.float32(value) for name, value in mine.items()} == found  # theirs are float32 means
    assert 0 < mine["image_retrieval_recall@1"] < mine["image_retrieval_recall@10"] < 1
    ours = scores(*told)
    assert ours["text_to_image/R@10"] != mine["image_retrieval_recall@10"]
    protocol = json.loads((tmp_path / "s.json").read_text())["protocol"]
    assert protocol["images"] == 40


def test_what_a_set_is_read_as(classified: Path) -> None:
    assert is_set(classified)
    test, train = read_classified(classified, None), read_classified(classified, "train")
    assert (len(test), len(train)) == (48, 12)
    assert test.labels.tolist() == [i % 8 for i in range(48)]  # also behind 9.tar
    assert test.key(40) == "10.tar:s0000040"
    assert test.templates == ["a photo of a {}.", "the {}", "{}, very long caption"]
    (classified / "test" / "nshards.txt").unlink()
    assert read_classified(classified, "test").labels.tolist() == test.labels.tolist()


def test_captions_are_all_lines(captioned: Path) -> None:
    found = read_captioned(captioned, None)
    assert found.texts(3) == ["twice", "twice"]
    assert found.texts(0) == ["a dog runs"]
    assert [len(found.texts(row)) for row in (1, 2, 4)] == [2, 3, 5]


def test_pictures_are_as_their_loaders_have_them(tmp_path: Path) -> None:
    for path in pictures(tmp_path / "files", 8):
        image = np.asarray(Image.open(path).convert("RGB"))
        np.testing.assert_array_equal(plain(Path(path)), image)
        np.testing.assert_array_equal(plain(Path(path).read_bytes()), image)
    upright, as_it_lies = decode(tmp_path / "files" / "5.jpg"), plain(tmp_path / "files" / "5.jpg")
    assert upright.size == as_it_lies.shape[:2]  # (w, h) of a picture that lies on its side is its (h, w)
    with pytest.raises(BadSample):
        plain(b"nothing")


class Prepared:
    """Rows by number, as a model of CLIP_benchmark's functions."""

    def __init__(self, image: torch.Tensor, text: torch.Tensor) -> None:
        self.image, self.text = image, text

    def encode_image(self, numbers: torch.Tensor) -> torch.Tensor:
        return self.image[numbers]

    def encode_text(self, numbers: torch.Tensor) -> torch.Tensor:
        return self.text[numbers]


@pytest.mark.parametrize(("n", "c", "kinds"), [(60, 12, 5), (30, 5, 1), (20, 3, 2)])
def test_ties_of_classes_go_as_theirs(n: int, c: int, kinds: int) -> None:
    g = torch.Generator().manual_seed(n)
    text = torch.nn.functional.normalize(torch.randn(kinds, 8, generator=g), dim=1)[torch.arange(c) % kinds]
    image = torch.nn.functional.normalize(torch.randn(n, 8, generator=g), dim=1)
    labels = torch.arange(n) % c
    hits, nearest = classification_hits(image, text, labels)
    logits = 100.0 * image @ text.T
    ks = (1, 5) if c >= 5 else (1,)
    assert [hit.mean() for hit in hits.values()] == zeroshot_classification.accuracy(logits, labels, ks)
    np.testing.assert_array_equal(nearest, logits.argmax(1))
    assert zero_shot_of_ours(image, text, labels)["top1"] < hits["acc1"].mean()


@pytest.mark.parametrize("kinds", [1, 4, 40])
def test_ties_of_pairs_go_as_theirs(kinds: int) -> None:
    g = torch.Generator().manual_seed(kinds)
    image = torch.nn.functional.normalize(torch.randn(kinds, 8, generator=g), dim=1)[torch.arange(40) % kinds]
    owner = torch.arange(40).repeat_interleave(torch.arange(40) % 3 + 1)
    text = image[owner]
    numbers = [(owner == i).nonzero()[:, 0].tolist() for i in range(40)]
    loader = [(torch.arange(40), numbers)]
    found = zeroshot_retrieval.evaluate(Prepared(image, text), loader, torch.tensor, "cpu", False, [1, 5, 10])
    mine = {name: np.float32(hit.mean()) for name, hit in retrieval_hits(image, text, owner, (1, 5, 10)).items()}
    assert mine == found
    assert all(hit.all() for hit in retrieval_hits(image, text, owner, (1000,)).values())  # all of the gallery


def write(folder: Path, **files: str) -> Path:
    """A set of one shard with a picture, and what lies beside it."""
    (folder / "test").mkdir(parents=True)
    member = io.BytesIO()
    Image.new("RGB", (4, 4)).save(member, "PNG")
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for name, data in {"s0.png": member.getvalue(), **{k: v.encode() for k, v in files.items()}}.items():
            info = tarfile.TarInfo(name.replace("s0_", "s0."))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return folder


@pytest.mark.parametrize(
    ("beside", "files", "said"),
    [
        ({"s0_cls": "2"}, {"classnames.txt": "a\nb\n"}, "s0.cls of .* says '2'; expected 0 to 1"),
        ({"s0_cls": "-1"}, {"classnames.txt": "a\nb\n"}, "says '-1'; expected 0 to 1"),
        ({"s0_cls": "0"}, {"dataset_type.txt": "classification\n"}, "has no classnames.txt"),
        ({"s0_npy": "0"}, {"dataset_type.txt": "multilabel\n"}, "is of type 'multilabel'"),
        ({"s0_txt": "a dog"}, {"dataset_type.txt": "retrieval"}, "has captions and no classes: xmodal eval retrieval"),
        ({"s0_txt": "a dog"}, {"classnames.txt": "a\n"}, r"has no picture \(webp, png, jpg, jpeg\) with a .cls"),
        ({"s0_cls": "0"}, {"classnames.txt": "a\n", "test/nshards.txt": "2\n"}, "says 2 shards, and .*1.tar is not"),
        ({"s0_cls": "0"}, {"classnames.txt": "a\n", "test/nshards.txt": "two\n"}, "must hold a number, not 'two'"),
        (
            {"s0_cls": "0"},
            {"classnames.txt": "a\n", "zeroshot_classification_templates.txt": "a photo\n"},
            "one template a line",
        ),
    ],
)
def test_a_set_that_is_wrong_is_said_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], beside: dict[str, str], files: dict[str, str], said: str
) -> None:
    folder = write(tmp_path / "set", **beside)
    for name, text in files.items():
        (folder / name).write_text(text)
    assert main(["eval", "zeroshot", "small", "--data", str(folder), "--protocol", "clip_benchmark"]) == 2
    error = capsys.readouterr().err
    assert re.search(said, error)
    assert len(error.splitlines()) == 1


def test_classes_are_no_pairs(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", s0_cls="0")
    (folder / "classnames.txt").write_text("a\n")
    with pytest.raises(InputError, match="has classes and no captions: xmodal eval zeroshot"):
        read_captioned(folder, None)
    assert not is_set(tmp_path)
