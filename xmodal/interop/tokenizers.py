"""Tokenizers in the files of open_clip and of transformers.

CLIP's byte pairs ship with open_clip; for transformers they are written as CLIPTokenizer's vocab.json and merges.txt.
The same numbers come out, but for texts that open_clip mends first, which CLIPTokenizer doesn't: HTML entities
(`&amp;`) and what ftfy changes (typographic quotes ’ “ ”, ligatures, full-width letters, control characters, text that
was decoded wrongly); for a Σ at the end of a word in capitals; and for the marks themselves, written out
(`<|endoftext|>`). Of all other characters of Unicode, each between two letters, one differs (U+0345).

Other tokenizers are transformers' own. open_clip's SigLIP takes away punctuation and case before them; that is written
into the tokenizer's own normaliser, but for entities and ftfy.
"""

from __future__ import annotations

import json
import string
from copy import deepcopy
from pathlib import Path
from typing import Any

from xmodal.encoders.hf_files import HfTokenizer
from xmodal.encoders.open_clip import OpenClipTokenizer
from xmodal.encoders.two_tower import Tokenizer
from xmodal.errors import InputError

MARKS = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
TO_BE_NAMED = 'Before you put the folder on a hub, set "hf_tokenizer_name" in open_clip_config.json to its name there.'
NOT_MENDED = (
    "transformers' tokenizer doesn't mend texts as open_clip's does before it (HTML entities, ’ “ ”, ligatures): "
    "such texts get other tokens."
)


def length_of(tokenizer: Tokenizer) -> int:
    """The most tokens of a row."""
    if isinstance(tokenizer, OpenClipTokenizer):
        return tokenizer.tokenizer.context_length
    return tokenizer.length  # pyright: ignore[reportAttributeAccessIssue]


def write_for_transformers(tokenizer: Tokenizer, folder: Path) -> list[str]:
    """Write files that AutoTokenizer opens, and return what isn't quite the same. Raises InputError for other kinds."""
    if isinstance(tokenizer, HfTokenizer):
        inner = deepcopy(tokenizer.tokenizer)
        inner.model_max_length = tokenizer.length
        inner.save_pretrained(str(folder))
        _without_mask(folder, tokenizer.padded)
        return []
    if not isinstance(tokenizer, OpenClipTokenizer):
        raise InputError(f"transformers has no tokenizer such as this model's {type(tokenizer).__name__}.")
    theirs, length = tokenizer.tokenizer, tokenizer.tokenizer.context_length
    if hasattr(theirs, "bpe_ranks"):
        _write_byte_pairs(theirs, folder, length)
        return [NOT_MENDED]
    if getattr(theirs, "tokenizer_mode", "") or getattr(theirs, "strip_sep_token", False):
        raise InputError("transformers' tokenizers can't leave marks out or add them as this one of open_clip does.")
    inner = _cleaning(theirs.tokenizer, _cleaned_by(theirs))
    inner.model_max_length = length
    inner.save_pretrained(str(folder))
    _without_mask(folder, tokenizer.pad is None)
    return [NOT_MENDED]


def write_for_open_clip(tokenizer: Tokenizer, folder: Path, text_cfg: dict[str, Any]) -> list[str]:
    """Write what open_clip's get_tokenizer reads from a folder, and complete the text tower's configuration for it."""
    if isinstance(tokenizer, OpenClipTokenizer):
        tokenizer.save(folder)
        return []
    if not isinstance(tokenizer, HfTokenizer):
        raise InputError(f"open_clip has no tokenizer such as this model's {type(tokenizer).__name__}.")
    if tokenizer.length != text_cfg["context_length"]:
        raise InputError(
            f"open_clip fills rows up to the tower's {text_cfg['context_length']} places; "
            f"this model's tokenizer gives {tokenizer.length} at most."
        )
    if _is_clips(tokenizer.tokenizer):
        return ["open_clip's tokenizer mends texts (HTML entities, ’ “ ”, ligatures), which this model's doesn't."]
    if tokenizer.tokenizer.pad_token_id is None:
        raise InputError("open_clip fills rows up, and this model's tokenizer has no token for that.")
    tokenizer.save(folder)
    text_cfg["hf_tokenizer_name"] = "."
    return [TO_BE_NAMED]


