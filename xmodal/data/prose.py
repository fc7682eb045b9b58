"""`prose`: English sentences of Python's own documentation, by topic, from its installation; nothing is downloaded.

The language reference comes with `pydoc`; docstrings are read from the sources of the standard library, and no module
is imported for them.

Protocol
- A topic is one of the reference's, or a module or package of the library with all that is in it. Left out are tests,
  idlelib, lib2to3, turtledemo, ensurepip and encodings.
- Headings, code, doctests, grammar, tables and markup are taken out. A sentence has 4 to 40 words, four fifths of them
  plain, begins with a capital and ends with a full stop, a question mark or an exclamation mark.
- Sentences that differ in case and punctuation alone are one, of the topic that has the least text: chapters of the
  reference repeat their sections.
- Test: a fifth of the sentences, by `stable_id`; those of topics with fewer than five there are in training, as are
  all others. So each topic of the test has been seen, but none of its sentences.

It is technical English, 14,000 sentences of Python 3.11: enough to see whether a recipe works, too little for a general
encoder.
"""

from __future__ import annotations

import ast
import hashlib
import platform
import re
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

from xmodal.data.stable_id import stable_id
from xmodal.errors import InputError, nearest

SPLITS = ("train", "test")
SHARE = 5  # one sentence in so many is for the test
LEAST = 5  # sentences of a topic in the test; of fewer, hardly any neighbour could be right
WORDS = 4, 40
PLAIN = 0.8  # of a sentence's words

LEFT_OUT = {"encodings", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "turtledemo"}
TESTS = {"test", "tests"}  # folders in packages

BULLET = re.compile(r" *(?:[-*+•o]|\d{1,2}[.)]|\(\d{1,2}\)) +(?=\S)")
RULE = re.compile(r"\W{3,}")  # under a heading, around a table
CODE = re.compile(r">>>|\.\.\. |\$ |\(Pdb\)|\w+ = |[|+]|.*::=")  # doctests, sessions, assignments, tables, grammar
# What stands before the text of a field or of a note.
LABEL = re.compile(r"(?:[:@][a-z]+\b[^:]{0,60}|Note|Warning|(?:Changed|New|Added) in version [\d.]+): +")
ROLE = re.compile(r"(?::[a-z:]+:)?`~?([^`'<]+?)(?: <[^`]*>)?`_{0,2}")  # :func:`len`, `text <address>`_
MARKUP = re.compile(r"(?<![\w\"'*])(``|\*\*|\*)(?=[^\s*])(.+?)(?<=\S)\1(?![\w\"'*])")  # ``code``, *emphasis*
FOOTNOTE = re.compile(r" ?\[[\d*#]+\]_?")
END = re.compile(r"[.!?][\"'”’)\]]*( +)")
ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|cf|vs|etc|resp|approx|Mr|Dr|[A-Z])\.$")
# If it ends within brackets, it began there.
SENTENCE = re.compile(r"(\()?[\"“‘']*[A-Z].*[\w\"'”’)][.!?][\"'”’]*(?(1)\))")
NOTICE = re.compile(r"(?i)\b(?:copyright|warranties|written by:? [A-Z][a-z]+ )")  # licences and names of authors
WORD = re.compile(r"[\"'“‘(]*[A-Za-z]+(?:['’/-][A-Za-z]+)*[\"'”’),.:;!?]*")  # neither code nor a number


class Prose:
    """Sentences, each with the number of its topic.

    split: "train" or "test".
    """

    def __init__(self, split: str = "train") -> None:
        if split not in SPLITS:
            raise InputError(f"prose has no split {split!r}: {nearest(split, SPLITS)}")
        self.name = "prose" if split == "train" else f"prose/{split}"
        everything = read()
        names = sorted({topic for _, topic in everything})
        numbers = np.array([names.index(topic) for _, topic in everything])
        tested = np.array([stable_id(sentence) % SHARE == 0 for sentence, _ in everything])
        enough = np.bincount(numbers[tested], minlength=len(names)) >= LEAST
        tested &= enough[numbers]
        rows = np.flatnonzero(tested == (split == "test"))
        self.sentences = [everything[row][0] for row in rows]
        present, self.topics = np.unique(numbers[rows], return_inverse=True)  # topics: (n,) int64
        self.topic_names = [names[number] for number in present]

    def __len__(self) -> int:
        return len(self.sentences)

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for sentence, topic in zip(self.sentences, self.topics, strict=True):
            digest.update(f"{self.topic_names[topic]}\0{sentence}\n".encode())
        return digest.hexdigest()


