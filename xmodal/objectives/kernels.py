"""Triton kernels for a tile of float32 logits between the matrix products, which stay cuBLAS's.

Each reads the tile once and writes it at most once, which is all that takes time here. A program has a block to itself
and writes its sums to places of its own; torch adds them up in float64. No atomics: the same tile gives the same bits.
A logit of −inf counts as nothing. Imported where tensors are on a GPU only, as Triton isn't everywhere that torch is.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# A row of a block is one warp wide, four values to a thread (16 bytes, the widest load): sums along rows stay inside
# a warp. 16 rows are 16 values a thread, with registers for several programs on each multiprocessor. Where columns are
# summed up it is 64: their sums, 8 bytes for 64 values, are then 3 % of the tile and stay in the L2 cache.
LOW, TALL, WIDE = tl.constexpr(16), tl.constexpr(64), tl.constexpr(128)
LONG = tl.constexpr(2048)  # values of a row at a time, where a program has a row to itself: 16 a thread
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}  # Triton 3.9 warns when it isn't told the second
HALF = torch.float16, torch.bfloat16

LOG2_E, LN_2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)
LOG2_E_REST = tl.constexpr(1.9259629911e-08)  # what of log2(e) doesn't fit into float32
VANISHES = tl.constexpr(-200.0)  # exp of it is 0 in float32


def exponential_sums(logits: Tensor, reference: float, keep: bool) -> tuple[Tensor, Tensor]:
    """Sums of exp(logits − reference) of rows (h,) and of columns (w,), float64; with `keep` they replace the logits.

    logits: (h, w) float32 with contiguous rows, here and below; ValueError for others.
    """
    h, w = logits.shape
    down, across = triton.cdiv(h, TALL.value), triton.cdiv(w, WIDE.value)
    of_rows = torch.empty(across, h, dtype=torch.float64, device=logits.device)
    of_columns = torch.empty(down, w, dtype=torch.float64, device=logits.device)
    with torch.cuda.device_of(logits):  # Triton launches on the current one
        _exponential_sums[(down * across,)](
            logits,
            _stride(logits),
            h,
            w,
            float(reference),
            of_rows,
            of_columns,
            keep,  # pyright: ignore[reportArgumentType]
            **OPTIONS,
        )
    return of_rows.sum(0), of_columns.sum(0)


def weighted_exponentials(
    logits: Tensor, reference: float, of_row: Tensor, of_column: Tensor, out: Tensor, kept: bool
) -> None:
    """exp(logits − reference) · (of_row[i] + of_column[j]) to `out`; kept: the logits are exponentials already.

    of_row, of_column: (h,), (w,), any floating type. out: (h, w) float32, float16 or bfloat16; may be the logits.
    """
    h, w = logits.shape
    with torch.cuda.device_of(logits):
        _weighted_exponentials[_grid(logits)](
            logits,
            _stride(logits),
            h,
            w,
            float(reference),
            of_row.contiguous(),
            of_column.contiguous(),
            out,
            _stride(out, *HALF),
            kept,  # pyright: ignore[reportArgumentType]
            **OPTIONS,
        )


def sigmoid_gradient(logits: Tensor, bias: float, out: Tensor) -> tuple[Tensor, Tensor]:
    """σ(logits + bias) to `out`, (h, w); returns the sums of log(1 + exp(logits + bias)) and of σ, () float64 each.

    Both keep their relative precision where they are tiny. out: float32, float16 or bfloat16; may be the logits.
    """
    (h, w), grid = logits.shape, _grid(logits)
    losses, slopes = torch.empty(2, *grid, dtype=torch.float64, device=logits.device)
    with torch.cuda.device_of(logits):
        _sigmoid_gradient[grid](
            logits, _stride(logits), h, w, float(bias), out, _stride(out, *HALF), losses, slopes, **OPTIONS
        )
    return losses.sum(), slopes.sum()


def running_sums(logits: Tensor, top: Tensor, total: Tensor) -> None:
    """Take the tile into each row's running maximum `top` (h,) and `total` (h,) = Σ exp(logit − top), in place.

    top: contiguous float32, −inf at first. total: contiguous float32 or float64, 0 at first.
    """
    h, w = logits.shape
    with torch.cuda.device_of(logits):
        _running_sums[(h,)](logits, _stride(logits), w, top, total, **OPTIONS)


def softmax_rows(logits: Tensor, log_all: Tensor, weight: Tensor, out: Tensor) -> None:
    """weight[i] · exp(logits − log_all[i]) to `out`, (h, w) float32, float16 or bfloat16; may be the logits.

    log_all, weight: (h,), any floating type; taken as float32.
    """
    (h, w), log_all, weight = logits.shape, log_all.contiguous(), weight.contiguous()
    with torch.cuda.device_of(logits):
        _softmax_rows[_grid(logits)](
            logits, _stride(logits), h, w, log_all, weight, out, _stride(out, *HALF), **OPTIONS
        )


def _grid(logits: Tensor) -> tuple[int]:
    h, w = logits.shape
    return (triton.cdiv(h, LOW.value) * triton.cdiv(w, WIDE.value),)  # one axis: the others end at 65 535


def _stride(values: Tensor, *others: torch.dtype) -> int:
    if values.dtype not in (torch.float32, *others) or (values.stride(1) != 1 and values.shape[1] > 1):
        raise ValueError(f"needs contiguous rows of float32, not of {values.dtype} in strides {values.stride()}")
    return values.stride(0)


@triton.jit
def _block(width, high: tl.constexpr):
    """This program's rows (high, 1) int64, as a panel may have more than 2³¹ values, and columns (1, WIDE)."""
    across = tl.cdiv(width, WIDE)
    number = tl.program_id(0)
    row = number // across * high + tl.arange(0, high)
    column = number % across * WIDE + tl.arange(0, WIDE)
    return row[:, None].to(tl.int64), column[None, :]


