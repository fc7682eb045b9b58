"""CLIP's architecture in open_clip and in transformers: which models have both forms, configurations and weights.

Where they differ: open_clip keeps query, key and value in one matrix and its projections transposed; it tells QuickGELU
by one switch for both towers where transformers names an activation for each; transformers' text tower reads the first
end mark, or for `eos_token_id: 2` (written before its PR 24773) the largest number, as open_clip does.
"""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from xmodal.errors import InputError
from xmodal.interop.weight_map import Rule, layer, same, stacked, transposed

Config = dict[str, Any]
ACTIVATIONS = ("quick_gelu", "gelu", "gelu_pytorch_tanh")
CLIPS = 49408  # tokens of CLIP's vocabulary, the end mark last
LARGEST = 2  # transformers' older files: not the end mark, but "read the largest number"
OPEN_CLIP_EPS = 1e-5  # torch's, which open_clip leaves as it is; transformers' CLIP writes it out


def transformer_rules(left: str, right: str) -> list[Rule]:
    """open_clip's Transformer below one prefix, transformers' encoder below the other."""
    block, theirs = f"{left}transformer.resblocks.#.", f"{right}encoder.layers.#."
    attention = [(f"{theirs}self_attn.{name}_proj.", 1) for name in "qkv"]
    return [
        *stacked([(f"{block}attn.in_proj_", 3)], attention),
        *layer(
            block,
            theirs,
            "attn.out_proj self_attn.out_proj",
            "ln_1 layer_norm1",
            "ln_2 layer_norm2",
            "mlp.c_fc mlp.fc1",
            "mlp.c_proj mlp.fc2",
        ),
    ]


