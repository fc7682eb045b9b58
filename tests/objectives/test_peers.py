"""The losses against the classes people use for the same, and what all of ours promise alike.

Peers make rows unit themselves, so both sides get the rows before that and gradients are compared there. A peer's
temperature is a number in its constructor; given a tensor, it has a gradient, which is compared too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightly.loss as lightly
import pytest
import pytorch_metric_learning.distances as metric_distances
import pytorch_metric_learning.losses as metric_learning
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from open_clip.loss import ClipLoss, DistillClipLoss, SigLipLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import DoNothingReducer
from pytorch_metric_learning.regularizers import LpRegularizer
from sentence_transformers.sentence_transformer.losses import (
    ContrastiveLoss,
    GISTEmbedLoss,
    MultipleNegativesRankingLoss,
    gist_embed,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from xmodal.objectives import (
    barlow_twins_loss,
    byol_loss,
    clip_loss,
    cpc_loss,
    dcl_loss,
    distill_loss,
    guided_info_nce_loss,
    hard_nt_xent_loss,
    info_nce_loss,
    logistic_loss,
    margin_loss,
    moco_loss,
    n_pair_loss,
    nt_xent_loss,
    siglip_loss,
    simcse_loss,
    sinkhorn,
    sup_con_loss,
    swav_loss,
    triplet_loss,
)

NO_MODEL: Any = None  # sentence-transformers' classes keep one, for the encoding that is not called here


class Given:
    """Leaves: three towers of rows (n, d), not unit, a temperature and a bias; and labels (n,) without gradient."""

    def __init__(
        self, n: int, d: int, seed: int = 0, temperature: float = 0.1, dtype: torch.dtype = torch.float64,
        different: int | None = None, labels: list[int] | None = None,
    ) -> None:  # fmt: skip
        """different: how many rows of a tower are; the others repeat them."""
        g = torch.Generator().manual_seed(seed)
        which = torch.randint(different, (3, n), generator=g) if different else torch.arange(n).repeat(3, 1)
        self.rows = [torch.randn(n, d, generator=g, dtype=torch.float64)[i].to(dtype) for i in which]
        self.t, self.bias = (torch.tensor(v, dtype=dtype) for v in (temperature, -2.0))
        self.labels = torch.tensor(labels) if labels else torch.arange(n) // 2
        self.leaves = [x.requires_grad_() for x in (*self.rows, self.t, self.bias)]
        self.unit = [F.normalize(x, dim=1) for x in self.rows]

    @property
    def same(self) -> Tensor:
        """(n,) bool: whether row i of the first tower and of the second are to be taken for the same."""
        return self.labels % 2 == 0

    def step(self, loss: Callable[[Given], Tensor]) -> list[Tensor]:
        """The loss and the gradients of all leaves; 0 for those that it doesn't use."""
        value = loss(self)
        return [value.detach(), *torch.autograd.grad(value, self.leaves, retain_graph=True, materialize_grads=True)]


