"""Write a model for another library: open_clip, transformers, sentence-transformers or onnxruntime.

Tokenizer and preprocessing go along. The model is opened there and embeds fixed pictures and texts; over a difference
of 1e-4 nothing is written.

    xmodal convert runs/clip --to hf OUT
    xmodal convert hf:openai/clip-vit-base-patch32 --to open_clip OUT
    xmodal convert epoch_32.pt --trust-pickle --model open_clip:ViT-B-32 --to open_clip OUT
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from xmodal.config import parse
from xmodal.errors import InputError

if TYPE_CHECKING:
    from xmodal.encoders.two_tower import TwoTower
    from xmodal.interop.verify import Report


@dataclass(frozen=True, kw_only=True)
class Config:
    spec: tyro.conf.Positional[str]
    """A run folder, open_clip:MODEL[/PRETRAINED], hf:ID_OR_FOLDER and the other forms of `xmodal list`; or a
    checkpoint file of open_clip's trainer, with --model."""
    out: tyro.conf.Positional[Path]
    """The folder to write; new or empty."""
    to: Literal["open_clip", "hf", "sentence-transformers", "onnx"]
    """The library it is for; hf is transformers."""
    model: str | None = None
    """What a checkpoint file is a checkpoint of, such as open_clip:ViT-B-32."""
    trust_pickle: bool = False
    """Open weights that are in a pickle, with torch.load(weights_only=True)."""


def run(config: Config) -> Report:
    """Open, write, compare, print. Raises InputError and ConversionFailed; then nothing is written."""
    from xmodal.interop.save import module, refuse_taken, save_as

    refuse_taken(config.out)
    towers = opened(config.spec, config.model, config.trust_pickle)
    report = save_as(towers, config.out, config.to)
    print(f"Wrote {config.out} for {config.to}; {report}.")
    for note in report.notes:
        print(f"note: {note}")
    print(f"Open it: {module(config.to).OPEN.format(folder=config.out)}")
    return report


def opened(spec: str, model: str | None, trusted: bool) -> TwoTower:
    """The towers of a spec, of a checkpoint file of a model, or of a folder with pickles that are trusted."""
    from xmodal.encoders import load_towers
    from xmodal.interop.checkpoints import as_safetensors, pickles_of, put, read_state, refuse_untrusted

    file = Path(spec)
    if file.is_file():
        refuse_untrusted(file, trusted)
        if not model or not model.startswith("open_clip:"):
            raise InputError(f"{file} is a file of weights; say of which model: --model open_clip:MODEL")
        state = read_state(file, trusted)
        towers = load_towers(model, device="cpu")
        put(towers, state, file)
        return towers
    if model:
        raise InputError("--model says what a checkpoint file is of; a folder or a name says it by itself.")
    kind, folder, files = pickles_of(spec)
    if not files:
        return load_towers(spec, device="cpu")
    with as_safetensors(kind, folder, files, trusted) as copy:
        towers = load_towers(copy, device="cpu")
    towers.description["name"] = spec.removeprefix("open_clip:").removeprefix("hf:")
    return towers


def main(argv: Sequence[str] | None = None) -> int:
    run(parse(Config, argv, prog="xmodal convert"))
    return 0
