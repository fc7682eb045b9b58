"""One retrieval test as the page shows it: queries with their answers, before training and after, and a matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from xmodal.evaluators.embed import Embedded
from xmodal.report.evaluated import Evaluated, same_questions
from xmodal.report.gallery import Answered, Direction, directions
from xmodal.report.matrix import Similarities, similarities, some_pairs
from xmodal.report.thumbnails import Thumbnail, thumbnails

KINDS = {
    "best": "Best: the right answer came earliest, and is nearest to the query",
    "median": "Median: as many queries did better as worse",
    "worst": "Worst: the right answer came latest",
}


@dataclass(frozen=True)
class Tile:
    """What a query or an answer looks like: a text, or a picture with its first caption."""

    text: str
    picture: Thumbnail | None = None


@dataclass(frozen=True)
class Shelf:
    """A query's answers from one model, nearest first: (similarity, whether it is right, how it looks)."""

    when: str  # "before", "after", or "" where there is one model only
    rank: int
    among: int
    answers: list[tuple[float, bool, Tile]]
    missed: tuple[float, Tile] | None  # the best right answer where it is not among them


@dataclass(frozen=True)
class Asked:
    tile: Tile
    shelves: list[Shelf]


@dataclass(frozen=True)
class Exhibit:
    """sections: (direction, [(what its queries have in common, queries)]); matrices: (when, similarities)."""

    name: str
    images: int
    texts: int
    unreadable: int
    incomparable: bool  # there are figures from before training, of other pictures or texts
    sections: list[tuple[str, list[tuple[str, list[Asked]]]]]
    captions: list[Tile]
    pictures: list[Tile]
    matrices: list[tuple[str, Similarities]]


class Subject:
    """A retrieval test and, where the same was asked before training, that one's embeddings beside it."""

    def __init__(self, name: str, test: Evaluated, before: Any = None) -> None:
        self.name, self.test = name, test
        self.models: list[tuple[str, Embedded]] = [("", test.embedded)]  # the one that is reported comes last
        if isinstance(before, Evaluated) and same_questions(test.embedded, before.embedded):
            self.models = [("before", before.embedded), ("after", test.embedded)]
        self.incomparable = before is not None and len(self.models) == 1

    @cached_property
    def answers(self) -> list[dict[str, Direction]]:
        """Both directions of each of the models."""
        return [directions(embedded) for _, embedded in self.models]

    def exhibit(self, each: int) -> Exhibit:
        """Both directions with `each` best, median and worst queries, all chosen by the model that is reported."""
        embedded = self.test.embedded
        # direction -> kind -> the answers of each model to the same queries
        asked = {
            direction: {
                kind: [answers[direction].answer(queries) for answers in self.answers]
                for kind, queries in found.choose(each, self._owner(direction)).items()
            }
            for direction, found in self.answers[-1].items()
        }
        texts, images = some_pairs(embedded)
        text, picture = self._looks({*images, *_pictures(asked)})
        sections = []
        for direction, kinds in asked.items():
            query, answer = (text, picture) if direction == "text_to_image" else (picture, text)
            groups = []
            for kind, by_model in kinds.items():
                rows = [
                    Asked(
                        query(same[0].query),
                        [_shelf(when, found, answer) for (when, _), found in zip(self.models, same, strict=True)],
                    )
                    for same in zip(*by_model, strict=True)
                ]
                groups.append((KINDS[kind], rows))
            sections.append((direction, groups))
        matrices = [(when, similarities(of, texts, images)) for when, of in self.models if len(texts) > 1]
        return Exhibit(
            self.name,
            len(embedded.rows),
            len(embedded.texts),
            embedded.unreadable,
            self.incomparable,
            sections,
            [text(t) for t in texts],
            [picture(i) for i in images],
            matrices,
        )

    def _owner(self, direction: str) -> Any:
        return self.test.embedded.first_image if direction == "text_to_image" else None

    def _looks(self, images: set[int]) -> tuple[Callable[[int], Tile], Callable[[int], Tile]]:
        """How a text looks, and how one of these pictures does."""
        embedded = self.test.embedded
        shown = thumbnails(self.test.source, (int(embedded.rows[i]) for i in images))
        first_text = dict(reversed(embedded.pairs.tolist()))  # a dictionary keeps the last one that it is given

        def picture(i: int) -> Tile:
            return Tile(embedded.texts[first_text[i]], shown[int(embedded.rows[i])])

        return lambda t: Tile(embedded.texts[t]), picture


def _shelf(when: str, found: Answered, look: Callable[[int], Tile]) -> Shelf:
    answers = [(a.similarity, a.right, look(a.row)) for a in found.answers]
    missed = (found.missed.similarity, look(found.missed.row)) if found.missed else None
    return Shelf(when, found.rank, found.among, answers, missed)


def _pictures(asked: dict[str, dict[str, list[list[Answered]]]]) -> set[int]:
    """All pictures that queries and answers show."""
    found: set[int] = set()
    for direction, kinds in asked.items():
        for answered in (a for by_model in kinds.values() for model in by_model for a in model):
            if direction == "image_to_text":
                found.add(answered.query)
            else:
                found |= {a.row for a in (*answered.answers, answered.missed) if a}
    return found
