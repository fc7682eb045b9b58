"""Sentence encoders: the same embeddings as sentence-transformers' in both directions, and its names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

import xmodal
from tests.encoders import hubs
from xmodal.encoders.lora import add_lora, merged
from xmodal.encoders.sentence import SentenceEncoder, with_head
from xmodal.encoders.sentence_specs import keep_layers, open_sentences, set_dropout, shortened, small_sentences
from xmodal.encoders.sentence_transformers import Dense
from xmodal.encoders.tokenizer import PiecesTokenizer
from xmodal.errors import InputError

TEXTS = ["a cat", "", "dog " * 11, "http://127.0.0.1:1/a.jpg", "a\nb ! \ufffd 🙂", "cat"]


def theirs(folder: Path, texts: list[str] = TEXTS, **options: Any) -> np.ndarray:
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True).encode(texts, **options)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken"])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_their_models_open_here_and_ours_there(pooling: str, dense: bool, normalize: bool, tmp_path: Path) -> None:
    folder = hubs.sentence_transformer(tmp_path / "st", dense, pooling, normalize)
    expected = theirs(folder)
    ours = xmodal.load(f"st:{folder}", device="cpu")
    assert isinstance(ours, SentenceEncoder)
    assert np.abs(ours.encode(TEXTS) - expected).max() < 1e-5
    if not normalize:
        assert abs(np.linalg.norm(expected[0]) - 1) > 1e-3
    ours.save(tmp_path / "ours")
    assert np.abs(theirs(tmp_path / "ours") - expected).max() < 1e-5
    again = xmodal.load(str(tmp_path / "ours"), device="cpu")
    assert np.array_equal(again.encode(TEXTS), ours.encode(TEXTS))


def changed(encoder: SentenceEncoder) -> SentenceEncoder:
    """Two layers to one, a head, adapters that do something."""
    torch.manual_seed(0)
    keep_layers(encoder, 1)
    add_lora(encoder, 2, only=("text",))
    for name, p in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.3)
    return with_head(merged(encoder), Dense(32, 32, True, "Tanh"))


def test_what_training_makes_of_a_bare_transformer_opens_there(tmp_path: Path) -> None:
    folder = hubs.bert(tmp_path / "bert")
    ours = changed(open_sentences(f"hf:{folder}", "cls"))
    plain = open_sentences(f"hf:{folder}", "cls").encode(TEXTS)
    rows = ours.encode(TEXTS)
    assert np.abs(rows - plain).max() > 0.1
    ours.save(tmp_path / "run")
    model = SentenceTransformer(str(tmp_path / "run"), device="cpu", local_files_only=True)
    assert len(model[0].auto_model.encoder.layer) == 1
    assert np.abs(model.encode(TEXTS) - rows).max() < 1e-5
    for spec in (str(tmp_path / "run"), f"st:{tmp_path / 'run'}"):
        assert np.array_equal(xmodal.load(spec, device="cpu").encode(TEXTS), rows)


def test_encode_has_their_names_and_forms(tmp_path: Path) -> None:
    folder = hubs.sentence_transformer(tmp_path / "st", normalize=False)
    told = json.loads((folder / "config_sentence_transformers.json").read_text())
    told |= {"prompts": {"query": "dog ", "document": "cat "}, "default_prompt_name": "document"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(told))
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    ours = xmodal.load(f"st:{folder}", device="cpu")
    rows = ours.encode(TEXTS)
    for options in (
        {},
        {"prompt_name": "query"},
        {"prompt": "! "},
        {"normalize_embeddings": True, "batch_size": 2},
        {"convert_to_tensor": True, "show_progress_bar": False},
    ):
        got, expected = ours.encode(TEXTS, **options), model.encode(TEXTS, **options)
        assert type(got) is type(expected)
        assert np.abs(np.asarray(got) - np.asarray(expected)).max() < 1e-5
    assert np.abs(ours.encode_query(TEXTS) - model.encode_query(TEXTS)).max() < 1e-5
    assert np.abs(ours.encode_document(TEXTS) - model.encode_document(TEXTS)).max() < 1e-5
    assert ours.encode("cat").shape == model.encode("cat").shape == (32,)
    assert isinstance(ours.encode(TEXTS, convert_to_numpy=False), list)
    assert ours.encode([]).shape == (0, 32)
    for name in ("similarity", "similarity_pairwise"):
        got, expected = getattr(ours, name)(rows, rows[::-1].copy()), getattr(model, name)(rows, rows[::-1].copy())
        assert torch.allclose(got, expected, atol=1e-6)
    with pytest.raises(ValueError, match="prompt_name must be one of \\['query', 'document'\\], not 'nothing'"):
        ours.encode(TEXTS, prompt_name="nothing")
    ours.save(tmp_path / "ours")
    assert np.abs(theirs(tmp_path / "ours") - rows).max() < 1e-5  # the prompts went along


def test_a_long_text_is_cut_and_counted(tmp_path: Path) -> None:
    ours = open_sentences(f"st:{hubs.sentence_transformer(tmp_path / 'st')}")
    long = "cat " * 25_000
    rows = ours.encode([long, "cat", "cat " * 8])
    assert ours.truncated == 1  # ten tokens with the marks around them
    assert np.abs(rows[0] - rows[2]).max() < 1e-6
    assert shortened(ours.tokenizer, 4)(["cat " * 9]).shape == (1, 4)


@pytest.mark.parametrize("pooling", [None, "mean", "cls", "last"])
def test_small_is_saved_and_opened_again(pooling: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    words = ["the cat sat on the mat", "a dog ran after the cat", "birds fly south in winter"] * 5
    ours = small_sentences(lambda: PiecesTokenizer.train(words, 100), layers=3, dropout=0.1, pooling=pooling).eval()
    ours.save(tmp_path / "run")
    again = xmodal.load(str(tmp_path / "run"), device="cpu")
    assert np.array_equal(again.encode(words), ours.encode(words))
    assert len(again.text.layers) == 3
    ours.train()
    tokens = ours.tokenizer(words)
    assert not torch.equal(ours(tokens), ours(tokens))  # dropout is drawn
    set_dropout(ours, 0.0)
    assert torch.equal(ours(tokens), ours(tokens))


def test_what_is_no_sentence_encoder_is_said(tmp_path: Path) -> None:
    clip, bert = hubs.clip(tmp_path / "clip"), hubs.bert(tmp_path / "bert")
    with pytest.raises(InputError, match="is a pair of towers, an image's and a text's"):
        open_sentences(f"hf:{clip}")
    assert hasattr(xmodal.load(f"hf:{clip}", device="cpu"), "encode_image")
    with pytest.raises(InputError, match="--layers 3: the model has 2 layers"):
        keep_layers(open_sentences(str(bert)), 3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no sentence encoder"):
        open_sentences(str(tmp_path / "empty"))
    for spec, said in {"bert": "it is no folder here", "ts:x": "there are: small, hf, st"}.items():
        with pytest.raises(InputError, match=f"No sentence encoder {spec!r}; {said}"):
            open_sentences(spec)
    ours = open_sentences(f"hf:{bert}")
    ours.save(tmp_path / "run")
    from xmodal.encoders import load_towers

    with pytest.raises(InputError, match="holds a sentence encoder, which has no image tower"):
        load_towers(str(tmp_path / "run"))
