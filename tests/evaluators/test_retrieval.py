"""Ranks by eye, against a literal loop, against CLIP_benchmark, and with ties wherever they can hide."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from clip_benchmark.metrics import zeroshot_retrieval as peer
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.evaluators import retrieval as public
from xmodal.evaluators.retrieval import hits, ranks, retrieval

# The package's attribute `retrieval` is the function, which hides the module of the same name.
MODULE = sys.modules["xmodal.evaluators.retrieval"]


def diagonal(n: int) -> np.ndarray:
    return np.stack([np.arange(n), np.arange(n)], 1)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def literal(image: np.ndarray, text: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """1 + the wrong answers at least as similar as the best right one, query by query in float64."""
    similarity = image.astype(np.float64) @ text.astype(np.float64).T
    right = np.zeros(similarity.shape, dtype=bool)
    right[pairs[:, 0], pairs[:, 1]] = True

    def of(row: np.ndarray, own: np.ndarray) -> int:
        best = max(s for s, r in zip(row, own, strict=True) if r)
        return 1 + sum(1 for s, r in zip(row, own, strict=True) if not r and s >= best - 1e-9)

    of_image = [of(similarity[i], right[i]) for i in range(len(image))]
    return np.array(of_image), np.array([of(similarity[:, t], right[:, t]) for t in range(len(text))])


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "LANE", 8)
    monkeypatch.setattr(MODULE, "TILE", (16, 64))


@pytest.mark.parametrize("seed", range(5))
def test_a_callers_autocast_changes_nothing(seed: int) -> None:
    row = torch.nn.functional.normalize(torch.randn(1, 64, generator=torch.Generator().manual_seed(seed)), dim=1)
    other = torch.nn.functional.normalize(row + 0.02 * torch.randn(50, 64), dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert retrieval(row.repeat(50, 1), row.repeat(50, 1), torch.arange(50))["image_to_text/R@1"] == 0
        under = retrieval(other, other, torch.arange(50))
    assert under == retrieval(other, other, torch.arange(50))


def test_by_eye() -> None:
    image = np.eye(3)
    text = np.array([[0.9, 0.5, 0.0], [0.8, 0.3, 0.1], [0.0, 0.1, 0.7]])
    # Similarities are text's columns: image 0 sees 0.9 0.8 0.0, image 1 sees 0.5 0.3 0.1, image 2 sees 0.0 0.1 0.7.
    of_image, of_text = ranks(image, text, diagonal(3))
    assert of_image.tolist() == [1, 2, 1]
    assert of_text.tolist() == [1, 2, 1]
    scores = retrieval(image, text, [0, 1, 2], ks=(1, 2))
    assert scores == {
        "image_to_text/R@1": pytest.approx(2 / 3),
        "image_to_text/R@2": 1.0,
        "image_to_text/median_rank": 1.0,
        "image_to_text/mean_rank": pytest.approx(4 / 3),
        "text_to_image/R@1": pytest.approx(2 / 3),
        "text_to_image/R@2": 1.0,
        "text_to_image/median_rank": 1.0,
        "text_to_image/mean_rank": pytest.approx(4 / 3),
    }
    assert public is retrieval


def test_any_caption_is_a_hit_and_right_answers_never_count() -> None:
    image = np.eye(2)
    text = np.array([[0.1, 0.9], [0.9, 0.1], [0.8, 0.0], [0.2, 0.5]])  # texts 0 to 2 are image 0's
    of_image, of_text = ranks(image, text, np.array([[0, 0], [0, 1], [0, 2], [1, 3]]))
    assert of_image.tolist() == [1, 2]  # image 1: text 0 is above its own; image 0 has a best at the top
    assert of_text.tolist() == [2, 1, 1, 1]


def test_many_to_many_by_eye() -> None:
    image = np.eye(3)
    text = np.array([[0.9, 0.8, 0.85], [0.7, 0.1, 0.2]])
    pairs = np.array([[0, 0], [1, 0], [2, 1], [0, 0]])  # text 0 belongs to images 0 and 1; a pair may be named twice
    of_image, of_text = ranks(image, text, pairs)
    assert of_image.tolist() == [1, 1, 2]
    assert of_text.tolist() == [1, 2]  # image 2 is below image 0, which is right; image 0 is above image 2
    assert retrieval(image, text, pairs=pairs, ks=(1,))["text_to_image/R@1"] == 0.5


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n, m, d = draw(st.integers(1, 40)), draw(st.integers(1, 150)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):  # small whole numbers: exact in every type, full of ties
        image, text = rng.integers(-2, 3, (n, d)).astype(float), rng.integers(-2, 3, (m, d)).astype(float)
    else:
        image, text = unit(rng.standard_normal((n, d))), unit(rng.standard_normal((m, d)))
    everyone = np.concatenate(
        [
            np.stack([np.arange(n), rng.integers(0, m, n)], 1),
            np.stack([rng.integers(0, n, m), np.arange(m)], 1),
        ]
    )
    more = np.stack([rng.integers(0, n, 20), rng.integers(0, m, 20)], 1)[: draw(st.integers(0, 20))]
    return image, text, rng.permutation(np.concatenate([everyone, more]))


@settings(max_examples=80, deadline=None)
@given(problem=problems(), tile=st.sampled_from([(8, 64), (16, 128), (40, 192), (512, 4096)]))
def test_like_a_literal_loop(problem: tuple[np.ndarray, np.ndarray, np.ndarray], tile: tuple[int, int]) -> None:
    image, text, pairs = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "LANE", 8)
        patch.setattr(MODULE, "TILE", tile)
        patch.setattr(MODULE, "TIE", 1e-10)
        found = ranks(image, text, pairs)
    for mine, theirs in zip(found, literal(image, text, pairs), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(("n", "m"), [(511, 4096), (512, 4097), (513, 1), (129, 4095)])
def test_edges_of_the_real_tile(n: int, m: int) -> None:
    rng = np.random.default_rng(n)
    image, text = rng.integers(-9, 10, (n, 6)).astype(float), rng.integers(-9, 10, (m, 6)).astype(float)
    pairs = np.concatenate(
        [np.stack([np.arange(n), np.arange(n) % m], 1), np.stack([np.arange(m) % n, np.arange(m)], 1)]
    )
    similarity, right = image @ text.T, np.zeros((n, m), dtype=bool)
    right[tuple(pairs.T)] = True
    best = np.where(right, similarity, -np.inf)
    of_image, of_text = ranks(image, text, pairs)
    np.testing.assert_array_equal(of_image, 1 + (~right & (similarity >= best.max(1)[:, None])).sum(1))
    np.testing.assert_array_equal(of_text, 1 + (~right & (similarity >= best.max(0)[None])).sum(0))


@pytest.mark.parametrize("n", [1, 2, 7, 70, 600])
def test_equal_rows_score_nothing(n: int) -> None:
    row = unit(np.random.default_rng(n).standard_normal((1, 33))).astype(np.float32)
    rows = np.repeat(row, n, 0)
    of_image, of_text = ranks(rows, rows, diagonal(n))
    assert (of_image == n).all()
    assert (of_text == n).all()  # and 1 where there is one only: nothing is wrong
    assert retrieval(rows, rows, np.arange(n))["image_to_text/R@1"] == (n == 1)


def test_equal_rows_that_are_all_right() -> None:
    rows = np.ones((4, 3), dtype=np.float32)
    everything = np.array([[i, t] for i in range(4) for t in range(4)])
    assert set(retrieval(rows, rows, pairs=everything, ks=(1,)).values()) == {1.0}


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("copy", [*range(0, 130, 9), 63, 64, 65, 127, 128, 129])
def test_a_copy_of_the_right_text_is_a_tie_wherever_it_stands(copy: int) -> None:
    rng = np.random.default_rng(copy)
    image = unit(rng.standard_normal((37, 48))).astype(np.float32)
    text = unit(rng.standard_normal((130, 48))).astype(np.float32)
    own = 129 if copy < 65 else 0  # in another tile
    text[own] = unit(image[20:21] + 0.01 * text[own : own + 1])[0]
    text[copy] = text[own] if copy != own else text[copy]
    owner = np.delete(np.arange(37), 20)[np.arange(130) % 36]
    owner[own] = 20
    of_image, _ = ranks(image, text, np.stack([owner, np.arange(130)], 1))
    assert of_image[20] == (2 if copy != own else 1)


@pytest.mark.usefixtures("small_tiles")
def test_a_copy_of_the_right_image_is_a_tie_wherever_it_stands() -> None:
    rng = np.random.default_rng(0)
    for copy in range(1, 37):
        image = unit(rng.standard_normal((37, 48))).astype(np.float32)
        text = unit(image + 0.01 * rng.standard_normal((37, 48))).astype(np.float32)
        image[copy] = image[0]
        of_image, of_text = ranks(image, text, diagonal(37))
        assert of_text[0] == 2
        assert of_image[1:][np.arange(1, 37) != copy].tolist() == [1] * 35


@pytest.mark.parametrize("d", [384, 512])  # 384: a product adds so many in one go, so it is the least exact
def test_copies_of_many_wide_rows_are_ties(d: int) -> None:
    n = 4000
    rows = torch.nn.functional.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(1)), dim=1)
    owner = torch.cat([torch.arange(n), torch.arange(n).roll(-1)])  # each text's copy is another image's
    of_image, _ = ranks(rows, torch.cat([rows, rows]), torch.stack([owner, torch.arange(2 * n)], 1))
    assert (of_image == 2).all()


def noisy(n: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    image = torch.nn.functional.normalize(torch.randn(n, d, generator=g), dim=1)
    return image, torch.nn.functional.normalize(image + 0.35 * torch.randn(n, d, generator=g), dim=1)


def test_autocast_changes_nothing() -> None:
    image, text = noisy(400, 64)
    expected = ranks(image, text, diagonal(400))
    with torch.autocast("cpu", torch.bfloat16):
        found = ranks(image, text, diagonal(400))
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_long_row_makes_no_ties_of_others() -> None:
    image, text = noisy(400, 64)
    expected, _ = ranks(image, text, diagonal(400))
    image[0] *= 1e5  # the order of texts stays the same for every image
    np.testing.assert_array_equal(ranks(image, text, diagonal(400))[0], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_types(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    image = torch.randint(-3, 4, (9, 5), generator=g).to(dtype)  # exact in all of them
    text = torch.randint(-3, 4, (23, 5), generator=g).to(dtype)
    owner = torch.arange(23) % 9
    expected = literal(image.double().numpy(), text.double().numpy(), np.stack([owner, np.arange(23)], 1))
    pairs = torch.stack([owner, torch.arange(23)], 1)
    inputs: list[tuple[Any, Any]] = [(image, text), (image, text.double()), (image.double(), text)]
    if dtype != torch.bfloat16:
        inputs += [(image.numpy(), text.numpy()), (image.numpy(), text), (image.tolist(), text.tolist())]
    for one, other in inputs:
        for mine, theirs in zip(ranks(one, other, pairs), expected, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_small_differences_of_float64_count() -> None:
    image, text = np.array([[1.0, 0.0]]), np.array([[1.0, 0.0], [1.0 - 1e-5, 0.0]])
    pairs = np.array([[0, 0]])
    with pytest.raises(ValueError, match="text row 1 has no right answer"):
        ranks(image, text, pairs)
    both = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert ranks(both, text, diagonal(2))[0].tolist() == [1, 2]


def test_inputs_are_left_alone_and_may_want_a_gradient() -> None:
    image = torch.nn.functional.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    before = image.clone()
    assert retrieval(image.requires_grad_(), image, torch.arange(5))["image_to_text/R@1"] == 1
    assert torch.equal(image, before)
    assert image.grad is None


def test_hits() -> None:
    assert hits(np.array([1, 5, 6]), 5).tolist() == [1.0, 1.0, 0.0]


EYE = np.eye(3)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((EYE, np.eye(4)[:3], [0, 1, 2]), r"image and text must have one width, not \(3, 3\) and \(3, 4\)"),
        ((EYE[0], EYE, [0, 1, 2]), r"image must be \(rows, d\), not \(3,\)"),
        ((EYE, EYE[None], [0]), r"text must be \(rows, d\), not \(1, 3, 3\)"),
        ((EYE, np.full((3, 3), np.nan), [0, 1, 2]), "text holds numbers that are not finite"),
        ((np.full((3, 3), np.inf), EYE, [0, 1, 2]), "image holds numbers that are not finite"),
        ((EYE, EYE, [0, 1]), r"image_of_text must be \(3,\) long, one a text, not \(2,\)"),
        ((EYE, EYE, [[0, 1, 2]]), r"image_of_text must be \(3,\) long, one a text, not \(1, 3\)"),
        ((EYE, EYE, [0.0, 1.0, 2.0]), r"image_of_text must be \(3,\) long, one a text, not \(3,\) torch.float32"),
        ((EYE, EYE, [0, 1, 3]), "image rows 0 to 3; there are 3"),
        ((EYE, EYE, [0, -1, 2]), "image rows -1 to 2; there are 3"),
        ((EYE, EYE, [0, 1, 1]), "image row 2 has no right answer"),
        ((EYE[:0], EYE[:0], np.zeros(0, dtype=int)), r"image and text must have rows, not \(0, 3\) and \(0, 3\)"),
        ((EYE, EYE), "give either image_of_text or pairs"),
    ],
)
def test_errors_name_what_is_wrong(arguments: tuple[Any, ...], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        retrieval(*arguments)


@pytest.mark.parametrize(
    ("pairs", "complaint"),
    [
        (np.zeros((3, 3), dtype=int), r"pairs must be \(p, 2\) long, not \(3, 3\)"),
        (np.zeros((3, 2)), r"pairs must be \(p, 2\) long, not \(3, 2\) torch.float64"),
        (np.array([[0, 0], [1, 1], [2, 3]]), "pairs name text rows 0 to 3; there are 3"),
        (np.zeros((0, 2), dtype=int), "image row 0 has no right answer"),
    ],
)
def test_errors_of_pairs(pairs: np.ndarray, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        retrieval(EYE, EYE, pairs=pairs)


class Prepared:
    """A model whose inputs are row numbers and whose embeddings are prepared."""

    def __init__(self, image: torch.Tensor, text: torch.Tensor) -> None:
        self.image, self.text = image, text

    def encode_image(self, numbers: torch.Tensor) -> torch.Tensor:
        return self.image[numbers]

    def encode_text(self, numbers: torch.Tensor) -> torch.Tensor:
        return self.text[numbers]


@pytest.mark.parametrize("seed", range(3))
def test_like_clip_benchmark_to_the_last_digit(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    captions = torch.randint(1, 6, (60,), generator=g).tolist()
    owner = torch.repeat_interleave(torch.arange(60), torch.tensor(captions))
    image = torch.randn(60, 24, generator=g)
    text = image[owner] + 2 * torch.randn(len(owner), 24, generator=g)
    starts = np.cumsum([0, *captions])
    numbers = [list(range(a, b)) for a, b in zip(starts[:-1], starts[1:], strict=True)]
    loader = [(torch.arange(a, min(a + 16, 60)), numbers[a : a + 16]) for a in range(0, 60, 16)]
    theirs = peer.evaluate(Prepared(image, text), loader, torch.tensor, "cpu", amp=False, recall_k_list=[1, 5, 10])
    unit_image, unit_text = (torch.nn.functional.normalize(rows, dim=-1) for rows in (image, text))
    mine = retrieval(unit_image, unit_text, owner)
    for k in (1, 5, 10):
        assert 0 < mine[f"image_to_text/R@{k}"] < 1
        # They return float32 means.
        assert np.float32(mine[f"image_to_text/R@{k}"]) == np.float32(theirs[f"text_retrieval_recall@{k}"])
        assert np.float32(mine[f"text_to_image/R@{k}"]) == np.float32(theirs[f"image_retrieval_recall@{k}"])
