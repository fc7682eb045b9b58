"""A page that sets models beside each other: figures and their differences, curves over one another, maps, neighbours.

It needs nothing but itself, neither a network nor a script. Names, captions and classes are data: they are escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xmodal import __version__
from xmodal.durable import replace_text
from xmodal.errors import InputError
from xmodal.evaluators.compare import MOST_DOTS, Classed, Compared, Paired, Retrieved, spread_evenly
from xmodal.evaluators.nearest import nearest
from xmodal.evaluators.scores import Scores
from xmodal.report.curves import MOST_LINES, MOST_PANELS, TITLES, Key, Panel
from xmodal.report.exhibit import Asked, Shelf, Tile
from xmodal.report.gallery import NEAREST, Direction, directions
from xmodal.report.history import History
from xmodal.report.maps import MOST_NAMED, Map, colours, maps
from xmodal.report.names import number, short_names, words
from xmodal.report.plot import draw, thinned
from xmodal.report.tables import Change, changes
from xmodal.report.templates import environment
from xmodal.report.thumbnails import thumbnails

EACH = 4  # queries of a kind


@dataclass(frozen=True)
class Group:
    """Queries that have something in common, each with every model's answers."""

    title: str
    query_is_text: bool
    answers_are_pictures: bool
    named: bool  # whether a query's text stands under its picture
    asked: list[Asked]


@dataclass(frozen=True)
class PairRow:
    """Two sentences; gold and each model's cosine as places among the pairs of their set, from 0 to 100."""

    first: str
    second: str
    gold: float
    places: list[float]


@dataclass(frozen=True)
class Section:
    """What is shown of a task."""

    task: str
    items: str  # how many, in words
    tables: list[tuple[str, list[tuple[str, list[Change]]]]]
    said: list[str]
    maps: list[Map]
    legend: list[tuple[str, str]]  # colour, name
    groups: list[Group]
    pairs: list[tuple[str, list[PairRow]]]
    protocol: Mapping[str, Any]


def write_comparison(
    path: Path,
    models: Sequence[str],
    compared: Sequence[Compared],
    said: Mapping[str, Sequence[str]],
    histories: Mapping[str, History],
    recorded: Mapping[str, Scores],
) -> None:
    """said: sentences by task. histories: of models that are run folders. recorded: the scores in their scores.json.

    The page calls models by `short_names`, which the sentences do, too.

    Raises InputError where the page can't be written.
    """
    names = short_names(models)
    called = dict(zip(models, names, strict=True))
    page = (
        environment()
        .get_template("compare.html.j2")
        .render(
            title=" against ".join(names) if len(names) == 2 else f"{names[0]} and {len(names) - 1} others",
            version=__version__,
            names=names,
            models=list(zip(names, models, strict=True)),
            sections=[_section(one, names, said.get(one.task, ())) for one in compared],
            training=overlaid({called[model]: history for model, history in histories.items()}),
            recorded=_recorded({called[model]: scores for model, scores in recorded.items()}),
        )
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, page)
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror}.") from None


def _recorded(scores: Mapping[str, Scores]) -> list[tuple[str, str, list[tuple[str, list[Change]]]]]:
    """The scores that runs wrote down, each run beside the first that did; their differences have no interval."""
    tables = []
    first, *others = scores or [""]
    for other in others:
        both = {name: score for name, score in scores[other].items() if name in scores[first]}
        if both:
            tables.append((first, other, changes(scores[first], both, {})))
    return tables


def overlaid(histories: Mapping[str, History]) -> list[Panel]:
    """A panel for each figure that a run wrote in its steps, in it a line for each run."""
    runs = dict(list(histories.items())[:MOST_LINES])
    there = dict.fromkeys(name for history in runs.values() for name in history.training if name != "floor")
    order = [*(n for n in TITLES if n in there), *(n for n in there if n not in TITLES)]
    panels = []
    for name in order[:MOST_PANELS]:
        lines, legend, ends = [], [], []
        for tone, (run, history) in enumerate(runs.items()):
            series = history.training.get(name)
            if series is not None and np.isfinite(series.values).any():
                lines.append(thinned(series, tone=tone))
                legend.append(Key(tone, run))
                ends.append(number(series.last))
        if lines:
            from_zero = name in ("loss", "grad_norm", "pairs_per_second", "lr")
            picture = draw([_bare(line) for line in lines] if len(lines) > 1 else lines, from_zero=from_zero)
            panels.append(Panel(TITLES.get(name, words(name)), picture, f"at the end {', '.join(ends)}", tuple(legend)))
    return panels


def _bare(line: Any) -> Any:
    """A line without its band: of several the bands would hide the lines."""
    return replace(line, low=None, high=None)


