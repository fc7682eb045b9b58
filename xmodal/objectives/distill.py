"""What a teacher finds alike, taught: the softmax over a batch of one pair of towers is drawn to that of another.

Its rows and columns are compared by their cross-entropy: affinity mimicking in TinyCLIP (Wu et al. 2023,
arXiv:2309.12314, section 3.1), contrastive relational distillation in CLIP-KD (Yang et al. 2024, arXiv:2307.12732,
section 3.2), DistillClipLoss in open_clip.

Both matrices of logits are gone through in the same tiles, and neither is kept: 2N²(D + E) operations forward for rows
of D numbers and the teacher's of E, 6N²D + 2N²E backward. Each row and each column has a running maximum of its own.
Processes: texts and the teacher's texts are gathered, N · (2D + E) numbers a process with the gradient of texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xmodal import distributed
from xmodal.objectives.arguments import check_same_shape, check_two_towers, exact, wide
from xmodal.objectives.epilogue import STRIP
from xmodal.objectives.pairs import Pairs, dots
from xmodal.objectives.tiles import Tiling, accumulator, add_product, logits


def distill_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    teacher_image: Tensor,
    teacher_text: Tensor,
    teacher_scale: float | Tensor,
) -> Tensor:
    """Mean of −Σ_j p_ij log q_ij over rows and columns; p is the teacher's softmax, q that of image and text.

    image, text: (b, d) unit, row i of one belongs to row i of the other; b may differ between processes.
    scale: () = 1 / temperature.
    teacher_image, teacher_text, teacher_scale: (b, e) unit, (b, e) unit and ≥ 0, the same of the teacher, for the same
    pairs; e may be another width than d. None of them has a gradient.

    The least value that it can have is the mean entropy of p. Exact over the global batch; backward gives d(global
    loss)/d(local rows). Memory grows with the batch, not with its square. Returns () float32, or float64 for float64
    rows. Raises ValueError for shapes that don't match.
    """
    check_two_towers(image, text, scale, None, None)
    check_same_shape(teacher_image=teacher_image, teacher_text=teacher_text)
    if len(teacher_image) != len(image):
        raise ValueError(f"the teacher must have {len(image)} rows as image has, not {len(teacher_image)}")
    if not float(teacher_scale) >= 0:
        raise ValueError(f"teacher_scale must be at least 0, not {float(teacher_scale)}")
    with torch.autocast(image.device.type, enabled=False):
        image, text = wide(image), wide(text)
        teacher = [wide(rows.detach()) for rows in (teacher_image, teacher_text)]
        if image.dtype == torch.float64:
            teacher = [rows.double() for rows in teacher]
        loss = _Distill.apply(image, text, exact(scale), *teacher, float(teacher_scale))
    return loss  # pyright: ignore[reportReturnType]


@dataclass
class _Softmaxes:
    """Of rows or of columns, (n,) each: the largest logit so far, Σ exp(logit − top) and, beside a teacher's softmax,
    Σ exp(logit − top) · (the student's logit − its logit of the pair), which keeps the digits of a small loss."""

    of_pair: Tensor
    top: Tensor
    total: Tensor
    taught: Tensor

    @classmethod
    def none_yet(cls, of_pair: Tensor) -> _Softmaxes:
        total = torch.zeros_like(of_pair, dtype=torch.float64)
        return cls(of_pair, torch.full_like(of_pair, -torch.inf), total, total.clone())

    def take(self, at: slice, values: Tensor, student: Tensor | None = None) -> None:
        """More logits (h, w) of those rows; the student's in the same places."""
        higher = torch.maximum(self.top[at], values.amax(1))
        less = (self.top[at] - higher).exp()
        exponentials = (values - higher[:, None]).exp_()
        self.total[at] = self.total[at] * less + exponentials.sum(1)
        if student is not None:
            self.taught[at] = self.taught[at] * less + exponentials.mul_(student - self.of_pair[at, None]).sum(1)
        self.top[at] = higher

    def everywhere(self) -> None:
        """Put together what each process has seen of the same columns."""
        top = self.top.clone()
        distributed.all_reduce(top, "max")
        less = (self.top - top).exp()
        for sums in (self.total, self.taught):
            distributed.all_reduce(sums.mul_(less))
        self.top = top

    @property
    def log_all(self) -> Tensor:
        return self.total.log() + self.top

    def of(self, at: slice, values: Tensor) -> Tensor:
        """The softmax of logits (h, w) of those rows. Not exp(logit − log_all), which at 100 is off by 4e-6."""
        return (values - self.top[at, None]).exp_().mul_(self.total[at, None].reciprocal().to(values.dtype))


class _Distill(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        teacher_image: Tensor,
        teacher_text: Tensor,
        teacher_scale: float,
    ) -> Tensor:
        spread = distributed.rows(len(text))
        every, teacher_every = (distributed.all_gather(rows, spread) for rows in (text, teacher_text))  # (B, d), (B, e)
        none = torch.empty(0, dtype=torch.long, device=image.device)
        ctx.tiling = Tiling([(range(len(image)), range(len(every)))], Pairs(none, none, none.bool()))
        ctx.scales, ctx.scale_dtype, ctx.spread = (scale.item(), teacher_scale), scale.dtype, spread

        of_pairs = (dots(image, text) * ctx.scales[0]).to(torch.promote_types(image.dtype, torch.float32))
        of_every_pair = distributed.all_gather(of_pairs, spread)
        rows, taught_rows = (_Softmaxes.none_yet(of_pairs) for _ in range(2))
        columns, taught_columns = (_Softmaxes.none_yet(of_every_pair) for _ in range(2))
        for across, down, student, taught in _strips(ctx, image, every, teacher_image, teacher_every):
            rows.take(across, student)
            columns.take(down, student.T)
            taught_rows.take(across, taught, student)
            taught_columns.take(down, taught.T, student.T)
        for sums in (columns, taught_columns):
            sums.everywhere()
        of_rows = rows.log_all - of_pairs - taught_rows.taught / taught_rows.total
        of_columns = columns.log_all - of_every_pair - taught_columns.taught / taught_columns.total
        loss = (of_rows.sum() + of_columns[spread.here].sum()) / (2 * max(1, spread.total))
        distributed.all_reduce(loss)

        ctx.save_for_backward(image, every, teacher_image, teacher_every)
        ctx.sums = rows, columns, taught_rows, taught_columns
        return loss.to(rows.top.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        image, every, teacher_image, teacher_every = ctx.saved_tensors
        rows, columns, taught_rows, taught_columns = ctx.sums
        to_image, to_text = accumulator(image), accumulator(every)
        # d loss / d logit is what q exceeds p by, in its row and in its column. What each loss counts is left for the
        # end: in float16 a part of 1/N would vanish.
        for across, down, student, taught in _strips(ctx, image, every, teacher_image, teacher_every):
            excess = rows.of(across, student) - taught_rows.of(across, taught)
            excess += (columns.of(down, student.T) - taught_columns.of(down, taught.T)).T
            excess = excess.to(image.dtype)
            add_product(to_image[across], excess, every[down])
            add_product(to_text[down], excess.T, image[across])
        weight = gradients[0].double() / (2 * max(1, ctx.spread.total))
        to_scale = (weight * dots(image, to_image).sum()).to(ctx.scale_dtype)
        to_text = distributed.reduce_scatter(to_text, ctx.spread)
        to_image, to_text = (x.mul_(ctx.scales[0] * weight).to(image.dtype) for x in (to_image, to_text))
        return to_image, to_text, to_scale, None, None, None


def _strips(
    ctx: Any, image: Tensor, text: Tensor, teacher_image: Tensor, teacher_text: Tensor
) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """Stretches of rows and of columns, and the student's and the teacher's logits there."""
    own, others = ctx.tiling.buffer(image), ctx.tiling.buffer(teacher_image)
    for tile in ctx.tiling:
        student = logits(image[tile.rows], text[tile.columns], ctx.scales[0], own)
        taught = logits(teacher_image[tile.rows], teacher_text[tile.columns], ctx.scales[1], others)
        high = len(student) if student.is_cuda else max(1, STRIP // student.shape[1])  # on a CPU it stays in the cache
        first = tile.rows.start
        for one, other in zip(student.split(high), taught.split(high), strict=True):
            yield slice(first, first + len(one)), tile.columns, one, other
            first += len(one)
