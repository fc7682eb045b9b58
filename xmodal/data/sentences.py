"""Sentences to train on: alone, in pairs that mean the same, with a hard negative, or in groups of paraphrases.

The form is found in the header's names, or follows from how many columns are named.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from xmodal.data.delimited import column
from xmodal.data.texts import TEXT_NAMES, Rows, find_columns, open_rows, splits_of
from xmodal.errors import InputError

Form = Literal["sentences", "pairs", "triplets", "groups"]
FORMS: tuple[Form, ...] = get_args(Form)
# SimCSE's, sentence-transformers' and this field's usual names, a positive beside each anchor, then a negative.
TRIPLETS = (
    ("anchor", "positive", "negative"),
    ("sent0", "sent1", "hard_neg"),
    ("anchor", "entailment", "contradiction"),
    ("premise", "entailment", "contradiction"),
    ("query", "positive", "negative"),
)
PAIRS = (
    ("anchor", "positive"),
    ("sent0", "sent1"),
    ("sentence1", "sentence2"),
    ("query", "answer"),
    ("query", "document"),
    ("question", "answer"),
    ("premise", "entailment"),
)


class Sentences:
    """Rows of one sentence, of two, of three or of some that mean the same; held in arrow arrays, which workers share.

    dropped: how many rows were left out, by what they had. replaced: how many texts held characters that are none.
    """

    replaced = 0

    def __init__(self, name: str, form: Form, rows: Iterable[Sequence[str]], dropped: Counter[str]) -> None:
        import pyarrow as pa

        lengths: list[int] = []

        def counted() -> Iterator[Sequence[str]]:
            for row in rows:
                lengths.append(len(row))
                yield row

        self.name, self.form = name, form
        self.cells = pa.array(chain.from_iterable(counted()), pa.large_string())
        self.first = np.cumsum([0, *lengths])  # row i has the cells first[i] to first[i + 1]
        self.dropped: Mapping[str, int] = dropped

    def __len__(self) -> int:
        return len(self.first) - 1

    def texts(self, row: int) -> list[str]:
        """The texts of a row: 1, 2 or 3, or all of a group."""
        return self.cells[self.first[row] : self.first[row + 1]].to_pylist()

    def every_text(self) -> Iterator[str]:
        for cell in self.cells:
            yield cell.as_py()

    def key(self, row: int) -> str:
        """What to call the row in a message."""
        text = self.texts(int(row))[0]
        return text if len(text) <= 60 else text[:59] + "…"

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.form}\0".encode())
        for row in range(len(self)):
            digest.update("\0".join([*self.texts(row), "\n"]).encode())
        return digest.hexdigest()


def read_sentences(
    spec: str,
    columns: Sequence[str] = (),
    form: Form | None = None,
    group: str | None = None,
    split: str | None = None,
    leave_out: Sequence[str] = (),
) -> Sentences:
    """Sentences of a file or dataset (see `texts.open_rows`), of its rows of split train where it has splits.

    columns: names of the columns of text, if they have no usual ones: one is sentences, two pairs, three triplets,
    more groups; form says otherwise. group: a column whose equal values put the texts of several rows into a group.
    leave_out: files whose texts are not to be trained on, such as those of a test; rows with one of them are dropped.

    Rows without text, and rows seen before, are dropped and counted. Raises InputError for columns that aren't there,
    for a file without rows, and for groups that have no second text.
    """
    if split is None and "train" in splits_of(spec):
        split = "train"
    forbidden = {_plain(text) for path in leave_out for text in _texts_of(path)}
    dropped: Counter[str] = Counter()
    with open_rows(spec, split) as rows:
        form, places = _form(rows, columns, form, group)
        table = _grouped(rows, places, group) if group else ([row[i] for i in places] for row in rows)
        kept = _kept(table, form, forbidden, dropped)
        found = Sentences(spec + (f":{split}" if split else ""), form, kept, dropped)
        found.replaced = rows.replaced.total()
    if len(found) < 2:
        lost = ", ".join(f"{n} with {what}" for what, n in dropped.items())
        raise InputError(
            f"{spec} has {len(found) or 'no'} row{'s' if not len(found) else ''} of {form}, at least 2 are needed"
            f"{f' (left out: {lost})' if lost else ''}."
        )
    return found


def form_of(spec: str, columns: Sequence[str] = (), form: Form | None = None, group: str | None = None) -> Form:
    """What `read_sentences` would find, from the header alone."""
    with open_rows(spec) as rows:
        return _form(rows, columns, form, group)[0]


def _form(rows: Rows, columns: Sequence[str], form: Form | None, group: str | None) -> tuple[Form, list[int]]:
    """The form of a table's rows, and in which cells their texts are."""
    path, header = Path(rows.name), rows.header
    if not header:
        if columns or group or form not in (None, "sentences"):
            raise InputError(f"{path} is a file of lines, one sentence each; columns are those of a CSV or TSV.")
        return "sentences", [0]
    if columns:
        places = [column(path, header, name, (), "texts", "--columns") for name in columns]
    elif group:
        places = [_text(path, header)]
    else:
        usual = _usual(header, form)
        form, places = usual or (form, [_text(path, header)])
    own: Form = "groups" if group or len(places) > 3 else FORMS[len(places) - 1]
    form = form or own
    if form != "groups" and len(places) != FORMS.index(form) + 1:
        raise InputError(
            f"{form} need {FORMS.index(form) + 1} columns of text; {path} gives {len(places)} "
            f"({', '.join(header[i] for i in places)}). Name them by --columns."
        )
    return form, places


