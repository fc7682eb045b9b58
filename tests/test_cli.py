"""Names on the command line, the small commands, exit statuses, and that nothing heavy is imported."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from xmodal import __version__, cli, doctor
from xmodal.cli import guard, main
from xmodal.errors import InputError

MINE = '''"""Mine: a recipe of two lines.

More about it.
"""
from __future__ import annotations

import sys
from dataclasses import dataclass

from xmodal.cli import guard
from xmodal.config import Shared, parse


@dataclass(frozen=True)
class Config(Shared):
    batch_size: int = 4
    epochs: float = 1.0
    lr: float = 1.0
    wd: float = 0.0
    warmup: int = 0


def main(argv=None) -> int:
    config = parse(Config, argv, prog="xmodal train mine")
    heavy = {"torch", "transformers", "matplotlib", "open_clip", "numpy"} & set(sys.modules)
    print(f"steps={config.steps} heavy={sorted(heavy)}")
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a recipe; what a recipe adds to Python's state is taken back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.delenv("RANK", raising=False)
    Path("mine.py").write_text(MINE)
    return tmp_path


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package folder with one recipe and one evaluation, in the place of ours."""
    house = tmp_path / "house"
    for group, name in (("train", "clip"), ("train", "sim_clr"), ("eval", "retrieval")):
        (house / group).mkdir(parents=True, exist_ok=True)
        (house / group / "__init__.py").touch()
        (house / group / f"{name}.py").write_text(MINE.replace("Mine", name))
    (house / "launch").mkdir()
    (house / "launch" / "slurm.sbatch").write_text("#!/bin/bash\n# Train on a cluster.\n# More.\n")
    (house / "data").mkdir()
    for name, what in (("glyphs", "characters"), ("prose", "sentences")):
        (house / "data" / f"{name}.py").write_text(f'"""{name}: {what}."""')
    monkeypatch.setattr(cli, "files", lambda package: house / package.removeprefix("xmodal."))
    return house


def xmodal(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "xmodal", *argv], capture_output=True, text=True, env=os.environ | env, check=False
    )


def complaint(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) <= 2
    return said.err


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"xmodal {command}" in said for command in ("train", "eval", "list", "copy", "doctor"))
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"xmodal {__version__}\n"
    assert main([]) == 2
    assert "xmodal train NAME" in capsys.readouterr().err


def test_a_recipe_of_the_user_s(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "package").mkdir()
    (folder / "package" / "of_mine.py").write_text(MINE)
    for name in ("mine.py", "./mine.py", str(folder / "mine.py"), "package.of_mine"):
        assert main(["train", name, "--steps", "3"]) == 0
        assert capsys.readouterr().out.startswith("steps=3")


def test_a_recipe_that_is_not_there(folder: Path, capsys: pytest.CaptureFixture[str], house: Path) -> None:
    assert "no file yours.py. Expected a Python file" in complaint(capsys, "train", "yours.py")
    assert "Make one with: xmodal copy clip" in complaint(capsys, "train", "clip.py")
    assert "no module 'package.yours'" in complaint(capsys, "train", "package.yours")
    assert "no module '..yours'" in complaint(capsys, "train", "..yours")
    Path("empty.py").touch()
    assert "no function main(argv)" in complaint(capsys, "train", "empty.py")


def test_a_module_that_its_recipe_lacks_is_no_input_error(folder: Path) -> None:
    Path("lacking.py").write_text("import xmodal_has_no_such_module")
    with pytest.raises(ModuleNotFoundError):
        main(["train", "lacking.py"])


