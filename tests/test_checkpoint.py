"""Checkpoints: written whole or not at all, verified when read, plain data only."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from xmodal import checkpoint
from xmodal.errors import Failed, InputError


def trained(steps: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    module.register_buffer("queue", torch.arange(4.0))
    opt = torch.optim.AdamW([{"params": [p]} for p in module.parameters()], lr=0.1)
    for _ in range(steps):
        module(torch.ones(2, 3)).pow(2).sum().backward()
        opt.step()
        opt.zero_grad()
    return module, opt


def test_what_is_restored_goes_on_as_what_was_saved(tmp_path: Path) -> None:
    module, opt = trained()
    checkpoint.save(tmp_path, 3, module, opt, {"batch": 8})
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert (found.step, found.state["batch"]) == (3, 8)
    other, other_opt = trained(steps=0)
    found.restore(other, other_opt)
    for m, o in ((module, opt), (other, other_opt)):
        m(torch.ones(2, 3)).pow(2).sum().backward()
        o.step()
    assert all(
        torch.equal(a, b) for a, b in zip(module.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    module, opt = trained()
    for step in (5, 10, 15, 100):
        checkpoint.save(tmp_path, step, module, opt, {})
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-100", "step-15"]


@pytest.mark.parametrize("harm", ["cut", "flip", "no manifest", "half a manifest", "missing file"])
def test_a_damaged_one_is_passed_over(tmp_path: Path, harm: str, capsys: pytest.CaptureFixture[str]) -> None:
    module, opt = trained()
    checkpoint.save(tmp_path, 5, module, opt, {})
    last = checkpoint.save(tmp_path, 10, module, opt, {})
    weights, manifest = last / "method.safetensors", last / "manifest.json"
    if harm == "cut":
        weights.write_bytes(weights.read_bytes()[:-7])
    elif harm == "flip":
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
    elif harm == "no manifest":
        manifest.unlink()
    elif harm == "half a manifest":
        manifest.write_text(manifest.read_text()[:20])
    else:
        (last / "optimizer.safetensors").unlink()
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 5
    assert "passed over" in capsys.readouterr().out


def test_a_save_that_fails_leaves_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, opt = trained()
    checkpoint.save(tmp_path, 5, module, opt, {})

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(Failed, match="step 10 can't be written .*No space"):
        checkpoint.save(tmp_path, 10, module, opt, {})
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-5"]
    assert (found := checkpoint.newest(tmp_path)) is not None
    assert found.step == 5
    checkpoint.save(tmp_path, 10, module, opt, {})  # what the failure left behind is in nobody's way
    assert (found := checkpoint.newest(tmp_path)) is not None
    assert found.step == 10


def test_without_room_nothing_is_written_and_it_says_how_much_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, opt = trained()
    checkpoint.save(tmp_path, 5, module, opt, {})
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=300_000))
    with pytest.raises(Failed, match=r"0\.7 MiB are missing\nIt takes 1\.0 MiB; 0\.3 MiB are free"):
        checkpoint.save(tmp_path, 10, module, opt, {})
    assert (found := checkpoint.newest(tmp_path)) is not None
    assert found.step == 5


SAVES = """
import os, random, resource, signal, sys, time
from pathlib import Path
import torch
from torch import nn
from xmodal import checkpoint
from xmodal.errors import Failed

folder, times = Path(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)
module = nn.Sequential(*[nn.Linear(300, 300) for _ in range(10)])
opt = torch.optim.AdamW(module.parameters())
module(torch.ones(1, 300)).sum().backward()
opt.step()

def child(act):
    pid = os.fork()
    if pid == 0:
        try:
            act()
        finally:
            os._exit(0)
    return pid

def save_on():
    for step in range(1, 1000):
        checkpoint.save(folder, step, module, opt, {})

