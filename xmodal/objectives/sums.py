"""Log-sum-exp with the positives set apart, so that a tiny loss keeps all its digits.

loss = log(1 + negatives / positives), and a positive's gradient is made of −negatives / (negatives + positives): never
a difference of near-equals. Positives' logits are float64; they are few.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from xmodal import distributed
from xmodal.distributed import Rows


@dataclass
class Sums:
    """What is known of one axis, rows or columns; (n,) float64 each."""

    log_negatives: Tensor  # log of the sum of exp(negative), −inf without any
    top: Tensor  # the largest positive logit
    log_positives: Tensor  # log of the sum of exp(positive − top): 0 for a single one, exactly
    mean: Tensor  # the mean of the positive logits
    count: Tensor  # how many positives

    @property
    def odds(self) -> Tensor:
        """log of negatives over positives."""
        return self.log_negatives - self.top - self.log_positives

    @property
    def log_all(self) -> Tensor:
        return F.softplus(self.odds, threshold=40) + self.log_positives + self.top

    @property
    def losses(self) -> Tensor:
        # In this order: what a tiny loss consists of is not rounded to the precision of the logits.
        return F.softplus(self.odds, threshold=40) + (self.log_positives + (self.top - self.mean))

    def gathered(self, spread: Rows) -> Sums:
        """Those of all processes' rows."""
        mine = torch.stack([self.log_negatives, self.top, self.log_positives, self.mean, self.count], 1)
        return Sums(*distributed.all_gather(mine, spread).unbind(1))

    def of_positives(self, place: Tensor, logits: Tensor) -> Tensor:
        """d loss / d logit of each positive, p − 1/|P|, (p,); but not as that difference."""
        among = (logits - self.top[place] - self.log_positives[place]).exp()  # of the positives alone
        return (among - 1 / self.count[place]) - among * self.odds[place].sigmoid()


def positive_sums(place: Tensor, logits: Tensor, n: int, everywhere: bool) -> Sums:
    """The positives' part of the sums of n rows or columns; the negatives' is still to be given.

    place, logits: (p,), the row or column of each positive. everywhere: add up what all processes know of them.
    """

    def added(values: Tensor) -> Tensor:
        total = torch.zeros(n, dtype=torch.float64, device=logits.device).index_add_(0, place, values)
        if everywhere:
            distributed.all_reduce(total)
        return total

    top = torch.full((n,), -math.inf, dtype=torch.float64, device=logits.device)
    top.scatter_reduce_(0, place, logits, "amax")
    if everywhere:
        distributed.all_reduce(top, "max")
    count = added(torch.ones_like(logits))
    # The mean is taken from the top down: for one positive it is the top, without a rounding error.
    mean = top + added(logits - top[place]) / count
    log_positives = added((logits - top[place]).exp()).log()
    return Sums(torch.full_like(top, -math.inf), top, log_positives, mean, count)