# As a user calls them.
OURS: dict[str, Callable[[Given], Tensor]] = {
    "clip": lambda x: clip_loss(*x.unit[:2], 1 / x.t),
    "clip, ids": lambda x: clip_loss(*x.unit[:2], 1 / x.t, image_id=x.labels),
    "siglip": lambda x: siglip_loss(*x.unit[:2], 1 / x.t, x.bias),
    "distill": lambda x: distill_loss(*x.unit[:2], 1 / x.t, *taught(x), 20.0),
    "nt_xent": lambda x: nt_xent_loss(*x.unit[:2], x.t),
    "sup_con": lambda x: sup_con_loss(x.unit[0], x.labels, x.t),
    "info_nce": lambda x: info_nce_loss(*x.unit[:2], temperature=x.t),
    "info_nce, negatives": lambda x: info_nce_loss(*x.unit, temperature=x.t),
    "simcse": lambda x: simcse_loss(*x.unit[:2], temperature=x.t),
    "simcse, hard negatives": lambda x: simcse_loss(*x.unit, temperature=x.t),
    "simcse, heavy negatives": lambda x: simcse_loss(*x.unit, temperature=x.t, hard_negative_weight=0.5),
    "moco": lambda x: moco_loss(*x.unit, temperature=x.t),
    "dcl": lambda x: dcl_loss(*x.unit[:2], temperature=x.t),
    "dcl, weighted": lambda x: dcl_loss(*x.unit[:2], temperature=x.t, sigma=0.5),
    "hard_nt_xent": lambda x: hard_nt_xent_loss(*x.unit[:2], temperature=x.t),
    "guided_info_nce": lambda x: guided_info_nce_loss(*x.unit[:2], *guides(x), temperature=x.t),
    "guided_info_nce, margin": lambda x: guided_info_nce_loss(
        *x.unit[:2], *guides(x), x.unit[2], guides(x)[0], temperature=x.t, margin=0.2),
    "cpc": lambda x: cpc_loss(x.unit[0], stack(x.unit[1:]), torch.eye(x.unit[0].shape[1], dtype=x.t.dtype).expand(
        2, -1, -1) / x.t),
    "n_pair": lambda x: n_pair_loss(*x.unit[:2], norm_weight=0.02),
    "byol": lambda x: byol_loss(*x.unit[:2]),
    "swav": lambda x: swav_loss(stack(x.unit), stack([sinkhorn(s) for s in x.unit[:2]]),
                                temperature=x.t.item()),
    "barlow_twins": lambda x: barlow_twins_loss(*x.unit[:2]),
    "semi-hard triplets": lambda x: triplet_loss(x.unit[0], x.labels),
    "hard triplets": lambda x: triplet_loss(x.unit[0], x.labels, margin=0.05, mining="hard"),
    "all triplets": lambda x: triplet_loss(x.unit[0], x.labels, margin=0.05, mining="all"),
    "random triplets": lambda x: triplet_loss(x.unit[0], x.labels, margin=2, mining="random"),
    "margin": lambda x: margin_loss(*x.unit[:2], x.same, margin=1.5),
    "margin, half": lambda x: margin_loss(*x.unit[:2], x.same, margin=0.5, half=True),
    "logistic": lambda x: logistic_loss(*x.unit[:2], x.same, 1 / x.t, x.bias),
}  # fmt: skip
# A softmax over rows, so that rows that are all equal are equally likely.
SOFTMAX = [
    *(name for name in OURS if name.split(",")[0] in ("clip", "siglip", "nt_xent", "sup_con", "info_nce", "simcse")),
    *(
        name
        for name in OURS
        if name.split(",")[0] in ("moco", "dcl", "distill", "hard_nt_xent", "guided_info_nce", "cpc")
    ),
]


def guides(x: Given) -> tuple[Tensor, Tensor]:
    """Another model's rows of the first two towers."""
    with torch.autocast("cpu", enabled=False):
        return x.unit[2].detach(), F.normalize(x.unit[2] + 0.3 * x.unit[2].roll(1, 0), dim=1).detach()


def taught(x: Given) -> tuple[Tensor, Tensor]:
    """A teacher's rows of the first two towers."""
    return x.unit[2].detach(), x.unit[2].detach().flip(0)


def stack(rows: list[Tensor]) -> Tensor:
    with torch.autocast("cpu", enabled=False):  # a stack of half precision isn't for it to widen
        return torch.stack(rows, 1)


def of_lightly(x: Given) -> Tensor:
    loss = lightly.NTXentLoss(memory_bank_size=0)
    loss.temperature = x.t  # type: ignore[assignment]
    return loss(*x.rows[:2])


def ranking(x: Given, towers: int, **more: Any) -> Tensor:
    loss = MultipleNegativesRankingLoss(NO_MODEL, scale=1 / x.t, **more)  # type: ignore[arg-type]
    return loss.compute_loss_from_embeddings(x.rows[:towers], labels=x.labels)


def of_lightlys_queue(x: Given) -> Tensor:
    loss = lightly.NTXentLoss(memory_bank_size=tuple(x.rows[2].shape))
    loss.temperature = x.t  # type: ignore[assignment]
    loss.memory_bank.bank = x.unit[2].detach()
    return loss(x.rows[0], x.rows[1].detach())


def of_lightlys_dcl(x: Given, kind: Any = lightly.DCLLoss) -> Tensor:
    loss = kind()
    loss.temperature = x.t
    return loss(*x.rows[:2])


