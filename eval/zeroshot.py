"""Zero-shot classification of images by class names in prompt templates, of any model.

Each figure comes with its protocol and a 95 % interval.

    xmodal eval zeroshot runs/clip --data glyphs/unseen_typeface
    xmodal eval zeroshot open_clip:ViT-B-32/openai --data FOLDER --templates openai --json scores.json
    xmodal eval zeroshot runs/clip --data pictures.csv --label-column group --classes names.txt
    xmodal eval zeroshot open_clip:ViT-B-32/openai --data wds_cars --protocol clip_benchmark
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from xmodal.cli import guard
from xmodal.config import parse, require


@dataclass(frozen=True, kw_only=True)
class Config:
    model: tyro.conf.Positional[str]
    """A run folder, or open_clip:MODEL[/PRETRAINED] and the other forms of `xmodal list`."""
    data: str
    """A folder with a folder for each class, a table of images and classes (CSV, TSV), a webdataset set of
    CLIP_benchmark (a folder with test/0.tar and classnames.txt), or glyphs/TEST."""
    classes: Path | None = None
    """A file of class names, one a line in the order of the sorted classes of the data, to be used instead of those."""
    templates: str | None = None
    """openai (CLIP's 80 for ImageNet), simple, none, or a file of lines with {} in them.
    If not given, the templates that came with the data (templates.txt or zeroshot_classification_templates.txt in the
    folder, those of glyphs), else simple."""
    protocol: Literal["xmodal", "clip_benchmark"] = "xmodal"
    """clip_benchmark: that one's and open_clip's figures by their definitions, which are these to the last digit on
    almost any data; `xmodal/evaluators/clip_benchmark.py` says where they differ."""
    split: str | None = None
    """The split of a table with a split column, or of a set of CLIP_benchmark's, of which it is test if not given."""
    image_column: str | None = None
    """The column of image paths, if it has no usual name."""
    label_column: str | None = None
    """The column of classes, if it has no usual name."""
    split_column: str | None = None
    """The column of splits, if it has no usual name."""
    batch_size: int = 256
    """Images or texts that are encoded at a time."""
    json: Path | None = None
    """Write protocol, scores, the figures of each class and the confusion matrix here as well."""

    def check(self) -> None:
        require(self, "batch_size", lambda v: v >= 1, "at least 1")


def run(config: Config) -> dict[str, Any]:
    """Embed, score, print; returns protocol, scores, the figures of each class and the confusion matrix."""
    from xmodal import distributed
    from xmodal.data import glyphs
    from xmodal.data.clip_benchmark import TEMPLATES, Classified
    from xmodal.data.labelled import read_labelled
    from xmodal.encoders import load_towers
    from xmodal.errors import InputError, nearest
    from xmodal.evaluators import clip_benchmark, evaluate
    from xmodal.evaluators.scores import print_classes, print_table, write_scores
    from xmodal.evaluators.templates import class_names, templates
    from xmodal.evaluators.zeroshot import per_class

    accelerator = distributed.start("fp32")
    prompts = config.templates or "simple"
    texts = templates(prompts)
    if config.data.partition("/")[0] == "glyphs" and not Path(config.data).exists():
        test = config.data.partition("/")[2] or "unseen_typeface"
        if test not in glyphs.TESTS:
            raise InputError(f"glyphs has no test {test!r}; {nearest(test, glyphs.TESTS)}")
        labelled, its_own, came_from = glyphs.Kinds(test), list(glyphs.TEMPLATES), "glyphs"
    else:
        labelled = read_labelled(
            Path(config.data),
            image_column=config.image_column,
            label_column=config.label_column,
            split=config.split,
            split_column=config.split_column,
        )
        file = TEMPLATES if isinstance(labelled, Classified) else "templates.txt"
        its_own, came_from = labelled.templates, str(Path(config.data) / file)
    if config.templates is None and its_own:
        prompts, texts = came_from, its_own
    names = list(labelled.classes)
    if config.classes is not None:
        names = class_names(str(config.classes))
        if len(names) != len(labelled.classes):
            raise InputError(
                f"{config.classes} has {len(names)} names; {config.data} has {len(labelled.classes)} classes: "
                f"{', '.join(labelled.classes[:5])}, …"
            )
    model = load_towers(config.model, device=accelerator.device)
    judge = clip_benchmark if config.protocol == "clip_benchmark" else evaluate
    protocol, scores, table = judge.evaluate_zero_shot(
        model, labelled, names, texts, templates_name=prompts, batch_size=config.batch_size
    )
    protocol = {"model": config.model, **protocol}
    classes = {
        name: {figure: float(values[i]) for figure, values in per_class(table).items()} for i, name in enumerate(names)
    }
    if distributed.is_first():
        if config.json:
            write_scores(config.json, protocol, scores, classes=classes, confusion=table.astype(int).tolist())
        print_classes(names, table)
        print_table(protocol, scores)
    return {"protocol": protocol, "scores": scores, "classes": classes, "confusion": table}


def main(argv: Sequence[str] | None = None) -> int:
    run(parse(Config, argv, prog="xmodal eval zeroshot"))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
