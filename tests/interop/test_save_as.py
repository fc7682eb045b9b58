"""A model in another form: opened by that library, compared, and there in whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import small_models
import torch
import torch.nn.functional as F
from PIL import Image
from sentence_transformers import SentenceTransformer

import xmodal
from xmodal.encoders.small import small_towers
from xmodal.encoders.tokenizer import PiecesTokenizer
from xmodal.encoders.two_tower import TwoTower
from xmodal.errors import InputError
from xmodal.interop import clip, onnx, transformers
from xmodal.interop.save import FORMATS, save_as
from xmodal.interop.verify import TEXTS, ConversionFailed, pictures
from xmodal.interop.weight_map import Rule

pytestmark = pytest.mark.filterwarnings("ignore:Where the middle", "ignore:transformers' tokenizer")


@pytest.fixture(autouse=True)
def _timm() -> None:
    small_models.register_timm()


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> TwoTower:
    folder = tmp_path_factory.mktemp("towers") / "clip"
    return xmodal.load(small_models.of_open_clip(folder, {**small_models.CLIP, "quick_gelu": True}), device="cpu")


def small() -> TwoTower:
    torch.manual_seed(0)
    return small_towers(PiecesTokenizer.train(small_models.WORDS.split(), 80, length=12), 32, 16)


@pytest.mark.parametrize("which", ["clip", "siglip"])
def test_sentence_transformers(which: str, towers: TwoTower, tmp_path: Path) -> None:
    if which == "siglip":
        towers = xmodal.load(small_models.siglip_of_transformers(tmp_path / "siglip"), device="cpu")
    towers.save(tmp_path / "there", format="sentence-transformers")
    model = SentenceTransformer(str(tmp_path / "there"), device="cpu")
    shown = pictures(towers.preparation)[:3]
    for got, ours in ((shown, towers.encode_image(shown)), (list(TEXTS[:3]), towers.encode_text(TEXTS[:3]))):
        theirs = torch.from_numpy(model.encode(got))
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
    one, alone = TEXTS[0], TEXTS[:1]  # a text by itself, so that padding has nothing to go by
    torch.testing.assert_close(torch.from_numpy(model.encode(one)), towers.encode_text(alone)[0], rtol=0, atol=1e-5)
    assert model.modalities == ["text", "image"]


def test_onnx(towers: TwoTower, tmp_path: Path) -> None:
    towers.save(tmp_path / "there", format="onnx")
    told = json.loads((tmp_path / "there" / "onnx.json").read_text())
    image, text = (onnxruntime.InferenceSession(tmp_path / "there" / f"{name}.onnx") for name in ("image", "text"))
    pixels = towers.preparation.stack(pictures(towers.preparation))
    for count in (1, 3):  # neither was the size of the example
        (theirs,) = image.run(None, {"pixels": pixels[:count].numpy()})
        ours = towers(image=pixels[:count])["image"].detach()
        torch.testing.assert_close(torch.from_numpy(np.array(theirs)), ours, rtol=0, atol=1e-5)
    assert told["image"]["shape"] == ["batch", 3, 32, 32]
    assert told["log_scale"] == towers.log_scale.item()
    tokens = onnx.filled(towers.tokenizer(["two dogs"]), told["text"]["shape"][1])
    for filler in (told["text"]["ended"], 0, 49407):
        (theirs,) = text.run(None, {"tokens": tokens.masked_fill(tokens == -1, filler).numpy()})
        torch.testing.assert_close(
            torch.from_numpy(np.array(theirs)), towers.encode_text(["two dogs"]), rtol=0, atol=1e-5
        )


def test_our_own_small_towers_go_to_onnx_alone(tmp_path: Path) -> None:
    report = save_as(small(), tmp_path / "there", "onnx")
    assert max(report.image, report.text) < 1e-5
    for other in set(FORMATS) - {"onnx"}:
        with pytest.raises(InputError, match=f"{other}: xmodal's own small towers exist nowhere else"):
            small().save(tmp_path / other, format=other)
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def test_onnx_without_its_packages_names_the_command(
    towers: TwoTower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "NEEDED", ("onnx", "onnxruntimes"))
    with pytest.raises(InputError, match="pip install onnxruntimes"):
        towers.save(tmp_path / "there", format="onnx")
    assert not any(tmp_path.iterdir())


def swapped(first: str, second: str) -> list[Rule]:
    """CLIP's rules with two names on transformers' side in each other's place."""

    def other(name: str) -> str:
        return name.replace(first, "?").replace(second, first).replace("?", second)

    return [Rule(r.left, tuple((other(n), share) for n, share in r.right), r.how) for r in clip.RULES]