def _section(one: Compared, models: Sequence[str], said: Sequence[str]) -> Section:
    found, legend, groups, pairs = [], [], [], []
    items = ""
    if isinstance(one.shown, Classed):
        found, legend = _class_maps(one.shown, models)
        groups = _class_groups(one.shown, models)
        items = f"{len(one.shown.test[0].rows):,} pictures"
    elif isinstance(one.shown, Retrieved):
        found, legend = _pair_maps(one.shown, models)
        groups = _pair_groups(one.shown, models)
        items = f"{len(one.shown.embedded[0].rows):,} pictures, {len(one.shown.embedded[0].texts):,} texts"
    elif isinstance(one.shown, Paired):
        found = maps(models, one.shown.rows, np.zeros(len(one.shown.some), dtype=int), 1)
        pairs = _sentence_pairs(one.shown, models)
        items = f"{sum(len(s) for s in one.shown.sets):,} pairs of sentences"
    tables = [
        (model, changes(one.scores[0], one.scores[i + 1], apart))
        for i, (model, apart) in enumerate(zip(models[1:], one.differences, strict=True))
    ]
    return Section(one.task, items, tables, list(said), found, legend, groups, pairs, one.protocol)


def _class_maps(shown: Classed, models: Sequence[str]) -> tuple[list[Map], list[tuple[str, str]]]:
    dots = spread_evenly(len(shown.test[0].rows), MOST_DOTS)
    found = maps(models, [one.rows[dots] for one in shown.test], shown.test[0].labels[dots], len(shown.classes))
    named = len(shown.classes) <= MOST_NAMED
    return found, list(zip(colours(len(shown.classes)), shown.classes, strict=True)) if named else []