@cache
def read() -> tuple[tuple[str, str], ...]:
    """All sentences, each with its topic, in the same order every time; takes some 2 s.

    Raises InputError where Python came without its documentation and sources, as embedded ones do.
    """
    texts = {**_reference(), **_library(Path(sysconfig.get_paths()["stdlib"]))}
    found: dict[str, tuple[str, str]] = {}
    for topic in sorted(texts, key=lambda topic: (sum(map(len, texts[topic])), topic)):
        for text in texts[topic]:
            for paragraph in paragraphs(text):
                for sentence in sentences(paragraph):
                    found.setdefault(" ".join(re.findall(r"\w+", sentence.casefold())), (sentence, topic))
    return tuple(found.values())


def paragraphs(text: str) -> Iterator[str]:
    """Lines that belong together, as one: with one indentation and no blank line between, each bullet by itself."""
    lines: list[str] = []
    indentation = 0
    for line in [*text.expandtabs().splitlines(), ""]:
        bullet = BULLET.match(line)
        start = bullet.end() if bullet else len(line) - len(line.lstrip())
        content = line[start:].strip()
        if bullet or not content or start != indentation:
            if lines and not any(map(CODE.match, lines)):
                yield re.sub(r"(?<=[a-z]-) (?=[a-z])", "", " ".join(lines))  # post- / mortem
            lines = []
        if RULE.fullmatch(content):
            lines = []  # it was a heading
        elif content:
            lines.append(content)
            indentation = start


def sentences(paragraph: str) -> Iterator[str]:
    """The sentences of a paragraph without their markup; what is no sentence is left out."""
    text = MARKUP.sub(r"\2", LABEL.sub("", paragraph, count=1))
    text = FOOTNOTE.sub("", ROLE.sub(r"\1", text))
    start = 0
    for end in END.finditer(text):
        if not ABBREVIATION.search(text[start : end.start(1)]):
            yield from _checked(text[start : end.start(1)])
            start = end.end()
    yield from _checked(text[start:])


def _checked(text: str) -> Iterator[str]:
    """The text, if it is a sentence of English; a list of names and what is all in capitals are none."""
    words = text.split()
    text = " ".join(words)
    plain = sum(1 for word in words if WORD.fullmatch(word))
    if (
        WORDS[0] <= len(words) <= WORDS[1]
        and plain >= PLAIN * len(words)
        and SENTENCE.fullmatch(text)
        and text.count("(") == text.count(")")
        and text.count('"') % 2 == 0
        and text.count(",") <= len(words) / 2
        and not text.isupper()
        and not NOTICE.search(text)
    ):
        yield text


def _reference() -> dict[str, list[str]]:
    """The language reference, by topic."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise InputError("prose: this Python has no pydoc_data, the language reference that pydoc shows.") from None
    return {f"language/{name}": [text] for name, text in topics.items()}


def _library(root: Path) -> dict[str, list[str]]:
    """The docstrings of the standard library in root, by top-level module or package, in the order of the sources."""
    texts = {}
    for name in sorted(sys.stdlib_module_names - LEFT_OUT):
        inside = (path for path in sorted((root / name).rglob("*.py")) if not TESTS & set(path.relative_to(root).parts))
        files = [path for path in (root / f"{name}.py", *inside) if path.is_file()]
        texts[name] = [text for path in files for text in _docstrings(ast.parse(path.read_bytes(), str(path)))]
    if not any(texts.values()):
        raise InputError(f"prose: this Python has no sources of its standard library in {root}.")
    return texts


def _docstrings(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield ast.get_docstring(node) or ""
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, ast.stmt | ast.ExceptHandler):  # expressions define nothing with a docstring
            yield from _docstrings(inner)


def versions() -> str:
    """What the sentences depend on, for a score's protocol."""
    return f"Python {platform.python_version()}"
