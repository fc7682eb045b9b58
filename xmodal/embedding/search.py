"""Search an index of texts or pictures by texts, or by pictures.

Exact unless --faiss is given: each row's cosine is computed, block by block, and ties go by the order of the input. A
query is text, whatever it looks like; a picture is asked with by --image.

    xmodal search index "how do I read a file" "sort a list"
    xmodal search pictures "a dog that runs" --top 20 --html hits.html
    xmodal search pictures --image dog.jpg --json hits.json
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from xmodal.cli import guard
from xmodal.config import parse, require
from xmodal.errors import BadSample, InputError

if TYPE_CHECKING:
    import numpy as np

    from xmodal.embedding.index import Index


@dataclass(frozen=True, kw_only=True)
class Config:
    index: tyro.conf.Positional[Path]
    """A folder that `xmodal embed` wrote."""
    queries: tyro.conf.Positional[tuple[str, ...]] = ()
    """Texts to ask with."""
    image: tuple[Path, ...] = ()
    """Pictures to ask with."""
    top: int = 10
    """Hits a query."""
    model: str | None = None
    """What embeds the queries, instead of the model that the index was made with."""
    prompt_name: str | None = None
    """Which of the model's prompts is put before each text; without it the one called query, where there is one."""
    faiss: bool = False
    """Search by FAISS's HNSW graph, built at the first time: fast among millions, and now and then a hit is missed."""
    json: Path | None = None
    """Write the hits here as well."""
    html: Path | None = None
    """Write the hits as a page, with small copies of the pictures."""

    def check(self) -> None:
        require(self, "top", lambda v: v >= 1, "at least 1")
        if not self.queries and not self.image:
            raise InputError('xmodal search needs something to ask with: a text such as "a red car", or --image FILE.')


def run(config: Config) -> list[dict[str, Any]]:
    """Embed the queries, find, print; returns for each its hits: rank, score (cosine), row of the input, item."""
    from xmodal.embedding.index import open_index
    from xmodal.evaluators.scores import write_json

    index = open_index(config.index)
    query = embed_queries(config, index)
    score, place = found(index, query, config.top, config.faiss)
    asked = [{"text": text} for text in config.queries] + [{"image": str(path)} for path in config.image]
    answers = [
        {"query": one, "hits": _hits(index, scores, rows)}
        for one, scores, rows in zip(asked, score, place, strict=True)
    ]
    if config.json:
        write_json(config.json, {"index": str(config.index), "exact": not config.faiss, "answers": answers})
    if config.html:
        from xmodal.report.search_page import write_search_page

        write_search_page(config.html, index, answers, exact=not config.faiss)
    for answer in answers:
        print_hits(index, answer)
    return answers


def embed_queries(config: Config, index: Index) -> np.ndarray:
    """Texts, then pictures -> (q, d) unit float32. Raises InputError for a model that doesn't fit the index."""
    import numpy as np

    from xmodal import load
    from xmodal.embedding.embedder import Setting, check, embed_some
    from xmodal.encoders.two_tower import TwoTower
    from xmodal.weights import digest

    spec = config.model or index.about["model"]
    model = load(spec)
    if config.model is None and digest(model) != index.about["weights"]:
        raise InputError(
            f"{spec} has other weights now than when {config.index} was made of it. Embed again; or, to search with "
            f"it nevertheless: --model {spec}"
        )
    prompts = {} if isinstance(model, TwoTower) else model.description.get("prompts") or {}
    setting = Setting(prompt_name=config.prompt_name or ("query" if "query" in prompts else None))
    check(model, "text", setting)
    parts = [embed_some(model, list(config.queries), setting)] if config.queries else []
    if config.image:
        if not isinstance(model, TwoTower):
            raise InputError(f"{spec} takes texts alone; --image needs a model with an image tower.")
        try:
            parts.append(model.encode_image(list(config.image)).numpy())
        except BadSample as problem:
            raise InputError(f"--image: {problem.reason}: {problem}") from None
    query = np.concatenate(parts)
    if query.shape[1] != index.rows.shape[1]:
        raise InputError(
            f"{spec} gives {query.shape[1]} numbers, the rows of {config.index} have {index.rows.shape[1]}."
        )
    return query


def found(index: Index, query: np.ndarray, top: int, approximately: bool) -> tuple[list[list[float]], list[list[int]]]:
    """The nearest of each query, or as many as there are: cosines and rows of the index, best first."""
    import torch

    from xmodal.evaluators.nearest import nearest

    if approximately:
        from xmodal.embedding.faiss_index import approximate

        score, place = approximate(index, query, min(top, len(index)))
        return score.tolist(), place.tolist()
    similarity, row = nearest(torch.from_numpy(query), index.rows, top)
    return similarity.tolist(), row.tolist()


def _hits(index: Index, scores: Sequence[float], rows: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {"rank": rank, "score": score, "row": index.number(row), "item": index.item(row), "place": row}
        for rank, (score, row) in enumerate(zip(scores, rows, strict=True), 1)
        if row >= 0
    ]


def print_hits(index: Index, answer: dict[str, Any]) -> None:
    """A row a hit: its rank, cosine, row in the input, and the text or the picture's path."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from xmodal.evaluators.scores import plain

    asked = answer["query"]
    table = Table(show_edge=False, pad_edge=False, box=SIMPLE_HEAD, title_justify="left", title_style="bold")
    table.title = Text(plain(asked.get("text", asked.get("image"))))
    for name in ("", "cosine", "row"):
        table.add_column(name, justify="right")
    table.add_column(index.kind, overflow="fold")
    for hit in answer["hits"]:
        shown = hit["item"] if index.kind == "text" else str(index.path(hit["place"]))
        table.add_row(str(hit["rank"]), f"{hit['score']:.3f}", str(hit["row"]), Text(plain(shown)))
    Console(highlight=False).print(table)
    print()


def main(argv: Sequence[str] | None = None) -> int:
    run(parse(Config, argv, prog="xmodal search"))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
