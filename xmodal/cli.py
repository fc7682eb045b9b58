"""The command line: finds the program that a name stands for and runs it; owns no flags of a recipe.

A name is a module name: `xmodal train clip` calls `xmodal.train.clip.main`. Nothing heavy is imported here, and
`list` reads docstrings without importing anything.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import io
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from types import ModuleType

from xmodal import __version__
from xmodal.errors import Failed, InputError, SaidElsewhere, Stopped, nearest

HELP = """\
xmodal: contrastive learning across images and text

  xmodal train NAME [flags]    train a model; `xmodal train NAME --help` explains its flags
  xmodal eval NAME [flags]     score a model
  xmodal convert SPEC [flags]  a model for open_clip, transformers, sentence-transformers or onnxruntime
  xmodal push SPEC ORG/NAME    a model and its card to the Hugging Face hub
  xmodal score A B [flags]     cosines of texts, of a table of pairs, of pictures and texts
  xmodal embed [flags]         many texts or pictures into a file or an index
  xmodal search INDEX QUERY    the nearest texts or pictures of an index
  xmodal demo SPEC [flags]     a page to try a model on, with captions, pictures and classes of yours
  xmodal data inspect DATA     what pictures and captions a file or folder has; `check` reads every one, `pack` writes
                               them as tar shards, shrunk to what training needs
  xmodal data views IMAGE      a sheet of what an augmentation makes of a picture
  xmodal list                  the recipes, evaluations, built-in data and kinds of models there are
  xmodal copy NAME [DEST]      a recipe, an evaluation or a launch file of ours as a file of yours, to edit
  xmodal doctor                versions, devices and disk; what is missing and the command that installs it
  xmodal --version

NAME is a name from `xmodal list`, a file of yours (mine.py) or a module (package.mine).
Start with:        xmodal train clip
Several processes: torchrun --nproc_per_node 2 -m xmodal.train.clip [flags]
Exit status: 0 done, 2 wrong input, 1 anything else."""

GROUPS = {"train": "recipe", "eval": "evaluation"}
BUILT_IN_DATA = ("glyphs", "prose")
MODEL_SPECS = {
    "FOLDER": "a run folder, such as runs/clip",
    "hub:ORG/NAME[@REVISION]": "what `xmodal push` put on the Hugging Face hub",
    "small": "two small towers, trained from scratch",
    "open_clip:MODEL[/PRETRAINED]": "a model of open_clip, its weights random or pretrained",
    "open_clip:local-dir:PATH": "a model that open_clip saved",
    "open_clip:hf-hub:ORG/REPO": "the same on the Hugging Face hub",
    "hf:ID_OR_FOLDER": "a CLIP or SigLIP model of transformers; as a tower or sentence encoder also BERT and others",
    "timm:NAME_OR_FOLDER": "a model of timm, for --image-tower",
    "st:ID_OR_FOLDER": "a text model of sentence-transformers, by itself or for --text-tower",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    return guard(lambda: _command(given))


def guard(function: Callable[[], int | None]) -> int:
    """Run a main function; the exit status, with what went wrong in the user's input said in plain lines.

    Of several processes one speaks. A reader that went away (`| head`) ends the program without a word.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a log in plain ASCII must not end a run that prints "…"
    try:
        status = function() or 0
        sys.stdout.flush()
        return status
    except Stopped as stopped:
        if os.environ.get("RANK", "0") == "0":
            print(stopped, flush=True)
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and not _stdout_has_a_reader():  # else some other pipe, say a worker's
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
            return 1
        last = _last_word(error)
        if not isinstance(last, InputError | Failed):
            raise
        if not isinstance(last, SaidElsewhere):
            print(f"error: {last}", file=sys.stderr, flush=True)
        return 2 if isinstance(last, InputError) else 1


def _last_word(error: Exception) -> Exception:
    """What the user gets to see of an error, for which several processes ask each other once they have met."""
    attendance = sys.modules.get("xmodal.attendance")
    if attendance is not None and attendance.has_begun():
        return attendance.last_word(error)
    rank = os.environ.get("RANK", "0")
    if rank == "0" or not isinstance(error, InputError):
        return error
    if os.environ.get("LOCAL_RANK", rank) != "0":  # what one host has is for the first of its processes to say
        return SaidElsewhere(str(error))
    return InputError(f"rank {rank} on {platform.node()}: {error}")


