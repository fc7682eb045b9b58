"""A page to try a model on: captions, pictures and classes that you think of, against data that it was not trained on.

It is served to this machine alone, and asks no other for anything. Without --data it searches in what is built in.

    xmodal demo runs/clip
    xmodal demo open_clip:ViT-B-32/openai --data captions.csv --most 20000
    xmodal demo st:all-MiniLM-L6-v2 --index index
    xmodal demo runs/clip --screenshot demo.png

A dual encoder finds pictures for captions, captions for pictures, and classes; a sentence encoder texts for texts; an
image encoder pictures for pictures.
"""

from __future__ import annotations

import importlib.metadata
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from xmodal.cli import guard
from xmodal.config import parse, require
from xmodal.errors import InputError

if TYPE_CHECKING:
    from xmodal.demo.answers import Answers


@dataclass(frozen=True, kw_only=True)
class Config:
    model: tyro.conf.Positional[str]
    """A run folder, open_clip:MODEL[/PRETRAINED] and the other forms of `xmodal list`."""
    data: str | None = None
    """What is searched in: pictures with captions or classes, for a sentence encoder texts. Of data with splits the
    test is taken, else val. Without it glyphs/unseen_typeface, for a sentence encoder prose."""
    index: tuple[Path, ...] = ()
    """Instead of --data, folders that `xmodal embed` wrote with this model: one of pictures, one of texts."""
    most: int = 5000
    """Pictures or texts that are embedded at the start, at most."""
    host: str = "127.0.0.1"
    """The address to listen on; any but this one is open to whoever can reach it."""
    port: int = 7860
    """0: one that is free."""
    screenshot: Path | None = None
    """Write a picture of the page, taken by Chromium, as PNG, and end."""

    def check(self) -> None:
        require(self, "most", lambda v: v >= 1, "at least 1")
        require(self, "port", lambda v: 0 <= v <= 65535, "between 0 and 65535")
        if self.data is not None and self.index:
            raise InputError("--data and --index are two ways to say what is searched in; give one.")
        if self.screenshot and self.screenshot.suffix.lower() != ".png":
            raise InputError(f"--screenshot {self.screenshot}: the name ends in .png.")


def run(config: Config) -> None:
    """Embed, then serve until it is interrupted; or write a picture of the page."""
    need_gradio()
    from xmodal.demo.server import address_of, listen, server

    if config.screenshot:
        from xmodal.demo.chromium import find_chromium

        find_chromium()  # what is missing is said before minutes of embedding
    listening = listen(config.host, 0 if config.screenshot else config.port)
    with listening, server(open_answers(config), listening) as serving:
        if config.screenshot:
            from xmodal.demo.screenshot import take

            take(serving, listening, config.screenshot)
            print(f"Wrote {config.screenshot}")
            return
        print(f"{address_of(listening)}  (Ctrl-C ends it)", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was uploaded goes, too
        serving.run(sockets=[listening])


def need_gradio() -> None:
    """Raises InputError where it isn't installed, or is older than what the page is written for."""
    try:
        found = importlib.metadata.version("gradio")
    except importlib.metadata.PackageNotFoundError:
        raise InputError('xmodal demo needs gradio, which is not installed: pip install "xmodal[demo]"') from None
    if int(found.partition(".")[0]) < 6:
        raise InputError(f'xmodal demo needs gradio 6, and {found} is installed: pip install "xmodal[demo]"')


def open_answers(config: Config) -> Answers:
    """The model with what it is asked about. Raises InputError for a model of neither pictures nor texts."""
    from xmodal import load
    from xmodal.demo.answers import Answers
    from xmodal.demo.gallery import open_gallery
    from xmodal.encoders.sequence import SequenceEncoder

    model = load(config.model)
    if isinstance(model, SequenceEncoder):
        raise InputError(f"{config.model} takes sequences; the page is for models of pictures or texts.")
    return Answers(model, config.model, open_gallery(model, config.data, config.index, config.most))


def main(argv: Sequence[str] | None = None) -> int:
    try:
        run(parse(Config, argv, prog="xmodal demo"))
    except KeyboardInterrupt:  # the way to end it
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