def gist(x: Given, towers: int, margin: float) -> Tensor:
    """Its forward on rows that are there already: the class embeds texts, and wants to have models for that."""
    loss = GISTEmbedLoss.__new__(GISTEmbedLoss)
    nn.Module.__init__(loss)
    loss.model, loss.guide = x.rows[:towers], [*guides(x), guides(x)[0]][:towers]  # type: ignore[assignment]
    # A temperature after −inf has the gradient NaN, so similarities are divided by it before, and the margin with them.
    loss.similarity_fct = lambda a, b: F.cosine_similarity(a, b, dim=-1) / x.t  # type: ignore[assignment]
    loss.temperature, loss.margin, loss.margin_strategy = 1.0, margin / x.t.item(), "absolute"
    loss.contrast_anchors = loss.contrast_positives = True
    loss.must_retokenize = loss.gather_across_devices = False
    loss.cross_entropy_loss = nn.CrossEntropyLoss()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gist_embed, "embed_columns", lambda rows, features: rows)
        return loss([{}] * towers, torch.empty(0))


def pairs(x: Given, size: float) -> Tensor:
    """pytorch-metric-learning's terms of each pair, squared here, and the mean over all pairs."""
    n, i = len(x.labels), torch.arange(len(x.labels))
    loss = metric_learning.ContrastiveLoss(neg_margin=size, reducer=DoNothingReducer())  # type: ignore[arg-type]
    which = (i[x.same], n + i[x.same], i[~x.same], n + i[~x.same])
    terms = [part["losses"] for part in loss(torch.cat(x.rows[:2]), indices_tuple=which).values()]
    return sum((term.square().sum() for term in terms if isinstance(term, Tensor)), x.rows[0].sum() * 0) / n


def hard_triplets(x: Given) -> Tensor:
    return metric_learning.TripletMarginLoss()(x.rows[0], x.labels, BatchHardMiner()(x.rows[0], x.labels))


def n_pairs(x: Given) -> Tensor:
    i = torch.arange(len(x.labels))
    more = {"embedding_regularizer": LpRegularizer(power=2), "embedding_reg_weight": 0.02}
    loss = metric_learning.NPairsLoss(
        distance=metric_distances.DotProductSimilarity(normalize_embeddings=False), **more
    )
    return loss(torch.cat(x.unit[:2]), i.repeat(2), (i, len(i) + i, i[:0], i[:0]))


BOTH_WAYS = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}


PEERS: list[tuple[str, str, Callable[[Given], Tensor]]] = [
    ("clip", "open_clip", lambda x: ClipLoss()(*x.unit[:2], 1 / x.t)),
    ("clip", "sentence-transformers", lambda x: ranking(x, 2, **BOTH_WAYS)),
    ("siglip", "open_clip", lambda x: SigLipLoss()(*x.unit[:2], 1 / x.t, x.bias)),
    ("distill", "open_clip", lambda x: DistillClipLoss()(*x.unit[:2], 1 / x.t, *taught(x), 20.0)[1]),
    ("nt_xent", "lightly", of_lightly),
    ("nt_xent", "pytorch-metric-learning", lambda x: metric_learning.NTXentLoss(x.t)(  # type: ignore[arg-type]
        torch.cat(x.rows[:2]), torch.arange(len(x.labels)).repeat(2))),
    ("sup_con", "pytorch-metric-learning", lambda x: metric_learning.SupConLoss(x.t)(  # type: ignore[arg-type]
        x.rows[0], x.labels)),
    ("info_nce", "sentence-transformers", lambda x: ranking(x, 2)),
    ("info_nce, negatives", "sentence-transformers", lambda x: ranking(x, 3)),
    ("simcse", "sentence-transformers", lambda x: ranking(x, 2)),
    ("simcse, hard negatives", "sentence-transformers", lambda x: ranking(x, 3)),
    ("moco", "lightly", of_lightlys_queue),
    ("dcl", "lightly", of_lightlys_dcl),
    ("dcl, weighted", "lightly", lambda x: of_lightlys_dcl(x, lightly.DCLWLoss)),
    ("guided_info_nce", "sentence-transformers", lambda x: gist(x, 2, 0.0)),
    ("guided_info_nce, margin", "sentence-transformers", lambda x: gist(x, 3, 0.2)),
    ("n_pair", "pytorch-metric-learning", n_pairs),
    ("byol", "lightly", lambda x: 2 + 2 * lightly.NegativeCosineSimilarity()(x.rows[0], x.rows[1].detach())),
    ("swav", "lightly", lambda x: lightly.SwaVLoss(temperature=x.t.item())(x.unit[:2], x.unit[2:])[0]),
    ("barlow_twins", "lightly", lambda x: lightly.BarlowTwinsLoss()(*x.unit[:2])),
    ("hard triplets", "pytorch-metric-learning", hard_triplets),
    ("all triplets", "pytorch-metric-learning", lambda x: metric_learning.TripletMarginLoss()(x.rows[0], x.labels)),
    ("margin", "pytorch-metric-learning", lambda x: pairs(x, 1.5)),
    ("margin, half", "sentence-transformers", lambda x: ContrastiveLoss(
        NO_MODEL, lambda a, b: torch.linalg.vector_norm(a - b, dim=1), 0.5,  # type: ignore[arg-type]
    ).compute_loss_from_embeddings(x.unit[:2], x.same.long())),
    ("logistic", "torch", lambda x: F.binary_cross_entropy_with_logits(
        (x.unit[0] * x.unit[1]).sum(1) / x.t + x.bias, x.same.to(x.t.dtype))),
]  # fmt: skip
each_peer = pytest.mark.parametrize(
    ("name", "theirs"), [pytest.param(name, theirs, id=f"{name} as {peer}") for name, peer, theirs in PEERS]
)
each_loss = pytest.mark.parametrize("name", OURS)


