"""Every kind of file a crawl brings: the right pixels, or a skip that is counted, named and costs no memory."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from tests.data import zoo
from xmodal.data import check
from xmodal.data import decode as decode_module
from xmodal.data.cut import cut_file
from xmodal.data.decode import decode
from xmodal.errors import BadSample

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's, about sizes and damaged tags
ZOO = zoo.zoo()


def put(name: str, folder: Path) -> Path:
    zoo.put(ZOO[name], folder / name)
    return folder / name


@pytest.mark.parametrize("name", ZOO)
def test_a_file_becomes_its_pixels_or_its_reason(name: str, tmp_path: Path) -> None:
    expected, path = ZOO[name].becomes, put(name, tmp_path)
    if isinstance(expected, str):
        for read in (lambda: decode(path), lambda: cut_file(path, lambda w, h: (0, 0, w, h), (8, 8), "bicubic")):
            with pytest.raises(BadSample) as caught:
                read()
            assert caught.value.reason == expected
        return
    found = decode(path)
    assert (found.mode, found.size) == ("RGB", expected.shape[1::-1])
    assert np.abs(np.asarray(found).astype(int) - expected).max() <= ZOO[name].off
    height, width, _ = expected.shape
    view = cut_file(path, lambda w, h: (0, 0, w, h), (height, width), "bicubic")  # of the same size: the same pixels
    assert np.abs(view.permute(1, 2, 0).numpy().astype(int) - expected).max() <= ZOO[name].off


def test_there_are_enough_kinds() -> None:
    assert len(ZOO) > 100
    assert {s.becomes for s in ZOO.values() if isinstance(s.becomes, str)} == {
        *("empty", "missing", "no image", "not a file", "too many pixels", "truncated", "damaged")
    }


def test_a_data_set_of_them_is_read_to_its_end_and_each_skip_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ZOO:
        put(name, tmp_path)
    (tmp_path / "pairs.csv").write_text("image,caption\n" + "".join(f"{name},{name}\n" for name in ZOO))
    rows, bad = check.run(check.Config(data=str(tmp_path / "pairs.csv"), workers=0))
    assert rows == len(ZOO)
    assert {one["key"]: one["reason"] for one in bad} == {
        name: specimen.becomes for name, specimen in ZOO.items() if isinstance(specimen.becomes, str)
    }
    said = capsys.readouterr().out
    assert all(f"{n} {reason}" in said for reason, n in Counter(one["reason"] for one in bad).items())


PEAK = """
import re, sys, warnings
warnings.filterwarnings("ignore")
from tests.data import zoo
from xmodal.data.decode import decode
from xmodal.errors import BadSample

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024

decode(zoo.encoded(zoo.flat("RGB", zoo.RED), "PNG"))
before = peak()
for name, bomb in zoo.bombs().items():
    try:
        decode(bomb.file)
    except BadSample:
        continue
    sys.exit(f"{name} was decoded")
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells the highest mark of a process")
def test_bombs_cost_no_memory() -> None:
    told = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True)
    assert not told.returncode, told.stderr
    assert float(told.stdout) < 50  # MiB, all of them together


def test_half_a_picture_is_bad_whatever_the_process_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts on the web set it for all: then half of each damaged picture would be trained on as grey."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    file = zoo.encoded(zoo.noise(), "JPEG")
    half = file[: len(file) // 2]
    with Image.open(io.BytesIO(half)) as whole:
        whole.load()  # what it would be
    for read in (lambda: decode(half), lambda: cut_file(half, lambda w, h: (0, 0, w, h), (8, 8), "bicubic")):
        with pytest.raises(BadSample, match="truncated"):
            read()
    assert ImageFile.LOAD_TRUNCATED_IMAGES  # theirs, and left as it is
    assert decode(file).size == (64, 64)


def test_nobody_sets_it() -> None:
    """LOAD_TRUNCATED_IMAGES is assigned in one place alone, where it is put back."""
    root = Path(decode_module.__file__).parents[1]
    said = [p.name for p in root.rglob("*.py") if re.search(r"LOAD_TRUNCATED_IMAGES.*=", p.read_text(encoding="utf-8"))]
    assert said == ["decode.py"]