def text_rules() -> list[Rule]:
    """What the text towers of CLIP and of SigLIP share."""
    return [
        same("text.token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
        same("text.positional_embedding", "text_model.embeddings.position_embedding.weight"),
        *transformer_rules("text.", "text_model."),
        *layer("text.", "text_model.", "ln_final final_layer_norm"),
    ]


# open_clip's CustomTextCLIP on the left, transformers' CLIPModel on the right.
RULES = [
    same("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    same("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    same("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight"),
    *layer("visual.", "vision_model.", "ln_pre pre_layrnorm", "ln_post post_layernorm"),  # the typing error is theirs
    *transformer_rules("visual.", "vision_model."),
    transposed("visual.proj", "visual_projection.weight"),
    *text_rules(),
    transposed("text.text_projection", "text_projection.weight"),
]


def transformers_config(visual: Any, text: Any) -> Config:
    """The CLIPConfig that computes what two towers of open_clip do. Raises InputError if there is none."""
    from open_clip.transformer import VisionTransformer

    if not isinstance(visual, VisionTransformer):
        raise InputError(
            f"transformers' CLIPModel sees by a vision transformer; this image tower is a {kind_of(visual)}."
        )
    sides, patch = cast(Any, visual.image_size), cast(Any, visual.patch_size)
    refuse_unless(
        "image tower",
        {
            "a pooling other than that of the class token": visual.attn_pool is None and visual.pool_type == "tok",
            "no LayerNorm before its layers": isinstance(visual.ln_pre, nn.LayerNorm),
            "no projection": visual.proj is not None,
            "pictures that aren't square": len({*sides}) == 1,
            "patches that aren't square": len({*patch}) == 1,
        },
    )
    read = text_config(text)
    refuse_unless(
        "text tower",
        {
            "attention to what comes after a token": text.attn_mask is not None,
            "a pooling other than that of the end mark": text.pool_type in ("argmax", "eos"),
            "no projection, or one with a bias": isinstance(text.text_projection, nn.Parameter),
        },
    )
    assert visual.proj is not None
    d = visual.proj.shape[1]
    return {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": d,
        "vision_config": {
            **blocks_config(visual.transformer, visual.ln_pre),
            "image_size": sides[0],
            "patch_size": patch[0],
            "projection_dim": d,
        },
        "text_config": {**read, **_marks(text), "projection_dim": d},
    }


def text_config(text: nn.Module) -> Config:
    """What the text towers of CLIP and of SigLIP have in common. Raises InputError for another tower."""
    from open_clip.transformer import TextTransformer

    if not isinstance(text, TextTransformer):
        raise InputError(f"transformers' CLIPModel and SiglipModel have no text tower such as this {kind_of(text)}.")
    refuse_unless("text tower", {"an embedding of its own for the class": text.cls_emb is None})
    return {
        **blocks_config(text.transformer, text.ln_final),
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.context_length,
    }


def blocks_config(transformer: nn.Module, norm: nn.Module) -> Config:
    """Widths, depth and activation of open_clip's Transformer, from its modules; norm: one outside of its layers."""
    from open_clip.transformer import ResidualAttentionBlock

    blocks: Any = transformer.resblocks
    first = blocks[0]
    refuse_unless(
        "transformer",
        {
            "layers of open_clip's own design": all(type(block) is ResidualAttentionBlock for block in blocks),
            "scaled layers (LayerScale)": isinstance(first.ls_1, nn.Identity),
        },
    )
    eps = {n.eps for n in [norm, *transformer.modules()] if isinstance(n, nn.LayerNorm)}
    if len(eps) != 1:
        raise InputError(f"transformers has one epsilon for every LayerNorm of a tower; this one has {sorted(eps)}.")
    return {
        "hidden_size": first.attn.embed_dim,
        "intermediate_size": first.mlp.c_fc.out_features,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": first.attn.num_heads,
        "hidden_act": activation(first.mlp.gelu),
        "layer_norm_eps": eps.pop(),
    }


def activation(module: nn.Module) -> str:
    """transformers' name of an activation of open_clip or timm. Raises InputError if it has none."""
    name = type(module).__name__
    if name in ("QuickGELU", "QuickGelu"):
        return "quick_gelu"
    if name in ("GELU", "GELUTanh"):
        return "gelu_pytorch_tanh" if name == "GELUTanh" or module.approximate == "tanh" else "gelu"
    raise InputError(f"transformers' CLIP and SigLIP have no activation {name}.")


def open_clip_config(config: Config) -> Config:
    """open_clip's configuration of what a CLIPConfig describes. Raises InputError if there is none."""
    vision, text = config["vision_config"], config["text_config"]
    acts = {tower["hidden_act"] for tower in (vision, text)}
    if "quick_gelu" in acts and len(acts) > 1:
        raise InputError(
            f"open_clip has QuickGELU in both towers or in neither; these have {' and '.join(sorted(acts))}."
        )
    refuse_odd_pictures(vision)
    text_cfg = open_clip_text(text)
    end = text["eos_token_id"]
    if not isinstance(end, int):
        raise InputError(f"open_clip's text tower reads one end mark; this model has {end!r}.")
    if end not in (LARGEST, text["vocab_size"] - 1):
        text_cfg |= {"pool_type": "eos", "eos_id": end}
    return {
        "embed_dim": config["projection_dim"],
        **({"quick_gelu": True} if acts == {"quick_gelu"} else {}),
        "vision_cfg": {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "width": vision["hidden_size"],
            "layers": vision["num_hidden_layers"],
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            **_open_clip_blocks(vision),
        },
        "text_cfg": text_cfg,
    }


def open_clip_text(text: Config) -> Config:
    """open_clip's configuration of a text tower; pooling and projection are CLIP's unless they are added."""
    return {
        "context_length": text["max_position_embeddings"],
        "vocab_size": text["vocab_size"],
        "width": text["hidden_size"],
        "heads": text["num_attention_heads"],
        "layers": text["num_hidden_layers"],
        **_open_clip_blocks(text),
    }


def refuse_odd_pictures(vision: Config) -> None:
    channels, *sides = (vision.get("num_channels", 3), vision["image_size"], vision["patch_size"])
    if channels != 3 or not all(isinstance(side, int) for side in sides):
        raise InputError(f"Converted are towers for square RGB pictures; this one is for {channels} × {sides}.")


def _open_clip_blocks(tower: Config) -> Config:
    width, hidden, act = tower["hidden_size"], tower["intermediate_size"], tower["hidden_act"]
    if act not in ACTIVATIONS:
        raise InputError(f"open_clip's towers have no activation {act!r}; there are: {', '.join(ACTIVATIONS)}.")
    # open_clip cuts off what width × ratio has behind the point.
    ratio = hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.5) / width
    eps = tower["layer_norm_eps"]
    return {
        **({"mlp_ratio": ratio} if ratio != 4 else {}),
        **({"norm_kwargs": {"eps": eps}} if eps != OPEN_CLIP_EPS else {}),
        **({"act_kwargs": {"approximate": "tanh"}} if act == "gelu_pytorch_tanh" else {}),
    }


def _marks(text: Any) -> Config:
    """transformers' numbers of the marks for a text tower that reads the end mark or the largest number."""
    if text.pool_type == "eos":
        return {"bos_token_id": None, "eos_token_id": text.eos_id, "pad_token_id": text.eos_id}
    if text.vocab_size == CLIPS:
        return {"bos_token_id": CLIPS - 2, "eos_token_id": CLIPS - 1, "pad_token_id": CLIPS - 1}
    return {"bos_token_id": None, "eos_token_id": LARGEST, "pad_token_id": None}


def kind_of(module: nn.Module) -> str:
    """What a tower is, in a word for an error."""
    trunk = getattr(module, "trunk", None)
    name = type(module).__name__ if trunk is None else f"{type(trunk).__name__} of timm"
    return {"ModifiedResNet": "ResNet (ModifiedResNet)", "NaFlexVit of timm": "NaFlex tower of timm"}.get(name, name)


def refuse_unless(where: str, holds: dict[str, bool]) -> None:
    """Raise InputError that names what doesn't hold; holds: what the tower would have, and whether it hasn't."""
    found = [what for what, fine in holds.items() if not fine]
    if found:
        raise InputError(f"transformers' CLIPModel and SiglipModel can't do what the {where} has: {'; '.join(found)}.")
