"""An image tower and a text tower from anywhere, joined by a head on each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xmodal.encoders.half import Half
from xmodal.encoders.heads import Headed, Projection, projection
from xmodal.encoders.two_tower import TwoTower
from xmodal.errors import InputError, nearest

IMAGE_FORMS = ("timm:NAME_OR_FOLDER", "hf:ID_OR_FOLDER", "open_clip:MODEL[/PRETRAINED]")
TEXT_FORMS = ("hf:ID_OR_FOLDER", "st:ID_OR_FOLDER", "open_clip:MODEL[/PRETRAINED]")


def paired_towers(
    image: str, text: str, *, head: Projection = "linear", d: int = 512, dropout: float = 0.0
) -> TwoTower:
    """Towers of two specs with fresh heads on them. Raises InputError for a spec that names no such tower."""
    halves = image_half(image), text_half(text)
    options = {"head": head, "d": d, "dropout": dropout}
    described = {"kind": "pair", **options, "image": halves[0].description, "text": halves[1].description}
    return _joined(*halves, described)


def paired_from_folder(folder: Path, description: dict[str, Any]) -> TwoTower:
    """The towers that a run folder's model.json describes, without weights and without a network."""
    told = {**description["image"], "preparation": description["preparation"]}
    return _joined(
        half_from_folder(folder, "image", told), half_from_folder(folder, "text", description["text"]), description
    )


def image_half(spec: str) -> Half:
    """The image tower of a spec."""
    kind, _, name = spec.partition(":")
    if kind == "timm":
        from xmodal.encoders.timm import timm_image

        return timm_image(name)
    if kind == "hf":
        from xmodal.encoders.hf import hf_image

        return hf_image(name)
    if kind == "open_clip":
        from xmodal.encoders.open_clip import open_clip_half

        return open_clip_half(name, "image")
    raise _unknown(spec, IMAGE_FORMS, "--image-tower")


def text_half(spec: str) -> Half:
    """The text tower of a spec."""
    kind, _, name = spec.partition(":")
    if kind == "st":
        from xmodal.encoders.sentence_transformers import st_text

        return st_text(name)
    if kind == "hf":
        from xmodal.encoders.hf import hf_text

        return hf_text(name)
    if kind == "open_clip":
        from xmodal.encoders.open_clip import open_clip_half

        return open_clip_half(name, "text")
    raise _unknown(spec, TEXT_FORMS, "--text-tower")


def half_from_folder(folder: Path, which: str, description: dict[str, Any]) -> Half:
    """The "image" or "text" tower that a run folder's description tells of, without weights and without a network."""
    kind = description["kind"]
    if kind == "timm":
        from xmodal.encoders.timm import timm_from_folder

        return timm_from_folder(description)
    if kind == "st":
        from xmodal.encoders.sentence_transformers import st_from_folder

        return st_from_folder(folder, description)
    if kind == "hf":
        from xmodal.encoders.hf import hf_half_from_folder

        return hf_half_from_folder(folder, which, description)
    if kind == "open_clip":
        from xmodal.encoders.open_clip import open_clip_half_from_folder

        return open_clip_half_from_folder(folder, which, description)
    raise InputError(f"{folder}/model.json has a tower of kind {kind!r}, which is not known here.")


def _joined(image: Half, text: Half, description: dict[str, Any]) -> TwoTower:
    assert image.preparation is not None
    assert text.tokenizer is not None
    head, d, dropout = description["head"], description["d"], description["dropout"]
    return TwoTower(
        Headed(image.backbone, projection(head, image.width, d, dropout)),
        Headed(text.backbone, projection(head, text.width, d, dropout)),
        preparation=image.preparation,
        tokenizer=text.tokenizer,
        description=description,
    )


def _unknown(spec: str, forms: tuple[str, ...], flag: str) -> InputError:
    kinds = [form.partition(":")[0] for form in forms]
    return InputError(f"{flag} {spec}: {nearest(spec.partition(':')[0], kinds)}\nForms: {', '.join(forms)}")
