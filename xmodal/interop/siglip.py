"""SigLIP's architecture, which fixed-size SigLIP 2 shares, in open_clip and in transformers.

open_clip takes the image tower from timm by name and gives it no options, so a width or depth that timm has no name for
cannot be written for it. Most of timm's towers compute GELU exactly, Google's by tanh; transformers names either. That
difference alone moves embeddings by 3e-5 (base size, random weights) to 1e-4 (a tiny model), so whether a model goes to
open_clip in spite of it the comparison at the end decides.
"""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from xmodal.errors import InputError
from xmodal.interop.clip import (
    Config,
    activation,
    kind_of,
    open_clip_text,
    refuse_odd_pictures,
    refuse_unless,
    text_config,
    text_rules,
)
from xmodal.interop.weight_map import layer, one_row, same, stacked

_HEAD, _THEIR_HEAD = "visual.trunk.attn_pool.", "vision_model.head."
_BLOCK, _THEIR_LAYER = "visual.trunk.blocks.#.", "vision_model.encoder.layers.#."

# open_clip's CustomTextCLIP with a tower of timm on the left, transformers' SiglipModel on the right.
RULES = [
    *layer("visual.trunk.", "vision_model.", "patch_embed.proj embeddings.patch_embedding", "norm post_layernorm"),
    one_row("visual.trunk.pos_embed", "vision_model.embeddings.position_embedding.weight"),
    *stacked([(f"{_BLOCK}attn.qkv.", 3)], [(f"{_THEIR_LAYER}self_attn.{name}_proj.", 1) for name in "qkv"]),
    *layer(
        _BLOCK,
        _THEIR_LAYER,
        "attn.proj self_attn.out_proj",
        "norm1 layer_norm1",
        "norm2 layer_norm2",
        "mlp.fc1",
        "mlp.fc2",
    ),
    same(f"{_HEAD}latent", f"{_THEIR_HEAD}probe"),
    *stacked([(f"{_HEAD}q.", 1), (f"{_HEAD}kv.", 2)], [(f"{_THEIR_HEAD}attention.in_proj_", 3)]),
    *layer(_HEAD, _THEIR_HEAD, "proj attention.out_proj", "norm layernorm", "mlp.fc1", "mlp.fc2"),
    *text_rules(),
    *layer("text.", "text_model.", "text_projection head"),
]


def is_siglip(visual: nn.Module, text: nn.Module) -> bool:
    """Whether towers of open_clip are meant to be SigLIP's: a pooling by attention, or a text projection with bias."""
    pooled = getattr(getattr(visual, "trunk", None), "attn_pool", None) is not None
    return pooled or isinstance(getattr(text, "text_projection", None), nn.Linear)


def transformers_config(visual: Any, text: Any) -> Config:
    """The SiglipConfig that computes what two towers of open_clip do. Raises InputError if there is none."""
    from timm.layers.attention_pool import AttentionPoolLatent
    from timm.models.vision_transformer import VisionTransformer

    trunk: Any = getattr(visual, "trunk", None)
    if not isinstance(trunk, VisionTransformer) or not isinstance(trunk.attn_pool, AttentionPoolLatent):
        raise InputError(
            f"transformers' SiglipModel pools a vision transformer by attention; this is a {kind_of(visual)}."
        )
    pool, first, patches = cast(Any, trunk.attn_pool), cast(Any, trunk.blocks[0]), trunk.patch_embed
    refuse_unless(
        "image tower",
        {
            "a class token or registers": trunk.num_prefix_tokens == 0,
            "a LayerNorm before its layers": isinstance(trunk.norm_pre, nn.Identity),
            "no LayerNorm after them": isinstance(trunk.norm, nn.LayerNorm),
            "a head": isinstance(trunk.head, nn.Identity) and isinstance(trunk.fc_norm, nn.Identity),
            "a projection": len(visual.head) == 0,
            "scaled layers": isinstance(first.ls1, nn.Identity) and isinstance(first.attn.q_norm, nn.Identity),
            "a pooling by several latents": pool.latent_len == 1 and pool.pool == "token",
            "a pooling with positions of its own": pool.pos_embed is None,
            "a pooling with other heads than its layers": pool.num_heads == first.attn.num_heads,
            "a pooling with another activation": type(pool.mlp.act) is type(first.mlp.act),
            "pictures or patches that aren't square": all(
                len(set(size)) == 1 for size in (patches.img_size, patches.patch_size)
            ),
            "several epsilons": len({n.eps for n in trunk.modules() if isinstance(n, nn.LayerNorm)}) == 1,
        },
    )
    read = text_config(text)
    refuse_unless(
        "text tower",
        {
            "no sight of what comes later": text.attn_mask is None,
            "a pooling other than that of the last place": text.pool_type == "last",
            "a mask for its padding": not text.use_pad_mask,
            "no projection with a bias": isinstance(text.text_projection, nn.Linear),
        },
    )
    return {
        "model_type": "siglip",
        "architectures": ["SiglipModel"],
        "vision_config": _read(trunk),
        "text_config": {
            **read,
            "projection_size": text.text_projection.out_features,
            "bos_token_id": None,  # transformers' default is CLIP's; the tokenizer knows better
            "eos_token_id": None,
            "pad_token_id": None,
        },
    }


