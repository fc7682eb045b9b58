"""A model goes to the Hugging Face hub: written beside, with its card, looked through, and only then pushed.

Settings, tokenizers and safetensors are pushed, the settings of the run and its scores; no log, no page, no checkpoint
and none of the data.
"""

from __future__ import annotations

import glob
import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from xmodal import __version__
from xmodal.config import RECIPE_KEY, VERSION_KEY
from xmodal.encoders.hub import FETCHED, LOG_IN, at_hand, refusal, refuse_name
from xmodal.encoders.sentence import SentenceEncoder
from xmodal.encoders.two_tower import TwoTower
from xmodal.errors import InputError
from xmodal.evaluators.scores import write_json
from xmodal.interop.disclosure import refuse_disclosure, without_traces
from xmodal.interop.model_card import TAG, card, spec_of
from xmodal.interop.origin import Origin, origin_of
from xmodal.interop.save import save_as
from xmodal.interop.tokenizers import TO_BE_NAMED

Format = Literal["xmodal", "open_clip", "hf", "sentence-transformers"]
PAGES = (".gitattributes", ".gitignore", "README.md", "LICENSE", "LICENSE.md", "LICENSE.txt")


@dataclass(frozen=True)
class Pushed:
    """Files and their bytes; the commit's address, "" where nothing was pushed; what there is to say."""

    files: dict[str, int]
    card: str
    spec: str
    address: str = ""
    notes: tuple[str, ...] = ()


def push(
    model: Any,
    repository: str,
    *,
    format: str = "xmodal",
    source: str = "",
    license: str | None = None,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    message: str | None = None,
    dry_run: bool = False,
) -> Pushed:
    """Push a model to ORG/NAME, made if it isn't there.

    source: the spec it is from, whose settings and scores the card tells. dry_run: do all but push, without a network.
    Raises InputError, and then nothing was pushed; and `interop.verify.ConversionFailed` where the other library's
    embeddings would be others.
    """
    _refuse_arguments(repository, format, revision, license)
    if not dry_run:
        refuse_unable(token)
    origin = origin_of(source, at_hand(source)) if source else Origin()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        notes = _write(model, folder, repository, format, revision)
        _write_origin(origin, folder)
        text = card(
            model, repository, origin, format=format, revision=revision, license=license, notes=notes
        )  # fmt: skip
        (folder / "README.md").write_text(text, encoding="utf-8")
        refuse_disclosure(folder)
        files = {
            file.relative_to(folder).as_posix(): file.stat().st_size
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }
        told = Pushed(files, text, spec_of(model, repository, format, revision), notes=tuple(notes))
        if dry_run:
            return told
        with _said(repository, revision):
            address, more = _upload(folder, set(files), repository, private, revision, token, message)
    return Pushed(files, text, told.spec, address, (*notes, *more))


