"""The parquet files of a dataset of the hub, or those that the hub has made of its rows.

Which files make up which split is found by `datasets`, as for a download; no code of a dataset is run.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from xmodal.data import hf_datasets
from xmodal.data.remote_files import matching
from xmodal.errors import InputError, nearest

ROOT = re.compile(
    r"hf://datasets/(?P<name>[^/@,]+(/[^/@,]+)?)(@(?P<revision>refs/[^/]+/[^/,]+|[^/,]+))?(,(?P<part>[^/]+))?/?"
)
CONVERTED = "refs/convert/parquet"  # where the hub keeps what it made of other forms


class HubDataset(NamedTuple):
    name: str
    configuration: str | None
    revision: str | None


class Files(NamedTuple):
    """Addresses by split, as the data calls these; and what the hub says of the columns, or None."""

    splits: dict[str, list[str]]
    features: Any = None


def hub_dataset(spec: str) -> HubDataset | None:
    """What hf://datasets/ORG/NAME[@REVISION][,CONFIGURATION] or hf-dataset:ORG/NAME…,streaming names, if it is one.

    Raises InputError for what is here and can't be streamed.
    """
    if match := ROOT.fullmatch(spec):
        return HubDataset(match["name"], match["part"], match["revision"])
    return HubDataset(*hf_datasets.streamed(spec)) if hf_datasets.is_streamed(spec) else None


def hub_files(dataset: HubDataset) -> Files:
    """Raises InputError for a dataset that can't be reached, and for one without parquet files."""
    import datasets

    name, configuration, revision = dataset
    try:
        builder = datasets.load_dataset_builder(name, configuration, revision=revision)
    except Exception as error:  # a hub fails in many ways, each with its own class
        told = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if "script" not in told:
            raise InputError(f"{name} of the hub cannot be opened: {told}") from None
        return _converted(dataset, told)
    kind = type(builder).__module__.rpartition(".")[2]
    if kind != "parquet":
        return _converted(dataset._replace(configuration=builder.config.name), f"it is in files of the form {kind}")
    files = builder.config.data_files or {}
    return Files({str(split): [str(one) for one in found] for split, found in files.items()}, builder.info.features)


def pinned(address: str) -> str:
    """An address in a repository of the hub as it is now, by its commit; any other address as it is."""
    if not address.startswith("hf://") or address.startswith("hf://buckets/"):
        return address
    import huggingface_hub as hub

    try:
        found: Any = hub.HfFileSystem().resolve_path(address)
        info: Any = hub.HfApi().repo_info(found.repo_id, repo_type=found.repo_type, revision=found.revision)
    except Exception as error:  # as above
        told = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"{address} can't be read: {told}") from None
    kind = f"{found.repo_type}s/" if found.repo_type != "model" else ""
    return f"hf://{kind}{found.repo_id}@{info.sha}/{found.path_in_repo}".rstrip("/")


def _converted(dataset: HubDataset, why: str) -> Files:
    """What the hub has made of its main branch: CONFIGURATION/SPLIT/0000.parquet. It doesn't do so for all, nor always
    for all rows."""
    name, configuration, revision = dataset

    def refused(more: str) -> InputError:
        return InputError(
            f"{name} can't be streamed: {why}, and {more}. Without streaming it is downloaded: --data hf-dataset:{name}"
        )

    if revision is not None:
        raise refused(f"the parquet that the hub makes is not of @{revision}")
    try:
        found = matching(f"{pinned(f'hf://datasets/{name}@{CONVERTED}')}/*/*/*.parquet")
    except InputError:
        found = []
    configurations: dict[str, dict[str, list[str]]] = {}
    for address in found:
        part, split = address.split("/")[-3:-1]
        configurations.setdefault(part, {}).setdefault(split, []).append(address)
    if not configurations:
        raise refused("the hub has made no parquet of it")
    part = configuration or ("default" if "default" in configurations else next(iter(configurations)))
    if part not in configurations:
        raise InputError(f"The hub has made no parquet of {name}, {part}; {nearest(part, configurations)}")
    if cut := [split for split in configurations[part] if split.startswith("partial-")]:
        raise refused(f"the hub has made parquet of a part of it alone ({', '.join(cut)})")
    return Files(configurations[part])
