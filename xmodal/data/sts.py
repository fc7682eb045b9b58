"""Pairs of sentences with a score of how alike people found them: STS12–16, STS-B, SICK-R, or a table of one's own.

Read from a folder of tables, from SentEval's folder, from datasets of the hub or in its form, or from one table. The
sub-sets of a year are joined. Text is text: nothing is opened because of what a sentence says.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from xmodal.data.delimited import column, open_text, rows_of
from xmodal.data.hf_datasets import PREFIX, dataset_rows
from xmodal.data.texts import REPLACEMENT, find_columns
from xmodal.errors import InputError, nearest

Part = Literal["test", "all"]
Text = Literal["raw", "senteval"]

# In the order in which they are looked for.
PAIR_NAMES = (("sentence1", "sentence2"), ("sentence_a", "sentence_b"), ("sent1", "sent2"), ("sent0", "sent1"),
              ("text1", "text2"), ("first", "second"))  # fmt: skip
SCORE_NAMES = ("score", "gold", "relatedness_score", "similarity", "similarity_score", "label", "labels")
TOKENISED_NAMES = ("senteval1", "senteval2")

# By set, its name among mteb's datasets. https://huggingface.co/mteb
HUB = {
    "STS12": "sts12-sts",
    "STS13": "sts13-sts",
    "STS14": "sts14-sts",
    "STS15": "sts15-sts",
    "STS16": "sts16-sts",
    "STS-B": "stsbenchmark-sts",
    "SICK-R": "sickr-sts",
}
SETS = tuple(HUB)
# The sub-sets SentEval joins; STS13's SMT is not among them, for its licence.
# https://github.com/facebookresearch/SentEval/blob/2a7c3da/senteval/sts.py
SUBSETS = {
    "STS12": ("MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"),
    "STS13": ("FNWN", "headlines", "OnWN"),
    "STS14": ("deft-forum", "deft-news", "headlines", "images", "OnWN", "tweet-news"),
    "STS15": ("answers-forums", "answers-students", "belief", "headlines", "images"),
    "STS16": ("answer-answer", "headlines", "plagiarism", "postediting", "question-question"),
}
SENTEVAL_ROOTS = (".", "downstream", "data/downstream", "SentEval/data/downstream")
SICK_PAIRS: dict[Part, int] = {"test": 4927, "all": 9927}  # Marelli et al. 2014, the SemEval version


@dataclass(frozen=True)
class StsSet:
    """One set of pairs. Higher scores mean more alike; their scale is the set's own."""

    name: str
    origin: str  # what it was read from
    text: str  # in which form its sentences are
    first: list[str]  # (n)
    second: list[str]  # (n)
    gold: np.ndarray  # (n,) float64
    unscored: int = 0  # pairs that were left out because nobody scored them
    replaced: int = 0  # sentences with characters that are no text, now U+FFFD
    part: Part | None = None  # of SICK-R, where it is known

    def __len__(self) -> int:
        return len(self.gold)

    @property
    def about(self) -> str:
        """What a reader of its score has to know, in a line."""
        said = [f"{len(self):,} pairs{f' ({self.part})' if self.part else ''}, {self.origin}, {self.text}"]
        if self.unscored:
            said.append(f"{self.unscored} pairs without a score left out")
        if self.replaced:
            said.append(f"{self.replaced} sentences had characters that are no text")
        return "; ".join(said)


@dataclass(frozen=True)
class StsSets:
    """The sets that were found, and what was looked for in vain, by set."""

    data: str
    found: list[StsSet]
    missing: dict[str, str] = field(default_factory=dict)


