"""How fast the evaluators are, beside the libraries that people use for the same.

The figures mean something on an idle machine only: threads that wait for a busy core cost the two unequally.

    xmodal eval speed
    xmodal eval speed retrieval --images 1000 --texts 5000 --json speed.json
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from xmodal.cli import guard
from xmodal.config import parse, require
from xmodal.errors import InputError

TOP = 10


@dataclass(frozen=True, kw_only=True)
class Config:
    what: tyro.conf.Positional[Literal["retrieval"]] = "retrieval"
    """retrieval: ranks of both directions, against two exact searches of faiss."""
    images: int = 5000
    """Images; 5000 with 25000 texts is the size of COCO's test set."""
    texts: int = 25000
    """Texts, dealt out to the images in turn."""
    width: int = 512
    """Numbers in an embedding; 512 is that of CLIP's ViT-B/32."""
    repeats: int = 5
    """How often each is timed, after a first time that isn't."""
    seed: int = 0
    """Of the embeddings."""
    json: Path | None = None
    """Write the figures here as well."""

    def check(self) -> None:
        for name in ("width", "repeats"):
            require(self, name, lambda v: v >= 1, "at least 1")
        require(self, "images", lambda v: v >= TOP, f"at least {TOP}: faiss is asked for so many neighbours")
        require(self, "texts", lambda v: v >= self.images, "at least as many as images: each needs one")


def run(config: Config) -> dict[str, Any]:
    """Check that both give the same recall, time them in turn, print; returns protocol, seconds and the ratio."""
    import numpy as np

    from xmodal.evaluators.retrieval import hits, ranks

    search = _faiss_search()
    rng = np.random.default_rng(config.seed)
    owner = np.arange(config.texts) % config.images  # (m,) the image of each text
    image = _unit(rng.standard_normal((config.images, config.width), dtype=np.float32))  # (n, d)
    noise = rng.standard_normal((config.texts, config.width), dtype=np.float32)
    text = _unit(image[owner] + 8 * noise / np.sqrt(config.width))  # (m, d), cosines of about 0.12: half are found
    pairs = np.stack([owner, np.arange(config.texts)], 1)

    def ours() -> dict[str, float]:
        of_image, of_text = ranks(image, text, pairs)
        return {"image_to_text/R@10": hits(of_image, TOP).mean(), "text_to_image/R@10": hits(of_text, TOP).mean()}

    def theirs() -> dict[str, float]:
        found, back = search(text, image), search(image, text)  # (n, 10) texts, (m, 10) images
        return {
            "image_to_text/R@10": (owner[found] == np.arange(config.images)[:, None]).any(1).mean(),
            "text_to_image/R@10": (back == owner[:, None]).any(1).mean(),
        }

    recall, other = ours(), theirs()
    if any(abs(recall[name] - other[name]) > 2 / config.images for name in recall):  # two may fall to rounding
        raise RuntimeError(f"xmodal and faiss disagree, so their times mean nothing: {recall}, {other}")
    seconds = _in_turn({"xmodal": ours, "faiss": theirs}, config.repeats)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    result = {
        "protocol": {
            "what": "ranks of all images among texts and of all texts among images, from embeddings to R@10",
            "xmodal": "one pass over the similarities for both directions: every rank, R@k for any k",
            "faiss": f"two IndexFlatIP (exact) searches for the {TOP} nearest, building both indices included",
            "order": "in turn, the first changing; medians",
            **{name: value for name, value in asdict(config).items() if name not in ("what", "json")},
            **_machine(),
        },
        "recall": {name: float(value) for name, value in recall.items()},
        "seconds": seconds,
        "medians": medians,
        "ratio": medians["xmodal"] / medians["faiss"],
    }
    if config.json:
        _write(config.json, result)
    _print(result)
    return result


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


def _unit(rows: Any) -> Any:
    import numpy as np

    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _in_turn(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each. In turn and the first changing, so that what else the machine does meets all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats):
        for name in list(functions)[:: -1 if repeat % 2 else 1]:
            start = time.perf_counter()
            functions[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def _machine() -> dict[str, Any]:
    import faiss
    import torch

    import xmodal
    from xmodal.doctor import devices

    return {
        "CPU": devices()[0].found,
        "threads": f"torch {torch.get_num_threads()}, faiss {faiss.omp_get_max_threads()}",
        "load": f"{os.getloadavg()[0]:.1f} at the end, itself included" if hasattr(os, "getloadavg") else "",
        "versions": f"xmodal {xmodal.__version__}, torch {torch.__version__}, faiss {faiss.__version__}",
    }


def _print(result: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from xmodal.evaluators.scores import plain

    table = Table(show_edge=False, pad_edge=False, box=SIMPLE_HEAD)
    table.add_column("")
    for column in ("median s", "fastest", "slowest"):
        table.add_column(column, justify="right")
    for name, times in result["seconds"].items():
        table.add_row(name, *(f"{value:.3f}" for value in (result["medians"][name], min(times), max(times))))
    table.add_row("xmodal / faiss", f"{result['ratio']:.2f}")
    console = Console(highlight=False)
    console.print(table)
    for name, said in {**result["recall"], **result["protocol"]}.items():
        console.print(Text(plain(f"{name}: {said}"), style="dim"), soft_wrap=True)


def _write(path: Path, result: dict[str, Any]) -> None:
    import json

    from xmodal.checkpoint import replace_text

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(result, indent=1) + "\n")
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror}.") from None


def main(argv: Sequence[str] | None = None) -> int:
    run(parse(Config, argv, prog="xmodal eval speed"))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
