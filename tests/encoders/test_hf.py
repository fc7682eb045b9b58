"""Models of transformers, sentence-transformers and timm under our interface: their own embeddings, and ours after a
round through our files; what can't be opened is refused in a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hubs
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image

import xmodal
from xmodal.encoders import load_towers
from xmodal.encoders.hf import hf_image
from xmodal.encoders.hf_files import read_preparation
from xmodal.encoders.pair import paired_towers
from xmodal.errors import InputError

TEXTS = ["a cat", "dog dog !", "", "a much longer text than the others are and it ends"]


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = (40, 60), (33, 32), (91, 44), (57, 200)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, F.normalize(theirs.detach().float(), dim=-1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("eos", [2, 49407])
def test_clip(tmp_path: Path, eos: int) -> None:
    folder = hubs.clip(tmp_path / "clip", eos=eos)
    theirs = transformers.CLIPModel.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    ours = xmodal.load(f"hf:{folder}", device="cpu")
    told = tokenizer(TEXTS, padding=True, truncation=True, max_length=77, return_tensors="pt")
    close(ours.encode_text(TEXTS), theirs.get_text_features(**told).pooler_output)
    pixels = processor(pictures(), return_tensors="pt")["pixel_values"]
    close(ours.encode_image(pictures()), theirs.get_image_features(pixels).pooler_output)
    assert ours.scale == pytest.approx(theirs.logit_scale.exp().item(), rel=1e-6)
    ours.save(tmp_path / "run")
    again = xmodal.load(str(tmp_path / "run"), device="cpu")
    assert torch.equal(again.encode_text(TEXTS), ours.encode_text(TEXTS))
    assert torch.equal(again.encode_image(pictures()), ours.encode_image(pictures()))


def test_siglip_reads_its_padding_and_keeps_its_bias(tmp_path: Path) -> None:
    folder = hubs.siglip(tmp_path / "siglip")
    theirs = transformers.SiglipModel.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ours = xmodal.load(f"hf:{folder}", device="cpu")
    told = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=12, return_tensors="pt")
    close(ours.encode_text(TEXTS), theirs.get_text_features(told["input_ids"]).pooler_output)
    assert ours.bias is not None
    assert ours.bias.item() == theirs.logit_bias.item()
    ours.save(tmp_path / "run")
    again = xmodal.load(str(tmp_path / "run"), device="cpu")
    assert again.bias is not None
    assert again.bias.item() == ours.bias.item()
    assert torch.equal(again.encode_text(TEXTS), ours.encode_text(TEXTS))


@pytest.mark.parametrize("make", [hubs.clip, hubs.siglip, hubs.vit])
def test_pixels_are_those_of_the_pillow_processor(tmp_path: Path, make) -> None:
    folder = make(tmp_path / "model")
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    ours = read_preparation(str(folder))
    theirs = processor(pictures(), return_tensors="pt")["pixel_values"]
    seen = (ours.stack(pictures()) / 255 - torch.tensor(ours.mean).view(3, 1, 1)) / torch.tensor(ours.std).view(3, 1, 1)
    torch.testing.assert_close(seen, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("dense", "pooling"), [(False, "mean"), (True, "cls"), (False, "max"), (False, "lasttoken")])
def test_a_text_tower_of_sentence_transformers(tmp_path: Path, dense: bool, pooling: str) -> None:
    from sentence_transformers import SentenceTransformer

    folder = hubs.sentence_transformer(tmp_path / "st", dense, pooling)
    theirs = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, convert_to_tensor=True)
    towers = paired_towers(f"hf:{hubs.vit(tmp_path / 'vit')}", f"st:{folder}", head="mlp", d=16).eval()
    with torch.no_grad():
        close(F.normalize(towers.features(text=towers.tokenizer(TEXTS)), dim=-1), theirs)
    towers.save(tmp_path / "run")
    again = xmodal.load(str(tmp_path / "run"), device="cpu")
    assert torch.equal(again.encode_text(TEXTS), towers.encode_text(TEXTS))
    assert torch.equal(again.encode_image(pictures()), towers.encode_image(pictures()))


def test_timm_from_a_folder_and_open_clip_make_a_pair(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    model = timm.create_model("resnet10t", pretrained=False, num_classes=5).eval()
    timm.models.save_for_hf(model, tmp_path / "timm", safe_serialization="both")
    for file in (tmp_path / "timm").glob("*.bin"):
        file.unlink()
    towers = paired_towers(f"timm:{tmp_path / 'timm'}", "open_clip:RN50", d=16).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.no_grad():
        theirs = model.forward_head(
            model.forward_features(torch.stack([transform(p) for p in pictures()])),  # pyright: ignore
            pre_logits=True,
        )
        pixels = towers.preparation.stack(pictures())
        torch.testing.assert_close(towers.features(image=pixels), theirs, rtol=1e-4, atol=1e-4)
    towers.save(tmp_path / "run")
    again = xmodal.load(str(tmp_path / "run"), device="cpu")
    assert torch.equal(again.encode_image(pictures()), towers.encode_image(pictures()))
    assert torch.equal(again.encode_text(TEXTS), towers.encode_text(TEXTS))


def test_a_missing_pooler_is_not_made_up(tmp_path: Path) -> None:
    folder = hubs.vit(tmp_path / "vit")
    half = hf_image(str(folder))
    theirs = transformers.ViTModel.from_pretrained(folder, add_pooling_layer=False)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = theirs(pixels).last_hidden_state[:, 0]
        torch.testing.assert_close(half.backbone(pixels), expected, rtol=0, atol=1e-6)


def test_features_stand_in_for_inputs(tmp_path: Path) -> None:
    towers = paired_towers(f"hf:{hubs.vit(tmp_path / 'vit')}", f"hf:{hubs.bert(tmp_path / 'bert')}", d=16).eval()
    pixels, tokens = towers.preparation.stack(pictures()), towers.tokenizer(TEXTS)
    with torch.no_grad():
        whole = towers(image=pixels, text=tokens)
        known = towers(image=towers.features(image=pixels), text=towers.features(text=tokens))
    for name in whole:
        torch.testing.assert_close(known[name], whole[name], rtol=0, atol=1e-6)


def test_several_texts_of_each_image(tmp_path: Path) -> None:
    towers = paired_towers(f"hf:{hubs.vit(tmp_path / 'vit')}", f"hf:{hubs.bert(tmp_path / 'bert')}", d=16).eval()
    tokens = towers.tokenizer(TEXTS)
    with torch.no_grad():
        flat = towers(text=tokens)["text"]
        assert torch.equal(towers(text=tokens.view(2, 2, -1))["text"].flatten(0, 1), flat)


def refused(spec: str, opened: Callable[[str], Any] = xmodal.load) -> str:
    with pytest.raises(InputError) as caught:
        opened(spec)
    return str(caught.value)


def test_what_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    clip = hubs.clip(tmp_path / "clip")
    assert "no config.json" in refused(f"hf:{tmp_path}")
    assert "there is no folder" in refused(f"hf:{tmp_path}/nothing")
    assert "no modules.json" in refused(f"st:{tmp_path}")
    assert f"--text-tower st:{tmp_path}" in refused(f"st:{tmp_path}", load_towers)
    vit = hubs.vit(tmp_path / "vit")
    assert "takes no texts" in refused(f"hf:{vit}")
    assert "--image-tower" in refused(f"hf:{vit}", load_towers)
    assert "it looks like hf:" in refused(str(clip)).lower()
    assert "'hf'" in refused("hff:openai/clip")

    pickled = tmp_path / "pickled"
    hubs.bert(pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(InputError, match="a pickle"):
        paired_towers(f"hf:{tmp_path / 'vit'}", f"hf:{pickled}")

    for file in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        (clip / file).unlink(missing_ok=True)
    assert "tokenizer" in refused(f"hf:{clip}")
    (clip / "preprocessor_config.json").unlink(missing_ok=True)
    (clip / "processor_config.json").unlink(missing_ok=True)
    assert "preprocessor_config.json" in refused(f"hf:{clip}")


def test_code_of_a_models_own_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}})
    )
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert "code of its own" in refused(f"hf:{tmp_path}")
    assert not (tmp_path / "ran").exists()


def test_towers_of_the_wrong_side_are_refused(tmp_path: Path) -> None:
    vit, bert = hubs.vit(tmp_path / "vit"), hubs.bert(tmp_path / "bert")
    with pytest.raises(InputError, match="takes no texts"):
        paired_towers(f"hf:{vit}", f"hf:{vit}")
    with pytest.raises(InputError, match="takes no images|preprocessor"):
        paired_towers(f"hf:{bert}", f"hf:{bert}")
    with pytest.raises(InputError, match="timm has no model"):
        paired_towers("timm:resnet51", f"hf:{bert}")
    with pytest.raises(InputError, match="--image-tower"):
        paired_towers("tim:resnet50", f"hf:{bert}")