def _write_byte_pairs(theirs: Any, folder: Path, length: int) -> None:
    from open_clip.tokenizer import get_clean_fn
    from transformers import CLIPTokenizer

    if theirs.clean_fn is not get_clean_fn("lower") or theirs.reduction_fn is not None:
        raise InputError("transformers' CLIPTokenizer takes case away and no more, and cuts texts off at their end.")
    if set(theirs.encoder) - set(_vocabulary()) or len(theirs.encoder) != len(_vocabulary()):
        raise InputError(
            "This tokenizer of open_clip has other tokens than CLIP's; transformers' has no place for them."
        )
    merges = [" ".join(pair) for pair in sorted(theirs.bpe_ranks, key=theirs.bpe_ranks.__getitem__)]
    vocabulary = {MARKS.get(piece, piece): number for piece, number in theirs.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    CLIPTokenizer.from_pretrained(str(folder), model_max_length=length).save_pretrained(str(folder))


def _vocabulary() -> dict[str, int]:
    from open_clip.tokenizer import _tokenizer

    return _tokenizer.encoder


def _is_clips(tokenizer: Any) -> bool:
    """Whether a tokenizer of transformers is CLIP's, of which open_clip has its own."""
    if type(tokenizer).__name__ not in ("CLIPTokenizer", "CLIPTokenizerFast"):
        return False
    return tokenizer.get_vocab() == {MARKS.get(piece, piece): number for piece, number in _vocabulary().items()}


def _cleaned_by(theirs: Any) -> str:
    from open_clip.tokenizer import get_clean_fn

    if not hasattr(theirs, "clean_fn"):  # SigLipTokenizer
        return "canonicalize"
    return next(name for name in ("whitespace", "lower", "canonicalize") if theirs.clean_fn is get_clean_fn(name))


def _cleaning(tokenizer: Any, clean: str) -> Any:
    """A tokenizer of transformers that cleans texts first, as open_clip does outside of it."""
    if not hasattr(tokenizer, "backend_tokenizer"):
        # SentencePiece's own, which sees to spaces; SigLIP's takes away case and punctuation, too.
        if clean != "whitespace" and type(tokenizer).__name__ != "SiglipTokenizer":
            raise InputError(f"A {type(tokenizer).__name__} can't be told to clean texts by {clean!r}.")
        return deepcopy(tokenizer)
    from tokenizers import Regex, Tokenizer, normalizers
    from transformers import PreTrainedTokenizerFast

    steps: list[Any] = [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    if clean != "whitespace":
        steps.insert(0, normalizers.Lowercase())
    if clean == "canonicalize":
        punctuation = "".join(f"\\{mark}" for mark in string.punctuation)
        steps = [normalizers.Replace("_", " "), normalizers.Replace(Regex(f"[{punctuation}]"), ""), *steps]
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.normalizer = normalizers.Sequence([*steps, *([backend.normalizer] if backend.normalizer else [])])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, padding_side=tokenizer.padding_side, **tokenizer.special_tokens_map
    )


def _without_mask(folder: Path, padding_is_read: bool) -> None:
    """Where padding is read like text, keep transformers from telling the tower to leave it out."""
    file = folder / "tokenizer_config.json"
    told = json.loads(file.read_text(encoding="utf-8"))
    if padding_is_read:
        told["model_input_names"] = ["input_ids"]
    if told.get("tokenizer_class") == "TokenizersBackend":  # version 5's new name for it, which 4 doesn't know
        told["tokenizer_class"] = "PreTrainedTokenizerFast"
    file.write_text(json.dumps(told, indent=2, ensure_ascii=False), encoding="utf-8")
