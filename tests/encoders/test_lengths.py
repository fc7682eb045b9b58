"""Texts without their padding: the same rows and gradients as with it, in the rows' order."""

from __future__ import annotations

import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from xmodal.encoders import lengths
from xmodal.encoders.lengths import NOTHING, by_length, cuts
from xmodal.encoders.open_clip import _wrap
from xmodal.encoders.small import SmallTextTower

TEXTS = [
    "a cat",
    "Two dogs, running & barking at each other!",
    "",
    "!",
    "a b c d e f g h i j k l m n o p q r s t u v w x",
]


@given(st.lists(st.integers(1, 77), min_size=1, max_size=60), st.integers(0, 300))
def test_cuts_cost_no_more_than_one_group_or_one_for_each_length(found: list[int], cost: int) -> None:
    found = sorted(found)
    bounds = cuts(found, cost)
    assert [a for a, _ in bounds] == [0, *(b for _, b in bounds[:-1])]
    assert bounds[-1][1] == len(found)

    def price(groups: list[tuple[int, int]]) -> int:
        return sum((b - a) * found[b - 1] + cost for a, b in groups)

    starts = [i for i, n in enumerate(found) if i == 0 or n != found[i - 1]]
    each = list(zip(starts, [*starts[1:], len(found)], strict=True))
    assert price(bounds) <= min(price([(0, len(found))]), price(each))


def test_cuts_by_hand() -> None:
    assert cuts([2, 2, 2, 10], 5) == [(0, 3), (3, 4)]  # 6 + 10 + two groups = 26, together 45
    assert cuts([2, 2, 2, 10], 100) == [(0, 4)]  # 40 + one group


def test_rows_keep_their_places() -> None:
    def last(tokens: Tensor) -> Tensor:
        seen.append(tuple(tokens.shape))
        return tokens.amax(1)

    seen: list[tuple[int, int]] = []
    tokens = torch.full((5, 60), NOTHING)
    for row, n in enumerate((3, 60, 3, 1, 58)):
        tokens[row, :n] = row
    assert by_length(last, tokens).tolist() == [0, 1, 2, 3, 4]
    assert seen == [(3, 3), (2, 60)]


def test_rows_without_padding_and_features_pass_untouched() -> None:
    full, features = torch.ones(2, 5, dtype=torch.long), torch.randn(2, 5)
    assert by_length(lambda x: x, full) is full
    assert by_length(lambda x: x, features) is features


@pytest.mark.parametrize("cost", [0, 10_000])
def test_an_open_clip_tower_gives_the_same_rows_and_gradients(cost: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(lengths.GROUP_COST, "cpu", cost)
    tiny = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 32, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(**tiny).double()
    tokenizer = open_clip.SimpleTokenizer()
    towers = _wrap(model, {"name": "tiny", "config": tiny}, tokenizer)

    def gradients(rows: Tensor) -> tuple[Tensor, list[Tensor]]:
        parameters = list(model.text.parameters())
        return rows.detach(), list(torch.autograd.grad((rows * torch.arange(32.0)).sin().sum(), parameters))

    whole, slopes = gradients(model.text(tokenizer(TEXTS)))
    short, found = gradients(towers.features(text=towers.tokenizer(TEXTS)))
    torch.testing.assert_close(short, whole, rtol=0, atol=1e-12)
    for one, other in zip(found, slopes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_a_tower_that_masks_gives_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(lengths.GROUP_COST, "cpu", 0)
    torch.manual_seed(0)
    tower = SmallTextTower(50, d=8, width=48).double()
    tokens = torch.randint(4, 50, (6, 30))
    for row, n in enumerate((1, 5, 5, 17, 30, 2)):
        tokens[row, n:] = NOTHING
    torch.testing.assert_close(by_length(tower, tokens), tower(tokens), rtol=0, atol=1e-12)
