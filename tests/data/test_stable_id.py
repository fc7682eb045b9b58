"""Numbers for texts."""

from __future__ import annotations

from xmodal.data.stable_id import stable_id


def test_equal_texts_have_equal_ids_on_every_machine_and_for_ever() -> None:
    """A checkpoint's successor on another machine must count the same captions as equal."""
    assert stable_id("a dog") == stable_id("a " + "dog") == -143298910849180985
    assert len({stable_id(f"{i}") for i in range(2000)}) == 2000


def test_any_text_has_an_id_of_64_bits() -> None:
    for text in ("naïve ☃", "", "a\0b", "caf\udce9.png"):  # the last is a file's name that is no UTF-8
        assert -(2**63) <= stable_id(text) < 2**63
