"""The context of a place in a grid: what is in its row and in the rows above, and nothing of the rows below.

van den Oord et al. 2018 (arXiv:1807.03748), section 3.2, say "a PixelCNN-style autoregressive model". The layers are
those of Hénaff et al. 2020 (arXiv:1905.09272, appendix): along the row, down by one row, each narrow and beside a way
around it. Theirs are 256 wide beside 4096; at that ratio those of smaller networks would see nothing, so here it is a
quarter, as in a residual network's own narrow blocks, up to 256.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Looks at the three places around in the row, then at this row and the one above: (b, d, rows, columns) again."""

    def __init__(self, d: int, hidden: int) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(d, hidden, 1)
        self.along = nn.Conv2d(hidden, hidden, (1, 3), padding=(0, 1))
        self.down = nn.Conv2d(hidden, hidden, (2, 1))
        self.wide = nn.Conv2d(hidden, d, 1)

    def forward(self, x: Tensor) -> Tensor:
        inside = self.along(F.relu(self.narrow(x)))
        inside = self.down(F.pad(inside, (0, 0, 1, 0)))  # a row of nothing above the first
        return x + self.wide(F.relu(inside))


class RowsAbove(nn.Module):
    """(b, rows, columns, d) -> (b, rows, columns, d); a place sees as many rows above as there are blocks."""

    def __init__(self, d: int, blocks: int = 5) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(d, min(256, max(1, d // 4))) for _ in range(blocks)))

    def forward(self, grid: Tensor) -> Tensor:
        return F.relu(self.blocks(grid.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
