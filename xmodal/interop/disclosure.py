"""What must not leave this machine with a model: paths, tokens, the home folder. Taken out where it is told, and looked
for in all files before they go."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from xmodal.errors import InputError

LEFT_OUT = "(left out)"

# Tokens by the form that their makers gave them: Hugging Face, GitHub, OpenAI, AWS, Google, Slack, JWT, PEM.
TOKEN = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bsk-[\w-]{20,}|\bA[KS]IA[0-9A-Z]{16}\b"
    r"|\bAIza[\w-]{35}|\bxox[abeoprs]-[\w-]{10,}|\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]+"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
# /a/b, ../a, ~/a, ~name/a, C:\a, C:/a and \\host\a, but not what comes after a letter or a mark: a/b, https://a, </b>.
ABSOLUTE = re.compile(
    r"(?<![\w./\\<~-])(?:~[\w.-]*[/\\]|\.{1,2}[/\\]|/(?=[\w.~-])|[A-Za-z]:[/\\](?!/)|\\\\(?=\w))[^\s\"'`,;()\[\]<>|*?]*"
)
# Where people's files lie. In files of other libraries, whose words may look like a path, only these are looked for.
ROOTS = re.compile(
    r"(?<![\w./\\<~-])/(?:home|Users|root|mnt|media|tmp|var|opt|srv|scratch|private|Volumes|gpfs|lustre)/[\w.~-]"
)
SECRETIVE = re.compile(r"TOKEN(?!IZ)|SECRET|PASSWORD|PASSWD|(?:API|ACCESS|PRIVATE)_?KEY|CREDENTIAL", re.IGNORECASE)
KINDS = ("open_clip:local-dir:", "hf-dataset:", "hf:", "st:", "timm:")
HUBS = ("hub:", "open_clip:", "hf-hub:")
# In these keys of a model's settings libraries keep where it was read from; nothing is opened by them.
TRACES = ("name", "_name_or_path", "name_or_path", "tokenizer_file", "vocab_file", "merges_file",
          "special_tokens_map_file")  # fmt: skip
WORDS = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json")
TOLD_BY_US = ("README.md", "config.yaml", "scores.json")


def short(spec: str) -> str:
    """A model or data spec with folders and files by their last part: hf:/home/me/clip -> hf:clip.

    Of an address goes what may open it to others: a user, a password, a query.
    """
    if "::" in spec:
        return "::".join(map(short, spec.split("::")))
    for kind in KINDS:
        if spec.startswith(kind):
            return kind + _id_or_last(spec.removeprefix(kind))
    if spec.startswith(HUBS):
        return spec
    if "://" in spec and not spec.startswith("file://"):
        return re.sub(r"[?#].*", "", re.sub(r"(?<=://)[^/@]*@", "", spec))
    return _last(spec) if "/" in spec and Path(spec).suffix else _id_or_last(spec)


def is_absolute(name: str) -> bool:
    """Whether it says where on a machine something is: from its root, from a home or from a folder above."""
    return re.match(r"/|~|file://|[A-Za-z]:[/\\]|\\\\|\.{1,2}[/\\]", name) is not None


def shortened(value: Any, known: Mapping[str, str]) -> Any:
    """Strings in any depth of dicts and lists, without paths and tokens. known: paths, and what stands for them."""
    secrets = list(_secrets())

    def of(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {of(key): of(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [of(inner) for inner in value]
        return _text(value, known, secrets) if isinstance(value, str) else value

    return of(value)


def paths_in(values: Mapping[str, Any]) -> dict[str, str]:
    """The paths among settings, and their last parts; longest first, for one may begin with another."""
    found: dict[str, str] = {}
    flat = [one for value in values.values() for one in (value if isinstance(value, list) else [value])]
    for value in (one for one in flat if isinstance(one, str)):
        for part in value.split("::"):
            if ("/" in part or "\\" in part) and len(part) > 3 and short(part) != part:
                found[part] = short(part)
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def without_traces(folder: Path) -> None:
    """Shorten, in the settings of a model, where it was once read from."""
    for file in folder.rglob("*.json"):
        if file.name in WORDS:
            continue
        before = json.loads(file.read_text(encoding="utf-8"))
        after = _untraced(before)
        if after != before:
            file.write_text(json.dumps(after, indent=1, ensure_ascii=False), encoding="utf-8")


def refuse_disclosure(folder: Path) -> None:
    """Raise InputError for a file of a kind that isn't pushed, and for one that tells of this machine or its secrets.

    Of safetensors only the header is text. A tokenizer's words are looked through for this machine's own secrets and
    folders alone, and for long ones: any word may be among them.
    """
    ours = dict.fromkeys(_secrets(), "a secret of this machine")
    ours |= dict.fromkeys(_places(), "the path of a folder of this machine")
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        if file.suffix not in (".json", ".safetensors", ".txt", ".model", ".jinja", ".yaml", ".md"):
            raise InputError(f"{name} would be pushed, which is neither settings nor a tokenizer nor safetensors.")
        text, words = _readable(file), file.name in WORDS or file.suffix == ".model"
        for part, what in ours.items():
            if part in text and not (words and len(part) < 16):
                raise InputError(f"Nothing was pushed: {name} holds {what}.")
        if words:
            continue
        pattern = ABSOLUTE if name in TOLD_BY_US else ROOTS
        for what, found in {"what looks like a token": TOKEN.search(text), "a path": pattern.search(text)}.items():
            if found:
                shown = f" ({found[0][:60]})" if what == "a path" else ""
                raise InputError(f"Nothing was pushed: {name} holds {what}{shown}.")


def _text(text: str, known: Mapping[str, str], secrets: Sequence[str]) -> str:
    for path, name in known.items():
        text = text.replace(path, name)
    # What begins with a path is shortened at its last slash, so that spaces in folders leave nothing behind.
    text = _last(text) if is_absolute(text) else ABSOLUTE.sub(lambda found: _last(found[0]), text)
    for secret in secrets:
        text = text.replace(secret, LEFT_OUT)
    text = re.sub(r"(?<=://)[^/@\s]*@", "", re.sub(r"(://[^\s?#]+)[?#]\S*", r"\1", text))
    return TOKEN.sub(LEFT_OUT, text)


def _last(path: str) -> str:
    path = path.rstrip("/\\")
    name = re.split(r"[/\\]", path)[-1]
    is_home = path == str(Path.home()) or re.fullmatch(r"~[\w.-]*|(?:[A-Za-z]:)?[/\\](?:home|Users)[/\\][^/\\]+", path)
    return LEFT_OUT if is_home or not name.strip(".") else name


def _id_or_last(name: str) -> str:
    """A hub's id as it is, a folder by its last part."""
    return _last(name) if is_absolute(name) or name.count("/") > 1 or os.path.exists(name) else name


