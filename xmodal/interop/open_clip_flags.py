"""A command line of open_clip_train as one of `xmodal train clip`: the same run, and a line for what is not the same.

    xmodal train clip --from-open-clip "torchrun --nproc_per_node 4 -m open_clip_train.main --train-data pairs.csv …"

What becomes of each flag stands in `open_clip_params`. Their defaults are carried over as well: who left out
`--grad-clip-norm` there gets no clipping here.
"""

from __future__ import annotations

import argparse
import ast
import math
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from xmodal.errors import InputError, nearest
from xmodal.flags import flag
from xmodal.interop.open_clip_params import (
    FAMILIES,
    LEFT_OUT,
    LISTS,
    NOT_THE_SAME,
    PRECISIONS,
    REFUSED,
    SWITCHES,
    TRANSLATED,
)

FLAG = "--from-open-clip"

TRACKERS = ("tensorboard", "wandb", "trackio")
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
PROGRAM = re.compile(r"(^|\.)(open_clip_train|training)\.main$|(^|/)main\.py$")  # `training` in older versions
LAUNCH = ["xmodal", "train", "clip"]


@dataclass(frozen=True)
class Rows:
    """What their table holds. split: the column because of which only a part is trained on, those of train."""

    lines: int
    images: int
    all_lines: int
    split: str | None = None


@dataclass(frozen=True)
class Translation:
    """values: fields of `xmodal.train.clip.Config`. notes: a line for each thing changed or left out, those that
    change the result first. launcher: the beginning of the command line that runs it.
    """

    values: dict[str, Any]
    notes: list[str]
    launcher: list[str]

    def flags(self) -> list[str]:
        """The values as flags of ours."""
        return [token for name, value in self.values.items() for token in _spelled(name, value)]

    def command(self) -> str:
        """The whole command line, to be typed."""
        return shlex.join([*self.launcher, *self.flags()])


def expand(argv: Sequence[str], say: Callable[[str], object] | None = None) -> list[str]:
    """argv with their command line behind `--from-open-clip` turned into flags of ours; flags beside it win.

    Says the command line that came of it, and what isn't as it was: with `say`, or printed by the first process.
    argv without the flag comes back as it is. Raises InputError.
    """
    command, rest = _take(list(argv))
    if command is None:
        return rest
    found = translate(command, processes=int(os.environ.get("WORLD_SIZE", "1")), count=count_rows)
    given = {token[2:].partition("=")[0].replace("-", "_") for token in rest if token.startswith("--")}
    given |= {name.removeprefix("no_") for name in given}
    if given & {"epochs", "steps"}:  # either says how long the run is
        given |= {"epochs", "steps"}
    kept = {name: value for name, value in found.values.items() if name not in given}
    flags = Translation(kept, found.notes, found.launcher).flags()
    if say is None:
        say = print if os.environ.get("RANK", "0") == "0" else lambda text: None
    say(f"{FLAG}: {shlex.join([*found.launcher, *flags, *rest])}")
    for note in found.notes:
        say(f"  {note}")
    return [*flags, *rest]


def translate(
    command: str | Sequence[str],
    *,
    processes: int = 1,
    count: Callable[[str, str], Rows | None] = lambda data, column: None,
) -> Translation:
    """Their command line, with or without what starts it, as fields of our configuration.

    command: as typed in a shell, backslashes at the ends of lines included, or its words.
    processes: how many train here; a table's lines a process decide how long their epochs are.
    count: from their table and the name of its image column to what it holds; None where that isn't known. Then the
    run is as many epochs, and whatever they say in epochs stays with our default.
    Raises InputError for a flag that neither knows and for what can't be done here, all of it in one go.
    """
    launcher, words = _split(command)
    given = _parse(words)
    theirs = {name: default for name, (_, default) in TRANSLATED.items()} | given
    _refuse(theirs, given)
    different: list[str] = []
    notes: list[str] = []
    shards = _of_shards(theirs)
    rows = None if shards else count(theirs["--train-data"], theirs["--csv-img-key"])

    values = {
        "preset": "paper",  # its numbers are all replaced; any other would replace what isn't said
        **_data(theirs, rows, different, notes),
        **_model(theirs, given, different, notes),
        **_optimizer(theirs, different),
        **_length(theirs, given, rows, processes, different, notes),
        **_machine(theirs, given, notes),
        **_folder(theirs, given, notes),
    }
    _imagenet(theirs, values, notes)
    for table, to in ((NOT_THE_SAME, different), (LEFT_OUT, notes)):
        for names, why in table.items():
            if told := [name for name in names if name in given]:
                to.append(f"{', '.join(told)}: {why}")
    started = _processes(launcher)
    if started and processes % started:  # a multiple of it is several machines
        different.append(f"their command starts {started} processes on a machine and this run has {processes}")
    return Translation(values, [*(f"not the same: {line}" for line in different), *notes], launcher)


