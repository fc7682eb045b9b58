"""Cosines of texts, or of pictures and texts.

    xmodal score "a man plays a guitar" "somebody makes music" --model st:all-MiniLM-L6-v2
    xmodal score "a dog" "a cat" --image photo.jpg --model runs/clip
    xmodal score --file pairs.tsv --output scored.tsv --model runs/simcse
    xmodal score --file lines.txt --matrix --output map.png --model runs/simcse

Two texts give one number; of more the first is compared with each other one, with --matrix all with all. A table of
pairs (CSV, TSV) gives the same pairs with their cosine. What is written as an argument is text, whatever it looks like.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from xmodal.cli import guard
from xmodal.config import parse, require
from xmodal.errors import BadSample, InputError

if TYPE_CHECKING:
    import numpy as np

    from xmodal.embedding.embedder import Model, Setting

PAIRS = 4096  # that are scored together
MOST_PRINTED = 24  # columns of a matrix in a terminal


@dataclass(frozen=True, kw_only=True)
class Config:
    texts: tyro.conf.Positional[tuple[str, ...]] = ()
    """Texts to compare."""
    model: str
    """A run folder, st:ID_OR_FOLDER, hf:ID_OR_FOLDER and the other forms of `xmodal list`."""
    image: tuple[Path, ...] = ()
    """Pictures to compare with the texts."""
    file: str | None = None
    """A table of pairs (CSV, TSV); with --matrix texts, one a line or in a column. Or hf-dataset:NAME_OR_FOLDER."""
    columns: tuple[str, ...] = ()
    """The columns of the pair, or with --matrix of the texts, if they have no usual names."""
    matrix: bool = False
    """All texts against all."""
    output: Path | None = None
    """Where to write instead of printing: pairs as OUT.tsv or .csv; a matrix as OUT.csv, .tsv, or a heat map, .png or
    .svg."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: weights and products in bfloat16, where the device has it."""
    batch_size: int | None = None
    """At most so many go through the model at a time; without it as many as are fast."""

    def check(self) -> None:
        require(self, "batch_size", lambda v: v >= 1, "at least 1")
        if self.file is None and len(self.texts) + len(self.image) < 2:
            raise InputError("xmodal score needs two things to compare: two texts, --image FILE and a text, or --file.")
        if self.file is not None and (self.texts or self.image):
            raise InputError("xmodal score takes its texts from the command line or from --file, not from both.")
        if self.image and not self.texts:
            raise InputError("--image is compared with texts; say at least one.")
        if self.image and self.matrix:
            raise InputError("--image gives pictures against texts; --matrix is for texts alone.")
        if self.file is not None and len(self.columns) not in (0, 1 if self.matrix else 2):
            raise InputError(f"--columns names {'one column' if self.matrix else 'two columns'} here.")
        forms = (".csv", ".tsv", ".png", ".svg") if self.matrix or self.image else (".csv", ".tsv")
        if self.output is not None and self.output.suffix not in forms:
            raise InputError(f"--output {self.output}: expected a name that ends in {', '.join(forms)}.")


def run(config: Config) -> Any:
    """Score, print or write; returns the cosines: a number, a list, or a matrix as an array."""
    from xmodal import load
    from xmodal.embedding.embedder import Setting, check

    model = load(config.model)
    setting = Setting(config.batch_size, config.precision)
    check(model, "image" if config.image else "text", setting)
    if config.file is not None and not config.matrix:
        return _score_file(config, model, setting)
    texts = list(config.texts)
    if config.file is not None:
        from xmodal.data.texts import stream_texts

        texts = list(stream_texts(config.file, config.columns[0] if config.columns else None))
        if len(texts) < 2:
            raise InputError(f"{config.file} holds {len(texts)} texts; two are needed to compare.")
    rows = _embedded(model, texts, setting)
    if config.matrix:
        return _give(config, texts, texts, rows @ rows.T)
    if config.image:
        return _give(config, [str(path) for path in config.image], texts, _pictures(model, config.image) @ rows.T)
    cosines = (rows[1:] @ rows[0]).tolist()
    if config.output is not None:
        from xmodal.embedding.table_writer import table_writer

        with table_writer(config.output) as writer:
            writer.writerow(["sentence1", "sentence2", "cosine"])
            writer.writerows([texts[0], text, f"{c:.6f}"] for text, c in zip(texts[1:], cosines, strict=True))
    elif len(cosines) == 1:
        print(f"{cosines[0]:.4f}")
        return cosines[0]
    else:
        from xmodal.evaluators.scores import plain

        print("\n".join(f"{c:7.4f}  {plain(text)}" for text, c in zip(texts[1:], cosines, strict=True)))
    return cosines


