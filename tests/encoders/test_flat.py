"""BERT without padding: the same rows, the same gradients, and no guess about what it doesn't know."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.encoders import hubs
from xmodal.encoders.flat import flat
from xmodal.encoders.hf import TextFeatures
from xmodal.encoders.lengths import NOTHING
from xmodal.encoders.lora import add_lora
from xmodal.encoders.pooling import TextPooling
from xmodal.encoders.sentence_specs import open_sentences
from xmodal.encoders.sentence_transformers import Chain, Dense

TOKENS = torch.tensor([[2, 7, 8, 9, 3], [2, 7, 3, NOTHING, NOTHING], [2, 9, 9, 5, 3], [4, *[NOTHING] * 4]])


def model(kind: str, **more: object) -> nn.Module:
    """A tiny transformer with dropout and random weights, in training mode."""
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        kind, **hubs.TEXT, vocab_size=60, max_position_embeddings=16, pad_token_id=1, **more
    )
    made = transformers.AutoModel.from_config(config).train()
    hubs.stirred(made)
    return made


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "max"])
@pytest.mark.parametrize("dense", [False, True])
def test_rows_and_gradients_are_those_of_the_padded_tower(kind: str, pooling: TextPooling, dense: bool) -> None:
    tower: nn.Module = TextFeatures(model(kind), pooling)
    if dense:
        tower = Chain(tower, [Dense(32, 20, True, "Tanh")])
    tower = tower.double().eval()
    found = flat(tower)
    assert found is not None
    rows = {"padded": tower(TOKENS), "flat": found.padded(TOKENS)}
    torch.testing.assert_close(rows["flat"], rows["padded"], rtol=1e-10, atol=1e-12)
    used = [p for name, p in tower.named_parameters() if "pooler" not in name]
    pull = torch.randn_like(rows["flat"])
    grads = [torch.autograd.grad((row * pull).sum(), used) for row in rows.values()]
    for expected, got in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_dropout_is_the_configuration_s_and_ends_with_evaluation() -> None:
    tower = TextFeatures(model("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), "mean")
    found = flat(tower)
    assert found is not None
    torch.testing.assert_close(found.padded(TOKENS), found.padded(TOKENS), rtol=0, atol=0)
    for rates in ({"hidden_dropout_prob": 0.3}, {"attention_probs_dropout_prob": 0.3, "hidden_dropout_prob": 0.0}):
        tower = TextFeatures(model("bert", **rates), "mean")
        found = flat(tower)
        assert found is not None
        assert not torch.equal(found.padded(TOKENS), found.padded(TOKENS))
        tower.eval()
        torch.testing.assert_close(found.padded(TOKENS), found.padded(TOKENS), rtol=0, atol=0)


def test_adapters_take_part(tmp_path: Path) -> None:
    encoder = open_sentences(f"hf:{hubs.bert(tmp_path / 'bert')}", "mean")
    before = encoder.eval()(TOKENS)
    add_lora(encoder, 4, where="all", only=("text",))
    with torch.no_grad():
        for name, p in encoder.named_parameters():
            if "lora_B" in name:
                p.normal_()
    found = flat(encoder.text)
    assert found is not None
    rows = found.padded(TOKENS)
    assert (rows - before).abs().max() > 0.01
    torch.testing.assert_close(rows, encoder.text(TOKENS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("more", [{"is_decoder": True}, {"is_decoder": True, "add_cross_attention": True}])
def test_what_it_does_not_know_is_left_to_the_tower(more: dict[str, bool]) -> None:
    assert flat(TextFeatures(model("bert", **more), "mean")) is None
    assert flat(TextFeatures(model("electra"), "mean")) is None
    assert flat(nn.Embedding(4, 4)) is None
    checkpointed = TextFeatures(model("bert"), "mean")
    assert flat(checkpointed) is not None
    checkpointed.set_grad_checkpointing()
    assert flat(checkpointed) is None