def count_rows(data: str, column: str) -> Rows | None:
    """Lines and images of a table, of its split train if it has one; None where there is no such file."""
    from xmodal.data.delimited import image_column, of_split, rows_of, split_column
    from xmodal.data.source import Columns
    from xmodal.data.table import splits

    if not os.path.isfile(data):
        return None
    path, present = Path(data), Counter[str]()
    split = "train" if "train" in splits(path, Columns()) else None
    with rows_of(path) as (header, lines):
        image, part = image_column(path, header, column), split_column(path, header, None)
        images = [os.path.normpath(line[image].strip()) for line in of_split(lines, part, split, present)]
    named = header[part] if split and part is not None else None
    return Rows(len(images), len(set(images)), present.total(), named)


def _take(argv: list[str]) -> tuple[str | None, list[str]]:
    """The value of `--from-open-clip`, whatever it begins with, and the other words."""
    at = [i for i, word in enumerate(argv) if word.partition("=")[0] == FLAG]
    if not at:
        return None, argv
    if len(at) > 1:
        raise InputError(f"{FLAG} is given twice.")
    _, equals, value = argv[at[0]].partition("=")
    if equals:
        return value, argv[: at[0]] + argv[at[0] + 1 :]
    if at[0] + 1 == len(argv):
        raise InputError(f"{FLAG} needs a value: open_clip_train's whole command line, in quotes.")
    return argv[at[0] + 1], argv[: at[0]] + argv[at[0] + 2 :]


def _split(command: str | Sequence[str]) -> tuple[list[str], list[str]]:
    """What starts our program instead of theirs, and the words behind theirs."""
    if isinstance(command, str):
        try:
            # A shell joins lines at a backslash; shlex keeps it.
            words = shlex.split(re.sub(r"\\[ \t]*\r?\n", " ", command))
        except ValueError as error:
            raise InputError(f"{FLAG}: this is no command line ({str(error).lower()}).") from None
    else:
        words = list(command)
    program = next((i for i, word in enumerate(words) if PROGRAM.search(word)), None)
    if program is None and not (words and words[0].startswith("-")):
        raise InputError(
            f"{FLAG} takes open_clip_train's whole command line as one value, so put quotes around it:\n"
            f"{FLAG} 'python -m open_clip_train.main --train-data …'"
        )
    if program is None:
        return LAUNCH, words
    start = words[:program]
    for i, word in enumerate(start):
        if word in ("&&", ";"):  # cd …/src &&
            start = words[i + 1 : program]
    start = start[:-1] if start[-1:] == ["-m"] else start
    environment = [word for word in start if re.match(r"\w+=", word)]
    starter = [word for word in start if word not in environment]
    if not starter or (len(starter) == 1 and Path(starter[0]).name.startswith("python")):
        return [*environment, *LAUNCH], words[program + 1 :]
    return [*environment, *starter, "-m", "xmodal.train.clip"], words[program + 1 :]


def _processes(launcher: list[str]) -> int | None:
    """How many processes torchrun was told to start on a machine, if that is a number."""
    found = re.search(r"--?nproc[-_]per[-_]node[= ](\d+)", " ".join(launcher))
    return int(found[1]) if found else None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{FLAG}: {message}.")


def parser() -> argparse.ArgumentParser:
    """Theirs, as far as it matters here: every flag, with a value in the namespace only where it is given."""
    found = _Parser(prog="open_clip_train", add_help=False, argument_default=argparse.SUPPRESS)
    for name, (kind, _) in TRANSLATED.items():
        _add(found, name, kind)
    for table in (LEFT_OUT, NOT_THE_SAME, REFUSED):
        for name in (name for names in table for name in names):
            _add(found, name, bool if name in SWITCHES else list if name in LISTS else str)
    return found