def test_a_recipe_s_name_hides_no_module(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    Path("json.py").write_text(MINE)
    assert main(["train", "json.py"]) == 0
    assert sys.modules["json"] is json


def test_unknown_names(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no recipe 'clap'; did you mean 'clip'?" in complaint(capsys, "train", "clap")
    assert "no evaluation 'zzz'; there are: retrieval" in complaint(capsys, "eval", "zzz")
    assert "an evaluation: xmodal eval retrieval" in complaint(capsys, "train", "retrieval")
    assert "no command 'trian'; did you mean 'train'?" in complaint(capsys, "trian")
    assert "there are: clip, sim_clr" in complaint(capsys, "train")
    assert "there are: clip, sim_clr" in complaint(capsys, "train", "--steps", "3")
    assert "takes no arguments" in complaint(capsys, "list", "everything")


def test_a_dash_for_an_underscore(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: imported.append(name) or cli)
    cli.find("train", "sim-clr")
    assert imported == ["xmodal.train.sim_clr"]


def test_list(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["clip", "clip: a recipe of two lines."] in lines
    assert ["retrieval", "retrieval: a recipe of two lines."] in lines
    assert ["slurm.sbatch", "Train on a cluster."] in lines
    assert ["glyphs", "glyphs: characters."] in lines
    assert ["prose", "prose: sentences."] in lines
    assert main(["train", "--help"]) == 0
    assert "sim_clr" in capsys.readouterr().out


def test_copy(house: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["copy", "clip"]) == 0
    assert "xmodal train clip.py" in capsys.readouterr().out
    assert Path("clip.py").read_text() == (house / "train" / "clip.py").read_text()
    Path("clip.py").write_text(MINE)
    assert "clip.py exists already" in complaint(capsys, "copy", "clip")
    assert Path("clip.py").read_text() == MINE
    assert main(["copy", "retrieval", "judge.py"]) == 0
    assert "xmodal eval judge.py" in capsys.readouterr().out
    assert main(["copy", "slurm.sbatch"]) == 0
    assert "slurm.sbatch. Its first lines say how to use it." in capsys.readouterr().out
    assert Path("slurm.sbatch").read_text() == (house / "launch" / "slurm.sbatch").read_text()
    assert "ends in .sbatch" in complaint(capsys, "copy", "slurm.sbatch", "mine.sh")
    assert "did you mean 'slurm.sbatch'?" in complaint(capsys, "copy", "slurm.batch")
    assert "did you mean 'clip'?" in complaint(capsys, "copy", "clop")
    assert "nor a name that ends in .py" in complaint(capsys, "copy", "clip", "nowhere")
    assert "Cannot write" in complaint(capsys, "copy", "clip", "nowhere/clip.py")
    assert "xmodal copy NAME [DEST]" in complaint(capsys, "copy")


def raiser(error: BaseException) -> Callable[[], int]:
    def function() -> int:
        raise error

    return function


def test_exit_statuses(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    assert guard(lambda: None) == 0
    assert guard(lambda: 1) == 1
    assert guard(raiser(KeyboardInterrupt())) == 130
    assert guard(raiser(InputError("no such file"))) == 2
    assert capsys.readouterr().err == "error: no such file\n"
    monkeypatch.setenv("RANK", "1")
    assert guard(raiser(InputError("no such file"))) == 2
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("LOCAL_RANK", "0")  # the first process of another host, before the processes have met
    assert guard(raiser(InputError("no such file"))) == 2
    assert capsys.readouterr().err == f"error: rank 1 on {platform.node()}: no such file\n"
    with pytest.raises(ValueError, match="a bug"):
        guard(raiser(ValueError("a bug")))
    with pytest.raises(BrokenPipeError):  # standard output is whole: a worker's pipe broke
        guard(raiser(BrokenPipeError()))


def test_a_reader_that_goes_away(folder: Path) -> None:
    Path("endless.py").write_text("def main(argv):\n    while True:\n        print('x' * 100)\n")
    writer = subprocess.Popen(
        [sys.executable, "-m", "xmodal", "train", "endless.py"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert writer.stdout is not None
    assert writer.stderr is not None
    writer.stdout.readline()
    writer.stdout.close()
    assert writer.stderr.read() == b""
    assert writer.wait() == 1
    writer.stderr.close()


def test_a_process_of_its_own(folder: Path) -> None:
    """Statuses and messages as a shell sees them; nothing heavy is imported before `run`."""
    done = xmodal("train", "mine.py", "--steps", "3")
    assert (done.returncode, done.stdout) == (0, "steps=3 heavy=[]\n")
    wrong = xmodal("train", "mine.py", "--batchsize", "3")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: xmodal train mine has no flag --batchsize; did you mean '--batch-size'?\n"
    script = subprocess.run([sys.executable, "mine.py", "--batchsize"], capture_output=True, text=True, check=False)
    assert (script.returncode, script.stderr) == (2, wrong.stderr)
    ascii_only = xmodal("train", "mine.py", "--help", PYTHONIOENCODING="ascii")
    assert ascii_only.returncode == 0, ascii_only.stderr


@pytest.mark.parametrize("argv", [["--help"], ["list"], ["train", "no_such_recipe"]])
def test_small_commands_import_nothing_heavy(argv: list[str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "xmodal", *argv], capture_output=True, text=True, check=False
    )
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in ended.stderr.splitlines()}
    assert "xmodal" in imported
    assert not imported & {"torch", "transformers", "matplotlib", "open_clip", "numpy", "tyro", "yaml", "rich"}


def test_doctor_reads_the_needs_from_the_metadata(capsys: pytest.CaptureFixture[str]) -> None:
    needs = {need.package: need for need in doctor.read_needs()}
    assert needs["torch"].found
    assert needs["torch"].floor.startswith(">=")
    assert needs["torch"].extra == ""
    assert needs["faiss-cpu"].extra == "bench"
    assert doctor.read_needs("no-such-distribution") == []


def test_doctor_names_the_command_for_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "devices", lambda: [doctor.Line("CPU", "one")])  # ours imports torch: seconds
    needs = [
        doctor.Need("there", ">=1", "", "1.2", True),
        doctor.Need("old", ">=2", "", "1.0", False),
        doctor.Need("peer", ">=3", "bench", None, False),
    ]
    monkeypatch.setattr(doctor, "read_needs", lambda: needs)
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "too old: >=2 needed" in said
    assert 'install "old>=2"\n' in said
    assert 'install "peer>=3"\n' in said
    monkeypatch.setattr(doctor, "read_needs", lambda: [needs[0], needs[2]])
    assert main(["doctor"]) == 0