def read_sts(
    data: str,
    names: Sequence[str] = (),
    *,
    sick: Part | None = None,
    text: Text = "raw",
    columns: Sequence[str] = (),
    split: str | None = None,
) -> StsSets:
    """The sets of a folder, of hf-dataset:ORG (mteb's names) or hf-dataset:NAME_OR_FOLDER, or of a single table.

    names: sets of `SETS` that must all be there; without them all that are. sick: which pairs of SICK-R; without it
    "test", or what a dataset holds that doesn't say which are. text: "senteval" takes a table's tokenised columns;
    SentEval's own files are tokenised in any case. columns: of the two sentences and the score, of a single table or
    dataset, if they have no usual names. split: of a dataset, "test" without it.

    Raises InputError where no set is there, for a score that is no number, and for a set with less than two pairs or
    with one score throughout.
    """
    wanted = [_set_name(name) for name in names]
    if len(columns) not in (0, 3):
        raise InputError(f"--columns takes three names, of the two sentences and the score; found {len(columns)}.")
    if data.startswith(PREFIX):
        siblings = _hub_siblings(data, wanted or SETS)
        if siblings is None:
            one = _of_hub(data, sick, text, columns, split)
            _refuse(data, "one set", sets=names, sick=sick if one.name != "SICK-R" else None)
            return StsSets(data, [one])
        lacking = {name: HUB[name] for name in wanted or SETS if name not in siblings}
        _require(data, wanted, list(siblings), lacking)
        found = [
            _of_hub(spec, sick if name == "SICK-R" else None, text, columns, split) for name, spec in siblings.items()
        ]
        return StsSets(data, found, lacking)
    if os.path.isdir(data):  # False for a name that is too long or has a NUL, where Path raises
        _refuse(data, "a folder of sets", columns=columns, split=split)
        folder = _Folder(Path(data), sick or "test", text)
        lacking = {name: reason for name in wanted or SETS if (reason := folder.lacks(name))}
        there = [name for name in wanted or SETS if name not in lacking]
        _require(data, wanted, there, lacking)
        return StsSets(data, [folder.read(name) for name in there], lacking)
    if os.path.isfile(data):
        _refuse(data, "one set", sets=names, sick=sick, split=split)
        path, pairs = Path(data), _Pairs()
        pairs.table(path, text, columns)
        return StsSets(data, [pairs.of(Path(path.name.removesuffix(".gz")).stem, path.name, _form(text, columns))])
    raise InputError(
        f"No data {data!r}: expected a folder with sets such as stsb-test.tsv, a table of two sentences and a "
        f"score, or {PREFIX}mteb"
    )


def read_sts_dev(data: str, columns: Sequence[str] = ()) -> StsSet:
    """The pairs that choose among the steps of training: STS-B's dev set in a folder or dataset, or a single table.

    A dataset of one set gives its split validation. Raises InputError as `read_sts` does.
    """
    if data.startswith(PREFIX):
        siblings = _hub_siblings(data, ["STS-B"])
        spec = data if siblings is None else siblings.get("STS-B")
        if spec is None:
            raise InputError(f"{data} lacks {HUB['STS-B']}, whose validation split chooses among the steps.")
        return _of_hub(spec, None, "raw", columns, "validation")
    if not os.path.isdir(data):
        return read_sts(data, columns=columns).found[0]
    pairs, name = _Pairs(), "STS-B dev"
    if (path := Path(data) / "stsb-dev.tsv").is_file():
        pairs.table(path, "raw")
        return pairs.of(name, path.name, _form("raw", ()))
    for root in SENTEVAL_ROOTS:
        if (path := Path(data) / root / "STS/STSBenchmark/sts-dev.csv").is_file():
            _benchmark(path, pairs)
            return pairs.of(name, os.path.relpath(path, data), "tokenised text of SentEval")
    raise InputError(
        f"{data} has neither stsb-dev.tsv nor STS/STSBenchmark/sts-dev.csv, which choose among the steps. Name a table "
        "of pairs and scores instead."
    )


def _require(data: str, wanted: Sequence[str], there: Sequence[str], lacking: Mapping[str, str]) -> None:
    """InputError unless what was asked for by name is there, and something is."""
    if lacking and (wanted or not there):
        looked = "; ".join(f"{name}: {what}" for name, what in lacking.items())
        raise InputError(f"{data} lacks {', '.join(lacking) if wanted else 'every set'}. Looked for {looked}.")


def _set_name(name: str) -> str:
    """As it is spelled here: stsb, sts-b and STS-B are one."""

    def bare(word: str) -> str:
        return re.sub(r"[^a-z0-9]", "", word.lower())

    for known in SETS:
        if bare(name) in (bare(known), bare(HUB[known]), bare(HUB[known]).removesuffix("sts")):
            return known
    raise InputError(f"There is no set {name!r}; {nearest(name, SETS)}")


def _refuse(data: str, kind: str, **given: object) -> None:
    """A flag that would do nothing is an error."""
    for name, value in given.items():
        if value:
            raise InputError(f"--{name} says nothing about {data}, which is {kind}; leave it out.")


def _form(text: Text, columns: Sequence[str]) -> str:
    if columns:
        return f"columns {', '.join(columns)}"
    return "tokenised text" if text == "senteval" else "raw text"