@triton.jit
def _exp(x):
    # The GPU has 2^x. x · log2(e) alone would be rounded to 3e-6 of the result at x = 70: what is lost comes back as
    # a factor. −inf would make it NaN; NaN stays NaN.
    x = tl.where(x < VANISHES, VANISHES, x)
    power = x * LOG2_E
    rest = tl.fma(x, LOG2_E_REST, tl.fma(x, LOG2_E, -power))
    return tl.exp2(power) * tl.fma(rest, LN_2, 1.0)


@triton.jit
def _artanh(x):
    # For 0 <= x <= 1/3: its series in squares of at most 1/9, cut off below half a unit in float32's last place.
    t = x * x
    series = tl.fma(tl.fma(tl.fma(t, 1 / 13, 1 / 11), t, 1 / 9), t, 1 / 7)
    return x * tl.fma(tl.fma(tl.fma(series, t, 1 / 5), t, 1 / 3), t, 1.0)


@triton.jit(do_not_specialize=["height"])
def _exponential_sums(logits, stride, height, width, reference, of_rows, of_columns, keep: tl.constexpr):
    row, column = _block(width, TALL)
    inside = (row < height) & (column < width)
    values = tl.load(logits + row * stride + column, inside, other=float("-inf"))
    values = _exp(values - reference)
    if keep:
        tl.store(logits + row * stride + column, values, inside)
    across, number = tl.cdiv(width, WIDE), tl.program_id(0).to(tl.int64)
    along, down = tl.sum(values, 1, keep_dims=True), tl.sum(values, 0, keep_dims=True)
    tl.store(of_rows + number % across * height + row, along.to(tl.float64), row < height)
    tl.store(of_columns + number // across * width + column, down.to(tl.float64), column < width)


@triton.jit(do_not_specialize=["height"])
def _weighted_exponentials(
    logits, stride, height, width, reference, of_row, of_column, out, out_stride, kept: tl.constexpr
):
    row, column = _block(width, LOW)
    inside = (row < height) & (column < width)
    values = tl.load(logits + row * stride + column, inside)
    if not kept:
        values = _exp(values - reference)
    weight = tl.load(of_row + row, row < height).to(tl.float32)
    weight += tl.load(of_column + column, column < width).to(tl.float32)
    tl.store(out + row * out_stride + column, (values * weight).to(out.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["height"])
def _sigmoid_gradient(logits, stride, height, width, bias, out, out_stride, losses, slopes):
    row, column = _block(width, LOW)
    inside = (row < height) & (column < width)
    values = tl.load(logits + row * stride + column, inside, other=float("-inf")) + bias
    small = _exp(-tl.abs(values))  # at most 1: nothing overflows
    one, two = 1 + small, 2 + small
    both = 1 / (one * two)  # a division is dear: one for two
    slope = tl.where(values >= 0, two, small * two) * both
    tl.store(out + row * out_stride + column, slope.to(out.dtype.element_ty), inside)
    # log(1 + small) = 2 · artanh(small / (2 + small)) has all its digits; the GPU's logarithm is exact to 2⁻²² only.
    loss = tl.maximum(values, 0.0) + 2 * _artanh(small * one * both)
    tl.store(losses + tl.program_id(0), tl.sum(tl.sum(loss, 1), 0).to(tl.float64))
    tl.store(slopes + tl.program_id(0), tl.sum(tl.sum(slope, 1), 0).to(tl.float64))


@triton.jit
def _running_sums(logits, stride, width, top, total):
    row = tl.program_id(0).to(tl.int64)
    highest = tl.load(top + row)
    added = tl.load(total + row).to(tl.float64)
    for start in range(0, width, LONG):
        column = start + tl.arange(0, LONG)
        values = tl.load(logits + row * stride + column, column < width, other=float("-inf"))
        higher = tl.maximum(highest, tl.max(values, 0))
        finite = tl.where(higher == float("-inf"), 0.0, higher)  # −inf less −inf is NaN
        added = added * _exp(highest - finite).to(tl.float64) + tl.sum(_exp(values - finite), 0).to(tl.float64)
        highest = higher
    tl.store(top + row, highest)
    tl.store(total + row, added.to(total.dtype.element_ty))


@triton.jit(do_not_specialize=["height"])
def _softmax_rows(logits, stride, height, width, log_all, weight, out, out_stride):
    row, column = _block(width, LOW)
    inside = (row < height) & (column < width)
    values = tl.load(logits + row * stride + column, inside)
    values = _exp(values - tl.load(log_all + row, row < height).to(tl.float32))
    values *= tl.load(weight + row, row < height).to(tl.float32)
    tl.store(out + row * out_stride + column, values.to(out.dtype.element_ty), inside)