def open_clip_config(config: Config) -> tuple[Config, list[str]]:
    """open_clip's configuration of what a SiglipConfig describes, and what isn't quite the same.

    Raises InputError if there is none.
    """
    vision, text = config["vision_config"], config["text_config"]
    refuse_odd_pictures(vision)
    if not vision.get("vision_use_head", True):
        raise InputError("open_clip's SigLIP pools by attention; this image tower has no such head.")
    name, notes = _timm_name(vision)
    size = text.get("projection_size") or text["hidden_size"]
    return {
        "embed_dim": size,
        "init_logit_bias": -10,
        "custom_text": True,
        **({"quick_gelu": True} if text["hidden_act"] == "quick_gelu" else {}),  # timm's towers don't mind the switch
        "vision_cfg": {
            "image_size": vision["image_size"],
            "timm_model_name": name,
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {**open_clip_text(text), "no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
    }, notes


def _timm_name(vision: Config) -> tuple[str, list[str]]:
    """The tower of timm with these widths, and a note if its activation is the other form of GELU."""
    there = _timms(vision["patch_size"], vision["image_size"])
    gelus = ("gelu", "gelu_pytorch_tanh")
    near: list[tuple[str, list[str]]] = []
    for name, found in there.items():
        wanted = {key: vision[key] for key in found}
        if found == wanted:
            return name, []
        if wanted["hidden_act"] in gelus and found in [{**wanted, "hidden_act": act} for act in gelus]:
            near.append(
                (name, [f"timm's {name} computes {found['hidden_act']} and this model {wanted['hidden_act']}."])
            )
    if near:
        return near[0]
    sizes = [f"{name} ({f['hidden_size']} × {f['num_hidden_layers']})" for name, f in there.items()]
    raise InputError(
        "open_clip takes SigLIP's image tower from timm by name, and timm has none such as this, "
        f"{vision['hidden_size']} wide and {vision['num_hidden_layers']} layers deep in every respect. "
        f"For {vision['patch_size']} × {vision['patch_size']} patches of {vision['image_size']} × "
        f"{vision['image_size']} pictures it has: {', '.join(sizes) or 'none'}."
    )


def _timms(patch: int, side: int) -> dict[str, Config]:
    """timm's towers for SigLIP of these patches and pictures by name, built without memory for their weights."""
    import timm
    import torch
    from timm.models.vision_transformer import VisionTransformer

    found: dict[str, Config] = {}
    for name in timm.list_models(f"*patch{patch}_siglip_{side}"):
        with torch.device("meta"):
            trunk = timm.create_model(name, pretrained=False, num_classes=0)
        if isinstance(trunk, VisionTransformer):  # and no NaFlex
            found[name] = _read(trunk)
    return found


def _read(trunk: Any) -> Config:
    """The vision_config of one of timm's vision transformers."""
    first = trunk.blocks[0]
    return {
        "hidden_size": trunk.embed_dim,
        "intermediate_size": first.mlp.fc1.out_features,
        "num_hidden_layers": len(trunk.blocks),
        "num_attention_heads": first.attn.num_heads,
        "hidden_act": activation(first.mlp.act),
        "layer_norm_eps": first.norm1.eps,
        "image_size": trunk.patch_embed.img_size[0],
        "patch_size": trunk.patch_embed.patch_size[0],
    }
