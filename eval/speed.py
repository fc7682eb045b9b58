"""How fast the evaluators are, beside the libraries that people use for the same.

The figures mean something on an idle machine only: threads that wait for a busy core cost the two unequally.

    xmodal eval speed
    xmodal eval speed retrieval --images 1000 --texts 5000 --json speed.json
"""

from __future__ import annotations

import statistics
import sys
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
    from importlib.metadata import version as faiss_version

    import numpy as np

    from xmodal.evaluators.retrieval import hits, ranks
    from xmodal.evaluators.scores import write_json
    from xmodal.report.timing import in_turn, machine

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
    seconds = in_turn({"xmodal": ours, "faiss": theirs}, config.repeats)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    result = {
        "protocol": {
            "what": "ranks of all images among texts and of all texts among images, from embeddings to R@10",
            "xmodal": "one pass over the similarities for both directions: every rank, R@k for any k",
            "faiss": f"two IndexFlatIP (exact) searches for the {TOP} nearest, building both indices included",
            "order": "in turn, the first changing; medians",
            **{name: value for name, value in asdict(config).items() if name not in ("what", "json")},
            **machine(),
            "faiss version": faiss_version("faiss-cpu"),
        },
        "recall": {name: float(value) for name, value in recall.items()},
        "seconds": seconds,
        "medians": medians,
        "ratio": medians["xmodal"] / medians["faiss"],
    }
    if config.json:
        write_json(config.json, result)
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


def _print(result: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from xmodal.evaluators.scores import print_protocol

    table = Table(show_edge=False, pad_edge=False, box=SIMPLE_HEAD)
    table.add_column("")
    for column in ("median s", "fastest", "slowest"):
        table.add_column(column, justify="right")
    for name, times in result["seconds"].items():
        table.add_row(name, *(f"{value:.3f}" for value in (result["medians"][name], min(times), max(times))))
    table.add_row("xmodal / faiss", f"{result['ratio']:.2f}")
    Console(highlight=False).print(table)
    print_protocol({**result["recall"], **result["protocol"]})


def main(argv: Sequence[str] | None = None) -> int:
    run(parse(Config, argv, prog="xmodal eval speed"))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
