"""The towers that are trained from scratch, and their tokenizer."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import xmodal
from xmodal.encoders.lengths import NOTHING
from xmodal.encoders.small import SmallImageTower, small_towers
from xmodal.encoders.tokenizer import END, PiecesTokenizer
from xmodal.encoders.two_tower import TwoTower
from xmodal.errors import BadSample, InputError

NAMES = ["LATIN SMALL LETTER N WITH CARON", "GREEK SMALL LETTER NU", "ARROW", "BRAILLE PATTERN DOTS-1234", ""]


@pytest.fixture(scope="module")
def tokenizer() -> PiecesTokenizer:
    return PiecesTokenizer.train(NAMES * 3, 96, length=12)


@pytest.fixture
def towers(tokenizer: PiecesTokenizer) -> TwoTower:
    torch.manual_seed(1)
    return small_towers(tokenizer, side=32, d=16)


def test_the_tokenizer_pads_cuts_folds_and_travels(tokenizer: PiecesTokenizer) -> None:
    tokens = tokenizer([*NAMES, " ".join(NAMES * 3)])
    assert tokens.shape == (6, 12)
    assert (tokens == END).sum(1).tolist() == [1] * 6
    assert tokens[4].tolist() == [END] + [NOTHING] * 11  # no text is a row that can be pooled
    assert torch.equal(tokenizer(["arrow"]), tokenizer(["ARROW"]))
    assert torch.equal(pickle.loads(pickle.dumps(tokenizer))(NAMES), tokenizer(NAMES))
    assert PiecesTokenizer.train(NAMES * 3, 96).model == tokenizer.model
    assert tokenizer([]).shape[0] == 0


@pytest.mark.parametrize(("part", "told"), [(0.0, "empty"), (0.5, "no model of sentencepiece"), (None, "No such file")])
def test_a_tokenizer_that_is_damaged_is_wrong_input(
    part: float | None, told: str, towers: TwoTower, tmp_path: Path
) -> None:
    towers.save(tmp_path)
    file = tmp_path / "tokenizer.model"
    whole = file.read_bytes()
    file.unlink()
    if part is not None:
        file.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(InputError, match=f"tokenizer.model.*{told}"):
        xmodal.load(str(tmp_path))


def test_captions_that_teach_nothing_are_wrong_input() -> None:
    with pytest.raises(InputError, match="No tokenizer"):
        PiecesTokenizer.train([], 96)


@pytest.mark.parametrize("side", [32, 64, 128])
def test_the_image_tower_takes_sizes_that_are_16_times_a_power_of_two(side: int) -> None:
    assert SmallImageTower(side, d=8, channels=32, blocks=1)(torch.randn(2, 3, side, side)).shape == (2, 8)
    with pytest.raises(ValueError, match="power of two"):
        SmallImageTower(side + 8)


def test_rows_are_unit_in_float32_under_autocast(towers: TwoTower) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        out = towers(image=torch.zeros(3, 3, 32, 32, dtype=torch.uint8), text=towers.tokenizer(NAMES))
    for rows in out.values():
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)))


def test_a_text_is_encoded_alike_alone_and_beside_longer_ones(towers: TwoTower) -> None:
    towers.eval()
    together = towers.encode_text(NAMES)
    for row, name in zip(together, NAMES, strict=True):
        torch.testing.assert_close(towers.encode_text([name])[0], row, rtol=0, atol=1e-6)


def test_no_key_bias_no_batch_statistics_no_dropout(towers: TwoTower) -> None:
    assert not [name for name, _ in towers.named_parameters() if name.endswith("key.bias")]
    kinds = {type(m).__name__ for m in towers.modules()}
    assert not kinds & {"BatchNorm2d", "BatchNorm1d", "Dropout"}
    assert [name for name, _ in towers.named_buffers()] == ["log_scale", "mean", "std"]


def test_checkpointing_changes_no_gradient(towers: TwoTower) -> None:
    def gradient() -> dict[str, torch.Tensor]:
        towers.zero_grad()
        g = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (4, 3, 32, 32), generator=g, dtype=torch.uint8)
        out = towers(image=pixels, text=towers.tokenizer(NAMES[:4]))
        (out["image"] * out["text"]).sum().backward()
        return {name: p.grad.clone() for name, p in towers.named_parameters() if p.grad is not None}

    plain = gradient()
    towers.set_grad_checkpointing()
    again = gradient()
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_it_is_loaded_as_it_was_saved(towers: TwoTower, tmp_path: Path) -> None:
    towers.log_scale.fill_(3.0)
    towers.save(tmp_path / "model")
    loaded = xmodal.load(str(tmp_path / "model"), device="cpu")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    picture.save(tmp_path / "picture.png")
    for images in ([picture], [np.asarray(picture)], [str(tmp_path / "picture.png")], [tmp_path / "picture.png"]):
        assert torch.equal(loaded.encode_image(images), towers.encode_image(images))
        assert torch.equal(loaded.encode_image(images), towers.encode_image([picture]))
    assert torch.equal(loaded.encode_text(NAMES), towers.encode_text(NAMES))
    assert loaded.scale == pytest.approx(torch.tensor(3.0).exp().item())
    assert not loaded.training
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "model.json",
        "model.safetensors",
        "tokenizer.model",
    ]


def test_weights_of_another_size_are_refused(towers: TwoTower, tokenizer: PiecesTokenizer, tmp_path: Path) -> None:
    small_towers(tokenizer, side=32, d=24).save(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    towers.save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(InputError) as caught:
        xmodal.load(str(tmp_path))
    for part in ("model.safetensors", "'image.projection.weight'", "(24, 8192)", "(16, 8192)"):
        assert part in str(caught.value)


def test_encoding_takes_lists_and_names_what_it_cannot_read(towers: TwoTower, tmp_path: Path) -> None:
    assert towers.encode_image([]).shape == (0, 16)
    assert towers.encode_text([]).shape == (0, 16)
    with pytest.raises(TypeError, match="list of strings"):
        towers.encode_text("one string")
    with pytest.raises(BadSample, match="No such file"):
        towers.encode_image([tmp_path / "no.png"])


def test_specs_that_name_nothing(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    for spec, words in {
        "small": "trained from scratch",
        "open_clp:ViT-B-32": "did you mean 'open_clip'",
        "open_clip:ViT-B-33": "did you mean .*'ViT-B-32'",
        "open_clip:ViT-B-32/opnai": "did you mean .*'openai'",
        f"open_clip:local-dir:{tmp_path}": "open_clip_config.json",
        str(tmp_path / "clap"): "did you mean 'clip'",
        str(tmp_path / "clip"): "no run folder",
    }.items():
        with pytest.raises(InputError, match=words):
            xmodal.load(spec)