def _write(model: Any, folder: Path, repository: str, format: str, revision: str | None) -> list[str]:
    """The model's files, and what of a conversion isn't quite the same."""
    notes: list[str] = []
    if format != "xmodal" and isinstance(model, TwoTower):
        notes = save_as(model, folder, format).notes
    elif format == "xmodal" or (format == "sentence-transformers" and isinstance(model, SentenceEncoder)):
        if format != "xmodal" and model.description["kind"] == "small-text":
            raise InputError(
                "This model can't go to sentence-transformers: xmodal's own small tower exists nowhere else."
            )
        model.save(folder)
    else:
        raise InputError(f"A {type(model).__name__} has no form for {format}. Push it without --format.")
    if format == "open_clip" and (folder / "tokenizer_config.json").is_file():
        notes = [note for note in notes if note != TO_BE_NAMED]
        file = folder / "open_clip_config.json"
        told = json.loads(file.read_text(encoding="utf-8"))
        told["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = repository
        file.write_text(json.dumps(told, indent=2), encoding="utf-8")
    if format == "open_clip" and revision:
        notes.append("open_clip opens a repository's main branch; this was pushed to another.")
    without_traces(folder)
    return notes


def _write_origin(origin: Origin, folder: Path) -> None:
    if origin.config:
        named = {VERSION_KEY: origin.version or __version__, **({RECIPE_KEY: origin.recipe} if origin.recipe else {})}
        settings = yaml.safe_dump({**named, **origin.config}, sort_keys=False, allow_unicode=True)
        (folder / "config.yaml").write_text(settings, encoding="utf-8")
    if origin.told:
        write_json(folder / "scores.json", dict(origin.told))


def _refuse_arguments(repository: str, format: str, revision: str | None, license: str | None) -> None:
    refuse_name(repository)
    if format not in get_args(Format):
        raise ValueError(f"format must be one of {', '.join(get_args(Format))}, not {format!r}")
    if revision is not None and not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", revision, re.ASCII):
        raise InputError(f"--revision {revision!r} is no name of a branch.")
    if license is not None and not re.fullmatch(r"[a-z0-9.-]+", license):
        raise InputError(f"--license {license!r} is no licence's identifier, such as mit or apache-2.0.")


def refuse_unable(token: str | None) -> None:
    """Before the model is opened and converted, which takes longer."""
    from huggingface_hub import get_token, is_offline_mode

    if is_offline_mode():
        raise InputError("HF_HUB_OFFLINE forbids to reach the hub. To see what would be pushed: --dry-run.")
    if not (token or get_token()):
        raise InputError(f"Nobody is logged in to the hub, and pushing needs a token that may write: {LOG_IN}.")


def _upload(
    folder: Path,
    files: set[str],
    repository: str,
    private: bool,
    revision: str | None,
    token: str | None,
    message: str | None,
) -> tuple[str, list[str]]:
    """The commit's address, and what of the repository stayed or went. Raises InputError before anything changes."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    api = HfApi(token=token, library_name=TAG, library_version=__version__)
    branch = None
    try:
        there = api.model_info(repository)
    except RepositoryNotFoundError:
        there = None
    if there is None:
        api.create_repo(repository, private=private or None)
        there = api.model_info(repository)
    elif private and not there.private:
        raise InputError(f"{repository} is there and public, and --private was asked for: nothing was pushed.")
    if revision is not None:
        with suppress(RevisionNotFoundError):  # then it will begin as the main branch
            there = branch = api.model_info(repository, revision=revision)
    present = {sibling.rfilename for sibling in there.siblings or ()}
    ours = "README.md" in present and _is_ours(api, repository, there.sha)
    if (others := sorted(present.difference(PAGES))) and not ours:
        raise InputError(
            f"{repository} holds something else, such as {', '.join(others[:3])}, and stays as it is; name another "
            "repository."
        )
    if revision is not None and branch is None:
        api.create_branch(repository, branch=revision)
    notes, ignored = [], []
    if "README.md" in present and not ours:
        ignored = ["README.md"]
        notes.append("The repository has a README.md of its own, which stays; --dry-run prints the card.")
    # A repository of ours becomes what is pushed: settings and weights of an earlier layout would be opened with it.
    stale = sorted(name for name in present - files if Path(name).suffix in {Path(p).suffix for p in FETCHED})
    stale = [name for name in stale if name not in PAGES]
    if stale:
        notes.append(f"Of an earlier push were deleted: {', '.join(stale)}.")
    commit = api.upload_folder(
        repo_id=repository,
        folder_path=folder,
        revision=revision,
        commit_message=message or f"Push with xmodal {__version__}",
        ignore_patterns=ignored,
        delete_patterns=[glob.escape(name) for name in stale],
    )
    return str(commit.commit_url), notes


def _is_ours(api: Any, repository: str, commit: str | None) -> bool:
    """Whether the repository's card is one of ours."""
    from huggingface_hub import metadata_load

    file = api.hf_hub_download(repository, "README.md", revision=commit)
    try:
        header = metadata_load(file) or {}
    except (ValueError, yaml.YAMLError):
        return False
    return TAG in (header.get("tags") or [])


@contextmanager
def _said(repository: str, revision: str | None) -> Iterator[None]:
    """What goes wrong between here and the hub, in a line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # a hub fails in many ways, each with its own class
        raise refusal(error, repository, revision) from error


@contextmanager
def offline() -> Iterator[None]:
    """Keep huggingface_hub, and what goes through it, from the network."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
