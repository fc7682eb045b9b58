"""The wheel: `xmodal` is its only top-level name, and it trains outside the checkout."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=240)
    return next(folder.glob("*.whl"))


def test_its_only_top_level_name_is_xmodal(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"xmodal", f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"}
    for package, folder in (("xmodal", "xmodal"), ("xmodal/train", "train"), ("xmodal/eval", "eval")):
        files = [p for p in (ROOT / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts]
        packed = {n.removeprefix(package + "/") for n in names if n.startswith(package + "/")}
        # Templates, styles and launch files, too: setuptools leaves out what pyproject.toml doesn't name.
        assert {p.relative_to(ROOT / folder).as_posix() for p in files} <= packed


def test_it_trains_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, timeout=120)
    # The dependencies come from the environment of the tests, behind the wheel: gigabytes needn't be copied for this.
    site = tmp_path / "env" / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [tmp_path / "env" / "bin" / "xmodal", "train", "clip", "--steps", "20", "--batch-size", "32"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    where = "import xmodal, xmodal.train.clip, xmodal.eval.retrieval; print(xmodal.__file__)"
    out = subprocess.run([python, "-c", where], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert Path(out.strip()).is_relative_to(tmp_path)
    scores = json.loads((tmp_path / "runs" / "clip" / "scores.json").read_text())["scores"]
    for name in (
        "unseen_typeface/image_to_text/R@1",
        "unseen_names/text_to_image/R@5",
        "other_family/image_to_text/R@1",
    ):
        assert 0 <= scores[name]["low"] <= scores[name]["value"] <= scores[name]["high"] <= 1
    assert "zero_shot/top1" in scores
