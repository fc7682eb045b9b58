"""Push a model and its card to the Hugging Face hub, in our layout or in that of another library.

    xmodal push runs/clip ORG/NAME --dry-run
    xmodal push runs/clip ORG/NAME --format open_clip --private
    hf auth login                                        once, or a token in HF_TOKEN

Pushed are settings, tokenizer, safetensors, config.yaml and scores.json of the run, and README.md, the model's card;
paths of this machine become names, and a file that holds a token or a path stops it all.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import tyro

from xmodal.config import parse

if TYPE_CHECKING:
    from xmodal.interop.hub import Pushed


@dataclass(frozen=True, kw_only=True)
class Config:
    spec: tyro.conf.Positional[str]
    """A run folder, or another form of `xmodal list`."""
    repository: tyro.conf.Positional[str]
    """Where to: ORG/NAME, made if it isn't there. One that holds anything but an earlier push stays as it is."""
    format: Literal["xmodal", "open_clip", "hf", "sentence-transformers"] = "xmodal"
    """Whose layout: xmodal, for `xmodal.load("hub:ORG/NAME")`, or that of another library (hf is transformers)."""
    private: bool = False
    """Make the repository private."""
    revision: str | None = None
    """The branch to push to, made if it isn't there; else the main one."""
    license: str | None = None
    """The licence's identifier for the card, such as mit or apache-2.0."""
    dry_run: bool = False
    """Print what would be pushed, without a network."""


def run(config: Config) -> Pushed:
    """Open, write, look through, push, print. Raises InputError; then nothing was pushed."""
    from xmodal import load
    from xmodal.encoders.hub import refuse_name
    from xmodal.interop.hub import offline, push, refuse_unable

    refuse_name(config.repository)
    if not config.dry_run:
        refuse_unable(None)
    with offline() if config.dry_run else nullcontext():
        pushed = push(
            load(config.spec, device="cpu"),
            config.repository,
            format=config.format,
            source=config.spec,
            license=config.license,
            private=config.private,
            revision=config.revision,
            dry_run=config.dry_run,
        )
    if config.dry_run:
        print(pushed.card)
    width = max(map(len, pushed.files))
    for name, size in pushed.files.items():
        print(f"{name:{width}}  {size:>14,} bytes")
    for note in pushed.notes:
        print(f"note: {note}")
    total = f"{len(pushed.files)} files, {sum(pushed.files.values()):,} bytes"
    if config.dry_run:
        print(f"Nothing was pushed: {total} would go to {config.repository}.")
    else:
        print(f"Pushed {total}: {pushed.address}\nOpen it: xmodal.load({pushed.spec!r})".replace("'", '"'))
    return pushed


def main(argv: Sequence[str] | None = None) -> int:
    run(parse(Config, argv, prog="xmodal push"))
    return 0