def _pair_maps(shown: Retrieved, models: Sequence[str]) -> tuple[list[Map], list[tuple[str, str]]]:
    """Pictures and texts in one map: how far apart the two lie is seen at once."""
    first = shown.embedded[0]
    image, text = (spread_evenly(n, MOST_DOTS // 2) for n in (len(first.image), len(first.text)))
    rows = [torch.cat([one.image[image].float(), one.text[text].float()]) for one in shown.embedded]
    group = np.repeat([0, 1], [len(image), len(text)])
    return maps(models, rows, group, 2), list(zip(colours(2), ("pictures", "texts"), strict=True))


def _class_groups(shown: Classed, models: Sequence[str]) -> list[Group]:
    right = np.array([one.rank == 1 for one in shown.answers])  # (m, n)
    first, last = models[0], models[-1]
    kinds = {
        f"{last} is right, {first} is not": right[-1] & ~right[0],
        f"{first} is right, {last} is not": right[0] & ~right[-1],
        "None is right": ~right.any(0),
    }
    groups = []
    for title, which in kinds.items():
        queries = np.flatnonzero(which)
        queries = queries[spread_evenly(len(queries), EACH)] if len(queries) else queries
        if len(queries):
            told = f"{title}: {which.sum():,} of {len(which):,}"
            groups.append(Group(told, False, not _named(shown), True, _asked(shown, models, queries)))
    return groups


def _named(shown: Classed) -> bool:
    """Whether the answers are names of classes: then nothing was learnt from pictures."""
    return shown.train_pictures is None


def _asked(shown: Classed, models: Sequence[str], queries: np.ndarray) -> list[Asked]:
    own = shown.test[0].labels[queries]
    galleries = [train if isinstance(train, torch.Tensor) else train.rows for train in shown.train]
    near = [nearest(t.rows[queries], g, NEAREST) for t, g in zip(shown.test, galleries, strict=True)]  # (q, k) each
    pictures = thumbnails(shown.pictures, shown.test[0].number[queries].tolist())
    look = _look(shown, [rows for _, rows in near])
    asked = []
    for place, query in enumerate(queries.tolist()):
        shelves = []
        for m, (model, one, (cosine, rows)) in enumerate(zip(models, shown.answers, near, strict=True)):
            answers = []
            for similarity, row in zip(cosine[place].tolist(), rows[place].tolist(), strict=True):
                label, tile = look(m, row)
                answers.append((similarity, label == own[place], tile))
            says = f"{model}: {shown.classes[int(one.predicted[query])]}"
            shelves.append(Shelf(says, int(one.rank[query]), len(shown.classes), answers, None))
        picture = pictures[int(shown.test[0].number[query])]
        asked.append(Asked(Tile(shown.classes[int(own[place])], picture), shelves))
    return asked


def _look(shown: Classed, rows: Sequence[Any]) -> Callable[[int, int], tuple[int, Tile]]:
    """From a model's number and a row of its gallery to the row's class and how it looks; rows: of each model."""
    if _named(shown):
        return lambda model, row: (row, Tile(shown.classes[row]))
    galleries: list[Any] = list(shown.train)
    wanted = {int(g.number[row]) for g, some in zip(galleries, rows, strict=True) for row in some.flatten().tolist()}
    pictures = thumbnails(shown.train_pictures, wanted)

    def look(model: int, row: int) -> tuple[int, Tile]:
        label = int(galleries[model].labels[row])
        return label, Tile(shown.classes[label], pictures[int(galleries[model].number[row])])

    return look


def _pair_groups(shown: Retrieved, models: Sequence[str]) -> list[Group]:
    found = [directions(one) for one in shown.embedded]
    first, last = models[0], models[-1]
    groups = []
    for direction, by_text in (("text_to_image", True), ("image_to_text", False)):
        each = [one[direction] for one in found]
        owner = shown.embedded[0].first_image if by_text else np.arange(len(each[0].query))
        gain = np.log(each[0].rank) - np.log(each[-1].rank)
        worst = np.log(np.minimum.reduce([one.rank for one in each]))
        what = "Captions" if by_text else "Pictures"
        for title, order, among in (
            (f"{what} for which {last} does better than {first}", -gain, gain > 0),
            (f"{what} for which {first} does better than {last}", gain, gain < 0),
            (f"{what} that are hard for all", -worst, worst > 0),
        ):
            queries = _distinct(np.argsort(order, kind="stable"), among, owner)
            if queries:
                groups.append(Group(title, by_text, by_text, False, _answered(shown, models, each, queries, by_text)))
    return groups


def _distinct(order: np.ndarray, among: np.ndarray, owner: np.ndarray) -> list[int]:
    """The first queries of an order, those of a picture once."""
    taken: dict[int, int] = {}
    for query in order[among[order]].tolist():
        taken.setdefault(int(owner[query]), query)
        if len(taken) == EACH:
            break
    return list(taken.values())


def _answered(
    shown: Retrieved, models: Sequence[str], each: Sequence[Direction], queries: list[int], by_text: bool
) -> list[Asked]:
    embedded = shown.embedded[0]
    answers = [one.answer(queries) for one in each]
    pictures = set() if by_text else set(queries)
    if by_text:
        pictures = {a.row for some in answers for one in some for a in (*one.answers, one.missed) if a}
    made = thumbnails(shown.source, (int(embedded.rows[i]) for i in pictures))
    first_text = dict(reversed(embedded.pairs.tolist()))

    def picture(i: int) -> Tile:
        return Tile(embedded.texts[first_text[i]], made[int(embedded.rows[i])])

    def text(t: int) -> Tile:
        return Tile(embedded.texts[t])

    query, answer = (text, picture) if by_text else (picture, text)
    asked = []
    for same in zip(*answers, strict=True):
        shelves = []
        for model, one in zip(models, same, strict=True):
            missed = (one.missed.similarity, answer(one.missed.row)) if one.missed else None
            told = [(a.similarity, a.right, answer(a.row)) for a in one.answers]
            shelves.append(Shelf(model, one.rank, one.among, told, missed))
        asked.append(Asked(query(same[0].query), shelves))
    return asked


def _sentence_pairs(shown: Paired, models: Sequence[str]) -> list[tuple[str, list[PairRow]]]:
    """Pairs that the last model puts much nearer to their place than the first, and the reverse."""
    rows: list[PairRow] = []
    for one in shown.sets:
        gold = _places(one.gold)
        by_model = [_places(similarity[one.name]) for similarity in shown.similarity]
        rows += [
            PairRow(first, second, float(gold[i]), [float(places[i]) for places in by_model])
            for i, (first, second) in enumerate(zip(one.first, one.second, strict=True))
        ]
    gain = np.array([abs(row.places[0] - row.gold) - abs(row.places[-1] - row.gold) for row in rows])
    order = np.argsort(-gain, kind="stable")
    first, last = models[0], models[-1]
    found = []
    for title, some in (
        (f"Pairs that {last} puts nearer to their place", [i for i in order[: 2 * EACH] if gain[i] > 0]),
        (f"Pairs that {first} puts nearer to their place", [i for i in order[::-1][: 2 * EACH] if gain[i] < 0]),
    ):
        if some:
            found.append((title, [rows[i] for i in some]))
    return found


def _places(values: np.ndarray) -> np.ndarray:
    """Where each value (n,) stands among all, from 0 to 100; equal ones in the middle of their stretch."""
    _, number, sizes = np.unique(values, return_inverse=True, return_counts=True)
    below = np.cumsum(sizes) - sizes
    return 100 * (below + sizes / 2)[number] / len(values)
