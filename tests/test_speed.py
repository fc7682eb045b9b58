"""The benchmark runs, agrees with faiss and says what it compared; its figures at real sizes are the README's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from xmodal.cli import main
from xmodal.errors import InputError
from xmodal.eval.speed import Config, run
from xmodal.report.timing import in_turn, peak_bytes

TINY = ["--images", "64", "--texts", "128", "--width", "16", "--repeats", "1"]


def test_tiny_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("faiss")
    file = tmp_path / "new" / "speed.json"
    assert main(["eval", "speed", "retrieval", *TINY, "--json", str(file)]) == 0
    said = capsys.readouterr().out
    for words in (
        "xmodal / faiss",
        "median s",
        "CPU: ",
        "threads: torch ",
        "building both indices included",
        "faiss version: 1.",
    ):
        assert words in said
    written = json.loads(file.read_text())
    assert 0 < written["recall"]["text_to_image/R@10"] <= 1
    assert written["ratio"] == written["medians"]["xmodal"] / written["medians"]["faiss"]
    assert written["protocol"]["texts"] == 128


def test_without_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match=r'pip install "xmodal\[bench\]"'):
        run(Config(images=64, texts=64, width=4, repeats=1))


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--images", "9"], "--images is 9; expected at least 10"),
        (["--images", "64", "--texts", "63"], "--texts is 63; expected at least as many as images"),
        (["--repeats", "0"], "--repeats is 0; expected at least 1"),
        (["memory"], "memory"),
    ],
)
def test_wrong_flags(capsys: pytest.CaptureFixture[str], flags: list[str], complaint: str) -> None:
    assert main(["eval", "speed", *flags]) == 2
    assert complaint in capsys.readouterr().err


def test_order_alternates() -> None:
    calls: list[str] = []
    seconds = in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3)
    assert "".join(calls) == "abbaab"
    assert [len(times) for times in seconds.values()] == [3, 3]


def test_light_at_the_top() -> None:
    code = "import sys, xmodal.eval.speed; sys.exit(any(m in sys.modules for m in ('torch', 'faiss', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("what", ["clip", "siglip", "nt_xent"])
def test_losses_are_timed_and_measured_beside_the_peers(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "losses.json"
    tiny = ["--pairs", "40", "--width", "8", "--repeats", "1", "--json", str(file)]
    assert main(["eval", "losses", what, *tiny]) == 0
    assert "xmodal / peer" in capsys.readouterr().out
    written = json.loads(file.read_text())
    assert written["ratio"] == written["medians"]["xmodal"] / written["medians"]["peer"]
    for errors in written["distance from float64"].values():
        assert all(error < 1e-5 for error in errors.values())


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells the highest mark of a process")
def test_peak_memory_is_what_rises_and_falls_again() -> None:
    import torch

    peak = peak_bytes(lambda: torch.ones(64, 2**20).sum())
    assert peak is None or 200 * 2**20 < peak < 400 * 2**20
    assert peak is None or peak_bytes(lambda: None) < 2**24  # type: ignore[operator]
