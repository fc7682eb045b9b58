"""Files of one thing a line; class names and templates by name are in evaluators/test_templates."""

from __future__ import annotations

from pathlib import Path

import pytest

from xmodal.data.lines import read_lines, read_templates
from xmodal.errors import InputError


def test_lines_without_blanks_empty_lines_and_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_bytes("\ufeff tabby cat\r\n\r\n {} \ngreat grey owl, schön".encode())
    assert read_lines(file) == ["tabby cat", "{}", "great grey owl, schön"]
    file.write_text("\n \n")
    assert read_lines(file) == []


def test_files_that_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match=r"names\.txt is no UTF-8 text"):
        read_lines(file)
    with pytest.raises(InputError, match=f"Cannot read {tmp_path}: "):
        read_lines(tmp_path)


def test_templates_have_a_place_for_the_class(tmp_path: Path) -> None:
    file = tmp_path / "templates.txt"
    file.write_text("a {}\n{} and {}\n")
    assert read_templates(file) == ["a {}", "{} and {}"]
    file.write_text("a {}\nno place\n")
    with pytest.raises(InputError, match="the line 'no place' has none"):
        read_templates(file)
    file.write_text("")
    with pytest.raises(InputError, match="it is empty"):
        read_templates(file)
