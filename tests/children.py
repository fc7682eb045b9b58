"""What the children of tests/forks.py do. Each returns an exit status."""

from __future__ import annotations

import json
import os
import pkgutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from xmodal.cli import guard
from xmodal.encoders.small import small_towers

# Where a run can be met, by what it is doing.
MOMENTS = {
    "step": "xmodal.loop.gradients",
    "update": "xmodal.distributed.sum_gradients",
    "evaluation": "xmodal.evaluators.embed.embed_texts",
    "saving": "xmodal.checkpoint._complete",  # the files are written, and have not got their name
    "reading": "xmodal.data.batches.Batches.__getitem__",
    "opening": "xmodal.train.clip.open_data",
    "export": "xmodal.pair_method.PairMethod.export",
}


def train(
    config: dict[str, Any],
    meet: tuple[str, int] | None = None,
    number: int | None = signal.SIGKILL,
    rows: str | None = None,
    narrow: bool = True,
    page: bool = False,
    beat: float | None = None,
) -> int:
    """CLIP as the command line runs it, with narrow towers and no page unless told otherwise.

    meet: (moment, nth); then it sends itself the signal; without one it stands still; SIGFPE is an error of Python's.
    rows: a file that gets a line a step with the rows of the batch.
    beat: seconds between its signs of life, if not as usual; what else takes its time is as quick.
    """
    from xmodal.train.clip import Config, run

    paths = {name: Path(config[name]) for name in ("output", "config") if name in config}
    with pytest.MonkeyPatch.context() as patch:
        if narrow:
            patch.setattr("xmodal.encoders.small.small_towers", partial(small_towers, d=64))
        if not page:
            patch.setattr("xmodal.report.page.write_page", lambda *_, **__: None)
        if beat is not None:
            patch.setattr("xmodal.presence.BEAT", beat)
            patch.setattr("xmodal.presence.ENOUGH", 5 * beat)
            patch.setattr("xmodal.stopping.GRACE", 5 * beat)
        if meet is not None:
            _before(patch, *meet, partial(_met, number))
        if rows is not None:
            _before_each(patch, "step", partial(_note, Path(rows)))
        return guard(lambda: bool(run(Config(**{**config, **paths})).clear()))


def launched(
    config: dict[str, Any],
    restarts: int = 0,
    meet: tuple[str, int] | None = None,
    number: int = signal.SIGKILL,
    meets: int = 1,
) -> int:
    """Two processes under torchrun's own agent, forked, too. meets: the rank that `meet` is for, at the first try."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    agent = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id="tests",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=restarts,
        monitor_interval=0.1,
        start_method="fork",
    )
    elastic_launch(agent, _rank)(config, meet, number, meets)
    return 0


def _rank(config: dict[str, Any], meet: Any, number: int, meets: int) -> None:
    here = int(os.environ["RANK"]) == meets and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if status := train(config, meet if here else None, number):
        os._exit(status)


def _met(number: int | None) -> None:
    if number is None:
        time.sleep(60)
    elif number == signal.SIGFPE:
        raise ZeroDivisionError("of one rank")
    else:
        time.sleep(0.05)  # for a thread that is about to say what is done
        os.kill(os.getpid(), number)


def _before(patch: pytest.MonkeyPatch, moment: str, nth: int, act: Callable[[], Any]) -> None:
    left = [nth]

    def count(*_: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            act()

    _before_each(patch, moment, count)


def _before_each(patch: pytest.MonkeyPatch, moment: str, act: Callable[..., Any]) -> None:
    original = pkgutil.resolve_name(MOMENTS[moment])

    def called(*arguments: Any, **more: Any) -> Any:
        act(*arguments)
        return original(*arguments, **more)

    patch.setattr(MOMENTS[moment], called)


def _note(file: Path, method: Any, batch: dict[str, Any], progress: Any, *_: Any) -> None:
    with file.open("a") as lines:
        lines.write(json.dumps([progress.step, batch["row"].tolist()]) + "\n")