class _Pairs:
    """Pairs as they are read, from as many files as a set has."""

    def __init__(self) -> None:
        self.first: list[str] = []
        self.second: list[str] = []
        self.gold: list[float] = []
        self.unscored = 0
        self.replaced = 0

    def add(self, first: str, second: str, score: str, place: Callable[[], str]) -> None:
        """place: where it was read, which is asked for only if the score is no number."""
        try:
            number = float(score)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise InputError(f"{place()}: the score is {score!r}; expected a number.")
        self.first.append(self._clean(first))
        self.second.append(self._clean(second))
        self.gold.append(number)

    def _clean(self, sentence: str) -> str:
        sentence = sentence.replace("\0", REPLACEMENT)
        self.replaced += REPLACEMENT in sentence
        return sentence

    def table(self, path: Path, text: Text, columns: Sequence[str] = ()) -> None:
        heights: list[int] = []
        with rows_of(path, "replace") as (header, lines):
            places = _columns(path, header, text, columns)
            for row in _measured(lines, heights):
                first, second, score = (row[i] for i in places)
                self.add(first, second, score, lambda: f"{path}, line {_line_of(path, heights[:-1])}")

    def dataset(self, spec: str, split: str, text: Text, columns: Sequence[str] = ()) -> None:
        header, cells = dataset_rows(spec, split)
        places = _columns(Path(spec), header, text, columns)
        for number, row in enumerate(cells):
            first, second, score = (row[i] for i in places)
            self.add(first, second, score, lambda number=number: f"{spec}, row {number} of split {split}")

    def of(self, name: str, origin: str, text: str, part: Part | None = None) -> StsSet:
        if len(self.gold) < 2:
            n = "one pair" if self.gold else "no pairs"
            raise InputError(f"{name} has {n} with a score ({origin}); a correlation needs at least two.")
        gold = np.array(self.gold)
        if (gold == gold[0]).all():
            raise InputError(f"Every pair of {name} has the score {gold[0]:g} ({origin}): there is no order to find.")
        return StsSet(name, origin, text, self.first, self.second, gold, self.unscored, self.replaced, part)


def _columns(path: Path, header: Sequence[str], text: Text, named: Sequence[str]) -> list[int]:
    """Where the two sentences and the score stand."""
    first, second, score = named or (None, None, None)
    known = (TOKENISED_NAMES,) if text == "senteval" else PAIR_NAMES
    pair = None if named else next((places for names in known if (places := find_columns(header, names))), None)
    if pair is None:
        firsts, seconds = zip(*known, strict=True)
        pair = [
            column(path, header, first, firsts, "first sentences", "--columns"),
            column(path, header, second, seconds, "second sentences", "--columns"),
        ]
    return [*pair, column(path, header, score, SCORE_NAMES, "scores", "--columns")]


def _measured(rows: Iterator[list[str]], heights: list[int]) -> Iterator[list[str]]:
    """The rows; how many lines each takes is added to `heights`."""
    for row in rows:
        heights.append(1 + sum(len(re.findall("\r\n|\r|\n", cell)) for cell in row))
        yield row


def _line_of(path: Path, heights: Sequence[int]) -> int:
    """The line, from 1, in which the row begins that follows a header and rows of these heights."""
    with open_text(path, "replace") as stream:
        number = 0
        for height in (1, *heights, 0):
            line = next(stream)
            number += 1
            while not line.strip("\r\n"):  # a line between two rows that holds nothing
                line = next(stream)
                number += 1
            for _ in range(height - 1):
                next(stream)
                number += 1
    return number


# Datasets of the hub, and folders in its form


def _hub_siblings(data: str, names: Sequence[str]) -> dict[str, str] | None:
    """The spec of each set there is, where `data` names an owner of several; None where it names one dataset."""
    place = data.removeprefix(PREFIX).rstrip("/")
    if os.path.isdir(place):
        if not any(os.path.isdir(f"{place}/{hub}") for hub in HUB.values()):
            return None
        names = [name for name in names if os.path.isdir(f"{place}/{HUB[name]}")]
    elif "/" in place or "," in place:
        return None
    return {name: f"{PREFIX}{place}/{HUB[name]}" for name in names}


def _of_hub(spec: str, sick: Part | None, text: Text, columns: Sequence[str], split: str | None) -> StsSet:
    pairs = _Pairs()
    pairs.dataset(spec, split or "test", text, columns)
    last = re.split("[@,]", spec.removeprefix(PREFIX).rstrip("/"))[0].rpartition("/")[2]
    name = next((known for known, hub in HUB.items() if hub == last), last)
    part: Part | None = None
    if name == "SICK-R":
        part = next((known for known, n in SICK_PAIRS.items() if n == len(pairs.gold)), None)
        if sick not in (None, part):
            raise InputError(
                f"{spec} holds {len(pairs.gold):,} pairs and doesn't say which are the {SICK_PAIRS[sick]:,} of "
                f"--sick {sick}."
            )
    name = name if split in (None, "test") else f"{name} {split}"
    return pairs.of(name, f"{spec}, split {split or 'test'}", _form(text, columns), part)


# Folders