def _usual(header: Sequence[str], form: Form | None) -> tuple[Form, list[int]] | None:
    """The columns of triplets, of groups or of pairs that have usual names, the first that there are; of one form."""
    known: dict[Form, list[list[int] | None]] = {
        "triplets": [find_columns(header, names) for names in TRIPLETS],
        "groups": [_numbered(header)],
        "pairs": [find_columns(header, names) for names in PAIRS],
    }
    return next(((kind, p) for kind, found in known.items() if form in (None, kind) for p in found if p), None)


def _numbered(header: Sequence[str]) -> list[int] | None:
    """Columns such as caption1 … caption5, three at least: two are a pair."""
    by_stem: dict[str, list[int]] = {}
    for i, name in enumerate(header):
        if match := re.fullmatch(r"(.*\D)\d+", name.lower()):
            by_stem.setdefault(match[1], []).append(i)
    return next((places for places in by_stem.values() if len(places) >= 3), None)


def _text(path: Path, header: Sequence[str]) -> int:
    return 0 if len(header) == 1 else column(path, header, None, TEXT_NAMES, "texts", "--columns")


def _grouped(rows: Rows, places: Sequence[int], group: str) -> Iterator[list[str]]:
    """The texts of all rows with one value in the column `group`, in the order in which the values come."""
    at = column(Path(rows.name), rows.header, group, (), "groups", "--group-column")
    groups: dict[str, list[str]] = {}
    for row in rows:
        groups.setdefault(row[at], []).extend(row[i] for i in places)
    yield from groups.values()


def _kept(rows: Iterable[Sequence[str]], form: Form, forbidden: set[str], dropped: Counter[str]) -> Iterator[list[str]]:
    seen: set[bytes] = set()
    for row in rows:
        texts = [" ".join(text.split()) for text in row]  # line ends and tabs are no part of a sentence
        if form == "groups":
            texts = list(dict.fromkeys(text for text in texts if text))
            if len(texts) < 2:
                dropped["fewer than two texts"] += 1
                continue
        elif not all(texts):
            dropped["no text"] += 1
            continue
        if forbidden and any(_plain(text) in forbidden for text in texts):
            dropped["a text that is to be left out"] += 1
            continue
        digest = hashlib.blake2b("\0".join(texts).encode(), digest_size=12).digest()
        if digest in seen:
            dropped["the texts of one before"] += 1
            continue
        seen.add(digest)
        yield texts


def _texts_of(spec: str) -> Iterator[str]:
    """Every cell of a file that could be a text."""
    with open_rows(spec) as rows:
        for row in rows:
            yield from row


def _plain(text: str) -> str:
    """Two texts that differ in case, punctuation or blanks alone are one."""
    return " ".join(re.findall(r"\w+", text.casefold()))
