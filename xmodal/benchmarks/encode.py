"""Encoding sentences, tokenising included, beside sentence-transformers' own `encode` with its defaults."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from xmodal.benchmarks.timing import Contest
from xmodal.data.texts import stream_texts
from xmodal.distributed import computes_bf16
from xmodal.encoders.sentence_specs import open_sentences
from xmodal.errors import InputError


def contest(spec: str, data: str, column: str | None, sentences: int) -> Contest:
    """spec: st:FOLDER, which both open. Raises InputError for another model, and for too few sentences."""
    kind, _, folder = spec.partition(":")
    if kind != "st" or not Path(folder).is_dir():
        raise InputError(f"eval speed encode needs a folder that both libraries open: --model st:FOLDER, not {spec!r}.")
    texts = list(islice(stream_texts(data, column), sentences))
    if len(texts) < sentences:
        raise InputError(f"{data} has {len(texts)} sentences; --texts {sentences} are asked for.")
    from sentence_transformers import SentenceTransformer

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ours, theirs = open_sentences(spec).to(device), SentenceTransformer(folder, device=str(device))
    functions: dict[str, Callable[[], np.ndarray]] = {"xmodal": lambda: ours.encode(texts)}
    if computes_bf16():
        functions["xmodal, bf16"] = lambda: ours.encode(texts, precision="bf16")
    functions["sentence-transformers"] = lambda: np.asarray(theirs.encode(texts, show_progress_bar=False))
    rows = {name: encode() for name, encode in functions.items()}
    expected = rows["sentence-transformers"]
    tokens, _ = ours.tokenizer.ragged(texts)
    return Contest(
        "encoding of sentences: tokenised, encoded, as an array",
        functions,
        {
            "model": spec,
            "sentences": f"{sentences:,} of {data}",
            "tokens": f"{np.mean([len(row) for row in tokens]):.1f} on average, {max(map(len, tokens))} at most",
            "theirs": "encode with its defaults: float32, 32 sentences at a time, sorted by length",
            "off by ±": "the largest difference to theirs",
            "cosine": "the least of any sentence's rows, theirs and ours",
        },
        columns={
            name: {"off by ±": float(np.abs(found - expected).max()), "cosine": _least_cosine(found, expected)}
            for name, found in rows.items()
            if name != "sentence-transformers"
        },
        ours=len(functions) - 1,
    )


def _least_cosine(first: np.ndarray, second: np.ndarray) -> float:
    first, second = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (first, second))
    return float((first.astype(np.float64) * second).sum(1).min())
