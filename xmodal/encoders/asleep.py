"""Parts of a model that stay in evaluation mode while the rest of it is trained."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

M = TypeVar("M", bound="Sleepers")


class Sleepers(nn.Module):
    """A module some of whose parts have been told to stay in evaluation mode: no dropout, no statistics of training."""

    def __init__(self) -> None:
        super().__init__()
        self._asleep: list[str] = []

    def keep_in_evaluation(self, name: str) -> None:
        """A submodule that stays in evaluation mode when the rest is set to training."""
        self._asleep.append(name)

    def train(self: M, mode: bool = True) -> M:
        super().train(mode)
        for name in self._asleep:
            self.get_submodule(name).train(False)
        return self
