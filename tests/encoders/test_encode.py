"""Many texts at once: order, batches, what is cut and counted, and the bytes, whatever the batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.encoders import hubs
from xmodal.encoders import encode
from xmodal.encoders.encode import encode_texts
from xmodal.encoders.hf_files import HfTokenizer
from xmodal.encoders.lengths import NOTHING
from xmodal.encoders.sentence_specs import open_sentences
from xmodal.encoders.tokenizer import PiecesTokenizer
from xmodal.errors import InputError

CPU = torch.device("cpu")
TEXTS = ["cat", "the cat the dog the cat", "", "dog cat", "the the the the the the the the the the the"] * 5


class Letters:
    """A token for each letter, at most 6."""

    def ragged(self, texts: Sequence[str]) -> tuple[list[list[int]], int]:
        return [[ord(c) for c in text[:6]] for text in texts], sum(len(text) > 6 for text in texts)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        raise AssertionError("padded rows weren't asked for")

    def save(self, folder: Path) -> None:
        raise AssertionError


class Sums(nn.Module):
    """What each row holds and how wide its batch was; remembers the batches' shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, tokens: Tensor) -> Tensor:
        self.shapes.append(tuple(tokens.shape))
        real = tokens != NOTHING
        return torch.stack([(tokens * real).sum(1), real.sum(1)], 1).float()


def test_rows_come_in_the_order_of_the_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "CHUNK", 7)  # several, the last one short
    monkeypatch.setitem(encode.BUDGET, "cpu", 12)
    texts = ["a" * (i % 9) + chr(100 + i) for i in range(24)]
    tower = Sums()
    found = encode_texts(tower, Letters(), texts, device=CPU)
    expected = [[sum(map(ord, text[:6])), min(len(text), 6)] for text in texts]
    assert found.rows.tolist() == expected
    assert found.truncated == sum(len(text) > 6 for text in texts)
    assert all(b * length <= 12 for b, length in tower.shapes)
    assert sum(b for b, _ in tower.shapes) == 24


def test_batches_are_no_larger_than_they_may_be() -> None:
    tower = Sums()
    encode_texts(tower, Letters(), ["abc"] * 10, device=CPU, batch_size=4)
    assert sorted(b for b, _ in tower.shapes) == [2, 4, 4]  # threads take them in any order
    assert encode_texts(tower, Letters(), [], device=CPU).rows.shape[0] == 0


@pytest.mark.parametrize("kind", ["fast", "slow", "pieces"])
def test_what_is_cut_is_counted(kind: str, tmp_path: Path) -> None:
    import transformers

    texts = ["cat", "cat " * 3, "cat " * 4, "cat " * 25_000]
    if kind == "pieces":
        tokenizer, marks = PiecesTokenizer.train(["cat dog"] * 50, 80, length=4), 1
    else:
        hubs.bert(tmp_path)
        tokenizer, marks = HfTokenizer(transformers.AutoTokenizer.from_pretrained(tmp_path), 5), 2
        if kind == "slow":
            known = type(tokenizer.tokenizer)
            tokenizer.tokenizer.__class__ = type("Slow", (known,), {"is_fast": False})
    rows, cut = tokenizer.ragged(texts)
    assert [len(row) - marks for row in rows] == [1, 3, 3, 3]
    assert cut == 2
    padded = tokenizer(texts)
    assert [row[row != NOTHING].tolist() for row in padded] == rows


@pytest.mark.parametrize("known", [True, False])
def test_a_model_s_rows_are_those_of_its_tower(known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not known:
        monkeypatch.setattr("xmodal.encoders.flat.KNOWN", ())
    encoder = open_sentences(f"hf:{hubs.bert(tmp_path / 'bert')}", "mean").eval()
    found = encode_texts(encoder.text, encoder.tokenizer, TEXTS, device=CPU)
    with torch.no_grad():
        expected = encoder.text(encoder.tokenizer(TEXTS))
    torch.testing.assert_close(found.rows, expected, rtol=1e-5, atol=1e-5)
    again = encode_texts(encoder.text, encoder.tokenizer, TEXTS, device=CPU)
    assert torch.equal(found.rows, again.rows)


@pytest.mark.parametrize("known", [True, False])
def test_bf16_is_near_and_leaves_the_model_alone(known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xmodal.distributed.computes_bf16", lambda: True)  # slower elsewhere, but the same
    if not known:
        monkeypatch.setattr("xmodal.encoders.flat.KNOWN", ())
    encoder = open_sentences(f"hf:{hubs.bert(tmp_path / 'bert')}", "mean").eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    options = {"tower": encoder.text, "tokenizer": encoder.tokenizer, "texts": TEXTS, "device": CPU}
    exact, near = (encode_texts(**options, precision=p).rows for p in ("fp32", "bf16"))
    assert near.dtype == torch.float32
    assert not torch.equal(near, exact)
    assert torch.cosine_similarity(near, exact).min() > 0.999
    for name, value in encoder.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])


def test_a_device_without_bfloat16_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xmodal.distributed.computes_bf16", lambda: False)
    with pytest.raises(InputError, match="bf16"):
        encode_texts(Sums(), Letters(), ["a"], device=CPU, precision="bf16")


def test_progress_is_shown_where_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    encode_texts(Sums(), Letters(), ["a"] * 3, device=CPU)
    assert capsys.readouterr() == ("", "")
    encode_texts(Sums(), Letters(), ["a"] * 3, device=CPU, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "3/3" in err
