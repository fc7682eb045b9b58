"""Pictures are prepared alike: pixel for pixel, but for the half pixel that the two libraries round differently."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import transformers
from PIL import Image

from xmodal.encoders.hf_files import preparation_of
from xmodal.encoders.preparation import Preparation
from xmodal.errors import InputError
from xmodal.interop.preprocessing import cut_alike, to_open_clip, to_transformers

SIZES = [(w, h) for w in (32, 33, 40, 57, 64, 131) for h in (32, 35, 51, 64, 90, 200)]
CLIPS = Preparation(32, 32, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD, resize="shortest")


def pictures(seen: Preparation, alike: bool = True) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [size for size in SIZES if not alike or cut_alike(seen, *size)]
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def normalised(seen: Preparation, shown: list[Image.Image]) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (seen.mean, seen.std))
    return (seen.stack(shown) / 255 - mean) / std


def in_transformers(seen: Preparation, model_type: str, folder: Path) -> object:
    values, _ = to_transformers(seen, model_type)
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    kind = transformers.CLIPImageProcessorPil if model_type == "clip" else transformers.SiglipImageProcessorPil
    return kind.from_pretrained(folder)


WAYS = [
    ("clip", CLIPS),
    ("clip", Preparation(32, 32, resize="shortest", edge=40, crop="floor")),
    ("clip", Preparation(32, 32, resize="squash")),
    ("siglip", Preparation(32, 32)),
    ("siglip", Preparation(32, 48, interpolation="bilinear")),
    ("siglip", Preparation(32, 32, resize="shortest", crop="floor")),
]


@pytest.mark.parametrize(("model_type", "seen"), WAYS)
def test_the_pillow_processor_gives_our_pixels(model_type: str, seen: Preparation, tmp_path: Path) -> None:
    processor = in_transformers(seen, model_type, tmp_path)
    shown = pictures(seen, alike=seen.crop == "round")
    theirs = processor(shown, return_tensors="pt")["pixel_values"]  # pyright: ignore
    torch.testing.assert_close(normalised(seen, shown), theirs, rtol=0, atol=1e-6)
    again = preparation_of(processor, "here")
    assert again == Preparation(**{**seen.to_json(), "mean": again.mean, "std": again.std, "crop": "floor"})
    assert again.mean == pytest.approx(seen.mean)


@pytest.mark.parametrize("seen", [CLIPS, Preparation(32, 48), Preparation(32, 32, resize="longest", fill=7)])
def test_open_clips_transform_gives_our_pixels(seen: Preparation) -> None:
    values, notes = to_open_clip(seen)
    transform = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(**values), is_train=False)
    shown = pictures(seen, alike=False)
    assert notes == []
    theirs = torch.stack([transform(picture) for picture in shown])  # pyright: ignore
    torch.testing.assert_close(normalised(seen, shown), theirs, rtol=0, atol=1e-6)


def test_what_is_cut_differently_is_known_and_told(tmp_path: Path) -> None:
    processor = in_transformers(CLIPS, "clip", tmp_path)
    theirs = processor(pictures(CLIPS, alike=False), return_tensors="pt")["pixel_values"]  # pyright: ignore
    ours = normalised(CLIPS, pictures(CLIPS, alike=False))
    same = [(a - b).abs().max() < 1e-5 for a, b in zip(ours, theirs, strict=True)]
    assert same == [cut_alike(CLIPS, *size) for size in SIZES]
    assert 0 < sum(same) < len(same)
    assert "half a pixel" in to_transformers(CLIPS, "clip")[1][0]
    floor = Preparation(32, 32, resize="shortest", crop="floor")
    assert to_transformers(floor, "clip")[1] == []
    assert "half a pixel" in to_open_clip(floor)[1][0]
    assert to_transformers(Preparation(32, 32), "siglip")[1] == []


def test_what_the_other_library_cannot_do_is_refused() -> None:
    with pytest.raises(InputError, match="scales them to 40"):
        to_open_clip(Preparation(32, 32, resize="shortest", edge=40))
    for seen in (Preparation(32, 32, resize="longest"), Preparation(32, 48, resize="shortest")):
        with pytest.raises(InputError, match="can't fit"):
            to_transformers(seen, "clip")
