"""Towers, and `load`, which opens a model spec for evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from xmodal.errors import InputError, nearest

if TYPE_CHECKING:
    from xmodal.encoders.image import ImageEncoder
    from xmodal.encoders.sentence import SentenceEncoder
    from xmodal.encoders.sequence import SequenceEncoder
    from xmodal.encoders.two_tower import TwoTower

M = TypeVar("M", bound="TwoTower | SentenceEncoder | ImageEncoder | SequenceEncoder")


def load(spec: str | Path, device: Any = None) -> Any:
    """Open a model in evaluation mode: a `TwoTower`, or a `SentenceEncoder`, an `ImageEncoder` or a `SequenceEncoder`
    where the spec names a model of texts, images or sequences alone.

    Raises InputError for a spec that names none of them.
    """
    from xmodal.encoders.hub import at_hand

    spec = at_hand(str(spec))
    found = _image_encoder(spec) or _sequence_encoder(spec) or _sentence_encoder(spec) or _towers(spec)
    return _ready(found, device)


def load_towers(spec: str, device: Any = None) -> TwoTower:
    """`load` for what needs images, too. Raises InputError for a sentence encoder as well."""
    return _ready(_towers(spec), device)


def _towers(spec: str) -> TwoTower:
    if spec == "small":
        raise InputError("'small' is trained from scratch: there is nothing to load. Train, then name the run folder.")
    return build(spec, train_tokenizer=None)


def _image_encoder(spec: str) -> ImageEncoder | None:
    """The image encoder of a spec; None if the spec is of another kind."""
    from xmodal.encoders.image import holds_image_encoder, open_image_encoder

    return open_image_encoder(spec) if spec.startswith("timm:") or holds_image_encoder(Path(spec)) else None


def _sequence_encoder(spec: str) -> SequenceEncoder | None:
    """The sequence encoder of a run folder; None if the spec is of another kind."""
    from xmodal.encoders.sequence import sequence_encoder_from_folder

    return sequence_encoder_from_folder(Path(spec))


def _sentence_encoder(spec: str) -> SentenceEncoder | None:
    """The sentence encoder of a spec; None if the spec is of another kind."""
    folder = Path(spec)
    if spec.startswith(("st:", "hf:")):
        from xmodal.encoders.sentence_specs import is_dual, open_sentences

        return None if spec.startswith("hf:") and is_dual(spec.removeprefix("hf:")) else open_sentences(spec)
    if folder.is_dir() and ((folder / "model.json").is_file() or (folder / "modules.json").is_file()):
        from xmodal.encoders.sentence_specs import KINDS, open_sentences

        if not (folder / "model.json").is_file() or _description(folder).get("kind") in KINDS:
            return open_sentences(spec)
    return None


def _ready(model: M, device: Any) -> M:
    import torch

    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return model.eval()


def build(spec: str, *, train_tokenizer: Callable[[], Any] | None, side: int = 32) -> TwoTower:
    """The towers of a spec with their weights, on the CPU. `small` asks for a tokenizer, trained when it is called.

    Raises InputError for a spec that names none, and for a single tower, which `pair.paired_towers` joins with another.
    """
    from xmodal.encoders.hub import at_hand

    spec = at_hand(spec)
    if spec == "small" and train_tokenizer is not None:
        from xmodal.encoders.small import small_towers

        return small_towers(train_tokenizer(), side)
    if spec.startswith("open_clip:"):
        from xmodal.encoders.open_clip import open_clip_towers

        return open_clip_towers(spec.removeprefix("open_clip:"))
    if spec.startswith("hf:"):
        from xmodal.encoders.hf import hf_towers

        return hf_towers(spec.removeprefix("hf:"))
    if spec.startswith(("timm:", "st:")):
        flag, other = (
            ("--image-tower", "--text-tower") if spec.startswith("timm:") else ("--text-tower", "--image-tower")
        )
        raise InputError(f"{spec} is one tower: {flag} {spec}, with {other} beside it.")
    folder = Path(spec)
    if folder.is_dir():
        return from_folder(folder)
    if ":" in spec:
        kinds = ["small", "hub", "open_clip", "hf", "timm", "st"]
        raise InputError(f"No model spec {spec!r}; {nearest(spec.split(':')[0], kinds)}\n{_FORMS}")
    names = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
    hint = nearest(folder.name, names) if names else ""
    raise InputError(
        f"No model {spec!r}: it is no folder here{' (' + hint + ')' if hint.startswith('did') else ''}, "
        "and no spec such as open_clip:ViT-B-32. `xmodal list` shows the forms."
    )


_FORMS = (
    "Forms: open_clip:MODEL[/PRETRAINED], hf:ID_OR_FOLDER, hub:ORG/NAME, a run folder; "
    "timm: and st: name single towers."
)


def from_folder(folder: Path) -> TwoTower:
    """Open what `TwoTower.save` wrote. Raises InputError for another folder, and for weights of another model."""
    from xmodal.weights import load_weights

    if not (folder / "model.json").is_file() or not (folder / "model.safetensors").is_file():
        hint = " Its training did not get as far as a model." if (folder / "config.yaml").is_file() else ""
        raise InputError(f"{folder} is no run folder: it lacks model.json or model.safetensors.{hint}{_other(folder)}")
    description = _description(folder)
    if description.get("kind") == "small":
        from xmodal.encoders.small import small_towers
        from xmodal.encoders.tokenizer import PiecesTokenizer

        tokenizer = PiecesTokenizer.load(folder, description["length"])
        towers = small_towers(tokenizer, description["side"], description["d"])
    elif description.get("kind") == "open_clip":
        from xmodal.encoders.open_clip import open_clip_from_folder

        towers = open_clip_from_folder(folder, description)
    elif description.get("kind") == "hf":
        from xmodal.encoders.hf import hf_from_folder

        towers = hf_from_folder(folder, description)
    elif description.get("kind") == "pair":
        from xmodal.encoders.pair import paired_from_folder

        towers = paired_from_folder(folder, description)
    elif description.get("kind") == "image":
        raise InputError(f"{folder} holds an image encoder, which has no text tower.")
    elif description.get("kind") in ("small-text", "st"):
        raise InputError(f"{folder} holds a sentence encoder, which has no image tower.")
    else:
        raise InputError(f"{folder}/model.json is of kind {description.get('kind')!r}, which is not known here.")
    if description.get("sigmoid"):
        import torch

        towers.bias = torch.zeros(())
    load_weights(towers, folder / "model.safetensors")
    return towers


def _description(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "model.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{folder}/model.json is damaged: {error}") from None


def _other(folder: Path) -> str:
    """Which spec opens the folder, if another library wrote it."""
    for file, spec in {
        "modules.json": "--text-tower st:",
        "open_clip_config.json": "open_clip:local-dir:",
        "config.json": "hf:",
    }.items():
        if (folder / file).is_file():
            return f" It looks like {spec}{folder}"
    return ""
