"""Small models with every part of the full ones, as open_clip and transformers save them; no tensor is left at zero."""

from __future__ import annotations

import io
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

from tests.encoders.hubs import clip_tokenizer, stirred

CLIP: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 48, "heads": 2, "layers": 3},
}
TIMM = "vit_test_patch16_siglip_32"
SIGLIP: dict[str, Any] = {
    "embed_dim": 32,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 32,
        "timm_model_name": TIMM,
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 60,
        "hf_tokenizer_name": "somewhere",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "width": 32,
        "heads": 2,
        "layers": 2,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
    },
}
SEES = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
WORDS = "a photo of the cat dog two dogs running barking street with houses on both sides very long caption it is half"
# transformers' names for the widths of CLIP and SIGLIP above.
TOWER = {"num_attention_heads": 2, "num_hidden_layers": 2}
PICTURE = {"image_size": 32, "patch_size": 16}


def changed(config: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """A configuration with values added; those of vision_cfg and text_cfg one by one."""
    config = deepcopy(config)
    for name, value in parts.items():
        config[name] = {**config[name], **value} if isinstance(value, dict) else value
    return config


def of_open_clip(folder: Path, config: dict[str, Any] = CLIP, **sees: Any) -> str:
    """A folder as open_clip saves it, and its spec."""
    torch.manual_seed(0)
    build = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    model = build(**{name: value for name, value in config.items() if name != "custom_text"})
    stirred(model)
    folder.mkdir()
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": sees}))
    return f"open_clip:local-dir:{folder}"


def siglip_of_open_clip(folder: Path, config: dict[str, Any] = SIGLIP) -> str:
    """SigLIP's architecture with a T5 tokenizer, as on the hub."""
    spec = of_open_clip(folder, config, **SEES)
    t5_tokenizer(folder)
    return spec


def clip_of_transformers(folder: Path, act: str = "quick_gelu", end: int = 49407, **vision: Any) -> str:
    import transformers

    torch.manual_seed(1)
    text = {**TOWER, "hidden_size": 48, "intermediate_size": 100, "hidden_act": act, "max_position_embeddings": 16}
    config = transformers.CLIPConfig(
        text_config={**text, "eos_token_id": end, "bos_token_id": end - 1},
        vision_config={**TOWER, **PICTURE, "hidden_size": 64, "intermediate_size": 128, "hidden_act": act, **vision},
        projection_dim=24,
    )
    _save(transformers.CLIPModel(config), folder)
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(folder)
    clip_tokenizer(folder)
    return f"hf:{folder}"


def siglip_of_transformers(folder: Path, act: str = "gelu", width: int = 32) -> str:
    import transformers

    torch.manual_seed(2)
    tower = {**TOWER, "hidden_size": width, "intermediate_size": 2 * width, "hidden_act": act}
    config = transformers.SiglipConfig(
        text_config={**tower, "vocab_size": 60, "max_position_embeddings": 16, "projection_size": width},
        vision_config={**tower, **PICTURE},
    )
    _save(transformers.SiglipModel(config), folder)
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    siglip_tokenizer(folder)
    return f"hf:{folder}"


def t5_tokenizer(folder: Path) -> None:
    """As that of timm's SigLIP on the hub: padded with the end mark."""
    import transformers

    (folder / "spiece.model").write_bytes(_pieces())
    tokenizer = transformers.T5Tokenizer.from_pretrained(folder, extra_ids=0)
    (folder / "spiece.model").unlink()
    tokenizer.pad_token = "</s>"
    tokenizer.save_pretrained(folder)


def siglip_tokenizer(folder: Path) -> None:
    """As that of Google's SigLIP on the hub: SentencePiece's own, which takes case and punctuation away itself."""
    import transformers

    (folder / "pieces.model").write_bytes(_pieces())
    transformers.SiglipTokenizer(str(folder / "pieces.model")).save_pretrained(folder)
    (folder / "pieces.model").unlink()


def register_timm() -> None:
    """A name in timm for a tower with SigLIP's parts that is small enough for a test, unless it is there."""
    import timm
    from timm.models import register_model
    from timm.models.vision_transformer import VisionTransformer

    if timm.is_model(TIMM):
        return
    shape = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2}

    def build(pretrained: bool = False, num_classes: int = 0, global_pool: str = "map", **_: Any) -> VisionTransformer:
        return VisionTransformer(**shape, class_token=False, num_classes=num_classes, global_pool=global_pool)  # pyright: ignore

    build.__name__, build.__module__ = TIMM, "timm.models.vision_transformer"
    register_model(build)


def _save(model: Any, folder: Path) -> None:
    stirred(model)
    model.eval().save_pretrained(folder)


def _pieces() -> bytes:
    from sentencepiece import SentencePieceTrainer

    words, model = WORDS.split(), io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(words[i : i + 6]) for i in range(20)] * 5),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()
