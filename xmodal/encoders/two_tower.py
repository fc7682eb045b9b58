"""A dual encoder: an image tower and a text tower whose outputs are compared by their cosine."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xmodal.encoders.asleep import Sleepers
from xmodal.encoders.heads import Headed
from xmodal.encoders.hub import OnHub
from xmodal.encoders.lengths import by_length
from xmodal.encoders.preparation import Picture, Preparation
from xmodal.sharding import is_sharded
from xmodal.weights import save_tensors

# Radford et al. 2021, section 2.5: the temperature begins at 0.07.
FIRST_LOG_SCALE = 2.6592600369327783  # ln(1 / 0.07)


class Tokenizer(Protocol):
    """Rows that end early end in `lengths.NOTHING`, if what follows has no part in the result."""

    def __call__(self, texts: Sequence[str], /) -> Tensor: ...
    def save(self, folder: Path, /) -> None: ...


class TwoTower(Sleepers, OnHub):
    """What is trained, evaluated, saved and loaded.

    image: (b, 3, h, w) float, normalised -> (b, d); text: (b, l) long -> (b, d). Either may be `Headed`.
    description: what `xmodal.load` needs to build the towers again; it goes into model.json.
    """

    mean: Tensor
    std: Tensor
    log_scale: Tensor
    bias: Tensor | None

    def __init__(
        self,
        image: nn.Module,
        text: nn.Module,
        *,
        preparation: Preparation,
        tokenizer: Tokenizer,
        description: dict[str, Any],
    ) -> None:
        super().__init__()
        self.image, self.text = image, text
        self.preparation, self.tokenizer, self.description = preparation, tokenizer, description
        # The learnable scale belongs to the method that trains it; here is the one the model was exported with.
        self.register_buffer("log_scale", torch.tensor(FIRST_LOG_SCALE))
        self.register_buffer("bias", None)  # of the logits, where the model was trained with the sigmoid loss
        self.register_buffer("mean", torch.tensor(preparation.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preparation.std).view(3, 1, 1), persistent=False)

    def forward(
        self, image: Tensor | None = None, text: Tensor | None = None, views: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Any of uint8 pixels (b, 3, h, w) and tokens (b, l) -> unit rows (b, d) under the same name.

        Several texts of each image, (b, k, l), become (b, k, d). Instead of either, `features` of it do: the backbone
        is left out. Rows are normalised in float32 at least: under bf16 autocast their length would be off by 0.4 %.
        Of views of pictures, (b, v, 3, h, w), come the backbone's features, (b, v, width) float32 at least.
        """
        outputs = {}
        if image is not None:
            outputs["image"] = _unit(head(self.image)(self.features(image=image)))
        if text is not None:
            rows = _unit(head(self.text)(self.features(text=text.flatten(0, -2))))
            outputs["text"] = rows.unflatten(0, text.shape[:-1]) if text.ndim == 3 else rows
        if views is not None:
            rows = self.features(image=views.flatten(0, 1))
            outputs["views"] = rows.to(torch.promote_types(rows.dtype, torch.float32)).unflatten(0, views.shape[:2])
        return outputs

    def features(self, image: Tensor | None = None, text: Tensor | None = None) -> Tensor:
        """What the image's or the text's backbone makes of its input, (b, width), before the head if there is one.

        Features (b, width) float are passed through.
        """
        if image is not None:
            if image.ndim == 2:
                return image
            return backbone(self.image)((image.to(self.std.dtype) / 255 - self.mean) / self.std)
        assert text is not None
        return text if text.is_floating_point() else by_length(backbone(self.text), text, at_once=is_sharded(self))

    @property
    def scale(self) -> float:
        """1 / temperature, the factor of cosines in the softmax."""
        return self.log_scale.exp().item()

    @property
    def device(self) -> torch.device:
        return self.log_scale.device

    def encode_image(self, images: Sequence[Picture], batch_size: int = 256) -> Tensor:
        """Paths, PIL images or arrays -> (n, d) unit float32 on the CPU. Raises BadSample."""
        blank = np.zeros((self.preparation.height, self.preparation.width), dtype=np.uint8)
        return self._encode(
            images, batch_size, blank, lambda part: self(image=self.preparation.stack(part).to(self.device))
        )

    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Strings -> (n, d) unit float32, on the CPU."""
        if isinstance(texts, str):
            raise TypeError("encode_text takes a list of strings, not one string")
        return self._encode(texts, batch_size, "", lambda part: self(text=self.tokenizer(list(part)).to(self.device)))

    def similarity(self, image: Tensor, text: Tensor) -> Tensor:
        """Cosines of unit rows, (n, d) and (m, d) -> (n, m)."""
        return image @ text.T

    @torch.inference_mode()
    def _encode(
        self, items: Sequence[Any], batch_size: int, blank: Any, forward: Callable[[Any], dict[str, Tensor]]
    ) -> Tensor:
        """blank: an item to learn the width from where there are none."""
        was_training = self.training
        self.eval()
        parts = [
            next(iter(forward(part).values())).float().cpu()
            for part in (items[a : a + batch_size] for a in range(0, len(items), batch_size))
        ] or [next(iter(forward([blank]).values())).float().cpu()[:0]]
        self.train(was_training)
        return torch.cat(parts)

    def set_grad_checkpointing(self, on: bool = True) -> None:
        """Recompute activations in the backward pass, in each tower that can."""
        for tower in (self.image, self.text):
            if hasattr(tower, "set_grad_checkpointing"):
                tower.set_grad_checkpointing(on)  # pyright: ignore[reportCallIssue]

    def save(self, folder: str | Path, format: str = "xmodal") -> None:
        """Write model.safetensors, model.json and the tokenizer's files; `xmodal.load(folder)` opens them.

        A reader sees the old files or the new ones, never half of one.

        format: or that of "open_clip", "hf" (transformers), "sentence-transformers" or "onnx", into a new folder, which
        the library is made to open and embed with before it is put in its place. Raises InputError where the library
        has no such architecture, and interop.verify.ConversionFailed where its embeddings are others.
        """
        if format != "xmodal":
            from xmodal.interop.save import save_as

            for note in save_as(self, folder, format).notes:
                warnings.warn(note, stacklevel=2)
            return
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(folder)
        description = {**self.description, "preparation": self.preparation.to_json()}
        description |= {"sigmoid": True} if self.bias is not None else {}
        beside = folder / "model.json.tmp"
        beside.write_text(json.dumps(description, indent=1))
        weights = {name: t.detach().to("cpu", copy=True) for name, t in self.state_dict().items()}
        save_tensors(weights, folder / "model.safetensors.tmp")
        beside.replace(folder / "model.json")
        (folder / "model.safetensors.tmp").replace(folder / "model.safetensors")


def backbone(tower: nn.Module) -> nn.Module:
    """A tower without its head."""
    return tower.backbone if isinstance(tower, Headed) else tower


def head(tower: nn.Module) -> nn.Module:
    """What comes after a tower's backbone; nothing, where the tower is one piece."""
    return tower.head if isinstance(tower, Headed) else nn.Identity()


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=-1)