def _add(to: argparse.ArgumentParser, name: str, kind: type) -> None:
    if kind is bool:
        to.add_argument(name, dest=name, action="store_true")
    elif kind is list:
        to.add_argument(name, dest=name, nargs="*")
    else:
        to.add_argument(name, dest=name, type=kind)


def _parse(words: list[str]) -> dict[str, Any]:
    """Their flags that are given, with values."""
    for word in words:
        if word.startswith(FAMILIES):
            raise InputError(f"{FLAG}: {word.partition('=')[0]}: there are no NaFlex and no audio models here.")
    found = parser()
    given, unknown = found.parse_known_args(words)
    if unknown:
        wrong = next((word for word in unknown if word.startswith("-")), unknown[0])
        if not wrong.startswith("-"):
            raise InputError(f"{FLAG}: open_clip_train has no use for {wrong!r}.")
        known = [name for action in found._actions for name in action.option_strings]
        raise InputError(f"{FLAG}: open_clip_train has no flag {wrong}; {nearest(wrong.partition('=')[0], known)}")
    return vars(given)


def _refuse(theirs: dict[str, Any], given: dict[str, Any]) -> None:
    """Everything at once that can't be done here."""
    found = [
        f"{', '.join(told)}: {why}"
        for names, why in REFUSED.items()
        if (told := [name for name in names if given.get(name) not in (None, False, "0", "0.0", "1.0")])
    ]
    train, kind, resume, weights = (theirs[f"--{n}"] for n in ("train-data", "dataset-type", "resume", "pretrained"))
    if "pipe:" in str(train):
        found.append(f"--train-data {train}: a command isn't run; name the address itself, such as s3://… or https://…")
    elif train and kind.startswith("webdataset") and not all(".tar" in part for part in train.split("::")):
        found.append(f"--dataset-type {kind}: --train-data {train} names no tar files")
    elif kind.startswith("synthetic"):
        found.append(f"--dataset-type {kind}: there are no made-up pictures; without --data there is glyphs")
    elif not train:
        found.append("--train-data isn't given, so nothing is trained; to score a model: xmodal eval retrieval")
    if theirs["--opt"].lower() != "adamw":
        found.append(f"--opt {theirs['--opt']}: the optimizer is AdamW")
    if theirs["--precision"] not in PRECISIONS:
        raise InputError(
            f"{FLAG}: no --precision {theirs['--precision']!r}; {nearest(theirs['--precision'], PRECISIONS)}"
        )
    if "coca" in theirs["--model"].lower():
        found.append(f"--model {theirs['--model']}: CoCa is no dual encoder")
    if weights.endswith(PICKLES):
        found.append(
            f"--pretrained {weights}: a pickle, which may run code when it is opened; save the model with open_clip's "
            "save_for_hf and give --model local-dir:FOLDER"
        )
    elif "/" in weights or weights.endswith(".safetensors"):
        found.append(f"--pretrained {weights}: a file of weights alone; give --model local-dir:FOLDER, with its config")
    if resume not in (None, "latest"):
        found.append(f"--resume {resume}: a checkpoint of open_clip is a pickle and isn't opened; --resume latest is")
    if found:
        raise InputError(f"{FLAG}: not here, so leave it out of the command or change it:\n  " + "\n  ".join(found))


def _of_shards(theirs: dict[str, Any]) -> bool:
    """Whether what is trained on is tar files, as they tell it."""
    kind, train = theirs["--dataset-type"], str(theirs["--train-data"])
    return kind.startswith("webdataset") or (kind == "auto" and ("::" in train or train.endswith(".tar")))