def _untraced(value: Any) -> Any:
    if isinstance(value, list):
        return [_untraced(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    return {
        key: shortened(_id_or_last(inner), {}) if key in TRACES and isinstance(inner, str) else _untraced(inner)
        for key, inner in value.items()
    }


def _secrets() -> Iterator[str]:
    """What the environment keeps under a secretive name, and the hub's token. Digits alone are a setting."""
    from huggingface_hub import constants

    for name, value in os.environ.items():
        if SECRETIVE.search(name) and len(value) >= 8 and not value.isdigit():
            yield value
    file = Path(constants.HF_TOKEN_PATH)
    if file.is_file() and len(token := file.read_text(encoding="utf-8", errors="replace").strip()) >= 8:
        yield token


def _places() -> Iterator[str]:
    """The home and the working folder; not the root, or a folder of a single name, which may be a word."""
    for place in {str(Path.home()), os.getcwd()}:
        if place.count(os.sep) > 1:
            yield place
    if str(Path.home()).count(os.sep) == 1 and Path.home() != Path("/"):
        yield f"{Path.home()}/"


def _readable(file: Path) -> str:
    """A file's bytes as text; of safetensors the header, whose length its first eight bytes are."""
    with file.open("rb") as stream:
        if file.suffix == ".safetensors":
            return stream.read(int.from_bytes(stream.read(8), "little")).decode("utf-8", errors="replace")
        return stream.read().decode("utf-8", errors="replace")
