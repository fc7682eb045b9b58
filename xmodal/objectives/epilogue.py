"""What happens to a tile of logits between the matrix products, in as few passes over memory as the device allows.

On a CPU a strip of the tile stays in the core's cache from one operation to the next; on a GPU one kernel does it all.
"""

from __future__ import annotations

import importlib.util
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

STRIP = 2**17  # values: half a megabyte


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None  # it isn't on every system that has GPUs


def _fused(values: Tensor) -> bool:
    return values.is_cuda and values.dtype == torch.float32 and _has_triton()


def exponential_sums(logits: Tensor, reference: float, keep: bool) -> tuple[Tensor, Tensor]:
    """Sums of exp(logits − reference) of rows (h,) and of columns (w,), float64; with `keep` they replace the logits.

    Without it the logits are lost.
    """
    if _fused(logits):
        from xmodal.objectives import kernels

        return kernels.exponential_sums(logits, reference, keep)
    if reference:
        logits.sub_(reference)
    logits.exp_()
    return logits.sum(1).double(), logits.sum(0).double()


def weighted_exponentials(
    values: Tensor, reference: float, of_row: Tensor, of_column: Tensor, kept: bool, dtype: torch.dtype
) -> Tensor:
    """exp(values − reference) · (of_row[i] + of_column[j]), (h, w).

    kept: values are exponentials already, and are left as they are; otherwise they may be overwritten.
    """
    if _fused(values):
        from xmodal.objectives import kernels

        out = torch.empty_like(values, dtype=dtype) if kept or values.dtype != dtype else values
        kernels.weighted_exponentials(values, reference, of_row, of_column, out, kept)
        return out
    out = torch.empty_like(values) if kept else values
    high = max(1, STRIP // values.shape[1])
    for strip, weight, into in zip(values.split(high), of_row.split(high), out.split(high), strict=True):
        if not kept:
            if reference:
                strip.sub_(reference)
            strip.exp_()
        torch.mul(strip, weight[:, None] + of_column, out=into)
    return out.to(dtype)


def sigmoid_gradient(logits: Tensor, bias: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """σ(logits + bias) (h, w), and the sums of log(1 + exp(logits + bias)) and of σ, () float64 each."""
    if _fused(logits):
        from xmodal.objectives import kernels

        out = logits if logits.dtype == dtype else torch.empty_like(logits, dtype=dtype)
        return out, *kernels.sigmoid_gradient(logits, bias, out)
    logits.add_(bias)
    # Rows are added up in the logits' type, which is vectorised, and their sums in float64.
    losses = [F.softplus(strip, threshold=40).sum(1) for strip in logits.split(max(1, STRIP // logits.shape[1]))]
    logits.sigmoid_()
    slopes = logits.sum(1).sum(dtype=torch.float64)
    return logits.to(dtype), torch.cat(losses).sum(dtype=torch.float64), slopes


def running_sums(logits: Tensor, top: Tensor, total: Tensor) -> None:
    """Take the tile into each row's running maximum `top` (h,) and `total` (h,) = Σ exp(logit − top), in place."""
    if _fused(logits):
        from xmodal.objectives import kernels

        return kernels.running_sums(logits, top, total)
    higher = torch.maximum(top, logits.amax(1))
    finite = higher.clamp_min(torch.finfo(higher.dtype).min)  # a row of −inf alone stays 0
    total.mul_((top - finite).exp()).add_(logits.sub_(finite[:, None]).exp_().sum(1))
    top.copy_(higher)


def softmax_rows(logits: Tensor, log_all: Tensor, dtype: torch.dtype) -> Tensor:
    """exp(logits − log_all[i]), (h, w)."""
    if _fused(logits):
        from xmodal.objectives import kernels

        out = logits if logits.dtype == dtype else torch.empty_like(logits, dtype=dtype)
        kernels.softmax_rows(logits, log_all, torch.ones_like(log_all), out)
        return out
    high = max(1, STRIP // logits.shape[1])
    for strip, subtract in zip(logits.split(high), log_all.split(high), strict=True):
        strip.sub_(subtract[:, None]).exp_()
    return logits.to(dtype)
