"""Ranks of both directions of retrieval, beside two exact searches of faiss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from xmodal.benchmarks.timing import Contest
from xmodal.errors import InputError
from xmodal.evaluators.retrieval import hits, ranks

TOP = 10


def contest(images: int, texts: int, width: int) -> Contest:
    """Raises RuntimeError where the two don't find the same, InputError without faiss."""
    from importlib.metadata import version

    search = _faiss_search()
    rng = np.random.default_rng(0)
    owner = np.arange(texts) % images  # (m,) the image of each text
    image = _unit(rng.standard_normal((images, width), dtype=np.float32))  # (n, d)
    noise = rng.standard_normal((texts, width), dtype=np.float32)
    text = _unit(image[owner] + 8 * noise / np.sqrt(width))  # (m, d), cosines of about 0.12: half are found
    pairs = np.stack([owner, np.arange(texts)], 1)

    def ours() -> dict[str, float]:
        of_image, of_text = ranks(image, text, pairs)
        return {"image_to_text/R@10": hits(of_image, TOP).mean(), "text_to_image/R@10": hits(of_text, TOP).mean()}

    def theirs() -> dict[str, float]:
        found, back = search(text, image), search(image, text)  # (n, 10) texts, (m, 10) images
        return {
            "image_to_text/R@10": (owner[found] == np.arange(images)[:, None]).any(1).mean(),
            "text_to_image/R@10": (back == owner[:, None]).any(1).mean(),
        }

    recall, other = ours(), theirs()
    if any(abs(recall[name] - other[name]) > 2 / images for name in recall):  # two may fall to rounding
        raise RuntimeError(f"xmodal and faiss disagree, so their times mean nothing: {recall}, {other}")
    return Contest(
        "ranks of all images among texts and of all texts among images, from embeddings to R@10",
        {"xmodal": ours, "faiss": theirs},
        {
            "xmodal": "one pass over the similarities for both directions: every rank, R@k for any k",
            "faiss": f"{version('faiss-cpu')}, two IndexFlatIP (exact) searches for the {TOP} nearest, "
            "building both indices included",
            "images": images,
            "texts": texts,
            "width": width,
        },
        {"xmodal": {n: float(v) for n, v in recall.items()}, "faiss": {n: float(v) for n, v in other.items()}},
    )


def _faiss_search() -> Callable[[Any, Any], Any]:
    """A function of a gallery (n, d) and queries (m, d) that gives the gallery's nearest rows (m, 10)."""
    try:
        import faiss
    except ImportError:
        raise InputError('faiss is not installed, and this compares with it: pip install "xmodal[bench]"') from None

    def search(gallery: Any, queries: Any) -> Any:
        index = faiss.IndexFlatIP(gallery.shape[1])
        index.add(gallery)  # pyright: ignore[reportCallIssue]
        return index.search(queries, TOP)[1]  # pyright: ignore[reportCallIssue]

    return search


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
