"""Metrics as functions of arrays: `retrieval`, `zero_shot`. Their drivers are in `evaluate`."""

from xmodal.evaluators.retrieval import retrieval
from xmodal.evaluators.zeroshot import zero_shot

__all__ = ["retrieval", "zero_shot"]
