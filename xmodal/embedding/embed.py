"""Embed the texts of a file or the pictures of a folder, into a file of rows or an index that can be searched.

Work is done in parts: started again after a kill it goes on, and on any number of processes of a CPU the finished file
has the same bytes.

    xmodal embed --model runs/simcse --data lines.txt --output rows.npy
    xmodal embed --model st:all-MiniLM-L6-v2 --data table.csv --column title --output index
    xmodal embed --model runs/clip --data FOLDER_OF_PICTURES --output pictures
    xmodal embed --model open_clip:ViT-L-14/openai --data captions.csv --kind pairs --output teacher
    torchrun --nproc_per_node 2 -m xmodal.embedding.embed --model … --data … --output …

What --output may be: OUT.npy, OUT.safetensors, OUT.parquet (with texts or paths), or a folder for `xmodal search`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from xmodal import __version__
from xmodal.cli import guard
from xmodal.config import parse, require
from xmodal.errors import InputError
from xmodal.flags import flag

if TYPE_CHECKING:
    from xmodal.embedding.embedder import Model, Setting
    from xmodal.embedding.inputs import Input, Part
    from xmodal.embedding.parts import Parts


@dataclass(frozen=True, kw_only=True)
class Config:
    model: str
    """A run folder, st:ID_OR_FOLDER, hf:ID_OR_FOLDER and the other forms of `xmodal list`."""
    data: str
    """Texts: a file of lines, a table (CSV, TSV), each maybe .gz, or hf-dataset:NAME_OR_FOLDER. Pictures: a folder, or
    a table with a column of paths. Pairs: what `xmodal train clip` takes as --data."""
    output: Path
    """OUT.npy, OUT.safetensors, OUT.parquet, or without a suffix an index folder."""
    kind: Literal["text", "image", "pairs"] | None = None
    """What is embedded of a table that has both; without it the texts. pairs: the pictures that training would take of
    this data, and their texts, as two indexes in one folder, for `xmodal train clip --distill`."""
    column: str | None = None
    """The column of texts or paths, if it has no usual name."""
    image_column: str | None = None
    """pairs: the column of image paths, if it has no usual name."""
    caption_column: str | None = None
    """pairs: the column of captions, if it has no usual name."""
    split_column: str | None = None
    """pairs: the column that says train, val or test, if it has no usual name."""
    normalize: bool = True
    """Unit rows."""
    prompt_name: str | None = None
    """Which of the model's prompts is put before each text, such as document; without it the model's default."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: weights and products in bfloat16, where the device has it."""
    dtype: Literal["float32", "float16"] = "float32"
    """Of the rows in the file."""
    batch_size: int | None = None
    """At most so many go through the model at a time; without it as many as are fast."""
    workers: int | None = None
    """Processes that decode pictures, for each process; if not given, 1 on a CPU and up to 8 on a GPU."""
    overwrite: bool = False
    """Replace the output, and throw away what an interrupted run with another setting has left."""

    def check(self) -> None:
        require(self, "batch_size", lambda v: v >= 1, "at least 1")
        require(self, "workers", lambda v: v >= 0, "0 or more")
        of_pairs = [name for name in ("image_column", "caption_column", "split_column") if getattr(self, name)]
        if self.kind != "pairs" and of_pairs:
            raise InputError(f"{flag(of_pairs[0])} is for --kind pairs; otherwise it is --column.")
        if self.kind == "pairs" and self.column:
            raise InputError("--column: pairs have two, --image-column and --caption-column.")
        if self.kind == "pairs" and self.output.suffix:
            raise InputError(f"--output {self.output}: pairs become a folder, whose name has no suffix.")


def run(config: Config) -> dict[str, Any]:
    """Embed, write, print; returns what the output says of itself."""
    from xmodal import distributed, load
    from xmodal.embedding.inputs import open_input
    from xmodal.embedding.outputs import check as check_output

    accelerator = distributed.start("fp32")
    check_output(config.output, config.overwrite)
    if config.kind == "pairs":
        return _embed_pairs(config, accelerator.device)
    source = open_input(config.data, kind=config.kind, column=config.column)
    about = _embed(config, load(config.model, device=accelerator.device), source, config.output)
    if distributed.is_first():
        print(said(config.output, about))
    return about