FAULTS = [
    ("q_proj", "k_proj"),
    ("layer_norm1", "layer_norm2"),
    ("pre_layrnorm", "post_layernorm"),
    ("vision_model.encoder.layers.#.layer_norm1.bias", "vision_model.encoder.layers.#.layer_norm2.bias"),
]


@pytest.mark.parametrize("names", FAULTS)
def test_weights_in_the_wrong_place_are_found_and_nothing_is_left(
    names: tuple[str, str], towers: TwoTower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip, "RULES", swapped(*names))
    with pytest.raises(ConversionFailed, match="images [0-9.e-]+ .*over 0.0001"):
        save_as(towers, tmp_path / "deep" / "there", "hf")
    assert not any(tmp_path.iterdir())


def test_the_other_gelu_is_found(towers: TwoTower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip, "activation", lambda module: "gelu")
    with pytest.raises(ConversionFailed):
        save_as(towers, tmp_path / "there", "hf")
    assert not any(tmp_path.iterdir())


def test_a_wrong_preparation_or_tokenizer_is_found(
    towers: TwoTower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = transformers.to_transformers
    monkeypatch.setattr(transformers, "to_transformers", lambda *a: ({**whole(*a)[0], "resample": 2}, []))
    with pytest.raises(ConversionFailed):
        save_as(towers, tmp_path / "there", "hf")
    monkeypatch.undo()

    def other(tokenizer: object, folder: Path) -> list[str]:
        small_models.siglip_tokenizer(folder)
        return []

    monkeypatch.setattr(transformers, "write_for_transformers", other)
    with pytest.raises(ConversionFailed):
        save_as(towers, tmp_path / "there", "hf")
    assert not any(tmp_path.iterdir())


def test_a_crash_leaves_nothing(towers: TwoTower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(transformers, "embed", stop)
    with pytest.raises(KeyboardInterrupt):
        save_as(towers, tmp_path / "there", "hf")
    assert not any(tmp_path.iterdir())


def test_not_a_number_is_no_small_difference(towers: TwoTower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = torch.full((len(pictures(towers.preparation)), 24), float("nan")), torch.zeros(len(TEXTS), 24)
    monkeypatch.setattr(transformers, "embed", lambda *_: nothing)
    with pytest.raises(ConversionFailed):
        save_as(towers, tmp_path / "there", "hf")


def test_what_is_there_stays(towers: TwoTower, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for place in (tmp_path / "full", tmp_path / "full" / "mine.txt"):
        with pytest.raises(InputError):
            save_as(towers, place, "hf")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]
    with pytest.raises(ValueError, match="sentence-transformers"):
        towers.save(tmp_path / "there", format="huggingface")


def test_saving_changes_nothing_of_the_model(towers: TwoTower, tmp_path: Path) -> None:
    towers.train()
    before = {name: tensor.clone() for name, tensor in towers.state_dict().items()}
    with pytest.warns(UserWarning, match="half a pixel"):
        towers.save(tmp_path / "empty", format="hf")
    assert towers.training
    assert all(torch.equal(before[name], tensor) for name, tensor in towers.state_dict().items())
    towers.eval()


def test_pictures_and_texts_tell_models_apart(towers: TwoTower) -> None:
    """A comparison over pictures that all look alike to a model would find nothing."""
    rows = towers.encode_image(pictures(towers.preparation))
    assert F.pdist(rows).min() > 1e-2
    assert F.pdist(towers.encode_text(TEXTS)).min() > 1e-2
    assert all(isinstance(p, Image.Image) for p in pictures(towers.preparation))
