"""report.html: one page on a run that needs nothing but itself, neither a network nor a script.

Captions, names and paths are data: they are escaped, and rid of control characters, wherever they stand.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xmodal import __version__, distributed
from xmodal.config import read as read_config
from xmodal.durable import replace_text
from xmodal.errors import InputError
from xmodal.evaluators.scores import Scores
from xmodal.report import curves, tables
from xmodal.report.evaluated import Before, Classified, Evaluated
from xmodal.report.exhibit import Subject
from xmodal.report.history import read_history
from xmodal.report.matrix import MOST_CELLS, confused, heat_uri, shares
from xmodal.report.templates import environment

MOST_BYTES = 2_900_000  # of a page: beyond it galleries show fewer queries
QUERIES = 3, 2, 1  # of a kind, best, median and worst: as many as the page has room for
MOST_GALLERIES = 4  # tests that have one, so that one query of a kind fits; the tables and plots hold all
# What a reader wants to know first of a run's settings; the others are folded up.
SETTINGS = (
    *("model", "image_tower", "text_tower", "head", "lora", "data", "val", "preset"),
    *("objective", "mining", "image_loss", "distill"),
    *("epochs", "steps", "batch_size", "lr", "wd", "precision", "seed"),
)


def write_page(
    folder: str | Path,
    *,
    title: str,
    protocol: Mapping[str, Any],
    scores: Scores,
    evaluated: Mapping[str, Evaluated | Classified] | None = None,
    before: Before | None = None,
    scan: Mapping[float, Mapping[str, Any]] | None = None,
) -> Path:
    """Write report.html into a run folder and return its path; what is missing is left out of the page.

    protocol, scores: as they stand in scores.json. evaluated: by test, embeddings or confusion matrix.
    before: the same with the model as it was before training; its galleries ask the same queries.
    scan: {alpha: {name: fraction, or score with "value"}} of weights between two models, 0 the first, 1 the trained.
    The folder's metrics.jsonl and config.yaml are read if they are there. On several processes the first one writes;
    the others return at once. Raises OSError where the page can't be written.
    """
    path = Path(folder) / "report.html"
    if not distributed.is_first():
        return path
    evaluated, then = evaluated or {}, before.evaluated if before else {}
    subjects = [Subject(name, test, then.get(name)) for name, test in evaluated.items() if isinstance(test, Evaluated)]
    confusions = [
        _confusion(name, test, then.get(name)) for name, test in evaluated.items() if isinstance(test, Classified)
    ]
    parts = {
        "title": title,
        "version": __version__,
        "protocol": protocol,
        "confusions": confusions,
        "without_gallery": [subject.name for subject in subjects[MOST_GALLERIES:]],
        **_settings(Path(folder) / "config.yaml"),
        **_scores(scores, before, subjects),
        **_curves(Path(folder) / "metrics.jsonl", scores, before, scan or {}),
    }
    template = environment().get_template("page.html.j2")
    for each in QUERIES:
        galleries = [subject.exhibit(each) for subject in subjects[:MOST_GALLERIES]]
        page = template.render(**parts, galleries=galleries)
        if len(page.encode()) <= MOST_BYTES:
            break
    replace_text(path, page)
    return path


def _scores(scores: Scores, before: Before | None, subjects: list[Subject]) -> dict[str, Any]:
    """The table of scores; with those from before training beside them where there are any."""
    paired: Scores = {}
    for subject in subjects:
        if len(subject.models) == 2:
            then, now = subject.answers
            paired |= tables.paired_differences(subject.name, then, now, scores)
    return {
        "headline": tables.first_places(scores),
        "score_tables": [] if before else tables.score_tables(scores),
        "changes": tables.changes(before.scores, scores, paired) if before else [],
        "paired": bool(paired),
    }


def _curves(
    path: Path, scores: Scores, before: Before | None, scan: Mapping[float, Mapping[str, Any]]
) -> dict[str, Any]:
    history = read_history(path)
    return {
        "steps": history.steps,
        "skipped": history.skipped,
        "warnings": history.warnings,
        "training": curves.training_panels(history),
        "evaluation": curves.score_panels(history, scores, before.scores if before else {}),
        "scan": curves.scan_panels(scan),
    }


def _settings(path: Path) -> dict[str, Any]:
    """The run's settings, and what is wrong with the file; not where the page lies, which says nothing of the run."""
    settings, problem = {}, ""
    if path.is_file():
        try:
            settings = {name: value for name, value in read_config(path).items() if name != "output"}
        except InputError as error:
            problem = str(error)
    without = ("model",) if settings.get("image_tower") else ("head",)  # what the other of two ways to name towers sets
    return {
        "settings": {n: settings[n] for n in SETTINGS if settings.get(n) not in (None, "none") and n not in without},
        "all_settings": settings,
        "settings_problem": problem,
    }


def _confusion(name: str, test: Classified, before: Any) -> dict[str, Any]:
    small = len(test.classes) <= MOST_CELLS
    same = isinstance(before, Classified) and list(before.classes) == list(test.classes)
    both = [("before", before), ("after", test)] if same else [("", test)]
    return {
        "name": name,
        "classes": list(test.classes),
        "images": int(test.confusion.sum()),
        "tables": [(when, t.confusion, shares(t.confusion)) for when, t in both] if small else [],
        "pictures": [] if small else [(when, heat_uri(shares(t.confusion))) for when, t in both],
        "mistakes": confused(test.classes, test.confusion),
    }
