"""A model's embeddings as a product: many of them in files, an index to search, and the cosines of a few."""

from xmodal.embedding.columns import Embedder

__all__ = ["Embedder"]
