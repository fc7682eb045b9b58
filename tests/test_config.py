"""Where the values of a configuration come from, which source wins, and what is said of wrong ones."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import tyro
import yaml

from xmodal import __version__
from xmodal.config import Shared, parse, plain, read, write
from xmodal.errors import InputError


@dataclass(frozen=True)
class Config(Shared):
    batch_size: int = 32768  # the comment beside a number is no help text
    epochs: float = 32.0
    lr: float = 5e-4
    wd: float = 0.2
    warmup: int = 2000
    ks: tuple[int, ...] = (1, 5)
    """Cut-offs."""


@dataclass(frozen=True)
class Score:
    model: tyro.conf.Positional[str]
    """The model spec."""
    data: str = "glyphs"
    limit: int | None = None
    ks: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Wordy(Shared):
    words: str
    """Has no default."""
    batch_size: int = 1
    epochs: float = 1.0
    lr: float = 1.0
    wd: float = 0.0
    warmup: int = 0


PRESETS = {"quick": {"batch_size": 512, "lr": 2e-3, "compile": True, "ks": (1, 2)}}


def ask(*argv: str) -> Config:
    return parse(
        Config,
        argv,
        prog="xmodal train mine",
        presets=PRESETS,
        choose_preset=lambda config: "quick" if config.data == "glyphs" else "paper",
    )


def score(*argv: str) -> Score:
    return parse(Score, argv, prog="xmodal eval mine")


def complaint(*argv: str, of=ask) -> str:
    with pytest.raises(InputError) as caught:
        of(*argv)
    assert len(str(caught.value).splitlines()) <= 2
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_defaults_are_the_paper_s() -> None:
    assert ask("--preset", "paper") == Config(preset="paper")
    assert parse(Config, [], prog="x") == Config(preset="paper")


def test_auto_takes_the_preset_that_the_recipe_chooses() -> None:
    quick, other = ask(), ask("--data", "captions.csv")
    assert (quick.preset, quick.batch_size, quick.lr, quick.compile, quick.ks) == ("quick", 512, 2e-3, True, (1, 2))
    assert other == Config(data="captions.csv", preset="paper")


def test_defaults_then_preset_then_file_then_flags(folder: Path) -> None:
    Path("mine.yaml").write_text("lr: 1e-3\nbatch-size: 64\noutput: runs/x\n")
    config = ask("--config", "mine.yaml", "--batch-size", "32")
    assert config.wd == 0.2
    assert config.compile is True
    assert config.lr == 1e-3  # YAML 1.1 reads it as text
    assert config.batch_size == 32
    assert config.output == Path("runs/x")


def test_a_flag_equal_to_the_default_still_wins() -> None:
    config = ask("--lr", "5e-4", "--no-compile")
    assert (config.lr, config.compile, config.batch_size) == (5e-4, False, 512)


def test_spellings() -> None:
    assert ask("--batch_size=7").batch_size == 7
    assert ask("--track", "tensorboard", "wandb", "--steps", "3").track == ("tensorboard", "wandb")
    assert ask("--track").track == ()
    assert ask("--val", "None").val is None
    assert ask("--steps", "3", "--steps", "4").steps == 4


def test_round_trip(folder: Path) -> None:
    first = ask("--output", "runs/ä", "--track", "a", "b", "--steps", "3", "--wd", "1e-6")
    write(first, "config.yaml")
    assert yaml.safe_load(Path("config.yaml").read_text("utf-8"))["xmodal"] == __version__
    assert list(read("config.yaml"))[:3] == ["data", "val", "output"]
    assert read("config.yaml")["output"] == "runs/ä"
    assert read("config.yaml") == plain(first)
    assert plain(first)["track"] == ["a", "b"]
    assert not {"resume", "config"} & plain(first).keys()
    second = ask("--config", "config.yaml")
    write(second, "again.yaml")
    assert Path("again.yaml").read_bytes() == Path("config.yaml").read_bytes()


def test_a_resolved_file_is_not_changed_by_presets(folder: Path) -> None:
    write(ask("--preset", "paper"), "config.yaml")
    again = ask("--config", "config.yaml")  # data is glyphs: "auto" would take quick
    assert (again.preset, again.batch_size) == ("paper", 32768)
    assert ask("--config", "config.yaml", "--preset", "auto").preset == "paper"
    assert ask("--config", "config.yaml", "--lr", "1").lr == 1.0
    assert "--preset quick has nothing to set" in complaint("--config", "config.yaml", "--preset", "quick")


def test_a_file_by_hand_is_a_layer_over_the_preset(folder: Path) -> None:
    Path("mine.yaml").write_text("preset: paper\nlr: 1.0\n")
    assert ask("--config", "mine.yaml").batch_size == 32768
    both = ask("--config", "mine.yaml", "--preset", "quick")
    assert (both.preset, both.batch_size, both.lr) == ("quick", 512, 1.0)


def test_a_required_flag_may_come_from_the_file(folder: Path) -> None:
    Path("mine.yaml").write_text("words: five\n")
    assert parse(Wordy, ["--config", "mine.yaml"], prog="x").words == "five"
    assert parse(Wordy, ["--words", "six"], prog="x").words == "six"
    assert complaint(of=lambda: parse(Wordy, [], prog="x")) == "x needs --words. See: x --help"


def test_positionals_and_no_shared_flags() -> None:
    assert score("small") == Score("small")
    assert score("--limit", "3", "small") == Score("small", limit=3)
    assert score("small", "--ks", "1", "5") == Score("small", ks=(1, 5))
    assert score("small", "--ks", "None") == Score("small")
    assert score("small", "--data", "x.csv") == Score("small", data="x.csv")
    assert "needs MODEL" in complaint(of=score)
    assert "no use for 'large'" in complaint("small", "large", of=score)
    assert "no flag --model" in complaint("--model", "small", of=score)


@dataclass(frozen=True, kw_only=True)
class Search:
    index: tyro.conf.Positional[Path]
    queries: tyro.conf.Positional[tuple[str, ...]] = ()
    top: int = 3


@pytest.mark.parametrize(
    ("argv", "queries"),
    [
        (["index"], ()),
        (["index", "a", "--top", "5", "b"], ("a", "b")),
        (["--top=5", "index", "5"], ("5",)),
        (["--top", "5", "--", "index", "--top", "-5", "a b"], ("--top", "-5", "a b")),
        (["index", "-5"], ("-5",)),
        (["index", "--top", "5", "--"], ()),
    ],
)
def test_a_list_of_positionals_may_have_flags_between_them(argv: list[str], queries: tuple[str, ...]) -> None:
    found = parse(Search, argv, prog="x")
    assert found == Search(index=Path("index"), queries=queries, top=5 if "5" in " ".join(argv[:-1]) else 3)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--batchsize", "3"], "no flag --batchsize; did you mean '--batch-size'?"),
        (["-x"], "no flag -x; there are: --data, --val"),
        (["--steps", "x"], "--steps x: expected a whole number."),
        (["--steps", "1.5"], "--steps 1.5: expected a whole number."),
        (["--lr=fast"], "expected a number."),
        (["--ks", "1", "b"], "--ks 1 b: expected a list, each item a whole number."),
        (["--precision", "fp16"], "expected one of auto, fp32, bf16."),
        (["--preset", "fast"], "expected one of auto, paper, quick."),
        (["--lr"], "--lr needs a value: a number."),
        (["--compile=yes"], "is a switch and takes no value: --compile or --no-compile."),
        (["--compile", "yes"], "no use for 'yes'"),
        (["--track", "a", "--track", "b"], "given twice"),
        (["3"], "no use for '3'"),
        (["--steps", "0"], "--steps is 0; expected at least 1."),
        (["--lr", "-1e-3"], "--lr is -0.001; expected more than 0."),
        (["--lr", "nan"], "expected more than 0."),
        (["--max-bad-fraction", "2"], "expected between 0 and 1."),
    ],
)
def test_wrong_flags(argv: list[str], said: str) -> None:
    assert said in complaint(*argv)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("batchsize: 3", "unknown key 'batchsize'; did you mean 'batch_size'?"),
        ("config: other.yaml", "unknown key 'config'"),
        ("steps: many", "steps is 'many'; expected a whole number."),
        ("steps: true", "steps is True; expected a whole number."),
        ("compile: 3", "compile is 3; expected true or false."),
        ("track: wandb", "expected a list, each item text."),
        ("data: 3", "data is 3; expected text."),
        ("lr: null", "lr is None; expected a number."),
        ("lr: [3", "is no YAML: line 1"),
        ("just words", "holds no configuration"),
        ("", "holds no configuration"),
    ],
)
def test_wrong_files(folder: Path, text: str, said: str) -> None:
    Path("mine.yaml").write_text(text)
    assert said in complaint("--config", "mine.yaml")


def test_a_file_that_is_not_there(folder: Path) -> None:
    assert "Cannot read the configuration none.yaml" in complaint("--config", "none.yaml")
    assert "is a folder" in complaint("--config", ".")


def test_a_preset_that_the_recipe_lacks() -> None:
    with pytest.raises(InputError, match="no preset 'quick'; there are: paper"):
        parse(Config, ["--preset", "quick"], prog="x")


def test_help_comes_from_docstrings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        ask("--nonsense", "--help")
    said = " ".join(capsys.readouterr().out.split())
    assert ended.value.code in (0, None)
    assert "Pairs in a step on each process." in said  # from Shared, though Config has a number of its own
    assert "the comment beside a number" not in said
    assert "--preset quick stands for --batch-size 512 --lr 0.002 --compile --ks 1 2" in said


def test_argv_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mine.py", "small"])
    assert parse(Score, None, prog="x") == Score("small")
