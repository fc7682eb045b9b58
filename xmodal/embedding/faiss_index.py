"""Approximate search by FAISS, for millions of rows: a graph that is built once and lies in the index folder."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from xmodal.embedding.index import Index
from xmodal.errors import InputError

FILE = "hnsw.faiss"
# Malkov & Yashunin 2018, section 4: 12 to 48 links for most data; 32 is FAISS's own default. efConstruction 200 is
# hnswlib's default, efSearch our choice.
LINKS, BUILD_BREADTH, SEARCH_BREADTH = 32, 200, 128
BLOCK = 65536  # rows that are read at a time


def approximate(index: Index, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of each query (q, d), nearly: cosines and rows, (q, k) each, best first; −1 stands for none.

    Builds the graph at the first call and writes it beside the rows. Raises InputError where FAISS is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise InputError('--faiss needs FAISS: pip install "xmodal[faiss]"') from None
    graph: Any = _opened(faiss, index)
    graph.hnsw.efSearch = max(SEARCH_BREADTH, k)
    return graph.search(np.ascontiguousarray(query, dtype=np.float32), k)


def _opened(faiss: Any, index: Index) -> Any:
    file = index.folder / FILE
    if file.is_file():
        try:
            graph = faiss.read_index(str(file))
        except RuntimeError as error:
            raise InputError(f"{file} is damaged: {error}\nRemove it; it is built again.") from None
        if graph.ntotal == len(index):
            return graph
    print(f"Building {file}, once …", flush=True)
    graph = faiss.IndexHNSWFlat(index.rows.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = BUILD_BREADTH
    for start in range(0, len(index), BLOCK):
        graph.add(np.ascontiguousarray(index.rows[start : start + BLOCK], dtype=np.float32))
    beside = file.with_suffix(".tmp")
    faiss.write_index(graph, str(beside))
    os.replace(beside, file)
    return graph