class _Folder:
    """A folder in which each set is a table (stsb-test.tsv), or lies where SentEval has it."""

    sick: Part
    text: Text

    def __init__(self, folder: Path, sick: Part, text: Text) -> None:
        self.folder, self.sick, self.text = folder, sick, text

    def lacks(self, name: str) -> str | None:
        """What was looked for in vain; None if the set is there."""
        if (tables := self._tables(name)) is None:
            if self._senteval(name) is not None:
                return None
            return f"{', '.join(self._table_names(name))} or {', '.join(self._senteval_files(name)[:1])}"
        if self.text == "senteval":
            for path in tables:
                with rows_of(path, "replace") as (header, _):
                    if find_columns(header, TOKENISED_NAMES) is None:
                        return f"columns {' and '.join(TOKENISED_NAMES)} in {path.name}"
        return None

    def read(self, name: str) -> StsSet:
        pairs = _Pairs()
        part = self.sick if name == "SICK-R" else None
        if tables := self._tables(name):
            for path in tables:
                pairs.table(path, self.text)
            return pairs.of(name, " + ".join(path.name for path in tables), _form(self.text, ()), part)
        files = self._senteval(name)
        assert files is not None
        for path in files:
            if name == "SICK-R":
                pairs.table(path, "raw")
            elif name == "STS-B":
                _benchmark(path, pairs)
            else:
                _year(path, pairs)
        # SentEval's readers split sentences into words; its users put a space between them again.
        pairs.first, pairs.second = ([" ".join(s.split()) for s in side] for side in (pairs.first, pairs.second))
        home = os.path.relpath(files[0].parent, self.folder)
        origin = home if name in SUBSETS else f"{home}: {' + '.join(path.name for path in files)}"
        return pairs.of(name, origin, "tokenised text of SentEval", part)

    def _tables(self, name: str) -> list[Path] | None:
        return _all_there([self.folder / file for file in self._table_names(name)])

    def _table_names(self, name: str) -> list[str]:
        if name == "SICK-R":
            return [f"sickr-{part}.tsv" for part in (("train", "trial", "test") if self.sick == "all" else ("test",))]
        return ["stsb-test.tsv"] if name == "STS-B" else [f"{name.lower()}.tsv"]

    def _senteval(self, name: str) -> list[Path] | None:
        for root in SENTEVAL_ROOTS:
            files = [self.folder / root / file for file in self._senteval_files(name)]
            gold = [_gold_of(path) for path in files if name in SUBSETS]
            if _all_there([*files, *gold]):
                return files
        return None

    def _senteval_files(self, name: str) -> list[str]:
        if name == "SICK-R":
            return [
                f"SICK/SICK_{part}.txt"
                for part in (("train", "trial", "test_annotated") if self.sick == "all" else ("test_annotated",))
            ]
        if name == "STS-B":
            return ["STS/STSBenchmark/sts-test.csv"]
        return [f"STS/{name}-en-test/STS.input.{subset}.txt" for subset in SUBSETS[name]]


def _all_there(paths: list[Path]) -> list[Path] | None:
    return paths if all(path.is_file() for path in paths) else None


def _gold_of(path: Path) -> Path:
    return path.with_name(path.name.replace("STS.input.", "STS.gs."))


def _year(path: Path, pairs: _Pairs) -> None:
    """Two sentences a line, and a file of scores beside them, in which a line is empty where nobody scored the pair."""
    gold = _gold_of(path)
    sentences, scores = _lines(path), _lines(gold)
    if len(sentences) != len(scores):
        raise InputError(f"{path} has {len(sentences)} lines, but {gold.name} has {len(scores)}.")
    for number, (cells, score) in enumerate(zip(sentences, scores, strict=True), 1):
        if not score[0].strip():
            pairs.unscored += 1
            continue
        if len(cells) < 2:
            raise InputError(f"{path}, line {number}: expected two sentences with a tab between them.")
        pairs.add(cells[0], cells[1], score[0], lambda number=number: f"{gold}, line {number}")


def _benchmark(path: Path, pairs: _Pairs) -> None:
    """STS-B as it is published: genre, file, year, number, score, two sentences, maybe their sources; no header."""
    for number, cells in enumerate(_lines(path), 1):
        if len(cells) < 7:
            raise InputError(f"{path}, line {number}: {len(cells)} columns; expected 7 with tabs between them.")
        pairs.add(cells[5], cells[6], cells[4], lambda number=number: f"{path}, line {number}")


def _lines(path: Path) -> list[list[str]]:
    """The cells of each line of a file without quoting."""
    with open_text(path, "replace") as stream:
        lines = stream.read().replace("\r\n", "\n").removesuffix("\n").split("\n")
    return [line.split("\t") for line in lines]