def _stdout_has_a_reader() -> bool:
    try:
        print(flush=True)  # a flush alone says nothing: the failed write has emptied the buffer
    except BrokenPipeError:
        return False
    return True


def _command(argv: list[str]) -> int | None:
    match argv:
        case []:
            print(HELP, file=sys.stderr)
            return 2
        case ["-h" | "--help" | "help", *_]:
            print(HELP)
        case ["-V" | "--version", *_]:
            print(f"xmodal {__version__}")
        case ["train" | "eval" as group, *rest]:
            return _run(group, rest)
        case ["list"]:
            print(_overview())
        case ["copy", name] if not name.startswith("-"):
            copy(name, Path())
        case ["copy", name, destination] if not name.startswith("-"):
            copy(name, Path(destination))
        case ["copy", *_]:
            raise InputError("Expected: xmodal copy NAME [DEST], with a NAME from `xmodal list`.")
        case ["convert", *rest]:
            from xmodal.interop.convert import main as convert

            return convert(rest)
        case ["push", *rest]:
            from xmodal.interop.push import main as push

            return push(rest)
        case ["embed" | "search" | "score" as command, *rest]:
            return importlib.import_module(f"xmodal.embedding.{command}").main(rest)
        case ["demo", *rest]:
            return importlib.import_module("xmodal.demo.demo").main(rest)
        case ["data", "inspect" | "check" | "pack" as what, *rest]:
            return importlib.import_module(f"xmodal.data.{what}").main(rest)
        case ["data", "views", *rest]:
            return importlib.import_module("xmodal.data.show_views").main(rest)
        case ["data", *_]:
            raise InputError("Expected: xmodal data inspect DATA, check DATA, pack DATA OUTPUT or views IMAGE.")
        case ["doctor"]:
            from xmodal.doctor import examine

            return examine()
        case ["list" | "doctor" as command, extra, *_]:
            if extra in ("-h", "--help"):
                print(HELP)
            else:
                raise InputError(f"xmodal {command} takes no arguments; found {extra!r}.")
        case [unknown, *_]:
            known = ["train", "eval", "convert", "push", "score", "embed", "search", "demo", "data", "list"]
            known += ["copy", "doctor"]
            raise InputError(f"xmodal has no command {unknown!r}; {nearest(unknown, known)}")


def _run(group: str, argv: list[str]) -> int | None:
    if not argv or argv[0].startswith("-"):
        if argv and argv[0] in ("-h", "--help"):
            print(f"Usage: xmodal {group} NAME [flags]; `xmodal {group} NAME --help` explains its flags.")
            print("\n".join(_table(_programs(group))))
            return 0
        raise InputError(f"xmodal {group} needs a name before any flag; there are: {', '.join(_programs(group))}")
    module = find(group, argv[0])
    if not hasattr(module, "main"):
        raise InputError(f"{argv[0]} has no function main(argv), which `xmodal {group}` calls.")
    return module.main(argv[1:])


def find(group: str, name: str) -> ModuleType:
    """The module that a name on the command line stands for; group: "train" or "eval"."""
    if name.endswith(".py") or "/" in name or os.sep in name:
        return _from_file(group, Path(name))
    if "." in name:
        return _from_module(name)
    module, ours = name.replace("-", "_"), _programs(group)
    if module in ours:
        return importlib.import_module(f"xmodal.{group}.{module}")
    for other, kind in GROUPS.items():
        if module in _programs(other):
            raise InputError(f"{name!r} is of the other kind, {_a(kind)}: xmodal {other} {name}")
    raise InputError(f"There is no {GROUPS[group]} {name!r}; {nearest(module, ours)}")


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _from_file(group: str, path: Path) -> ModuleType:
    if path.suffix != ".py" or not path.is_file():
        ours = path.stem.replace("-", "_") in _programs(group)
        hint = f"Make one with: xmodal copy {path.stem}" if ours else "Expected a Python file, such as ./mine.py"
        raise InputError(f"There is no file {path}. {hint}")
    # Its neighbours can be imported. Last on the path, so that a file called `random.py` hides nobody's module;
    # under a name of its own, so that a copy called `clip.py` isn't taken for an installed package `clip`.
    sys.path.append(str(path.resolve().parent))
    taken = path.stem in sys.modules or _installed_elsewhere(path)
    name = f"recipe_{path.stem}" if taken else path.stem
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up here
    spec.loader.exec_module(module)
    return module


