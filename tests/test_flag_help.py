"""`--help`: whole sentences of every flag, and commands as they are typed."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from xmodal.flag_help import docstrings, print_help


@dataclass(frozen=True, kw_only=True)
class Shared:
    epochs: float = 32
    """How often the data is gone through; a sentence that is
    longer than a line of the program."""
    steps: int = 3  # a comment is for readers of the program
    seed: int = 0
    """Of the weights."""


@dataclass(frozen=True, kw_only=True)
class Config(Shared):
    epochs: float = 10
    seed: int = 1
    """Of the order."""
    name: str | None = None
    """(none) or
    another."""


def test_a_docstring_is_one_text_and_is_inherited() -> None:
    assert docstrings(Config) == {
        "epochs": "How often the data is gone through; a sentence that is longer than a line of the program.",
        "seed": "Of the order.",
        "name": "(none) or another.",
    }


def test_help_is_folded_to_the_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    presets = {"quick": {"epochs": 2, "steps": 50, "name": "some-thing", "seed": 12345}}
    with pytest.raises(SystemExit) as ended:
        print_help(Config, "xmodal train mine", presets)
    assert ended.value.code == 0
    said = capsys.readouterr().out
    first = "`--help`: whole sentences of every flag, and commands as\nthey are typed.\n\n"
    assert said.startswith(first + "--preset quick stands for --epochs 2 --steps 50 --name\nsome-thing --seed 12345\n")
    assert "a comment" not in said
    for flag in ("--epochs FLOAT", "--steps INT", "--seed INT", "--name", "(default: 10)", "(default: 1)"):
        assert flag in said


def test_commands_stay_as_they_are(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from xmodal.train.clip import PRESETS
    from xmodal.train.clip import Config as Clip

    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit):
        print_help(Clip, "xmodal train clip", PRESETS)
    said = capsys.readouterr().out
    assert "    xmodal train clip --data captions.csv --model open_clip:ViT-B-32/openai --lora 16\n" in said
    assert said.index("CLIP: an image") < said.index("--preset quick") < said.index("usage: xmodal train clip")
