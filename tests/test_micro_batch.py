"""`--micro-batch auto` takes what memory allows and changes neither the method nor the result."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.test_grad_cache import CPU, Towers, batch
from xmodal import micro_batch
from xmodal.cli import main
from xmodal.errors import InputError
from xmodal.machine import free_bytes, memory_bytes
from xmodal.micro_batch import largest_slice
from xmodal.run import Evaluation

GIB = 2**30


def slice_with(free: int | None, method: Towers, monkeypatch: pytest.MonkeyPatch, rows: int = 4000) -> int:
    monkeypatch.setattr(micro_batch, "free_bytes", lambda device: free)
    return largest_slice(method, batch(rows), CPU, nullcontext)


def test_the_slice_grows_with_the_memory_up_to_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    method = Towers()
    found = [slice_with(free, method, monkeypatch) for free in (0, 60_000, 120_000, GIB)]
    assert found[0] == 1
    assert 1 < found[1] < found[2] < 4000
    assert found[3] == 4000


def test_rows_of_twice_the_size_leave_room_for_half_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wide(Towers):
        def encode(self, batch: dict) -> dict:
            first, second = super().encode(batch), super().encode(batch)
            return {name: first[name] + second[name] for name in first}

    one, two = (slice_with(120_000, kind(), monkeypatch) for kind in (Towers, Wide))
    assert two == pytest.approx(one / 2, rel=0.1)


def test_statistics_of_a_batch_are_left_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    method = Towers(norm=True)
    before = {name: b.clone() for name, b in method.named_buffers()}
    assert before
    slice_with(GIB, method, monkeypatch)
    assert all(torch.equal(b, before[name]) for name, b in method.named_buffers())
    assert all(p.grad is None for p in method.parameters())


def test_where_the_system_does_not_tell_a_number_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="--micro-batch auto.*Give a number"):
        slice_with(None, Towers(), monkeypatch)


def test_what_is_free_is_less_than_what_there_is() -> None:
    free, every = free_bytes(torch.device("cpu")), memory_bytes()
    if free is not None and every is not None:
        assert 2**20 < free < every


def test_a_container_that_is_full_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"memory.max": str(GIB), "memory.current": str(GIB - 1000)}
    monkeypatch.setattr("xmodal.machine.cgroup", figures.get)
    assert free_bytes(SimpleNamespace(type="cpu")) in (1000, None)  # type: ignore[arg-type]


def test_a_run_says_its_slices_and_is_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = ["train", "clip", "--steps", "2", "--batch-size", "40", "--vocabulary", "64", "--precision", "fp32"]
    monkeypatch.setattr("xmodal.image_text.evaluate", lambda *_: Evaluation({}, {}))
    monkeypatch.setattr(micro_batch, "free_bytes", lambda device: 100 * 2**20)
    assert main([*shared, "--micro-batch", "auto", "--output", str(tmp_path / "auto")]) == 0
    said = capsys.readouterr().out
    size = int(said.split("--micro-batch auto: ")[1].split()[0])
    assert 1 <= size < 40
    state = json.loads((tmp_path / "auto" / "checkpoints" / "step-2" / "state.json").read_text())
    assert state["micro_batch"] == size
    assert main([*shared, "--micro-batch", str(size), "--output", str(tmp_path / "number")]) == 0
    weights = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("auto", "number")]
    assert weights[0] == weights[1]


def test_a_wrong_size_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "clip", "--micro-batch", "0"]) == 2
    assert "--micro-batch is 0; expected at least 1, or auto" in capsys.readouterr().err
    assert main(["train", "clip", "--micro-batch", "all"]) == 2
