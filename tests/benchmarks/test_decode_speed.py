"""Reading is timed beside Pillow on each kind of file, and both see the same picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from xmodal.benchmarks import decode
from xmodal.cli import main


def test_a_folder_of_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, file = tmp_path / "pictures", tmp_path / "speed.json"
    (folder / "inside").mkdir(parents=True)
    picture = decode.photograph(300, 200, 1.5, 0)
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.save(folder / "a.jpg", exif=turned)
    picture.save(folder / "inside" / "b.JPG")
    picture.convert("RGBA").save(folder / "c.png")
    (folder / "bad.jpg").write_text("no picture")
    (folder / "notes.txt").touch()
    threads = torch.get_num_threads()
    assert main(["eval", "speed", "decode", "--data", str(folder), "--repeats", "1", "--json", str(file)]) == 0
    assert torch.get_num_threads() == threads
    said = capsys.readouterr().out
    written = json.loads(file.read_text())
    assert written["protocol"]["bad files left out"] == 1
    kinds = written["kinds"]
    assert {kind: found["files"] for kind, found in kinds.items()} == {
        "JPEG RGB, under 1 Mpx": 2,
        "PNG RGBA transparent, under 1 Mpx": 1,
    }
    jpeg, clear = kinds.values()
    assert jpeg["PSNR"] > 50  # the one that lies on its side, too
    assert jpeg["ratio"] == jpeg["open_clip"] / jpeg["xmodal"]
    assert clear["PSNR"] is None
    for words in ("JPEG RGB, under 1 Mpx", "theirs ms", "simplejpeg: ", "bad files left out: 1"):
        assert words in said


def test_files_that_it_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    small = decode.photograph(80, 60, 1.2, 0)
    monkeypatch.setattr(decode, "photograph", lambda width, height, *_: small.resize((width // 5, height // 5)))
    kinds = decode.compare(None, 1)["kinds"]
    assert len(kinds) == 18
    assert all(found["files"] == 2 and found["PSNR"] > 50 for found in kinds.values())


@pytest.mark.parametrize("kind", ["none", "empty"])
def test_a_folder_without_pictures(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / kind
    if kind == "empty":
        folder.mkdir()
    assert main(["eval", "speed", "decode", "--data", str(folder)]) == 2
    assert str(folder) in capsys.readouterr().err


def test_photographs_have_their_spectrum() -> None:
    """Amplitude over frequency falls by the power that is asked for."""
    picture = np.asarray(decode.photograph(256, 256, 1.2, 0).convert("L"), dtype=float)
    amplitude = np.abs(np.fft.fft2(picture))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256)))
    low, high = ((frequency > f) & (frequency < 1.2 * f) for f in (0.03, 0.2))
    slope = np.log(amplitude[low].mean() / amplitude[high].mean()) / np.log(0.2 / 0.03)
    assert 1.0 < slope < 1.3
