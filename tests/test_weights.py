"""Tensors from a file into a module: all of them or none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from xmodal.errors import InputError
from xmodal.weights import load_weights, save_tensors


@pytest.fixture
def module() -> nn.Module:
    module = nn.BatchNorm1d(3)
    nn.init.normal_(module.weight)
    return module


def test_parameters_and_buffers_are_taken(module: nn.Module, tmp_path: Path) -> None:
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    other = nn.BatchNorm1d(3)
    load_weights(other, tmp_path / "w.safetensors")
    assert all(torch.equal(t, other.state_dict()[name]) for name, t in module.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"running_mean": torch.zeros(4)}, "'running_mean' is (4,) in the file, (3,) in the model"),
        ({"bias": torch.zeros(1, 3)}, "'bias' is (1, 3) in the file, (3,) in the model"),
        ({"bias": None}, "'bias' is missing in the file, (3,) in the model"),
        ({"queue": torch.zeros(2, 3)}, "'queue' is (2, 3) in the file, missing in the model"),
    ],
)
def test_the_first_tensor_that_differs_is_named(
    module: nn.Module, tmp_path: Path, changes: dict[str, torch.Tensor | None], words: str
) -> None:
    tensors = {**module.state_dict(), **changes}
    save_file({name: t for name, t in tensors.items() if t is not None}, tmp_path / "w.safetensors")
    other = nn.BatchNorm1d(3)
    with pytest.raises(InputError) as caught:
        load_weights(other, tmp_path / "w.safetensors")
    assert str(caught.value) == f"{tmp_path / 'w.safetensors'} is of another model: {words}."
    assert torch.equal(other.weight, torch.ones(3))  # nothing was taken


def test_a_damaged_file(module: nn.Module, tmp_path: Path) -> None:
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    for cut in (0, 5, 60, -1):
        data = (tmp_path / "w.safetensors").read_bytes()
        (tmp_path / "cut.safetensors").write_bytes(data[:cut])
        with pytest.raises(InputError, match=r"cut\.safetensors is damaged"):
            load_weights(module, tmp_path / "cut.safetensors")


def test_others_may_read_a_file_as_they_may_any_other(tmp_path: Path) -> None:
    file, plain = tmp_path / "w.safetensors", tmp_path / "plain"
    plain.touch()
    save_tensors({"w": torch.arange(6.0).view(2, 3).T}, file)
    assert file.stat().st_mode == plain.stat().st_mode
    assert torch.equal(load_file(file)["w"], torch.arange(6.0).view(2, 3).T)