def _embed_pairs(config: Config, device: Any) -> dict[str, Any]:
    """Pictures and texts one after the other into NAME.parts, which becomes the output when both are there."""
    import json
    import shutil

    from xmodal import distributed, load
    from xmodal.data.source import Columns, open_pairs
    from xmodal.durable import replace_text, sync
    from xmodal.embedding.outputs import PAIRS
    from xmodal.embedding.pairs import PicturesOfPairs, TextsOfPairs
    from xmodal.encoders.two_tower import TwoTower

    columns = Columns(config.image_column, config.caption_column, config.split_column)
    source, _ = open_pairs(config.data, None, columns)
    model = load(config.model, device=device)
    if not isinstance(model, TwoTower):
        raise InputError(f"{config.model} takes texts alone, and pairs have pictures.")
    beside = config.output.with_name(config.output.name + ".parts")
    if distributed.is_first() and config.overwrite:
        shutil.rmtree(beside, ignore_errors=True)
    distributed.wait()
    fingerprint = {"fingerprint": source.fingerprint()}
    inputs = {"images": PicturesOfPairs(source), "texts": TextsOfPairs(source)}
    found = {name: _embed(config, model, each, beside / name, fingerprint) for name, each in inputs.items()}
    about = {"data": source.name, "rows": len(source), "scale": model.scale, **fingerprint, **found}

    def finish() -> None:
        replace_text(beside / PAIRS, json.dumps(about, indent=1, ensure_ascii=False) + "\n")
        if config.output.is_dir():
            shutil.rmtree(config.output)
        beside.rename(config.output)
        sync(config.output.parent)

    _on_first(finish)
    if distributed.is_first():
        print("\n".join(said(config.output / name, each) for name, each in found.items()))
        print(f"Teach with it: xmodal train clip --data {config.data} --distill {config.output}")
    return about