def compare(x: Given, name: str, theirs: Callable[[Given], Tensor], **tolerance: float) -> None:
    what = ("loss", "first", "second", "third", "temperature", "bias")
    for part, got, want in zip(what, x.step(OURS[name]), x.step(theirs), strict=True):
        torch.testing.assert_close(got, want, msg=lambda told, part=part: f"{part}: {told}", **tolerance)


@pytest.fixture(params=[None, 8], ids=["one tile", "tiles of 8"])
def _tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in ("HEIGHT", "WIDTH", "SIDE") if request.param else ():
        monkeypatch.setattr(f"xmodal.objectives.tiles.{size}", request.param)


@each_peer
@pytest.mark.usefixtures("_tile")
@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 24), d=st.integers(1, 40), seed=st.integers(0, 99), t=st.floats(0.05, 2), data=st.data())
def test_it_is_the_peers_loss(
    name: str, theirs: Callable[[Given], Tensor], n: int, d: int, seed: int, t: float, data: st.DataObject
) -> None:
    different = data.draw(st.none() | st.integers(1, n), "different rows")
    by_label = name in ("sup_con", "hard triplets", "all triplets")
    labels = data.draw(st.lists(st.integers(0, 5), min_size=n, max_size=n), "labels") if by_label else None
    if labels:  # without a positive or without a negative pytorch-metric-learning has no loss to compare
        assume(1 < len(set(labels)) < n)
    if name in ("barlow_twins", "dcl", "dcl, weighted"):  # lightly fails with one pair, or has −inf
        assume(n > 1)
    if name == "margin":  # pytorch-metric-learning takes one pair of a kind for none
        assume(n > 2)
    if name in ("hard triplets", "guided_info_nce", "guided_info_nce, margin"):
        # Equal rows (in one dimension all unit rows are): either may be the hardest, and a guide holds them for equal.
        assume(different is None and d > 1 and n > 1)
    x = Given(n, d, seed, t, different=different, labels=labels)
    compare(x, name, theirs, rtol=1e-8, atol=1e-10)


@each_peer
def test_it_is_the_peers_loss_in_float32(name: str, theirs: Callable[[Given], Tensor]) -> None:
    compare(Given(130, 32, dtype=torch.float32), name, theirs)


