"""Retrieval of the same class, on pictures few enough to check by eye."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from xmodal.evaluators.same_class import same_class, same_class_ranks


def test_ranks_by_eye() -> None:
    angles = np.deg2rad([0, 10, 12, 40, 90])
    rows = np.stack([np.cos(angles), np.sin(angles)], 1)
    labels = np.array([0, 1, 0, 1, 2])  # the last asks nothing, and is wrong for all
    # 0 sees 10° first; 10° sees 12°, 0° and then 40°; 12° sees 10° and 0°; 40° sees 12°, then 10°.
    assert same_class_ranks(rows, labels).tolist() == [2, 3, 2, 2]
    assert same_class(rows, labels, (1, 2, 3)) == {"R@1": 0, "R@2": 0.75, "R@3": 1}
    assert same_class(7 * rows, labels, (2,)) == {"R@2": 0.75}  # lengths don't matter


def test_a_tie_is_lost_and_in_pieces_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    assert same_class(np.ones((4, 3)), [0, 0, 1, 1], (1, 3)) == {"R@1": 0, "R@3": 1}
    torch.manual_seed(0)
    rows, labels = torch.randn(50, 4), torch.arange(50) % 7
    whole = same_class_ranks(rows, labels)
    monkeypatch.setattr("xmodal.evaluators.same_class.TILE", 120)
    assert (same_class_ranks(rows, labels) == whole).all()


def test_no_class_has_two() -> None:
    assert len(same_class_ranks(np.eye(3), [0, 1, 2])) == 0
    with pytest.raises(ValueError, match="no class has two"):
        same_class(np.eye(3), [0, 1, 2])