def _data(theirs: dict[str, Any], rows: Rows | None, different: list[str], notes: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {"data": theirs["--train-data"]}
    if theirs["--val-data"]:
        values["val"] = theirs["--val-data"]
    factors = theirs["--train-data-upsampling-factors"]
    if not _of_shards(theirs):
        values |= {"image_column": theirs["--csv-img-key"], "caption_column": theirs["--csv-caption-key"]}
        if factors:
            notes.append("--train-data-upsampling-factors: about shards, nothing for a table")
    elif factors:
        values["weights"] = _weights(factors)
        different.append(
            f"--train-data-upsampling-factors {factors}: there the odds at which samples are drawn, here of how many "
            "times its rows an epoch has of each source"
        )
    different.append("equal images or captions of a batch are positives here, and negatives there")
    if rows is not None and rows.split is not None:
        different.append(
            f"the table has a column {rows.split}: its {rows.lines} lines of train are trained on, there all "
            f"{rows.all_lines} are"
        )
    return {**values, "augment": _augment(theirs, different)}


def _weights(factors: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in factors.split("::"))
    except ValueError:
        raise InputError(
            f"{FLAG}: --train-data-upsampling-factors is {factors!r}; expected numbers with :: between, such as 1::2.5."
        ) from None


def _augment(theirs: dict[str, Any], different: list[str]) -> str:
    """`clip` is what they do unless told otherwise: a rectangle of 0.9 to 1 of the picture's area."""
    told = dict(word.partition("=")[::2] for word in theirs["--aug-cfg"] or [] if word)
    try:
        usual = tuple(ast.literal_eval(told.get("scale", "(0.9, 1.0)"))) == (0.9, 1.0) and not told.keys() - {"scale"}
    except (ValueError, SyntaxError, TypeError):
        usual = False
    if not usual:
        words = " ".join(f"{name}={value}" for name, value in told.items())
        different.append(
            f"--aug-cfg {words}: pictures are cut to 0.9 to 1 of their area; --augment photo takes 0.35 to 1, and flips"
        )
    return "clip"


def _model(theirs: dict[str, Any], given: dict[str, Any], different: list[str], notes: list[str]) -> dict[str, Any]:
    name, tag = theirs["--model"].replace("/", "-"), theirs["--pretrained"]
    if theirs["--model"].startswith(("hf-hub:", "local-dir:")):
        name, tag = theirs["--model"], ""  # they hold their weights
    if theirs["--force-quick-gelu"] and not name.endswith("-quickgelu"):
        name += "-quickgelu"
        notes.append(f"--force-quick-gelu: the model is called {name}")
    values: dict[str, Any] = {"model": f"open_clip:{name}" + (f"/{tag}" if tag else "")}
    for tower, rest in (("image", "--lock-image-unlocked-groups"), ("text", "--lock-text-unlocked-layers")):
        if theirs[f"--lock-{tower}"]:
            values[f"lock_{tower}"] = True
            if groups := theirs[rest]:
                values[f"unlock_{tower}"] = _unlocked(groups, tower, rest, different, notes)
        elif rest in given:
            notes.append(f"{rest}: means nothing without --lock-{tower}, there as here")
    return values


def _unlocked(groups: int, tower: str, name: str, different: list[str], notes: list[str]) -> int:
    """Layers for their groups: the first group of a transformer of open_clip's is its projection alone."""
    layers = max(1, groups - 1)
    if groups == 1:
        different.append(f"{name} 1: there the projection alone is trained, here the last layer as well")
    else:
        notes.append(
            f"{name} {groups}: --unlock-{tower} {layers}, as the projection counts as a group there; towers of timm "
            "and of transformers are counted otherwise"
        )
    return layers


def _optimizer(theirs: dict[str, Any], different: list[str]) -> dict[str, Any]:
    own = _for_model(theirs["--model"])
    values = {name: own[name] if theirs[f"--{name}"] is None else theirs[f"--{name}"] for name in own}
    schedule = theirs["--lr-scheduler"]
    if theirs["--skip-scheduler"]:
        different.append("--skip-scheduler: the learning rate rises over --warmup and falls as half a cosine")
    elif schedule != "cosine":
        different.append(f"--lr-scheduler {schedule}: after --warmup the learning rate falls as half a cosine")
    values |= {"wd": theirs["--wd"], "warmup": theirs["--warmup"], "clip_norm": theirs["--grad-clip-norm"] or 0.0}
    return values


def _for_model(model: str) -> dict[str, float]:
    """Their `get_default_params`: CLIP's numbers for its transformers and for its ResNets."""
    if "vit" in model.lower():
        return {"lr": 5e-4, "beta1": 0.9, "beta2": 0.98, "eps": 1e-6}
    return {"lr": 5e-4, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}


def _length(
    theirs: dict[str, Any],
    given: dict[str, Any],
    rows: Rows | None,
    processes: int,
    different: list[str],
    notes: list[str],
) -> dict[str, Any]:
    """Batch, epochs, and in steps what they say in epochs."""
    pairs, slices, epochs = theirs["--batch-size"], theirs["--accum-freq"], theirs["--epochs"]
    values: dict[str, Any] = {"batch_size": pairs * slices}
    if slices > 1:
        values["micro_batch"] = pairs
        notes.append(f"--accum-freq {slices}: batches of {pairs * slices} in slices of {pairs}, the same gradient")
    values["epochs"] = float(epochs)
    epoch = math.ceil(rows.lines / processes) // pairs // slices if rows else 0  # their steps in one
    if samples := theirs["--train-num-samples"]:
        if _of_shards(theirs):
            batches, workers = math.ceil(samples / (pairs * processes)), max(1, theirs["--workers"])
            epoch = math.ceil(batches / workers) * workers // slices  # each worker has as many
            values["steps"] = epochs * epoch
            notes.append(f"--train-num-samples {samples}: an epoch is {epoch} steps there, and so long is the run here")
        else:
            notes.append("--train-num-samples: not needed, the table's rows are counted")
    steps = epochs * epoch
    if rows and epoch:
        ours = rows.images // (pairs * slices * processes)
        if ours != epoch:
            values["steps"] = steps
            notes.append(
                f"--epochs {epochs}: {epoch} steps each there, where every line is a pair, and {ours} here, where an "
                f"image comes with one of its captions: --steps {steps} is as long"
            )
    if epoch and theirs["--warmup"] >= steps:
        different.append(
            f"--warmup {theirs['--warmup']}: longer than the run of {steps} steps, so it is cut to a tenth of it; "
            f"there the learning rate ends at {steps / theirs['--warmup']:.0%} of --lr"
        )
    for name, field, wanted in (
        ("--save-frequency", "save_every", "--save-frequency" in given),
        ("--val-frequency", "eval_every", bool(theirs["--val-data"])),
    ):
        if wanted and (epoch or not theirs[name]):
            values[field] = theirs[name] * epoch
        elif name in given:
            unknown = "how many steps that is isn't known without the table" if wanted else "there is no --val-data"
            notes.append(f"{name} {theirs[name]}: left out, {unknown}")
    return values


def _machine(theirs: dict[str, Any], given: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    precision, why = PRECISIONS[theirs["--precision"]]
    if why:
        default = "" if "--precision" in given else " (their default)"
        notes.append(f"--precision {theirs['--precision']}{default}: {precision}; {why}")
    values: dict[str, Any] = {"precision": precision, "seed": theirs["--seed"]}
    if "--workers" in given:
        values["workers"] = theirs["--workers"]
    else:
        notes.append("--workers 4 (their default): by the machine; what is learnt doesn't depend on it")
    switches = {"--grad-checkpointing": "grad_checkpointing", "--torchcompile": "compile"}
    return values | {field: True for name, field in switches.items() if theirs[name]}


def _folder(theirs: dict[str, Any], given: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    logs, name = theirs["--logs"], theirs["--name"]
    if logs.lower() == "none":
        notes.append("--logs none: a run always has a folder")
        logs = "runs"
    if name or "--logs" in given:
        values["output"] = os.path.normpath(os.path.join(logs, name or "clip"))
    if not name:
        notes.append(
            f"--name isn't given: the folder is {values.get('output', 'runs/clip')}, not one named by the time"
        )
    if theirs["--resume"] == "latest":
        values["resume"] = True
    told = theirs["--report-to"]
    track = tuple(tracker for tracker in TRACKERS if tracker in told or ("all" in told and tracker != "trackio"))
    if track:
        values["track"] = track
    elif told:
        notes.append(f"--report-to {told}: none of {', '.join(TRACKERS)}, so nothing, there as here")
    return values


def _imagenet(theirs: dict[str, Any], values: dict[str, Any], notes: list[str]) -> None:
    for name in ("--imagenet-val", "--imagenet-v2"):
        if theirs[name]:
            run = values.get("output", "runs/clip")
            notes.append(
                f"{name}: not while training; afterwards, with a file NAMES of a line for each class folder in order: "
                f"xmodal eval zeroshot {run} --data {shlex.quote(theirs[name])} --classes NAMES --templates openai"
            )


def _spelled(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag(name if value else f"no_{name}")]
    return (
        [flag(name), *map(str, value)]
        if isinstance(value, tuple)
        else [flag(name), f"{value:g}" if isinstance(value, float) else str(value)]
    )