checkpoint.save(folder, 0, module, opt, {})
began = time.monotonic()
checkpoint.save(folder, 0, module, opt, {})
takes = time.monotonic() - began
rng = random.Random(0)
for _ in range(times):
    pid = child(save_on)
    time.sleep(rng.uniform(0, 4 * takes))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    found = checkpoint.newest(folder)
    whole = [checkpoint.damage(path) is None for _, path in checkpoint._steps(folder)]
    print("loadable" if found is not None and all(whole) else "torn", flush=True)

def save_on_a_full_disk():
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    try:
        checkpoint.save(folder, 5000, module, opt, {})
    except Failed as error:
        print("failed:", str(error).splitlines()[0], flush=True)

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
os.waitpid(child(save_on_a_full_disk), 0)
print("left:", sorted(p.name for p in (folder / "checkpoints").iterdir() if "5000" in p.name), flush=True)
"""


@pytest.mark.parametrize("times", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_while_saving_every_folder_is_loadable_and_a_full_disk_leaves_the_earlier(
    times: int, tmp_path: Path
) -> None:
    told = subprocess.run(
        [sys.executable, "-c", SAVES, str(tmp_path), str(times)], capture_output=True, text=True, timeout=120
    )
    lines = told.stdout.splitlines()
    assert lines[:times] == ["loadable"] * times, told.stderr[-2000:]
    assert "step 5000 can't be written" in lines[times]
    assert lines[times + 1] == "left: []"


def test_another_models_checkpoint_is_refused(tmp_path: Path) -> None:
    module, opt = trained()
    checkpoint.save(tmp_path, 5, module, opt, {})
    found = checkpoint.newest(tmp_path)
    assert found is not None
    for other in (nn.Linear(3, 4), nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))):
        with pytest.raises(InputError, match=r"method\.safetensors is of another model"):
            found.restore(other, torch.optim.AdamW(other.parameters()))


def test_a_parameter_that_is_no_longer_trained_is_named(tmp_path: Path) -> None:
    module, opt = trained()
    checkpoint.save(tmp_path, 5, module, opt, {})
    found = checkpoint.newest(tmp_path)
    assert found is not None
    locked, _ = trained(steps=0)
    with pytest.raises(InputError, match=r"optimizer\.safetensors holds the state of '1\.(weight|bias)'"):
        found.restore(locked, torch.optim.AdamW([*locked.parameters()][:2]))


def test_files_are_safetensors_and_json_alone(tmp_path: Path) -> None:
    module, opt = trained()
    folder = checkpoint.save(tmp_path, 5, module, opt, {})
    assert {p.suffix for p in folder.iterdir()} == {".safetensors", ".json"}
    assert set(json.loads((folder / "manifest.json").read_text())["files"]) == {
        "method.safetensors",
        "optimizer.safetensors",
        "state.json",
    }


def test_a_folder_in_use_is_claimed_only_to_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checkpoint.claim(tmp_path / "new", resume=False) is None
    assert checkpoint.claim(tmp_path / "new", resume=True) is None
    module, opt = trained()
    checkpoint.save(tmp_path, 5, module, opt, {})
    (tmp_path / "config.yaml").touch()
    with pytest.raises(InputError, match="not empty.*--resume"):
        checkpoint.claim(tmp_path, resume=False)
    assert checkpoint.claim(tmp_path, resume=True).step == 5  # type: ignore[union-attr]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert checkpoint.claim(tmp_path, resume=False).step == 5  # type: ignore[union-attr]
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        checkpoint.claim(tmp_path / "file", resume=False)


def test_a_folder_that_holds_something_else_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checkpoint.claim(tmp_path, resume=True) is None  # empty: the run begins anew
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="no run folder: it lacks config.yaml"):
        checkpoint.claim(tmp_path, resume=True)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with pytest.raises(InputError, match="no run folder"):
        checkpoint.claim(tmp_path, resume=False)
    (tmp_path / "config.yaml").touch()  # a run that was killed before its first checkpoint
    assert checkpoint.claim(tmp_path, resume=True) is None
