"""Metrics as functions of arrays: `retrieval`, `zero_shot`, `sts`. Their drivers are in `evaluate`, `evaluate_sts`."""

from xmodal.evaluators.retrieval import retrieval
from xmodal.evaluators.sts import sts
from xmodal.evaluators.zeroshot import zero_shot

__all__ = ["retrieval", "sts", "zero_shot"]
