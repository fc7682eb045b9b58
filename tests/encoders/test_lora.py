"""Adapters: they begin as nothing, leave the weights below alone, and go into them when the model is taken out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hubs
import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image

from xmodal.encoders import build
from xmodal.encoders.lora import add_lora, has_lora, merged
from xmodal.encoders.pair import paired_towers
from xmodal.encoders.two_tower import TwoTower
from xmodal.errors import InputError
from xmodal.grad_cache import gradients
from xmodal.method import Batch, Method, Progress
from xmodal.objectives import clip_loss
from xmodal.weights import save_tensors

TEXTS = ["a dog", "two cats !", "a very big dog"]
TINY: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in TEXTS]


def of_open_clip(folder: Path) -> TwoTower:
    torch.manual_seed(0)
    folder.mkdir()
    save_tensors(open_clip.CLIP(**TINY).state_dict(), folder / "open_clip_model.safetensors")
    config = '{"model_cfg": ' + str(TINY).replace("'", '"') + ', "preprocess_cfg": {}}'
    (folder / "open_clip_config.json").write_text(config)
    return build(f"open_clip:local-dir:{folder}", train_tokenizer=None)


def of_transformers(folder: Path) -> TwoTower:
    return build(f"hf:{hubs.clip(folder)}", train_tokenizer=None)


def of_two(folder: Path) -> TwoTower:
    towers = paired_towers(f"hf:{hubs.vit(folder / 'vit')}", f"hf:{hubs.bert(folder / 'bert')}", d=20)
    for module in towers.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # so that training and evaluation give the same
    return towers


TOWERS = {"open_clip": of_open_clip, "transformers": of_transformers, "a pair": of_two}


class Clip(Method):
    def __init__(self, towers: TwoTower) -> None:
        super().__init__()
        self.towers = towers

    def encode(self, batch: Batch) -> dict[str, torch.Tensor]:
        return self.towers(image=batch["image"], text=batch["text"])

    def objective(self, representations: Any, targets: Any, progress: Progress) -> Any:
        return clip_loss(representations["image"], representations["text"], torch.tensor(10.0)), {}


def gradient(towers: TwoTower, micro_batch: int | None) -> dict[str, torch.Tensor]:
    from contextlib import nullcontext

    method, device = Clip(towers), torch.device("cpu")
    batch: Batch = {"image": towers.preparation.stack(pictures()), "text": towers.tokenizer(TEXTS)}
    method.zero_grad(set_to_none=True)
    gradients(method, batch, Progress(0, 1, 1, len(TEXTS)), device, 0, micro_batch, nullcontext)
    return {n: p.grad.clone() for n, p in towers.named_parameters() if p.grad is not None}


def trained(towers: TwoTower, steps: int = 3) -> None:
    towers.train()
    optimizer = torch.optim.AdamW([p for p in towers.parameters() if p.requires_grad], lr=0.02)
    for _ in range(steps):
        gradient(towers, None)
        optimizer.step()


def embedded(towers: TwoTower) -> torch.Tensor:
    return torch.stack([towers.encode_image(pictures()), towers.encode_text(TEXTS)])


@pytest.mark.parametrize("where", ["attention", "all"])
@pytest.mark.parametrize("name", TOWERS)
def test_from_the_first_step_to_the_plain_model(name: str, where: Any, tmp_path: Path) -> None:
    towers = TOWERS[name](tmp_path / "model").eval()
    names, kinds, first = list(towers.state_dict()), [type(m) for m in towers.modules()], embedded(towers)
    add_lora(towers, 4, where=where)
    assert has_lora(towers)
    torch.testing.assert_close(embedded(towers), first, rtol=0, atol=1e-6)  # B begins at zero
    below = {n: p.clone() for n, p in towers.named_parameters() if not p.requires_grad}
    assert below and all("lora_" in n or n.startswith(("image.head", "text.head"))  # noqa: PT018
                         for n, p in towers.named_parameters() if p.requires_grad)  # fmt: skip

    trained(towers)
    after = dict(towers.named_parameters())
    assert all(torch.equal(after[n], p) for n, p in below.items())
    moved = embedded(towers)
    assert (moved - first).abs().amax(dim=(1, 2)).min() > 1e-3  # of pictures as well as texts
    towers.train()  # in which open_clip's attention takes another way through torch
    again = towers(image=towers.preparation.stack(pictures()), text=towers.tokenizer(TEXTS))
    torch.testing.assert_close(torch.stack([again["image"], again["text"]]).detach(), moved, rtol=0, atol=1e-5)

    plain = merged(towers)
    assert not has_lora(plain)
    assert list(plain.state_dict()) == names
    assert [type(m) for m in plain.modules()] == kinds
    torch.testing.assert_close(embedded(plain), moved, rtol=0, atol=1e-5)
    assert has_lora(towers)  # training can go on
    torch.testing.assert_close(embedded(towers), moved, rtol=0, atol=0)
    assert merged(plain) is plain


def test_one_tower_alone(tmp_path: Path) -> None:
    towers = of_open_clip(tmp_path / "model")
    add_lora(towers, 2, only=("text",))
    adapted = {n.split(".")[0] for n, _ in towers.named_parameters() if "lora_" in n}
    assert adapted == {"text"}
    assert all(p.requires_grad for p in towers.image.parameters())


@pytest.mark.parametrize("name", TOWERS)
def test_slices_give_the_gradient_of_the_whole(name: str, tmp_path: Path) -> None:
    towers = TOWERS[name](tmp_path / "model")
    add_lora(towers, 2)
    trained(towers, 1)  # B away from zero, so that A has a gradient
    whole, parts = gradient(towers, None), gradient(towers, 2)
    assert whole.keys() == parts.keys()
    assert any("lora_A" in n for n in whole)
    for n, g in whole.items():
        torch.testing.assert_close(parts[n], g, rtol=0, atol=1e-6 * max(1.0, g.abs().max().item()))


@pytest.mark.parametrize("name", TOWERS)
def test_activations_may_be_computed_again(name: str, tmp_path: Path) -> None:
    towers = TOWERS[name](tmp_path / "model").train()
    add_lora(towers, 2)
    trained(towers, 1)
    kept = gradient(towers, None)
    towers.set_grad_checkpointing()
    again = gradient(towers, None)
    assert kept.keys() == again.keys()
    for n, g in kept.items():
        torch.testing.assert_close(again[n], g, rtol=0, atol=1e-6 * max(1.0, g.abs().max().item()))


def test_the_product_of_an_adapters_maps_is_what_goes_into_the_weight(tmp_path: Path) -> None:
    towers = of_open_clip(tmp_path / "model")
    before = towers.state_dict()["image.transformer.resblocks.1.attn.out_proj.weight"].clone()
    add_lora(towers, 2, only=("image",))
    trained(towers)
    below = towers.get_submodule("image.transformer.resblocks.1.attn.out_proj")
    added = below.lora_B.default.weight @ below.lora_A.default.weight  # pyright: ignore
    assert added.abs().max() > 1e-3
    found = merged(towers).state_dict()["image.transformer.resblocks.1.attn.out_proj.weight"]
    torch.testing.assert_close(found, (before + added).detach(), rtol=0, atol=1e-6)


def test_statistics_of_batches_stay(tmp_path: Path) -> None:
    plain = of_small()
    plain.image = timm.create_model("mobilevit_xxs", pretrained=False, num_classes=0)
    pair = of_two(tmp_path)
    pair.image.backbone = timm.create_model("mobilevit_xxs", pretrained=False, num_classes=0)  # below a head
    for towers, image in ((plain, plain.image), (pair, pair.image.backbone)):
        add_lora(towers, 2, only=("image",))
        before = {n: b.clone() for n, b in image.named_buffers()}  # pyright: ignore
        assert any("running_mean" in n for n in before)
        towers.train()
        image(torch.randn(2, 3, 64, 64))  # pyright: ignore
        assert all(torch.equal(b, before[n]) for n, b in image.named_buffers())  # pyright: ignore


def test_plain_open_clip_has_the_embeddings_of_the_adapted_model(tmp_path: Path) -> None:
    towers = of_open_clip(tmp_path / "model")
    add_lora(towers, 4, where="all")
    trained(towers)
    towers.save(tmp_path / "there", format="open_clip")
    model, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'there'}")
    assert isinstance(model.visual.transformer.resblocks[0].attn, torch.nn.MultiheadAttention)
    model.eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'there'}")(TEXTS)
    with torch.no_grad():
        image = model.encode_image(torch.stack([prepare(p) for p in pictures()]), normalize=True)  # type: ignore[operator]
        text = model.encode_text(tokens, normalize=True)
    torch.testing.assert_close(torch.stack([image, text]), embedded(towers), rtol=0, atol=1e-5)


def test_under_two_percent_of_vit_b_32_are_trained() -> None:
    towers = build("open_clip:ViT-B-32", train_tokenizer=None)
    total = sum(p.numel() for p in towers.parameters())
    add_lora(towers, 16)
    adapters = sum(p.numel() for p in towers.parameters() if p.requires_grad)
    # Two maps of attention in each of twelve layers, 768 and 512 wide; the input's has three times as many rows.
    assert adapters == sum(12 * 16 * (width + 3 * width + width + width) for width in (768, 512))
    assert adapters / total < 0.02


def test_a_tower_without_attention_is_refused() -> None:
    towers = of_small()
    towers.image = timm.create_model("resnet10t", pretrained=False, num_classes=0)
    with pytest.raises(InputError, match="image tower has no linear maps of attention"):
        add_lora(towers, 2)


def of_small() -> TwoTower:
    from xmodal.encoders.small import small_towers
    from xmodal.encoders.tokenizer import PiecesTokenizer

    return small_towers(PiecesTokenizer.train(["a dog and a cat"] * 20, 64), side=32)
