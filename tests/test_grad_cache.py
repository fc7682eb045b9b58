"""A step in slices equals the step in one piece, dropout included."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xmodal.data.order import key
from xmodal.errors import InputError
from xmodal.grad_cache import gradients
from xmodal.method import Batch, Method, Progress
from xmodal.objectives import clip_loss

PROGRESS = Progress(step=3, steps=10, steps_per_epoch=5, batch=11)
CPU = torch.device("cpu")


class Towers(Method):
    """Two small towers with dropout and a scale that only the objective sees."""

    def __init__(self, dropout: float = 0.0, norm: bool = False, unused: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        middle = nn.BatchNorm1d(16) if norm else nn.Dropout(dropout)
        self.towers = nn.ModuleDict(
            {"image": nn.Sequential(nn.Linear(6, 16), middle, nn.SiLU(), nn.Linear(16, 4)), "text": nn.Linear(5, 4)}
        )
        self.scale = nn.Parameter(torch.tensor(7.0))
        self.unused = nn.Parameter(torch.zeros(2)) if unused else None

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        return {
            name: nn.functional.normalize(self.towers[name](batch[name]).float(), dim=-1)  # type: ignore[index]
            for name in ("image", "text")
        }

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        return {"image_id": batch["image_id"]}

    def objective(self, representations: Any, targets: Any, progress: Progress) -> Any:
        return clip_loss(representations["image"], representations["text"], self.scale, **targets), {}


def batch(n: int = 11) -> Batch:
    g = torch.Generator().manual_seed(1)
    return {"image": torch.randn(n, 6, generator=g), "text": torch.randn(n, 5, generator=g),
            "image_id": torch.arange(n) // 2, "key": [str(i) for i in range(n)]}  # fmt: skip


def step(method: Method, micro_batch: int | None, autocast: Any = nullcontext) -> dict[str, Tensor | None]:
    method.zero_grad(set_to_none=True)
    gradients(method, batch(), PROGRESS, CPU, 5, micro_batch, autocast)
    return {name: p.grad for name, p in method.named_parameters()}


@pytest.mark.parametrize("size", [1, 4, 5, 10, 11, 50])
def test_slices_give_the_gradient_of_the_batch(size: int) -> None:
    method = Towers().double()
    data = batch()
    data["image"], data["text"] = data["image"].double(), data["text"].double()

    def whole(micro_batch: int | None) -> dict[str, Tensor]:
        method.zero_grad(set_to_none=True)
        loss, _, representations, targets = gradients(method, data, PROGRESS, CPU, 5, micro_batch, nullcontext)
        assert representations["image"].shape == (11, 4)
        assert torch.equal(targets["image_id"], data["image_id"])
        return {"loss": loss, **{name: p.grad for name, p in method.named_parameters()}}  # type: ignore[dict-item]

    one, sliced = whole(None), whole(size)
    for name, value in one.items():
        # The rows are made unit in float32, so that is how well they agree.
        torch.testing.assert_close(sliced[name], value, rtol=1e-5, atol=1e-7, msg=name)


def test_with_dropout_it_is_the_step_that_keeps_the_slices_graphs_bit_for_bit() -> None:
    method = Towers(dropout=0.4)
    cached = step(method, 4)

    method.zero_grad(set_to_none=True)
    data, bounds = batch(), [(0, 4), (4, 8), (8, 11)]
    encoded = []
    for number, (a, b) in enumerate(bounds):
        torch.manual_seed(key(5, PROGRESS.step, 0, number) % 2**63)
        encoded.append(method.encode({name: value[a:b] for name, value in data.items()}))
    joined = {name: torch.cat([e[name].detach() for e in encoded]).requires_grad_() for name in ("image", "text")}
    loss, _ = method.objective(joined, method.targets(data), PROGRESS)
    loss.backward()
    for number in (2, 0, 1):  # the order in which the loop adds them up
        a, b = bounds[number]
        torch.autograd.backward(
            [encoded[number][name] for name in joined],
            [joined[name].grad[a:b] for name in joined],  # type: ignore[index]
        )
    for name, p in method.named_parameters():
        assert torch.equal(cached[name], p.grad), name  # type: ignore[arg-type]


def test_dropout_draws_differ_between_slices_and_steps_and_repeat_for_the_same() -> None:
    method = Towers(dropout=0.5)
    first, again = step(method, 4), step(method, 4)
    assert all(torch.equal(first[n], again[n]) for n in first)  # type: ignore[arg-type]
    whole = step(method, None)
    assert not torch.allclose(first["towers.text.weight"], whole["towers.text.weight"])  # type: ignore[arg-type]


def test_casts_made_without_a_graph_do_not_serve_a_pass_with_one() -> None:
    def autocast() -> AbstractContextManager:
        return torch.autocast("cpu", torch.bfloat16)

    method = Towers()
    assert all(g is not None for g in step(method, 4, autocast).values())
    for name, one in step(method, None, autocast).items():
        torch.testing.assert_close(step(method, 4, autocast)[name], one, rtol=0.05, atol=0.02, msg=name)


def test_a_parameter_that_nothing_uses_has_no_gradient() -> None:
    assert step(Towers(unused=True), 4)["unused"] is None


def test_statistics_of_the_batch_are_refused_by_name() -> None:
    step(Towers(norm=True), None)
    with pytest.raises(InputError, match="'image.1'"):
        step(Towers(norm=True), 4)


def test_rows_must_come_first() -> None:
    class Wrong(Towers):
        def encode(self, batch: Batch) -> dict[str, Tensor]:
            return {name: rows.T for name, rows in super().encode(batch).items()}

    with pytest.raises(ValueError, match=r"'image'.*11 rows.*\(4, 11\)"):
        step(Wrong(), None)
