"""Prompt templates and class names by name and from files, and what is said of files that aren't."""

from __future__ import annotations

from pathlib import Path

import pytest

from xmodal.errors import InputError
from xmodal.evaluators.templates import NAMES, class_names, templates


def test_openai_has_its_eighty() -> None:
    found = templates("openai")
    assert len(found) == len(set(found)) == 80
    assert all(template.count("{}") == 1 for template in found)
    assert found[0] == "a bad photo of a {}."


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str) -> None:
    assert all("{}" in template for template in templates(name))
    assert templates(name) is not templates(name)  # a list of one's own, safe to change


def test_none_is_the_name_alone() -> None:
    assert templates("none") == ["{}"]


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "templates.txt"
    file.write_bytes("\ufeff  a {} in rain \r\n\r\nein Bild: {}, schön\n".encode())
    assert templates(str(file)) == ["a {} in rain", "ein Bild: {}, schön"]


def test_class_names(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("tabby cat\n\n {} \ngreat grey owl", encoding="utf-8")
    assert class_names(str(file)) == ["tabby cat", "{}", "great grey owl"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"a {}\nphoto of a {d}\n", "must hold one template a line, with {} .* the line 'photo of a {d}' has none"),
        (b"\n \n", "it is empty"),
        (b"\xff\xfe{}", "is no UTF-8 text"),
    ],
)
def test_files_that_hold_no_templates(tmp_path: Path, content: bytes, complaint: str) -> None:
    file = tmp_path / "templates.txt"
    file.write_bytes(content)
    with pytest.raises(InputError, match=complaint):
        templates(str(file))


def test_empty_class_names(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("\n")
    with pytest.raises(InputError, match="is empty; expected one class name a line"):
        class_names(str(file))


@pytest.mark.parametrize("name", ["openia", "", "missing.txt", "a photo of a {}. " * 40, "a\0b"])
def test_names_of_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="no file of this name"):
        templates(name)
    with pytest.raises(InputError, match="No file of class names"):
        class_names(name)
    with pytest.raises(InputError, match="did you mean 'openai'"):
        templates("openia")
    with pytest.raises(InputError, match="no file of this name"):
        templates(str(tmp_path))