def _score_file(config: Config, model: Model, setting: Setting) -> list[float]:
    """Pairs are read, scored and written some thousand at a time."""
    from xmodal.data.texts import open_rows
    from xmodal.embedding.table_writer import table_writer

    assert config.file is not None
    replaced: Counter[str] = Counter()
    found: list[float] = []
    with open_rows(config.file) as rows, table_writer(config.output) as writer:
        rows.replaced = replaced
        first, second = _pair_columns(config.file, rows.header, config.columns)
        writer.writerow([rows.header[first], rows.header[second], "cosine"])
        pairs = ((cells[first].strip(), cells[second].strip()) for cells in rows)
        for some in _some(pairs, PAIRS):
            number: dict[str, int] = {}  # a text that comes often is embedded once
            for text in (text for pair in some for text in pair):
                number.setdefault(text, len(number))
            embedded = _embedded(model, list(number), setting)
            of_first, of_second = (embedded[[number[pair[side]] for pair in some]] for side in (0, 1))
            cosines = (of_first * of_second).sum(1).tolist()
            writer.writerows([*pair, f"{c:.6f}"] for pair, c in zip(some, cosines, strict=True))
            found += cosines
    if not found:
        raise InputError(f"{config.file} has no pairs.")
    if config.output is not None:
        print(f"Wrote {config.output}: {len(found):,} pairs; their mean cosine is {sum(found) / len(found):.4f}.")
    if replaced:
        told = f"texts that held what is no text (U+FFFD stands for it): {sum(replaced.values()):,}"
        print(f"note: {told}", file=sys.stderr)
    return found


def _pair_columns(name: str, header: Sequence[str], named: Sequence[str]) -> tuple[int, int]:
    from xmodal.data.delimited import column
    from xmodal.data.sts import PAIR_NAMES
    from xmodal.data.texts import find_columns

    if not header:
        raise InputError(f"{name} is a file of lines; pairs come from a table (CSV, TSV), or add --matrix.")
    if named:
        first, second = (column(Path(name), header, one, (), "texts", "--columns") for one in named)
        return first, second
    for usual in PAIR_NAMES:
        if (found := find_columns(header, usual)) is not None:
            return found[0], found[1]
    if len(header) == 2:
        return 0, 1
    raise InputError(f"{name} has the columns {', '.join(header)}; name the two to compare: --columns A B.")


def _embedded(model: Model, texts: list[str], setting: Setting) -> np.ndarray:
    from xmodal.embedding.embedder import embed_some

    return embed_some(model, texts, setting)


def _pictures(model: Any, paths: Sequence[Path]) -> np.ndarray:
    try:
        return model.encode_image(list(paths)).numpy()
    except BadSample as problem:
        raise InputError(f"--image: {problem.reason}: {problem}") from None


def _give(config: Config, left: list[str], top: list[str], cosines: np.ndarray) -> np.ndarray:
    """Print a matrix, or write it in the form that --output asks for."""
    if config.output is None:
        _print(left, top, cosines)
    elif config.output.suffix in (".png", ".svg"):
        from xmodal.report.heat_map import write_heat_map

        write_heat_map(config.output, left, top, cosines)
    else:
        from xmodal.embedding.table_writer import table_writer

        with table_writer(config.output) as writer:
            writer.writerow(["", *top])
            writer.writerows([text, *(f"{c:.6f}" for c in row)] for text, row in zip(left, cosines, strict=True))
    if config.output is not None:
        print(f"Wrote {config.output}: {len(left):,} × {len(top):,} cosines.")
    return cosines


def _print(left: list[str], top: list[str], cosines: np.ndarray) -> None:
    """Columns by number, and what stands for each number as the rows' name; or a list of names where they differ."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from xmodal.evaluators.scores import plain

    if len(top) > MOST_PRINTED:
        raise InputError(f"{len(left):,} × {len(top):,} cosines are too many to print; write them: --output map.png")
    table = Table(show_edge=False, pad_edge=False, box=SIMPLE_HEAD)
    table.add_column("")
    for number in range(1, len(top) + 1):
        table.add_column(str(number), justify="right", no_wrap=True)
    for number, (name, row) in enumerate(zip(left, cosines, strict=True), 1):
        label = plain(name if len(name) <= 48 else name[:47] + "…")
        table.add_row(Text(f"{number} {label}" if left == top else label), *(f"{c:.3f}" for c in row))
    if left != top:
        print("\n".join(f"{number}  {plain(name)}" for number, name in enumerate(top, 1)) + "\n")
    needed = Console(width=10_000).measure(table).maximum
    Console(highlight=False, width=needed).print(table)


def _some(pairs: Iterator[tuple[str, str]], size: int) -> Iterator[list[tuple[str, str]]]:
    while some := list(islice(pairs, size)):
        yield some


def main(argv: Sequence[str] | None = None) -> int:
    run(parse(Config, argv, prog="xmodal score"))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