def _embed(
    config: Config, model: Model, source: Input, output: Path, more: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """One input into one output, or what there is of it already; returns what the output says of itself.

    more: what else makes the rows what they are.
    """
    from xmodal import distributed
    from xmodal.embedding.embedder import Setting, check
    from xmodal.embedding.parts import Parts

    setting = Setting(config.batch_size, config.precision, config.normalize, config.prompt_name)
    check(model, source.kind, setting)
    parts = Parts(output)
    settings = {**_settings(config, model, source), **(more or {})}
    if next(source.parts(1), None) is None:
        raise InputError(f"{source.name} has nothing to embed.")
    if more and (about := _on_first(lambda: _finished(output, settings))):
        return about
    _on_first(lambda: parts.claim(settings, config.overwrite))
    workers = config.workers
    if workers is None:
        workers = min(8, os.cpu_count() or 1) if model.device.type == "cuda" else 1
    try:
        count = embed_parts(model, source, parts, setting, dtype=config.dtype, workers=workers)
    except OSError as error:  # what can't be read is an InputError already
        raise InputError(f"Cannot write {parts.folder}: {error.strerror}. What was embedded is kept.") from None
    distributed.wait()
    return _on_first(lambda: _finish(config, parts, count, settings, source, output))


def _finished(output: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a part of the work that was finished before says of itself. InputError where it was done otherwise."""
    import json

    from xmodal.embedding.outputs import ABOUT

    if not (output / ABOUT).is_file():
        return None
    about = json.loads((output / ABOUT).read_text(encoding="utf-8"))
    for name, value in settings.items():
        if name in about and about[name] != value:
            raise InputError(
                f"{output} was begun with another {name}: {about[name]!r} there, {value!r} now.\n"
                "With --overwrite it is thrown away; another --output leaves it alone."
            )
    return about


def embed_parts(
    model: Model, source: Input, parts: Parts, setting: Setting, *, dtype: str = "float32", workers: int = 0
) -> int:
    """Write this process's share of the parts, less those that are done; returns how many parts the input has.

    Raises InputError, on every process alike, where the input is another than before.
    """
    from tqdm import tqdm

    from xmodal import distributed
    from xmodal.embedding.embedder import SIZE, embed

    count = 0
    # None: no bar where nobody watches.
    with tqdm(desc="embedding", unit=" rows", disable=None if distributed.is_first() else True) as bar:

        def wanted() -> Iterator[Part]:
            nonlocal count
            for part in source.parts(SIZE[source.kind]):
                count += 1
                done = parts.has(part)
                if not done and part.number % distributed.processes() == distributed.rank():
                    yield part
                else:
                    bar.update(len(part.items))

        for found in embed(model, source, wanted(), setting, workers):
            parts.write(found.part, found.rows.astype(dtype), found.kept, found.skipped, found.truncated)
            bar.update(len(found.part.items))
    return count


def _settings(config: Config, model: Model, source: Input) -> dict[str, Any]:
    """What makes the rows what they are: parts of another are no parts of this."""
    import hashlib
    import json

    from xmodal.embedding.embedder import SIZE
    from xmodal.weights import digest

    description = json.dumps(model.description, sort_keys=True, default=str)
    return {
        "weights": digest(model),
        "architecture": hashlib.sha256(description.encode()).hexdigest(),
        "kind": source.kind,
        "column": config.column,
        "rows of a part": SIZE[source.kind],
        "normalized": config.normalize,
        "prompt_name": config.prompt_name,
        "precision": config.precision,
        "dtype": config.dtype,
        "batch_size": config.batch_size,
        "device": model.device.type,
        "xmodal": __version__,
    }


def _finish(
    config: Config, parts: Parts, count: int, settings: Mapping[str, Any], source: Input, output: Path
) -> dict[str, Any]:
    from xmodal.embedding.outputs import assemble

    records = parts.finished(count)
    rows = sum(len(record.items) for record in records)
    skipped = [one for record in records for one in record.skipped]
    if not rows:
        raise InputError(f"No picture of {source.name} can be read; the first: {skipped[0].item}, {skipped[0].reason}.")
    about = {
        "model": config.model,
        "data": source.name,
        "root": source.root,
        **{name: value for name, value in settings.items() if name != "rows of a part"},
        "rows": rows,
        "width": next(iter(parts)).shape[1],
        "skipped": len(skipped),
        "truncated": sum(record.truncated for record in records),
        "replaced": sum(source.replaced.values()),
    }
    try:
        assemble(parts, records, output, source.kind, about)
    except OSError as error:
        raise InputError(f"Cannot write {output}: {error.strerror}. What was embedded is kept.") from None
    parts.remove()
    return about


def _on_first(act: Any) -> Any:
    """What the first process's act gives, on every process; its InputError too, so that none waits for ever."""
    from xmodal import distributed

    told: tuple[Any, str | None] = (None, None)
    if distributed.is_first():
        try:
            told = (act(), None)
        except InputError as error:
            told = (None, str(error))
    value, problem = distributed.first_says(told)
    if problem is not None:
        raise InputError(problem)
    return value


def said(output: Path, about: Mapping[str, Any]) -> str:
    """What was written, and what is to be known of it."""
    lines = [f"Wrote {output}: {about['rows']:,} rows of {about['width']} numbers, {about['dtype']}."]
    if about["skipped"]:
        where = output / "skipped.jsonl" if not output.suffix else output.with_suffix(".skipped.jsonl")
        lines.append(f"Pictures that could not be read and are left out: {about['skipped']:,}, named in {where}")
    if about["truncated"]:
        lines.append(f"Texts that were longer than the model takes and are cut: {about['truncated']:,}")
    if about["replaced"]:
        lines.append(f"Texts that held what is no text (U+FFFD stands for it): {about['replaced']:,}")
    if not output.suffix:
        lines.append(f'Search it: xmodal search {output} "…"')
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    run(parse(Config, argv, prog="xmodal embed"))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
