"""A locked tower embeds the data once: what training then reads is what it would have computed at every step."""

from __future__ import annotations

from pathlib import Path

import hubs
import numpy as np
import pytest
import torch
from PIL import Image

from xmodal.data.augment import augmentation
from xmodal.data.features import stack
from xmodal.data.source import Source, captions, open_pairs
from xmodal.encoders.once import images_once, texts_once
from xmodal.encoders.pair import paired_towers
from xmodal.encoders.trainable import lock
from xmodal.encoders.two_tower import TwoTower
from xmodal.errors import BadSample, InputError
from xmodal.finetune import embed_locked


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> TwoTower:
    folder = tmp_path_factory.mktemp("towers")
    towers = paired_towers(f"hf:{hubs.vit(folder / 'vit')}", f"hf:{hubs.bert(folder / 'bert')}", d=20, head="mlp")
    with torch.no_grad():
        for p in towers.parameters():  # the second layer of a head begins at zero
            p.add_(torch.randn_like(p) * 0.02)
    return towers


@pytest.fixture
def source(tmp_path: Path) -> Source:
    rng = np.random.default_rng(0)
    lines = ["filepath,caption"]
    for n in range(6):
        Image.fromarray(rng.integers(0, 256, (34, 40, 3), dtype=np.uint8)).save(tmp_path / f"{n}.png")
        lines += [f"{n}.png,{kind} dog of {'many ' * n} cats" for kind in ("a", "big")]
    (tmp_path / "4.png").write_bytes(b"no picture")
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n")
    return open_pairs(str(tmp_path / "pairs.csv"), None)[0]


def test_training_sees_what_it_would_have_computed(towers: TwoTower, source: Source) -> None:
    for which in ("image", "text"):
        lock(towers, which)
    plain = augmentation("none", towers.preparation)
    once, view, tokenize = embed_locked(towers, source, plain, augmented=False)
    rows = np.array([5, 0, 2])
    draws = np.zeros((3, 8), dtype=np.uint64)
    texts = [source.texts(row)[row % 2] for row in rows]
    assert [once.texts(row) for row in rows] == [source.texts(row) for row in rows]
    anew = {"image": plain(source.images(rows), draws), "text": towers.tokenizer(texts)}
    features = {"image": view(once.images(rows), draws), "text": tokenize(texts)}
    assert features["image"].shape == features["text"].shape == (3, 32)
    towers.train()
    found = []
    for inputs in (anew, features):
        towers.zero_grad()
        rows_ = towers(**inputs)
        (rows_["image"] @ rows_["text"].T).square().sum().backward()
        heads = [p.grad for p in towers.parameters() if p.grad is not None]
        assert heads
        found.append([*rows_.values(), *heads])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_a_picture_that_cannot_be_read_stays_one(towers: TwoTower, source: Source, tmp_path: Path) -> None:
    once = images_once(towers, source, batch_size=4)
    found = once.images(np.arange(6))
    assert [row for row, picture in enumerate(found) if isinstance(picture, BadSample)] == [4]
    assert "damaged header" in str(found[4])
    assert (once.fingerprint(), once.key(4), len(once)) == (source.fingerprint(), source.key(4), 6)
    assert np.array_equal(once.image_id, source.image_id)
    for n in range(6):
        (tmp_path / f"{n}.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"No image of .* can be read"):
        images_once(towers, source)


def test_the_size_of_a_batch_changes_nothing(towers: TwoTower, source: Source) -> None:
    rows = np.array([0, 1, 2, 3, 5])
    few, many = (stack(images_once(towers, source, size).images(rows)) for size in (2, 100))  # pyright: ignore
    torch.testing.assert_close(few, many, rtol=0, atol=1e-5)
    texts = list(captions(source))
    few, many = (texts_once(towers, source, size)(texts) for size in (2, 100))
    torch.testing.assert_close(few, many, rtol=0, atol=1e-5)
    assert not few.requires_grad


def test_it_leaves_the_towers_as_they_were(towers: TwoTower, source: Source) -> None:
    towers.train()
    texts_once(towers, source)
    assert towers.training
    towers.eval()
    texts_once(towers, source)
    assert not towers.training
