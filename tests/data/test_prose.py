"""The built-in prose: the rules on small texts, the splits on what this Python has."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from xmodal.data import prose
from xmodal.data.prose import LEAST, SHARE, Prose, paragraphs, sentences
from xmodal.errors import InputError


@pytest.fixture(scope="module")
def train() -> Prose:
    return Prose()


@pytest.fixture(scope="module")
def test() -> Prose:
    return Prose("test")


def plain(sentence: str) -> str:
    return " ".join(re.findall(r"\w+", sentence.casefold()))


# Paragraphs and sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One line\nand another.\n\nA third.", ["One line and another.", "A third."]),
        ("Heading\n*******\n\nText.", ["Text."]),
        ("Heading\n-------\nText.", ["Text."]),
        ("Intro:\n\n* first\n  goes on\n* second\n\n10. third", ["Intro:", "first goes on", "second", "third"]),
        ("name -- what it is\n    and more\nback", ["name -- what it is", "and more", "back"]),
        ("Look:\n>>> 1 + 1\n2\n\nDone.", ["Done."]),  # a doctest's paragraph is dropped whole
        ("stmt ::= a\nmore", []),
        ("+---+\n| A |\n+---+", []),
        ("    x = 1\n    y = 2", []),
        ("\tpost-\n\tmortem well-known", ["post-mortem well-known"]),
        ("a -\nb", ["a - b"]),
        ("", []),
    ],
)
def test_paragraphs(text: str, expected: list[str]) -> None:
    assert list(paragraphs(text)) == expected


@pytest.mark.parametrize(
    ("paragraph", "expected"),
    [
        ("This is a sentence. Is this one, too?", ["This is a sentence.", "Is this one, too?"]),
        ("It has ``code``, *stress*, **more** and :func:`~a.b.len`.", ["It has code, stress, more and a.b.len."]),
        ("See `the page <https://example.org>`_ for all of it [2].", ["See the page for all of it."]),
        ("It passes on all of *args and of **kwargs it has.", ["It passes on all of *args and of **kwargs it has."]),
        ("The power self**other and a**b are what it can do.", ["The power self**other and a**b are what it can do."]),
        (":param n: The number of rows to read.", ["The number of rows to read."]),
        ("Changed in version 3.2: The parameter was added here.", ["The parameter was added here."]),
        ("Some files, e.g. those of Windows, are read twice.", ["Some files, e.g. those of Windows, are read twice."]),
        ("The names end here. n is a small number.", ["The names end here."]),  # no capital, no beginning
        ('He said "It is all done." And then he left.', ['He said "It is all done."', "And then he left."]),
        ("(This is a whole sentence.)", ["(This is a whole sentence.)"]),
        ("This one (it is cut!) goes on.", []),
        ("The following are all allowed:", []),
        ("Only three words.", []),
        (" ".join(["Word", *["word"] * 38, "word."]), [" ".join(["Word", *["word"] * 38, "word."])]),
        (" ".join(["Word", *["word"] * 39, "word."]), []),
        ("Calls f(x) + g(y) == h(z) for all.", []),  # more code than words
        ("A bracket (that never ends.", []),
        ('A quotation "that never ends.', []),
        ("Names are: one, two, three, four, five.", []),
        ("THIS IS SHOUTED AT US.", []),
        ("Copyright by the people who wrote it.", []),
    ],
)
def test_sentences(paragraph: str, expected: list[str]) -> None:
    assert list(sentences(paragraph)) == expected


# Where they come from


def test_docstrings_of_the_library_alone(tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    write(
        "json/__init__.py",
        '''"""Module."""
raise SystemExit("nobody runs this")
class A:
    "Class."
    def f(self):
        """Method.

            indented

        Back.
        """
        async def inner(): "Inner."
try:
    def g(): "Tried."
except ImportError:
    def g(): "Otherwise."
    "no docstring"
''',
    )
    write("json/deep/tool.py", '"Deep."')
    write("json/tests/test_json.py", '"A test."')
    write("abc.py", "x = 1")
    write("colorsys.py", '"Colours."')
    for name in ("idlelib/__init__.py", "encodings/utf.py", "site-packages/mine.py", "mine.py", "test/regrtest.py"):
        write(name, '"Left out."')
    found = {name: [text for text in texts if text] for name, texts in prose._library(tmp_path).items()}
    assert {name: texts for name, texts in found.items() if texts} == {
        "json": ["Module.", "Class.", "Method.\n\n    indented\n\nBack.", "Inner.", "Tried.", "Otherwise.", "Deep."],
        "colorsys": ["Colours."],
    }


def test_a_python_without_its_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no sources of its standard library"):
        prose._library(tmp_path)
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(InputError, match="no pydoc_data"):
        prose._reference()


def test_a_sentence_of_two_topics_is_the_smaller_one_s(monkeypatch: pytest.MonkeyPatch) -> None:
    chapter = "A loop runs for ever. An exception can end it. The rest is the chapter's own text."
    monkeypatch.setattr(prose, "_reference", lambda: {"language/chapter": [chapter]})
    monkeypatch.setattr(prose, "_library", lambda root: {"loops": ["A loop runs, for ever!"], "empty": [""]})
    assert prose.read.__wrapped__() == (
        ("A loop runs, for ever!", "loops"),
        ("An exception can end it.", "language/chapter"),
        ("The rest is the chapter's own text.", "language/chapter"),
    )


# What this Python has; ranges, since its documentation grows and modules leave it


def test_counts(train: Prose, test: Prose) -> None:
    assert 9_000 < len(train) < 18_000
    assert 1_800 < len(test) < 4_000
    assert 200 < len(train.topic_names) < 320
    assert 80 < len(test.topic_names) < 180
    assert {"language/import", "asyncio", "tkinter", "email"} <= set(test.topic_names)
    assert not {"idlelib", "encodings", "pydoc_data", "test"} & set(train.topic_names)


def test_splits(train: Prose, test: Prose) -> None:
    assert len(test) == pytest.approx(len(prose.read()) / SHARE, rel=0.1)
    everything = [*train.sentences, *test.sentences]
    assert sorted(everything) == sorted(sentence for sentence, _ in prose.read())
    assert len(set(map(plain, everything))) == len(everything)  # so none is on both sides
    assert set(test.topic_names) <= set(train.topic_names)
    assert np.bincount(test.topics).min() >= LEAST
    for split in (train, test):
        assert len(split.topics) == len(split.sentences) == len(split)
        assert split.topics.dtype == np.int64
        assert np.unique(split.topics).tolist() == list(range(len(split.topic_names)))
        assert split.topic_names == sorted(set(split.topic_names))


def test_topics_are_where_sentences_stand(train: Prose, test: Prose) -> None:
    topic_of = dict(prose.read())
    for split in (train, test):
        assert [topic_of[sentence] for sentence in split.sentences] == [split.topic_names[t] for t in split.topics]


def test_all_are_prose(train: Prose, test: Prose) -> None:
    for sentence in (*train.sentences, *test.sentences):
        assert 4 <= len(sentence.split()) <= 40
        assert re.search(r"[.!?][\"'”’]*\)?$", sentence), sentence
        assert not re.search(r">>>|::=|``\w+``|:[a-z]+:`|\s\s|\n|^\W*[a-z]", sentence), sentence


def test_the_same_in_every_process_and_nothing_is_imported(train: Prose, test: Prose) -> None:
    program = """
import sys
from xmodal.data.prose import Prose
print(Prose().fingerprint(), Prose("test").fingerprint())
print(sorted({"this", "turtle", "antigravity", "tkinter", "xmlrpc.server", "smtplib"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.splitlines() == [f"{train.fingerprint()} {test.fingerprint()}", "[]"]
    assert train.fingerprint() != test.fingerprint()


def test_names(train: Prose, test: Prose) -> None:
    assert (train.name, test.name) == ("prose", "prose/test")
    with pytest.raises(InputError, match="did you mean 'test'"):
        Prose("tests")
    assert prose.versions() == "Python " + sys.version.split()[0].rstrip("+")
