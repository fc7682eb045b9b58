"""What a run is told: the flags every recipe shares, where their values come from, and the file that keeps them.

A recipe's `Config` is a frozen dataclass; the name of a field is its flag (`batch_size` is `--batch-size`) and the
docstring below a field is its help. Later sources win: the dataclass's defaults (the paper's setting), the preset,
`--config FILE`, the flags. The dataclass may have a method `check()` that raises InputError; it sees final values
only (a `__post_init__` would see drafts too).
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from xmodal import __version__
from xmodal.errors import InputError, nearest
from xmodal.flag_help import print_help
from xmodal.flags import Field, convert, expected, fields_of, fill, flag, scan

T = TypeVar("T")

VERSION_KEY = "xmodal"  # marks a file that `write` made: its values are final
RECIPE_KEY = "recipe"  # beside it, for people and for a model's card
NOT_KEPT = (
    "allow_changed_config",
    "allow_changed_data",
    "config",
    "from_open_clip",
    "resume",
)  # they say how a run was started, not what it is


@dataclass(frozen=True, kw_only=True)
class Shared:
    """The flags every recipe shares. Those without a default have no common one: each paper has its own."""

    data: str = "glyphs"
    """What to train on: a built-in set, or what `xmodal data inspect` knows: a table, a JSON, a folder, parquet or tar
    shards, here or at an address such as https://HOST/part-{0000..0041}.parquet or hf://datasets/ORG/NAME, or
    hf-dataset:ORG/NAME, which is downloaded, but with ,streaming behind it; several with :: between."""
    val: str | None = None
    """What to evaluate on instead of the validation split of --data."""
    output: Path | None = None
    """The folder of the run; runs/NAME if not given. It must be empty, or with --resume that run's own."""
    preset: Literal["auto", "paper", "quick"] = "auto"
    """paper: the defaults listed here. quick: for two CPU cores. auto: quick on built-in data, else paper."""
    epochs: float
    """How often the training data is gone through."""
    steps: int | None = None
    """The number of optimiser steps, instead of --epochs."""
    batch_size: int
    """Pairs in a step on each process."""
    micro_batch: int | Literal["auto"] | None = None
    """Encode so many pairs at a time on each process (gradient caching): less memory, the same gradient.
    auto: as many as fit into the memory that is free."""
    lr: float
    """The highest learning rate."""
    wd: float
    """Weight decay."""
    warmup: int
    """Steps over which the learning rate rises from 0."""
    seed: int = 0
    """Of the initial weights, the order of samples and their augmentation."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where the device computes in it, else fp32."""
    compile: bool = False
    """Compile the towers with torch.compile."""
    fsdp: bool = False
    """Leave each process a part of the towers, their gradients and the optimizer's state (torch's FSDP2): for towers
    that don't fit whole. The same gradient; on one process nothing is shared out."""
    grad_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, slower."""
    workers: int | None = None
    """Processes that read and decode data, for each training process; 0: it does so itself.
    If not given, 0 on a CPU and up to 8 on a GPU."""
    eval_every: int = 0
    """Evaluate each time so many steps are done; 0: only at the end."""
    save_every: int = 500
    """Write a checkpoint each time so many steps are done; 0: only at the end."""
    resume: bool = False
    """Go on from the last checkpoint in --output."""
    allow_changed_data: bool = False
    """Go on with other data than the run began with."""
    allow_changed_config: bool = False
    """Go on with other settings than the run began with, such as more steps; without it they must be the same."""
    timeout: int = 600
    """Seconds after which a process that gives no sign of life is taken for dead and the others end, with its name;
    until a step is done they wait for each other for at least 1800."""
    track: tuple[str, ...] = ()
    """Trackers of accelerate to log to as well: tensorboard, wandb, …"""
    max_bad_fraction: float = 0.01
    """Stop when more than this fraction of the samples cannot be read."""
    config: Path | None = None
    """A YAML file with values for these flags; the config.yaml of a run repeats it."""

    def check(self) -> None:
        """Raise InputError for a number that no run can have. Recipes extend it for their own."""
        for name, least in {
            "steps": 1,
            "batch_size": 1,
            "seed": 0,
            "warmup": 0,
            "workers": 0,
            "timeout": 1,
        }.items():
            require(self, name, lambda v, least=least: v >= least, f"at least {least}")
        require(self, "micro_batch", lambda v: v == "auto" or v >= 1, "at least 1, or auto")
        for name in ("eval_every", "save_every", "wd"):
            require(self, name, lambda v: 0 <= v < math.inf, "0 or more")
        for name in ("epochs", "lr"):
            require(self, name, lambda v: 0 < v < math.inf, "more than 0")
        require(self, "max_bad_fraction", lambda v: 0 <= v <= 1, "between 0 and 1")


def require(config: Any, name: str, holds: Callable[[Any], bool], wanted: str) -> None:
    """InputError unless the field has no value or `holds` of it; for `check` methods."""
    value = getattr(config, name)
    if value is not None and not holds(value):
        raise InputError(f"{flag(name)} is {value}; expected {wanted}.")


def parse(
    config_type: type[T],
    argv: Sequence[str] | None,
    *,
    prog: str,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    choose_preset: Callable[[T], str] | None = None,
) -> T:
    """The configuration that the command line asks for.

    config_type: a dataclass; fields `preset` and `config` are optional, `tyro.conf.Positional` is understood.
    argv: without the program's name; None takes the process's.
    presets: values for each preset. "paper", the defaults as they are, always exists.
    choose_preset: from the configuration without a preset to the name that "auto" stands for; without it "paper".
    Raises InputError; `--help` prints and raises SystemExit(0).
    """
    argv, presets = list(sys.argv[1:] if argv is None else argv), presets or {}
    if "-h" in argv or "--help" in argv:
        print_help(config_type, prog, presets)
        raise SystemExit(0)
    fields = fields_of(config_type)
    scanned = scan(argv, fields, prog)
    flags = scanned.flags

    filed: dict[str, Any] = {}
    final = False
    if flags.get("config"):
        filed, final = _load(Path(flags["config"]))
        filed = {name: _file_value(name, value, fields, flags["config"]) for name, value in filed.items()}

    positional = [name for name, field in fields.items() if field.positional]
    draft = fill(config_type, scanned, prog, fields, {**filed, **flags})
    given = [*flags, *(positional if scanned.loose else ())]
    stated = {**filed, **{name: getattr(draft, name) for name in given}}
    draft = _replace(draft, stated)

    if "preset" in fields:
        name = draft.preset  # pyright: ignore[reportAttributeAccessIssue]
        if final and "preset" in filed:
            if name not in ("auto", filed["preset"]):
                raise InputError(
                    f"--preset {name} has nothing to set: {flags['config']} holds every value of a run with preset "
                    f"{filed['preset']}.\nLeave out --preset or --config."
                )
            name = filed["preset"]
        if name == "auto":
            name = choose_preset(draft) if choose_preset else "paper"
        if name != "paper" and name not in presets:
            raise InputError(f"{prog} has no preset {name!r}; {nearest(name, ['paper', *presets])}")
        draft = _replace(draft, {**presets.get(name, {}), **stated, "preset": name})

    if check := getattr(draft, "check", None):
        check()
    return draft


def write(config: Any, path: str | Path, recipe: str | None = None) -> None:
    """Keep the resolved values as YAML, in the order of the fields; `--config PATH` brings them back.

    recipe: whose they are, NAME of `xmodal train NAME`.
    """
    import yaml

    values = {VERSION_KEY: __version__, **({RECIPE_KEY: recipe} if recipe else {}), **plain(config)}
    Path(path).write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")


def plain(config: Any) -> dict[str, Any]:
    """The values as YAML has them, in the order of the fields: paths are strings, tuples are lists.

    Without those that say how a run was started, not what it is: `config` and `resume`.
    """

    def of(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        return [of(v) for v in value] if isinstance(value, tuple | list) else value

    return {f.name: of(getattr(config, f.name)) for f in dataclasses.fields(config) if f.name not in NOT_KEPT}


def read(path: str | Path) -> dict[str, Any]:
    """The values in a configuration file, in the types of `plain`."""
    return _load(Path(path))[0]


def _replace(config: T, values: Mapping[str, Any]) -> T:
    return dataclasses.replace(config, **values)  # pyright: ignore[reportType, reportArgumentType]


def _load(path: Path) -> tuple[dict[str, Any], bool]:
    """The values in a file, by field, and whether `write` made it."""
    import yaml

    if path.is_dir():
        raise InputError(f"--config {path} is a folder; expected a YAML file, such as {path / 'config.yaml'}.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"Cannot read the configuration {path}: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = f"line {mark.line + 1}: {getattr(error, 'problem', '')}" if mark else " ".join(str(error).split())
        raise InputError(f"{path} is no YAML: {problem}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no configuration; expected lines such as: batch_size: 512")
    values = {str(name).replace("-", "_"): value for name, value in values.items()}
    final = values.pop(VERSION_KEY, None) is not None
    if final:
        values.pop(RECIPE_KEY, None)
    return values, final


def _file_value(name: str, value: Any, fields: dict[str, Field], path: Any) -> Any:
    if name not in fields or name == "config":
        raise InputError(f"{path} has an unknown key {name!r}; {nearest(name, [n for n in fields if n != 'config'])}")
    try:
        return convert(value, fields[name].hint)
    except ValueError:
        raise InputError(f"{path}: {name} is {value!r}; expected {expected(fields[name].hint)}.") from None
