"""Datasets of the hub, streamed: by ranges, as they were when they were opened."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.hub import Hub
from tests.data.parquet_files import reds, table, told
from xmodal.data.source import open_pairs, open_source, splits
from xmodal.errors import InputError

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """org/set with parquet in two splits; org/csv, of which the hub has made parquet; org/part, of a part of it."""
    import huggingface_hub as hub

    table(tmp_path / "set/main/data/train-00000-of-00002.parquet", range(12))
    table(tmp_path / "set/main/data/train-00001-of-00002.parquet", range(12, 24))
    table(tmp_path / "set/main/data/validation-00000-of-00001.parquet", range(24, 28))
    (tmp_path / "set/main/README.md").write_text("---\nlicense: mit\n---\n")
    for name, split in (("csv", "train"), ("part", "partial-train"), ("bare", None)):
        (tmp_path / name / "main").mkdir(parents=True)
        (tmp_path / name / "main" / "a.csv").write_text("file_name,caption\na.png,x\n")
        if split:
            table(tmp_path / name / f"refs/convert/parquet/default/{split}/0000.parquet", range(6))
    found = Hub({f"org/{name}": tmp_path / name for name in ("set", "csv", "part", "bare")})
    for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE", "HF_HUB_CACHE"):
        monkeypatch.setattr(
            hub.constants,
            name,
            {
                "ENDPOINT": found.address,
                "HUGGINGFACE_CO_URL_TEMPLATE": found.address + "/{repo_id}/resolve/{revision}/{filename}",
                "HF_HUB_CACHE": str(tmp_path / "hub"),
            }[name],
        )
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", found.address)
    monkeypatch.setattr(hub.HfFileSystem, "_cache", {})
    yield found
    found.http.shutdown()
    found.http.server_close()


@pytest.mark.parametrize(
    "spec",
    [
        *("hf-dataset:org/set,streaming", "hf-dataset:org/set@main,streaming=True", "hf://datasets/org/set"),
        *("hf://datasets/org/set/data", "hf://datasets/org/set@main,default"),
    ],
)
def test_a_dataset_of_the_hub_is_read_by_ranges_as_it_was_when_it_was_opened(
    spec: str, hub: Hub, tmp_path: Path
) -> None:
    train, tests = open_pairs(spec, None)
    assert told(train) == [[f"number {value}"] for value in range(24)]
    assert told(tests["val"]) == [[f"number {value}"] for value in range(24, 28)]
    assert reds(train, [13, 2]) == [13, 2]
    files = [one for one in hub.asked if one.endswith(".parquet") or ".parquet bytes" in one]
    assert files
    assert all("bytes=" in one for one in files)
    assert not any("/main/data" in one for one in files)  # by the commit
    assert not list((tmp_path / "hub").rglob("*.parquet"))


def test_what_the_hub_has_made_parquet_of_is_streamed_too(hub: Hub) -> None:
    source = open_source("hf-dataset:org/csv,streaming", "train")
    assert told(source) == [[f"number {value}"] for value in range(6)]
    assert splits("hf://datasets/org/csv@refs/convert/parquet") == ["train"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hf-dataset:org/part,streaming", r"made parquet of a part of it alone \(partial-train\)\. Without streaming"),
        ("hf-dataset:org/bare,streaming", "files of the form csv, and the hub has made no parquet of it"),
        ("hf-dataset:org/csv@main,streaming", "the parquet that the hub makes is not of @main"),
        ("hf-dataset:org/csv,other,streaming", "cannot be opened: .*other"),
        ("hf-dataset:org/none,streaming", "org/none of the hub cannot be opened: .*doesn't exist on the Hub or cannot"),
        ("hf://datasets/org/none/a.parquet", "can't be read: "),
        ("hf://datasets/org/set/data/none.parquet", "none.parquet can't be read: it isn't there"),
    ],
)
def test_what_the_hub_does_not_have_is_told(spec: str, message: str, hub: Hub) -> None:
    with pytest.raises(InputError, match=message):
        open_source(spec)


def test_texts_are_not_streamed() -> None:
    from xmodal.data.texts import open_rows

    spec, message = "hf-dataset:org/set,streaming", "only pictures are streamed. Without ',streaming' it is downloaded"
    with pytest.raises(InputError, match=message), open_rows(spec):
        pass
