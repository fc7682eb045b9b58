"""Batches of sentences: which rows, and which of a group's paraphrases, as functions of the seed and the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from xmodal.data.batches import Skipped, chosen
from xmodal.data.order import CAPTION, draws, positions_of_step, shuffle, steps_per_epoch
from xmodal.data.sentences import Sentences
from xmodal.data.stable_id import stable_id


class SentenceBatches(Dataset):
    """Step -> this process's part of the global batch. Nothing of text is ever skipped.

    part: first and last row (excluded) of the global batch that this process takes. tokenize: strings -> (n, l) long.
    members: how many texts of a group are in a batch; rows of other forms have all of theirs.
    """

    def __init__(
        self,
        source: Sentences,
        *,
        batch: int,
        part: tuple[int, int],
        seed: int,
        tokenize: Callable[[Sequence[str]], Tensor],
        members: int = 2,
    ) -> None:
        self.source, self.global_batch, self.part, self.seed = source, batch, part, seed
        self.tokenize, self.members = tokenize, members
        self.steps_per_epoch = steps_per_epoch(len(source), batch)

    def __getitem__(self, step: int) -> tuple[dict[str, Tensor], list[Skipped]]:
        """A flat dict: text (b, k, l) long, text_id (b, k) and row (b,) long."""
        n = len(self.source)
        epoch, positions = positions_of_step(step, n, self.global_batch, self.part)
        rows = shuffle(positions, n, self.seed, epoch)
        texts = [self.source.texts(row) for row in rows.tolist()]
        if self.source.form == "groups":
            choices = draws(self.seed, epoch, positions, self.members, CAPTION)  # (b, k)
            texts = [chosen(some, numbers) for some, numbers in zip(texts, choices, strict=True)]
        k = len(texts[0])
        flat = [text for some in texts for text in some]
        text_id = torch.tensor([stable_id(text) for text in flat], dtype=torch.long)
        batch = {
            "text": self.tokenize(flat).unflatten(0, (-1, k)),
            "text_id": text_id.view(-1, k),
            "row": torch.from_numpy(rows),
        }
        return batch, []
