"""`--grad-checkpointing` with every kind of tower: layers run again in the backward pass, and the gradient is the same.

Towers of `small` are in test_small.py, those of sentence encoders in test_flat.py, sharded ones in test_fsdp.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.encoders import hubs
from tests.interop import small_models
from xmodal.encoders.depth import blocks
from xmodal.encoders.hf import hf_towers
from xmodal.encoders.open_clip import open_clip_towers
from xmodal.encoders.pair import paired_towers
from xmodal.encoders.two_tower import TwoTower

WORDS = ["a cat", "dog !", "the cat the dog", "a"]
KINDS = ["open_clip", "hf CLIP", "hf SigLIP", "timm ViT, st", "timm CNN, hf BERT", "hf ViT, open_clip"]


def towers_of(kind: str, folder: Path) -> TwoTower:
    torch.manual_seed(0)
    if kind == "open_clip":
        small_models.of_open_clip(folder / "open_clip")
        return open_clip_towers(f"local-dir:{folder / 'open_clip'}")
    if kind.startswith("hf C") or kind.startswith("hf S"):
        return hf_towers(str((hubs.clip if kind == "hf CLIP" else hubs.siglip)(folder / "hf")))
    image, text = {
        "timm ViT, st": lambda: ("timm:test_vit/random", f"st:{hubs.sentence_transformer(folder / 'st')}"),
        "timm CNN, hf BERT": lambda: ("timm:test_resnet/random", f"hf:{hubs.bert(folder / 'bert')}"),
        "hf ViT, open_clip": lambda: (f"hf:{hubs.vit(folder / 'vit')}", of_open_clip(folder / "open_clip")),
    }[kind]()
    return paired_towers(image, text, head="mlp", d=16, dropout=0.1)


def of_open_clip(folder: Path) -> str:
    small_models.of_open_clip(folder)
    return f"open_clip:local-dir:{folder}"


@pytest.mark.parametrize("kind", KINDS)
def test_layers_run_again_and_the_gradient_is_the_same(kind: str, tmp_path: Path) -> None:
    towers = towers_of(kind, tmp_path).train()
    runs: list[Any] = []
    layers = blocks(towers)
    for layer in layers:  # transformers' own hooks of a layer stay outside of what runs again
        inside = next(m for m in layer.modules() if next(m.parameters(), None) is not None and not [*m.children()])
        inside.register_forward_pre_hook(lambda module, _: runs.append(module))
    seen = towers.preparation
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (4, 3, seen.height, seen.width), generator=g, dtype=torch.uint8)

    def gradients() -> dict[str, torch.Tensor]:
        runs.clear()
        towers.zero_grad()
        torch.manual_seed(1)  # of dropout, whose masks must be drawn again
        out = towers(image=pixels, text=towers.tokenizer(WORDS))
        (out["image"] * out["text"]).sum().backward()
        return {name: p.grad.clone() for name, p in towers.named_parameters() if p.grad is not None}

    plain, once = gradients(), len(runs)
    towers.set_grad_checkpointing()
    again = gradients()
    assert len(set(runs)) == len(layers) >= 2
    assert len(runs) == 2 * once
    assert plain.keys() == again.keys()
    assert {name for name in plain if not torch.equal(again[name], plain[name])} == set()
    towers.set_grad_checkpointing(False)
    gradients()
    assert len(runs) == once
