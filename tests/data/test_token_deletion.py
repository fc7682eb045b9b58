"""Deleted tokens: what stays is in its order, the ends stay, and as many go as were asked for."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.data.token_deletion import delete_tokens
from xmodal.encoders.lengths import NOTHING


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.floats(0, 1), st.integers(0, 99))
def test_what_stays_is_in_its_order_with_its_ends(lengths: list[int], p: float, seed: int) -> None:
    tokens = torch.full((len(lengths), 12), NOTHING)
    for row, length in enumerate(lengths):
        tokens[row, :length] = torch.arange(length) + 100 * row
    torch.manual_seed(seed)
    for before, after in zip(tokens.tolist(), delete_tokens(tokens, p).tolist(), strict=True):
        own = [token for token in before if token != NOTHING]
        rest = [token for token in after if token != NOTHING]
        assert after == rest + [NOTHING] * (12 - len(rest))
        assert rest == sorted(set(rest) & set(own))
        assert rest[0] == own[0]
        assert rest[-1] == own[-1]
        if p in (0, 1):
            assert rest == (own[:1] + own[1:][-1:] if p else own)


def test_as_many_go_as_were_asked_for_and_each_view_loses_others() -> None:
    torch.manual_seed(0)
    tokens = torch.arange(102).expand(200, 2, 102)
    left = delete_tokens(tokens, 0.3)
    share = 1 - ((left != NOTHING).sum() - 800) / (200 * 2 * 100)
    # Deviation of the mean of 40,000 draws: 0.0023.
    assert abs(share - 0.3) < 0.01
    assert (left[:, 0] != left[:, 1]).any(-1).all()