def _installed_elsewhere(path: Path) -> bool:
    found = importlib.util.find_spec(path.stem) if path.stem.isidentifier() else None
    return found is not None and found.origin != str(path.resolve())


def _from_module(name: str) -> ModuleType:
    unknown = InputError(f"There is no module {name!r} here or installed; a file's name ends in .py")
    if not all(part.isidentifier() for part in name.split(".")):
        raise unknown
    sys.path.append(os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):  # the module is there; something that it imports isn't
            raise
        raise unknown from None


def copy(name: str, destination: Path) -> None:
    """Write a recipe, an evaluation or a launch file of ours to a file, or into a folder, for the user to edit."""
    module = name.replace("-", "_").removesuffix(".py")
    group = next((g for g in GROUPS if module in _programs(g)), None)
    if group is None and name not in _launch_files():
        everything = [*(n for g in GROUPS for n in _programs(g)), *_launch_files()]
        raise InputError(f"There is no recipe, evaluation or launch file {name!r}; {nearest(module, everything)}")
    package, file = (group, f"{module}.py") if group else ("launch", name)
    target = destination / file if destination.is_dir() else destination
    if target.suffix != (suffix := Path(file).suffix):
        raise InputError(f"{target} is neither a folder nor a name that ends in {suffix}.")
    if target.exists():
        raise InputError(f"{target} exists already and stays as it is; name another: xmodal copy {name} mine{suffix}")
    try:
        with files(f"xmodal.{package}").joinpath(file).open("rb") as ours, target.open("xb") as theirs:
            shutil.copyfileobj(ours, theirs)
    except OSError as error:
        raise InputError(f"Cannot write {target}: {error.strerror}.") from None
    print(f"Wrote {target}. " + (f"Run it: xmodal {group} {target}" if group else "Its first lines say how to use it."))


def _launch_files() -> dict[str, str]:
    """What `launch` holds: each file's name and its first line that is a comment."""
    found = [f for f in files("xmodal.launch").iterdir() if f.name.endswith((".yaml", ".sbatch"))]
    first = {f.name: re.search(r"^# (.*)", f.read_text("utf-8"), re.MULTILINE) for f in found}
    return {name: match[1] for name, match in sorted(first.items()) if match}


def _programs(group: str) -> dict[str, str]:
    """What `train` or `eval` holds: each module's name and the first line of its docstring."""
    found = [f for f in files(f"xmodal.{group}").iterdir() if f.name.endswith(".py") and not f.name.startswith("_")]
    return {f.name.removesuffix(".py"): _first_line(f.read_text("utf-8")) for f in sorted(found, key=lambda f: f.name)}


def _first_line(source: str) -> str:
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def _overview() -> str:
    data = {n: _first_line(files("xmodal.data").joinpath(f"{n}.py").read_text("utf-8")) for n in BUILT_IN_DATA}
    sections = {
        "Recipes (xmodal train NAME)": _programs("train"),
        "Evaluations (xmodal eval NAME)": _programs("eval"),
        "Launch files (xmodal copy NAME)": _launch_files(),
        "Built-in data (--data NAME)": data,
        "Models (--model SPEC)": MODEL_SPECS,
    }
    return "\n\n".join("\n".join([title, *_table(rows)]) for title, rows in sections.items())


def _table(rows: dict[str, str]) -> list[str]:
    width = max(map(len, rows), default=0)
    return [f"  {name:{width}}  {text}" for name, text in rows.items()]
