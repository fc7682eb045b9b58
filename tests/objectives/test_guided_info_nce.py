"""`guided_info_nce_loss` against its formula written out in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xmodal.objectives import clip_loss, guided_info_nce_loss, info_nce_loss


def unit(n: int, d: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, d, generator=g, dtype=torch.float64), dim=-1).requires_grad_()


def reference(ours: list[Tensor], guide: list[Tensor], temperature: Tensor, margin: float, within: bool) -> Tensor:
    """Candidates of each query one at a time; ours and guide are queries, keys and negatives."""
    query, key, negatives = ours
    losses = []
    for i in range(len(query)):
        most = (guide[0][i] * guide[1][i]).sum() - margin
        candidates = [(query[i], key[j], guide[0][i], guide[1][j]) for j in range(len(key)) if j != i]
        candidates += [(query[i], x, guide[0][i], g) for x, g in zip(negatives, guide[2], strict=True)]
        if within:
            candidates += [(query[i], query[j], guide[0][i], guide[0][j]) for j in range(len(key)) if j != i]
            candidates += [(key[i], key[j], guide[1][i], guide[1][j]) for j in range(len(key)) if j != i]
        values = [(query[i] * key[i]).sum() / temperature]
        values += [(x * y).sum() / temperature for x, y, a, b in candidates if (a * b).sum() <= most]
        losses.append(torch.stack(values).logsumexp(0) - values[0])
    return sum(losses) / len(losses)


@pytest.mark.parametrize("tile", [3, 512])
@settings(max_examples=20, deadline=None)
@given(
    *(st.integers(1, 7), st.integers(1, 4), st.integers(2, 4), st.integers(0, 4), st.integers(0, 99)),
    *(st.floats(0.05, 1), st.floats(-0.5, 0.5), st.booleans()),
)
def test_it_is_the_formula(
    tile: int, b: int, d: int, e: int, n: int, seed: int, t: float, margin: float, within: bool
) -> None:
    ours = [unit(size, d, seed + k) for k, size in enumerate((b, b, n))]
    guide = [unit(size, e, seed + 3 + k) for k, size in enumerate((b, b, n))]
    temperature = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    inputs = [*ours[:2], temperature, *(ours[2:] if n else [])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xmodal.objectives.tiles.HEIGHT", tile)
        patch.setattr("xmodal.objectives.tiles.WIDTH", tile)
        more = (ours[2], guide[2]) if n else (None, None)
        got = guided_info_nce_loss(*ours[:2], *guide[:2], *more, temperature=temperature, margin=margin, within=within)
        found = torch.autograd.grad(got, inputs, retain_graph=True)
    want = reference(ours, guide, temperature, margin, within)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)
    wanted = torch.autograd.grad(want, inputs, materialize_grads=True)
    for a, x in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, x, rtol=1e-7, atol=1e-9)
    assert torch.autograd.grad(got, guide, allow_unused=True) == (None, None, None)


def test_a_guide_that_objects_to_nothing_changes_nothing() -> None:
    query, key = unit(6, 4, 0), unit(6, 4, 1)
    got = guided_info_nce_loss(query, key, query, key, temperature=0.2, margin=-3, within=False)
    torch.testing.assert_close(got, info_nce_loss(query, key, temperature=0.2))
    back = guided_info_nce_loss(key, query, key, query, temperature=0.2, margin=-3, within=False)
    want = clip_loss(query, key, torch.tensor(5.0, dtype=torch.float64))
    torch.testing.assert_close((got + back) / 2, want)


def test_the_same_thing_again_is_no_negative() -> None:
    # Two pairs are one: float32 similarities of equal things differ in their last digit, if at all.
    rows = unit(5, 7, 0).detach().float()
    rows[3] = rows[0]
    other = unit(5, 7, 1).detach().float()
    other[3] = other[0]
    loss = guided_info_nce_loss(rows[[0, 3]], other[[0, 3]], rows[[0, 3]], other[[0, 3]], within=False)
    assert loss.item() == 0


def test_a_query_of_which_the_guide_leaves_nothing_has_no_loss_and_no_gradient() -> None:
    query, key = unit(4, 3, 0), unit(4, 3, 1)
    loss = guided_info_nce_loss(query, key, unit(4, 2, 2), unit(4, 2, 3), margin=5)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(query.grad, torch.zeros_like(query))  # type: ignore[arg-type]
    assert torch.equal(key.grad, torch.zeros_like(key))  # type: ignore[arg-type]


def test_what_does_not_fit_is_named() -> None:
    a, g = torch.ones(3, 2), torch.ones(3, 5)
    with pytest.raises(ValueError, match=r"query and key .*\(4, 2\)"):
        guided_info_nce_loss(a, torch.ones(4, 2), g, g)
    with pytest.raises(ValueError, match=r"guide_query and guide_key .*\(3, 6\)"):
        guided_info_nce_loss(a, a, g, torch.ones(3, 6))
    with pytest.raises(ValueError, match="the guide must have 3 rows"):
        guided_info_nce_loss(a, a, g[:2], g[:2])
    with pytest.raises(ValueError, match="go together"):
        guided_info_nce_loss(a, a, g, g, a)
    with pytest.raises(ValueError, match=r"must be \(n, d\) and \(n, e\)"):
        guided_info_nce_loss(a, a, g, g, a, g[:2])
