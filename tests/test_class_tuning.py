"""Fine-tuning: where the layer on the network begins, and that all of it learns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.evaluators.test_evaluate_pictures import Colours
from xmodal import distributed
from xmodal.class_tuning import NEVER, Classifier, Tuning, tune
from xmodal.encoders.batch_norm import BatchNorm
from xmodal.encoders.image import ImageEncoder, open_image_encoder
from xmodal.encoders.preparation import Preparation
from xmodal.evaluators.linear import fit_linear


def without_batch_norm() -> ImageEncoder:
    torch.manual_seed(0)
    tower = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return ImageEncoder(tower, 8, preparation=Preparation(8, 8), description={}).eval()


def features(encoder: ImageEncoder, pictures: Any) -> torch.Tensor:
    return encoder.encode_image(list(pictures.pixels))


def test_it_begins_as_the_linear_probe() -> None:
    pictures, encoder = Colours([0, 1, 2] * 12), without_batch_norm()
    rows = features(encoder, pictures)
    start = fit_linear(rows, pictures.labels, 0.01, classes=4)
    method = Classifier(encoder, start, rows).eval()
    with torch.no_grad():
        found = method(encoder.preparation.stack(list(pictures.pixels)))
    expected = start(rows)
    assert torch.allclose(found[:, :3], expected[:, :3], atol=1e-3)
    # A class without pictures has no probe: it begins as what is never answered, which can still be learnt.
    assert torch.allclose(found[:, 3], torch.tensor(NEVER))
    loss, _ = method.objective(
        method.encode(
            {
                "image": encoder.preparation.stack(list(pictures.pixels))[:, None],
                "label": torch.from_numpy(pictures.labels),
            }
        ),
        {},
        None,  # type: ignore[arg-type]
    )
    assert loss.item() == pytest.approx(F.cross_entropy(found, torch.from_numpy(pictures.labels)).item(), rel=1e-5)


@pytest.mark.parametrize("fresh", [False, True])
def test_all_of_it_learns(fresh: bool, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = Colours([0, 1, 2] * 12)
    torch.manual_seed(0)
    # A fresh network's BatchNorms evaluate with statistics that have nothing to do with those of a batch.
    encoder = open_image_encoder("small", 8).eval() if fresh else without_batch_norm()
    for module in encoder.modules():
        if isinstance(module, BatchNorm) and module.running_var is not None:
            module.running_var.fill_(1e-3)
    rows = features(encoder, pictures)
    before = {name: t.clone() for name, t in encoder.state_dict().items()}
    start = fit_linear(rows, pictures.labels)
    some = np.arange(30)
    tuned = tune(
        *(encoder, pictures, some, start, rows), Tuning(epochs=2, batch=8, augment="none"), distributed.start("fp32")
    )
    said = capsys.readouterr().out
    assert ("the layer begins at 0" in said) == fresh
    assert "Fine-tuning on 30 pictures of colours 0: 6 steps of 8." in said
    assert all(not torch.equal(p, before[name]) for name, p in encoder.named_parameters())
    found = tuned.encode_image(list(pictures.pixels))
    assert found.shape == (36, 3)
    assert torch.equal(found, tuned.encode_image(list(pictures.pixels)))  # in evaluation mode
    again = fit_linear(rows, pictures.labels)
    assert torch.equal(again.weight, start.weight)