def test_anchors_of_a_loss_that_vanishes_count_here_and_not_in_pytorch_metric_learning() -> None:
    # Four classes in two dimensions. The first pair lies so far from all else that its loss is 0 in float32.
    x = Given(8, 2, temperature=0.01, dtype=torch.float32)
    angles = torch.tensor([180, 180, 0, 30, 10, 40, 20, 50]) * math.pi / 180
    rows = torch.stack([angles.cos(), angles.sin()], dim=1)
    ours = sup_con_loss(rows, x.labels, 0.01)
    theirs = metric_learning.SupConLoss(0.01)(rows, x.labels)
    torch.testing.assert_close(ours * 8, theirs * 6)


@pytest.mark.parametrize("name", SOFTMAX)
@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 60), d=st.integers(1, 40), t=st.floats(0.05, 2))
def test_where_all_rows_are_equal_all_are_as_likely(name: str, n: int, d: int, t: float) -> None:
    x = Given(n, d, temperature=t, different=1, labels=[i % max(1, n // 2) for i in range(n)])
    x.unit = [x.unit[0], x.unit[0].clone(), x.unit[0].clone()]
    loss, *gradients = x.step(OURS[name])
    logit = 1 / t - 2  # SigLIP's
    want = {
        "nt_xent": math.log(2 * n - 1),
        "sup_con": math.log(max(1, n - 1)),
        "siglip": math.log1p(math.exp(-logit)) + (n - 1) * math.log1p(math.exp(logit)),
        "info_nce, negatives": math.log(2 * n),
        "simcse, hard negatives": math.log(2 * n),
        "simcse, heavy negatives": math.log(2 * n - 1 + math.exp(0.5)),
        "moco": math.log(1 + n),
        "dcl": math.log(max(1, 2 * n - 2)),
        "dcl, weighted": math.log(max(1, 2 * n - 2)),
        "hard_nt_xent": math.log(2 * n - 1),
        "guided_info_nce": 0,  # the guide takes all for the same
        "guided_info_nce, margin": 0,
    }.get(name, math.log(n))
    assert loss.item() == pytest.approx(want, rel=1e-9, abs=1e-12)
    # No row can turn away from all others, and but for SigLIP's no temperature tells them apart.
    of_rows, of_temperature = gradients[:3], gradients[3]
    assert all(g.abs().max() < 1e-11 * n / t for g in of_rows)
    if name != "siglip":
        assert of_temperature.abs() < 1e-11 / t**2


@each_loss
def test_from_run_to_run_it_is_the_same_to_the_bit(name: str) -> None:
    # More rows than a tile has, some of them more than once.
    first, *others = (Given(1100, 48, dtype=torch.float32, different=900).step(OURS[name]) for _ in range(4))
    assert first[0] != 0
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@each_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_rows_of_half_precision_are_compared_in_float32(name: str, dtype: torch.dtype, autocast: bool) -> None:
    half, single = Given(40, 16, dtype=torch.float32), Given(40, 16, dtype=torch.float32)
    half.unit = [rows.detach().to(dtype).requires_grad_() for rows in half.unit]
    single.unit = [rows.detach().float().requires_grad_() for rows in half.unit]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        low, exact = OURS[name](half), OURS[name](single)
    assert low.dtype == torch.float32
    assert torch.equal(low, exact)
    found, wanted = (
        torch.autograd.grad(loss, [*x.unit, x.t], materialize_grads=True) for loss, x in ((low, half), (exact, single))
    )
    assert [g.dtype for g in found] == [dtype] * 3 + [torch.float32]
    assert found[0].any()
    assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip(found, wanted, strict=True))


class Largest(TorchDispatchMode):
    """How many values the largest tensor has that is computed meanwhile."""

    values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, Tensor):
                self.values = max(self.values, x.untyped_storage().nbytes() // x.element_size())
        return out


@each_loss
def test_nothing_is_as_large_as_the_square_of_the_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in ("HEIGHT", "WIDTH", "SIDE"):
        monkeypatch.setattr(f"xmodal.objectives.tiles.{size}", 64)
    for size in ("triplet.BLOCK", "underflow.BLOCK"):
        monkeypatch.setattr(f"xmodal.objectives.{size}", 64 * 64)
    n, d = 600, 8
    x = Given(n, d, dtype=torch.float32)
    with Largest() as largest:
        x.step(OURS[name])
    assert n * d <= largest.values <= 6 * n * d < n * n / 10
