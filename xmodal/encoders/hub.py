"""Models of ours on the Hugging Face hub: `hub:ORG/NAME`, or `hub:ORG/NAME@REVISION` for a branch, a tag or a commit.

Settings, tokenizers and safetensors are fetched and nothing else: what isn't here, a pickle or code, can't be opened.
Written with huggingface_hub's plain API under the names of its mixin, which has no place for a tokenizer and, where a
repository lacks safetensors, opens a pickle.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Self

from xmodal.errors import InputError

PREFIX = "hub:"
FETCHED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.yaml")
LOG_IN = "`hf auth login`, or a token in HF_TOKEN"


class OnHub:
    """What people know from other libraries' models, for what has a `save(folder)` that `xmodal.load` opens."""

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        device: Any = None,
    ) -> Self:
        """Open a folder, or a repository ORG/NAME of the hub, in evaluation mode.

        Raises InputError for what can't be fetched, and for a model of another kind than the class.
        """
        from xmodal.encoders import load

        if not os.path.isdir(name):
            name = fetched(
                str(name),
                revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                force_download=force_download,
            )
        model = load(str(name), device)
        if not isinstance(model, cls):
            raise InputError(f"{name} holds a {type(model).__name__}, no {cls.__name__}; xmodal.load opens any.")
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """`save`, by the name that it has elsewhere."""
        self.save(folder)  # pyright: ignore[reportAttributeAccessIssue]

    def push_to_hub(
        self,
        repository: str,
        *,
        format: str = "xmodal",
        run: str | Path | None = None,
        license: str | None = None,
        private: bool = False,
        revision: str | None = None,
        token: str | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Push the model and its card to a repository ORG/NAME, made if it isn't there; returns the commit's address.

        format: of "xmodal", "open_clip", "hf" and "sentence-transformers". run: the run folder that the model is from,
        whose settings and scores the card tells; `xmodal push RUN ORG/NAME` does both. revision: a branch.
        Raises InputError, and then nothing was pushed.
        """
        from xmodal.interop.hub import push

        return push(
            self,
            repository,
            format=format,
            source="" if run is None else str(run),
            license=license,
            private=private,
            revision=revision,
            token=token,
            message=commit_message,
        ).address


def at_hand(spec: str) -> str:
    """A spec as `load` opens it without a network: the folder of what `hub:` names; other specs as they are."""
    return str(fetched(spec.removeprefix(PREFIX))) if spec.startswith(PREFIX) else spec


def fetched(name: str, revision: str | None = None, **options: Any) -> Path:
    """The folder of a repository ORG/NAME[@REVISION], from the cache where it is there. options: snapshot_download's.

    Raises InputError for one that can't be had, and for one that holds no model of ours.
    """
    from huggingface_hub import HfApi

    repository, _, named = name.partition("@")
    refuse_name(repository)
    try:
        folder = Path(
            HfApi().snapshot_download(
                repository, revision=revision or named or None, allow_patterns=list(FETCHED), **options
            )
        )
    except Exception as error:  # a hub fails in many ways, each with its own class
        raise refusal(error, repository, revision or named) from error
    if not (folder / "model.json").is_file():
        raise InputError(f"{PREFIX}{name} holds no model of xmodal: it has no model.json.{_other(folder, name)}")
    return folder


def refuse_name(repository: str) -> None:
    """Raise InputError unless it is ORG/NAME."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository, re.ASCII):
        raise InputError(f"{repository!r} is no name of a repository on the hub; expected ORG/NAME.")


def refusal(error: Exception, repository: str, revision: str | None = None) -> InputError:
    """What a hub says no with, in a line."""
    from huggingface_hub import errors

    offline = InputError(f"{repository} isn't at hand, and HF_HUB_OFFLINE forbids to reach the hub.")
    match error:
        case errors.OfflineModeIsEnabled():
            return offline
        case errors.GatedRepoError():
            return InputError(f"{repository} is gated: ask for access on its page, then {LOG_IN}.")
        case errors.RepositoryNotFoundError():
            return InputError(f"The hub has no repository {repository} that you may see; for a private one: {LOG_IN}.")
        case errors.RevisionNotFoundError():
            return InputError(f"{repository} has no branch, tag or commit {revision!r}.")
        case errors.LocalEntryNotFoundError():
            if isinstance(error.__cause__, errors.OfflineModeIsEnabled):
                return offline
            return InputError(f"{repository} isn't at hand, and the hub can't be reached: {_line(error)}")
        case errors.HfHubHTTPError() if error.response.status_code in (401, 403):
            said = error.server_message or f"status {error.response.status_code}"
            return InputError(f"The hub refuses {repository} to you: {said} With another token: {LOG_IN}.")
    return InputError(f"{repository}: the hub can't be reached or won't: {_line(error)}")


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__  # the first is often a status and no more


def _other(folder: Path, name: str) -> str:
    """Which spec opens the repository, if another library's model is in it."""
    for file, spec in {
        "open_clip_config.json": "open_clip:hf-hub:",
        "modules.json": "st:",
        "config.json": "hf:",
    }.items():
        if (folder / file).is_file():
            return f" Perhaps {spec}{name}?"
    return ""
