"""An image encoder: one tower whose features are taken before any head; what the image recipes train and save."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xmodal.encoders.asleep import Sleepers
from xmodal.encoders.batch_norm import over_all_processes
from xmodal.encoders.half import Half
from xmodal.encoders.heads import Headed
from xmodal.encoders.hub import OnHub, at_hand
from xmodal.encoders.preparation import Picture, Preparation
from xmodal.encoders.strided import with_strided
from xmodal.errors import InputError, nearest
from xmodal.weights import load_weights, save_tensors

KIND = "image"
FORMS = "small, timm:NAME_OR_FOLDER, hf:ID_OR_FOLDER, open_clip:MODEL[/PRETRAINED], hub:ORG/NAME, the folder of a run"


class ImageEncoder(Sleepers, OnHub):
    """image: normalised pixels (b, 3, h, w) -> features (b, d). description: what builds the tower again.

    Every BatchNorm in it has statistics of the global batch, so that any number of processes give the gradient of one;
    those of a tower that is `frozen` stay as they are.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        image: nn.Module,
        d: int,
        *,
        preparation: Preparation,
        description: dict[str, Any],
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.image = image if frozen else with_strided(over_all_processes(image))
        self.d, self.preparation, self.description = d, preparation, description
        self.register_buffer("mean", torch.tensor(preparation.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preparation.std).view(3, 1, 1), persistent=False)

    @property
    def backbone(self) -> nn.Module:
        return self.image

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def forward(self, image: Tensor) -> Tensor:
        """uint8 pixels (b, 3, h, w) -> features (b, d), not normalised; several views (b, v, 3, h, w) -> (b, v, d).

        They are float32 or better, under autocast too, since heads and losses go on from there outside of it.
        Views that come together share the statistics of a BatchNorm, as in SimCLR's reference code; where a method's
        views have statistics of their own, as in BYOL's and Barlow Twins', it is `one_by_one`.
        """
        flat = image.flatten(0, -4)
        rows = self.image((flat.to(self.std.dtype) / 255 - self.mean) / self.std)
        return rows.to(torch.promote_types(rows.dtype, torch.float32)).unflatten(0, image.shape[:-3])

    @torch.inference_mode()
    def encode_image(self, images: Sequence[Picture], batch_size: int = 256) -> Tensor:
        """Paths, PIL images or arrays -> features as unit rows, (n, d) float32 on the CPU. Raises BadSample."""
        was_training = self.training
        self.eval()
        parts = [torch.empty(0, self.d)]
        for a in range(0, len(images), batch_size):
            pixels = self.preparation.stack(images[a : a + batch_size]).to(self.device)
            parts.append(F.normalize(self(pixels).float(), dim=-1).cpu())
        self.train(was_training)
        return torch.cat(parts)

    def set_grad_checkpointing(self, on: bool = True) -> None:
        """Recompute activations in the backward pass, if the tower can."""
        if hasattr(self.image, "set_grad_checkpointing"):
            self.image.set_grad_checkpointing(on)  # pyright: ignore[reportCallIssue]

    def save(self, folder: str | Path) -> None:
        """Write model.safetensors and model.json; `xmodal.load(folder)` opens them.

        A reader sees the old files or the new ones, never half of one.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        described = {"kind": KIND, "image": self.description, "preparation": self.preparation.to_json()}
        beside = folder / "model.json.tmp"
        beside.write_text(json.dumps(described, indent=1))
        weights = {name: t.detach().to("cpu", copy=True) for name, t in self.state_dict().items()}
        save_tensors(weights, folder / "model.safetensors.tmp")
        beside.replace(folder / "model.json")
        (folder / "model.safetensors.tmp").replace(folder / "model.safetensors")


def one_by_one(tower: nn.Module, views: Tensor) -> Tensor:
    """Views (b, v, 3, h, w) -> features (b, v, d), each view with statistics of its own in every BatchNorm."""
    return torch.stack([tower(view) for view in views.unbind(1)], 1)


def with_embedding(encoder: ImageEncoder, d: int) -> ImageEncoder:
    """The encoder with a linear map behind it, fresh, whose outputs are its features from now on: (b, d)."""
    image = Headed(encoder.image, nn.Linear(encoder.d, d))
    described = {**encoder.description, "embedding": d}
    return ImageEncoder(image, d, preparation=encoder.preparation, description=described)


def open_image_encoder(spec: str, side: int | None = None) -> ImageEncoder:
    """The encoder of a spec with its weights, on the CPU; `small` is fresh, torch's random state makes its weights.

    side: pixels a side that it takes, instead of the size that it was made for; `small` takes 32 if not told.
    Raises InputError for a spec that names no image tower, and for a tower that can't take that size.
    """
    spec = at_hand(spec)
    if spec == "small":
        from xmodal.encoders.small_resnet import WIDTHS

        return _of(_small(WIDTHS, Preparation(side or 32, side or 32, resize="shortest")))
    if spec.startswith(("timm:", "hf:", "open_clip:")):
        from xmodal.encoders.pair import image_half

        encoder = _of(image_half(spec))
    elif Path(spec).is_dir():
        encoder = image_encoder_from_folder(Path(spec))
    else:
        hint = f" {nearest(spec.partition(':')[0], ['timm', 'hf', 'open_clip', 'hub'])}" if ":" in spec else ""
        raise InputError(f"--model {spec} names no image tower.{hint}\nForms: {FORMS}.")
    return encoder if side is None else of_size(encoder, side, spec)


def holds_image_encoder(folder: Path) -> bool:
    """Whether `ImageEncoder.save` wrote the folder."""
    try:
        return json.loads((folder / "model.json").read_text(encoding="utf-8")).get("kind") == KIND
    except (OSError, ValueError, AttributeError):
        return False


def image_encoder_from_folder(folder: Path) -> ImageEncoder:
    """What `ImageEncoder.save` wrote. Raises InputError for another folder and for weights of another model."""
    if not holds_image_encoder(folder) or not (folder / "model.safetensors").is_file():
        raise InputError(f"{folder} is no run folder of an image encoder.\nForms: {FORMS}.")
    told = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    description = {**told["image"], "preparation": told["preparation"]}
    if description["kind"] == "small-resnet":
        half = _small(description["widths"], Preparation.from_json(told["preparation"]))
    else:
        from xmodal.encoders.pair import half_from_folder

        half = half_from_folder(folder, "image", description)
    plain = {name: value for name, value in told["image"].items() if name not in ("embedding", "patches")}
    encoder = _of(replace(half, description=plain, preparation=Preparation.from_json(told["preparation"])))
    if d := told["image"].get("embedding"):
        encoder = with_embedding(encoder, d)
    if side := told["image"].get("patches"):
        from xmodal.encoders.patches import mean_over_patches, without_batch_norm

        encoder = mean_over_patches(without_batch_norm(encoder), side)
    load_weights(encoder, folder / "model.safetensors")
    return encoder


def _small(widths: Sequence[int], preparation: Preparation) -> Half:
    from xmodal.encoders.small_resnet import SmallResNet

    description = {"kind": "small-resnet", "widths": list(widths)}
    return Half(SmallResNet(widths), widths[-1], description, preparation=preparation)


def _of(half: Half) -> ImageEncoder:
    assert half.preparation is not None
    return ImageEncoder(half.backbone, half.width, preparation=half.preparation, description=half.description)


def of_size(encoder: ImageEncoder, side: int, spec: str) -> ImageEncoder:
    """The encoder for pictures of another size, if its tower takes any: one that has learned positions doesn't.

    Raises InputError if it doesn't.
    """
    seen = encoder.preparation
    grown = None if seen.edge is None else round(seen.edge * side / seen.height)
    encoder.preparation = replace(seen, height=side, width=side, edge=grown)
    was_training = encoder.training
    try:
        with torch.no_grad():
            encoder.eval()(torch.zeros(1, 3, side, side, dtype=torch.uint8))
    except (AssertionError, RuntimeError, ValueError) as error:
        text = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{spec} takes no pictures of {side} × {side} pixels: {text}") from None
    encoder.train(was_training)
    return encoder
