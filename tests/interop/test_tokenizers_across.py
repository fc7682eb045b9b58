"""Texts get the same tokens in both libraries, but for what the docstring of `tokenizers` says can't be the same."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import small_models
import transformers
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

from tests.encoders import hubs
from xmodal.encoders.hf_files import HfTokenizer
from xmodal.encoders.open_clip import OpenClipTokenizer
from xmodal.encoders.small import PiecesTokenizer
from xmodal.errors import InputError
from xmodal.interop.tokenizers import write_for_open_clip, write_for_transformers
from xmodal.interop.verify import TEXTS

ALIKE = [
    *TEXTS,
    "it's they're WE'LL don't I'd 'Twas",
    "Ünïcödé, e\u0301 combining, Ελληνικά, Привет, 안녕하세요, नमस्ते, مرحبا",
    "🐈‍⬛ 👩🏽‍🚀 🇫🇷 ©®™ €5",
    "a\u00a0b\u2003c",
    "...!!!### a_b-c/d\\e (f) [g] {h} <i>",
    "٣٤ ½ ² Ⅷ",
    "word " * 200,
    "supercalifragilisticexpialidocious" * 5,
]
MENDED = [
    "cats &amp; dogs",
    "&lt;b&gt;",
    "the cat’s “bed”",
    "ﬁne",
    "ＡＢＣ",
    "x\x00y",
    "schÃ¶n",
    "<|endoftext|>",
    "ΟΔΟΣ",
]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> transformers.PreTrainedTokenizerBase:
    folder = tmp_path_factory.mktemp("clip")
    notes = write_for_transformers(OpenClipTokenizer(SimpleTokenizer(context_length=77), 0), folder)
    assert "HTML" in notes[0]
    assert {"vocab.json", "merges.txt", "tokenizer.json"} <= {file.name for file in folder.iterdir()}
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_clips_byte_pairs(clips: transformers.PreTrainedTokenizerBase) -> None:
    ours = open_clip.SimpleTokenizer()
    for text in ALIKE:
        row = ours(text)[0].tolist()
        assert clips(text, truncation=True)["input_ids"] == row[: row.index(49407) + 1], text
    assert clips.model_max_length == 77
    assert clips.pad_token_id == 49407


def test_what_the_docstring_says_can_not_be_the_same_is_not(clips: transformers.PreTrainedTokenizerBase) -> None:
    ours = open_clip.SimpleTokenizer()
    for text in MENDED:
        row = ours(text)[0].tolist()
        assert clips(text, truncation=True)["input_ids"] != row[: row.index(49407) + 1], text


@pytest.mark.parametrize("clean", ["canonicalize", "lower", "whitespace"])
def test_open_clips_cleaning_goes_into_transformers_tokenizer(clean: str, tmp_path: Path) -> None:
    (tmp_path / "t5").mkdir()
    small_models.t5_tokenizer(tmp_path / "t5")
    ours = HFTokenizer(str(tmp_path / "t5"), context_length=16, clean=clean)
    (tmp_path / "there").mkdir()
    write_for_transformers(OpenClipTokenizer(ours), tmp_path / "there")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "there")
    told = theirs(ALIKE, padding="max_length", truncation=True, return_tensors="pt")
    assert told["input_ids"].tolist() == ours(ALIKE).tolist()
    assert "attention_mask" not in told  # the tower reads its padding
    assert len({tuple(row) for row in ours(["Two dogs!", "two_dogs"]).tolist()}) == (
        1 if clean == "canonicalize" else 2
    )


def test_transformers_tokenizers_go_to_open_clip(tmp_path: Path) -> None:
    clip, other, there = (tmp_path / name for name in ("clip", "other", "there"))
    for folder in (clip, other, there):
        folder.mkdir()
    hubs.clip_tokenizer(clip)
    config = {"context_length": 16}
    bytes_ = HfTokenizer(transformers.AutoTokenizer.from_pretrained(clip), 16)
    write_for_open_clip(bytes_, there, config)
    assert config == {"context_length": 16}  # open_clip's own, so nothing is written
    assert not any(there.iterdir())

    small_models.siglip_tokenizer(other)
    write_for_open_clip(HfTokenizer(transformers.AutoTokenizer.from_pretrained(other), 16, padded=True), there, config)
    cfg = {"model_cfg": {"text_cfg": config}}
    (there / "open_clip_config.json").write_text(json.dumps(cfg))
    ours = transformers.AutoTokenizer.from_pretrained(other)
    told = ours(list(TEXTS), padding="max_length", truncation=True, max_length=16)["input_ids"]
    assert open_clip.get_tokenizer(f"local-dir:{there}")(list(TEXTS)).tolist() == told


def test_what_has_no_place_is_refused(tmp_path: Path) -> None:
    for simple in (SimpleTokenizer(clean="whitespace"), SimpleTokenizer(reduction_mask="simple")):
        with pytest.raises(InputError, match="CLIPTokenizer"):
            write_for_transformers(OpenClipTokenizer(simple, 0), tmp_path)
    with pytest.raises(InputError, match="other tokens"):
        write_for_transformers(OpenClipTokenizer(SimpleTokenizer(additional_special_tokens=["<x>"]), 0), tmp_path)
    pieces = PiecesTokenizer.train(["a cat", "two dogs"], 60)
    with pytest.raises(InputError, match="PiecesTokenizer"):
        write_for_transformers(pieces, tmp_path)
    with pytest.raises(InputError, match="PiecesTokenizer"):
        write_for_open_clip(pieces, tmp_path, {})
    hubs.clip_tokenizer(tmp_path)
    short = HfTokenizer(transformers.AutoTokenizer.from_pretrained(tmp_path), 9)
    with pytest.raises(InputError, match="16 places.* 9 at most"):
        write_for_open_clip(short, tmp_path, {"context_length": 16})
