"""The benchmark runs, agrees with faiss and says what it compared; its figures at real sizes are the README's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.encoders import hubs
from xmodal.benchmarks.timing import Others, in_turn, peak_bytes
from xmodal.cli import main
from xmodal.errors import InputError
from xmodal.eval.speed import Config, run

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
        "faiss: 1.",
        "CPU taken by others: ",
    ):
        assert words in said
    written = json.loads(file.read_text())
    assert 0 < written["columns"]["xmodal"]["text_to_image/R@10"] <= 1
    assert written["ratio of medians"] == {"faiss": written["medians"]["xmodal"] / written["medians"]["faiss"]}
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
        (["clip", "--noise", "-1"], "--noise is -1.0; expected 0 or more"),
        (["memory"], "memory"),
    ],
)
def test_wrong_flags(capsys: pytest.CaptureFixture[str], flags: list[str], complaint: str) -> None:
    assert main(["eval", "speed", *flags]) == 2
    assert complaint in capsys.readouterr().err


def test_what_may_be_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "speed", "--pairs", "12", "--what", "grad_cache", "--micro-batch", "5", "--repeats", "1"]) == 0
    assert "slices of 5 / in one piece" in capsys.readouterr().out


def test_order_alternates() -> None:
    calls: list[str] = []
    seconds = in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3)
    assert "".join(calls) == "abbaab"
    assert [len(times) for times in seconds.values()] == [3, 3]


def test_light_at_the_top() -> None:
    code = "import sys, xmodal.eval.speed; sys.exit(any(m in sys.modules for m in ('torch', 'faiss', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_encoding_is_timed_and_compared_with_theirs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sentence_transformers")
    folder = hubs.sentence_transformer(tmp_path / "st")
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(["the cat", "a dog the cat", "dog"] * 4))
    flags = ["--data", str(lines), "--sentences", "12", "--repeats", "1", "--json", str(tmp_path / "speed.json")]
    assert main(["eval", "speed", "encode", "--model", f"st:{folder}", *flags]) == 0
    written = json.loads((tmp_path / "speed.json").read_text())
    assert written["columns"]["xmodal"]["off by ±"] < 1e-5
    assert written["columns"]["xmodal"]["cosine"] > 0.99999
    names = [name for name in written["seconds"] if name.startswith("xmodal")]
    assert list(written["seconds"]) == [*names, "sentence-transformers"]
    assert len(written["ratio of medians"]) == len(names)
    capsys.readouterr()
    assert main(["eval", "speed", "encode", "--model", f"st:{folder}", *flags[:2]]) == 2
    assert "12 sentences" in capsys.readouterr().err
    assert main(["eval", "speed", "encode", *flags]) == 2
    assert "st:FOLDER" in capsys.readouterr().err


@pytest.mark.parametrize(
    "what", ["sup_con", "triplet --mining hard", "triplet --mining all", "triplet --mining semi_hard"]
)
def test_losses_of_classes_are_those_of_the_peer(what: str, tmp_path: Path) -> None:
    file = tmp_path / "losses.json"
    tiny = ["--pairs", "32", "--pictures-per-class", "4", "--width", "16", "--repeats", "1"]
    assert main(["eval", "speed", *what.split(), *tiny, "--json", str(file)]) == 0
    written = json.loads(file.read_text())
    assert len(written["medians"]) == 2
    for figures in written["columns"].values():
        assert figures["loss ±"] < 1e-5


def test_semi_hard_triplets_of_large_batches_and_single_classes(capsys: pytest.CaptureFixture[str]) -> None:
    semi_hard = ["eval", "speed", "triplet", "--mining", "semi_hard", "--width", "4", "--repeats", "1", "--pairs"]
    assert main([*semi_hard, "16"]) == 0
    assert "the peer all of them" in capsys.readouterr().out.replace("\n", " ")
    assert main([*semi_hard, "520"]) == 0
    assert "pytorch-metric-learning" not in capsys.readouterr().out
    assert main([*semi_hard, "8"]) == 2
    assert "two classes of two pictures are the least" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["clip", "siglip", "nt_xent", "cached"])
def test_losses_are_timed_and_measured_beside_the_peers(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "losses.json"
    tiny = ["--pairs", "40", "--width", "8", "--repeats", "1", "--json", str(file)]
    assert main(["eval", "speed", what, *tiny]) == 0
    said = capsys.readouterr().out
    written = json.loads(file.read_text())
    peers = {"clip": 2, "siglip": 1, "nt_xent": 3, "cached": 1}[what]
    assert said.count("xmodal / ") == peers == len(written["ratio of fastest"])
    assert all(error < 1e-5 for figures in written["columns"].values() for error in figures.values())


def test_an_almost_solved_batch_shows_who_is_exact(tmp_path: Path) -> None:
    file = tmp_path / "losses.json"
    flags = ["--pairs", "200", "--width", "64", "--noise", "1", "--scale", "50", "--repeats", "1", "--json", str(file)]
    assert main(["eval", "speed", "clip", *flags]) == 0
    columns = json.loads(file.read_text())["columns"]
    ours = columns.pop("xmodal")
    assert all(error < 1e-5 for error in ours.values())
    assert all(figures["scale ±"] > 100 * ours["scale ±"] for figures in columns.values())


def test_a_text_tower_without_its_padding_beside_one_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, file = tmp_path / "pairs.csv", tmp_path / "text.json"
    table.write_text("filepath,caption\n" + "".join(f"{n}.png,{'word ' * (n + 1)}\n" for n in range(4)))
    for n in range(4):
        (tmp_path / f"{n}.png").touch()  # pictures aren't opened
    command = ["eval", "speed", "text", "--data", str(table), "--model", "ViT-S-32-alt", "--repeats", "1"]
    command += ["--json", str(file)]
    assert main([*command, "--pairs", "4"]) == 0
    assert "without padding / every row filled up" in capsys.readouterr().out
    written = json.loads(file.read_text())
    assert written["protocol"]["tokens in a row"] == "4.5 on average, 6 at most, 77 filled up"
    assert 0 <= written["columns"]["without padding"]["gradient ±"] < 1e-5
    assert main([*command, "--pairs", "5"]) == 2
    assert "has 4 captions" in capsys.readouterr().err
    assert main(["eval", "speed", "text"]) == 2
    assert "needs --data" in capsys.readouterr().err


def test_a_step_in_slices_beside_the_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "speed", "grad_cache", "--pairs", "12", "--micro-batch", "5", "--repeats", "1"]) == 0
    said = capsys.readouterr().out
    assert "slices of 5 / in one piece" in said
    assert "slices: 3" in said


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells the highest mark of a process")
def test_which_batch_fits(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("xmodal.benchmarks.fits.free_bytes", lambda device: 2**30)
    file = tmp_path / "fits.json"
    assert main(["eval", "speed", "fits", "--width", "64", "--json", str(file)]) == 0
    assert "largest batch" in capsys.readouterr().out
    fits = json.loads(file.read_text())["fits"]
    assert fits["xmodal"]["bytes a pair of pairs"] == 0
    ours, *theirs = [found["largest batch"] for found in fits.values()]
    assert all(5_000 < n < 20_000 for n in theirs)  # 2 GiB hold 23,000 squared float32: some of them, several times
    assert ours > 10 * max(theirs)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells what the machine did")
def test_what_others_do_meanwhile_is_seen() -> None:
    busy = "import time; end = time.process_time() + 1\nwhile time.process_time() < end: pass"
    with Others() as others:
        subprocess.run([sys.executable, "-c", busy], check=True)
    assert others.share is not None
    assert 0.1 < others.share <= 1


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells the highest mark of a process")
def test_peak_memory_is_what_rises_and_falls_again() -> None:
    import torch

    peak = peak_bytes(lambda: torch.ones(64, 2**20).sum())
    assert peak is None or 200 * 2**20 < peak < 400 * 2**20
    assert peak is None or peak_bytes(lambda: None) < 2**24  # type: ignore[operator]
