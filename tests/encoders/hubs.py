"""Small models with random weights, written as the hubs' folders are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch

TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**TEXT, "image_size": 32, "patch_size": 16}


def clip(folder: Path, act: str = "quick_gelu", eos: int = 49407) -> Path:
    """A CLIPModel with CLIP's own vocabulary, and a processor that scales to 40 and cuts out 32."""
    import transformers

    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config={**TEXT, "vocab_size": 49408, "hidden_act": act, "eos_token_id": eos, "bos_token_id": 49406},
        vision_config={**VISION, "hidden_act": act},
        projection_dim=24,
    )
    model = transformers.CLIPModel(config).eval()
    stirred(model)
    model.save_pretrained(folder)
    transformers.CLIPImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder
    )
    clip_tokenizer(folder)
    return folder


def clip_tokenizer(folder: Path) -> None:
    """CLIP's byte pairs as transformers' files, from those that open_clip carries."""
    import transformers

    ours = open_clip.SimpleTokenizer()
    merges = [" ".join(pair) for pair in sorted(ours.bpe_ranks, key=ours.bpe_ranks.__getitem__)]
    folder.mkdir(parents=True, exist_ok=True)
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(piece, piece): number for piece, number in ours.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    transformers.CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)


def siglip(folder: Path) -> Path:
    """A SiglipModel; its tokenizer is a WordPiece one, for SentencePiece ones need training."""
    import transformers

    torch.manual_seed(1)
    config = transformers.SiglipConfig(
        text_config={**TEXT, "vocab_size": 60, "max_position_embeddings": 12, "projection_size": 32},
        vision_config=VISION,
    )
    model = transformers.SiglipModel(config).eval()
    stirred(model)
    model.save_pretrained(folder)
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    word_pieces(folder)
    return folder


def bert(folder: Path) -> Path:
    """A BertModel with a pooler, and its tokenizer."""
    import transformers

    torch.manual_seed(2)
    model = transformers.BertModel(transformers.BertConfig(**TEXT, vocab_size=60, max_position_embeddings=16)).eval()
    stirred(model)
    model.save_pretrained(folder)
    word_pieces(folder)
    return folder


def sentence_transformer(folder: Path, dense: bool = False, pooling: str = "mean", normalize: bool = True) -> Path:
    """bert's model as sentence-transformers saves it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules as models

    inner = bert(folder.parent / f"{folder.name}-inner")
    transformer = models.Transformer(str(inner), max_seq_length=10)
    modules: list[Any] = [transformer, models.Pooling(32, pooling_mode=pooling)]
    if dense:
        modules.append(models.Dense(32, 20, activation_function=torch.nn.Tanh()))
    if normalize:
        modules.append(models.Normalize())
    SentenceTransformer(modules=modules, device="cpu").save(str(folder))
    return folder


def vit(folder: Path) -> Path:
    """A ViTModel without its pooler, as image classifiers are saved, and its processor."""
    import transformers

    torch.manual_seed(3)
    model = transformers.ViTModel(transformers.ViTConfig(**VISION), add_pooling_layer=False).eval()
    stirred(model)
    model.save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}, resample=2).save_pretrained(folder)
    return folder


def word_pieces(folder: Path) -> None:
    import transformers

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters), "cat", "dog", "!"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)


@torch.no_grad()
def stirred(model: torch.nn.Module) -> None:
    """Give every tensor a part in the result: biases begin at zero and gains at one."""
    for p in model.parameters():
        p.add_(torch.randn_like(p) * 0.05)
