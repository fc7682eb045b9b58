"""Workers: the same batches however they are started, flat memory, and words for one that stalls, lags or dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from xmodal.cli import guard
from xmodal.data.augment import augmentation
from xmodal.data.batches import Batches
from xmodal.data.table import Table
from xmodal.data.workers import deaths_named, loader, start_worker
from xmodal.encoders.preparation import Preparation
from xmodal.encoders.tokenizer import PiecesTokenizer
from xmodal.errors import Failed

MB = 1_000_000


class Rows:
    """A source that reads a row by doing something; steps of four rows."""

    global_batch, steps_per_epoch = 4, 1000

    def __init__(self, read: Callable[[int], None]) -> None:
        self.read = read

    @property
    def source(self) -> Any:
        return self

    def key(self, row: int) -> str:
        return f"shards/00012.tar:{row:06}"

    def __getitem__(self, step: int) -> tuple[dict[str, Tensor], list[Any]]:
        from xmodal.data.reading import each

        rows = np.arange(4 * step, 4 * step + 4)
        for row in each(rows, rows.tolist()):
            self.read(row)
        return {"row": torch.from_numpy(rows)}, []


class At:
    """Does something at one row, in a worker or not."""

    def __init__(self, row: int, act: Callable[[], Any]) -> None:
        self.row, self.act = row, act

    def __call__(self, row: int) -> None:
        if row == self.row:
            self.act()


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xmodal.guards.PATIENCE", 0.2)
    monkeypatch.setattr("xmodal.guards.WINDOW", 5)


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize(("workers", "who"), [(0, "this process"), (2, "worker 1")])
def test_a_stall_is_said_while_it_lasts_with_the_sample_and_the_worker(workers: int, who: str) -> None:
    said: list[tuple[float, int, str]] = []
    rows = Rows(At(4 * 3 + 2, lambda: time.sleep(0.6)))
    for step, *_ in loader(rows, 0, 6, workers, lambda *told: said.append((time.perf_counter(), *told))):
        if step == 3:
            came = time.perf_counter()
    stalls = [one for one in said if "has not come" in one[2]]
    assert [one[1:] for one in stalls] == [
        (4, f"its data has not come for 0.2 s: {who} reads row 14, shards/00012.tar:000014.")
    ]
    assert stalls[0][0] < came - 0.1


@pytest.mark.usefixtures("patience")
def test_a_loader_that_is_too_slow_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xmodal.data.workers.usable_cores", lambda: 16.0)
    said: list[tuple[int, str]] = []
    for _ in loader(Rows(lambda _: time.sleep(0.02)), 0, 16, 0, lambda *told: said.append(told)):
        time.sleep(0.02)
    [(step, text)] = said
    assert step == 6
    assert "of the last 5 steps went into waiting for data" in text
    assert "Try --workers " in text

    quick: list[tuple[int, str]] = []
    for _ in loader(Rows(lambda _: None), 0, 16, 0, lambda *told: quick.append(told)):
        time.sleep(0.02)
    assert quick == []


def die() -> None:
    time.sleep(0.25)  # until the loop waits for the next batch, or sleeps
    os._exit(9)


def killed() -> None:
    time.sleep(0.25)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("pause", [0.0, 0.1])  # torch tells while the next batch is waited for, and between two
@pytest.mark.parametrize(
    ("act", "how", "advice"),
    [
        (die, "ended with exit code 9", "take it out of the data"),
        (killed, "was killed by SIGKILL", "memory ran out"),
    ],
)
def test_a_worker_that_dies_ends_the_run_with_its_name_and_its_sample(
    act: Callable[[], Any], how: str, advice: str, pause: float
) -> None:
    @deaths_named()
    def train(pause: float) -> None:
        for _ in loader(Rows(At(4 * 5 + 1, act)), 0, 20, 2):
            time.sleep(pause)

    with pytest.raises(Failed) as caught:
        train(pause)
    first, second = str(caught.value).splitlines()
    assert first.startswith("Worker 1 (process ")
    assert first.endswith(f"), reading row 21, shards/00012.tar:000021, for step 6, {how}.")
    assert advice in second
    assert guard(lambda: train(pause)) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch's own, of an iterator that ends
def test_a_connection_that_breaks_is_the_death_of_a_worker_only_where_one_is_dead() -> None:
    others = set(multiprocessing.active_children())

    def broken() -> None:
        for _ in loader(Rows(At(4 * 5 + 1, killed)), 0, 20, 2):
            worker, _ = set(multiprocessing.active_children()) - others
            os.kill(worker.pid or 0, signal.SIGKILL)
            raise ConnectionResetError("Connection reset by peer")

    with pytest.raises(Failed, match="was killed by SIGKILL"), deaths_named():
        broken()
    with pytest.raises(ConnectionResetError), deaths_named():
        raise ConnectionResetError("of something else")


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="who sent a signal isn't told here")
def test_a_worker_ends_by_its_parent_s_sigterm_and_by_no_other() -> None:
    others = set(multiprocessing.active_children())
    reader = iter(DataLoader(Waiting(), num_workers=1, worker_init_fn=start_worker, batch_size=None))
    next(reader)
    (worker,) = set(multiprocessing.active_children()) - others
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    assert [next(reader), next(reader)] == [1, 2]
    worker.terminate()  # what Python does to workers when it ends, once
    worker.join(20)
    assert worker.exitcode == 0


class Waiting(Dataset):
    def __len__(self) -> int:
        return 1000

    def __getitem__(self, number: int) -> int:
        time.sleep(0.1)
        return number


def test_other_errors_are_as_they_were() -> None:
    with pytest.raises(RuntimeError, match="^The gradient was not finite"), deaths_named():
        raise RuntimeError("The gradient was not finite")


@contextmanager
def started_by(method: str) -> Iterator[None]:
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(method, force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)


def few_pictures(folder: Path, n: int, text: Callable[[int], str] = "picture {} of many".format) -> Table:
    """A table of n pictures, which a few files hold."""
    for i in range(4):
        Image.new("RGB", (8, 8), (60 * i, 0, 0)).save(folder / f"{i}.png")
    (folder / "2.png").write_bytes(b"<html>")
    return Table("few", folder, {f"{'./' * (i // 4)}{i % 4}.png": [text(i), text(n + i)] for i in range(n)})


@pytest.mark.parametrize(
    ("method", "workers"), [("fork", 2), ("spawn", 1), pytest.param("forkserver", 2, marks=pytest.mark.slow)]
)
def test_batches_are_the_same_however_workers_are_started(method: str, workers: int, tmp_path: Path) -> None:
    table = few_pictures(tmp_path, 64)
    captions = [text for row in range(64) for text in table.texts(row)]
    data = Batches(
        table,
        batch=16,
        part=(0, 12),
        seed=3,
        prepare_images=augmentation("drawing", Preparation(16, 16)),
        tokenize=PiecesTokenizer.train(captions, 64),
    )
    with started_by(method):
        read = list(loader(data, 2, 9, workers))
    for (step, batch, skipped), (same_step, expected, told) in zip(read, loader(data, 2, 9), strict=True):
        assert step == same_step
        assert skipped == told
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[name], expected[name]) for name in batch)
    assert sum(len(skipped) for *_, skipped in read)


class Looked(Table):
    """A table whose pictures are made, not decoded: what is measured is the memory of paths and captions."""

    def images(self, rows: np.ndarray) -> list[Any]:
        return [np.full((2, 2), len(self.key(row)) % 256, dtype=np.uint8) for row in rows.tolist()]


class Listed:
    """The same in Python lists of strings: reading a string counts a reference to it, which copies its page."""

    name, photographs, dropped = "listed", False, {}

    def __init__(self, table: Table) -> None:
        self.image_id = table.image_id
        self.paths = [table.key(row) for row in range(len(table))]
        self.captions = [list(table.texts(row)) for row in range(len(table))]

    def __len__(self) -> int:
        return len(self.paths)

    def images(self, rows: np.ndarray) -> list[Any]:
        return [np.full((2, 2), len(self.paths[row]) % 256, dtype=np.uint8) for row in rows.tolist()]

    def texts(self, row: int) -> Sequence[str]:
        return self.captions[row]

    def key(self, row: int) -> str:
        return self.paths[row]


def stacked(pictures: Sequence[Any], draws: np.ndarray) -> Tensor:
    return torch.from_numpy(np.stack(pictures))


def lengths(texts: Sequence[str]) -> Tensor:
    return torch.tensor([[len(text)] for text in texts])


def growth(source: Any, workers: int, epochs: int) -> list[float]:
    """Megabytes that all workers together have of their own, more than after their first batches, at epochs' ends."""
    data = Batches(source, batch=500, part=(0, 500), seed=0, prepare_images=stacked, tokenize=lengths)
    own, last = [], epochs * data.steps_per_epoch
    for step, *_ in loader(data, 0, last + 8 * workers, workers):
        if step == 2 * workers - 1 or ((step + 1) % data.steps_per_epoch == 0 and step < last):
            readers = [psutil.Process(p.pid) for p in multiprocessing.active_children()]
            own.append(sum(p.memory_full_info().uss for p in readers) / MB)
    return [one - own[0] for one in own[1:]]


def many_rows(n: int, kind: type[Table] = Looked) -> Table:
    """Rows with a path of eighty characters and two captions of a hundred each."""
    rows = {f"{row:080}.png": [f"{row:0100}", f"{n + row:0100}"] for row in range(n)}
    return kind("many", Path("nowhere"), rows)


@pytest.mark.parametrize(("workers", "epochs"), [(2, 1), pytest.param(4, 3, marks=pytest.mark.slow)])
def test_the_memory_of_workers_stays_flat(workers: int, epochs: int) -> None:
    grown = growth(many_rows(100_000), workers, epochs)
    assert len(grown) == epochs
    assert max(grown) < 2 * workers, grown
    assert grown[-1] - grown[0] < workers, grown


@pytest.mark.slow
def test_lists_of_strings_would_not_stay_flat() -> None:
    """That what the test above measures can be seen at all."""
    assert growth(Listed(many_rows(100_000)), 4, 1)[0] > 60
