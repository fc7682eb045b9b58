"""Runs in children forked from one process that has everything imported: each starts at once and may be killed.

    python -m tests.forks      a JSON line a command on stdin, a line a reply on stdout

`Forks` is the side of the tests. No torch operation runs in the process that forks: threads don't survive a fork.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ALONE = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
NEEDED = (  # what a run imports on its way
    *("accelerate", "datasets", "matplotlib.figure", "open_clip", "PIL.Image", "rich.table", "sentencepiece"),
    *("torch.distributed.launcher.api", "torch.distributed.run", "torchvision", "transformers", "yaml"),
    *("xmodal.evaluators.embed", "xmodal.evaluators.evaluate", "xmodal.report.page", "xmodal.train.clip"),
    *("xmodal.data.hf_pictures", "xmodal.data.shards", "xmodal.data.table", "xmodal.encoders.small"),
    *("tests.attacks", "tests.children", "tests.stream_children"),
)


@dataclass
class Child:
    """One that was forked: its process, which leads a group of its own, and the file that it writes into."""

    pid: int
    told: Path
    forks: Forks

    @property
    def said(self) -> str:
        return self.told.read_text(errors="replace")

    def wait(self, seconds: float = 60) -> int:
        """Its exit status, negative where a signal ended it. Fails where it goes on for longer."""
        status = self.forks.ask({"wait": self.pid, "seconds": seconds})
        assert status is not None, f"still there after {seconds} s:\n{self.said[-3000:]}"
        return status

    def kill(self, number: signal.Signals, group: bool = False) -> None:
        (os.killpg if group else os.kill)(self.pid, number)


class Forks:
    """The process that forks. `call` names a function of tests/children.py, or with a dot of a module beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.number = folder, 0
        cache = {"HF_DATASETS_CACHE": str(folder / "cache")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.forks"],
            cwd=ROOT,
            env={**os.environ, **ALONE, **cache},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, question: dict[str, Any]) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(question, default=str) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, call: str, environment: dict[str, str] | None = None, /, **arguments: Any) -> Child:
        self.number += 1
        told = self.folder / f"{self.number}.txt"
        pid = self.ask({"call": call, "told": told, "environment": environment or {}, "arguments": arguments})
        return Child(pid, told, self)

    def run(self, call: str, /, *, status: int = 0, **arguments: Any) -> str:
        """What a child said that ended with this status."""
        child = self.start(call, **arguments)
        assert child.wait() == status, child.said[-3000:]
        return child.said

    def ranks(
        self,
        call: str,
        more: Sequence[dict[str, Any]] = ({}, {}),
        /,
        environment: dict[str, str] | None = None,
        **arguments: Any,
    ) -> list[Child]:
        """One process of a group for each of `more`, which are arguments of its own."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        world = {**(environment or {}), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            world[name] = str(len(more))
        return [
            self.start(call, {**world, "RANK": str(rank), "LOCAL_RANK": str(rank)}, **arguments, **own)
            for rank, own in enumerate(more)
        ]

    def run_ranks(self, call: str, /, *, processes: int = 2, **arguments: Any) -> str:
        """What the first of several said, all of which ended well."""
        children = self.ranks(call, [{}] * processes, **arguments)
        for child in children:
            assert child.wait() == 0, child.said[-3000:]
        return children[0].said

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


def serve() -> None:
    import torch

    torch.set_num_threads(1)
    for name in NEEDED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or the children copy every page that a collection touches
    for line in sys.stdin:
        asked = json.loads(line)
        reply = _wait(asked["wait"], asked["seconds"]) if "wait" in asked else _fork(**asked)
        print(json.dumps(reply), flush=True)


def _fork(call: str, told: str, environment: dict[str, str], arguments: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    for source, streams in (
        (os.open(told, os.O_WRONLY | os.O_CREAT), (1, 2)),
        (os.open(os.devnull, os.O_RDONLY), (0,)),
    ):
        for stream in streams:
            os.dup2(source, stream)
    os.environ.update(environment)
    module, _, name = f"children.{call}".rpartition(".")
    sys.exit(getattr(sys.modules[f"tests.{module.rpartition('.')[2]}"], name)(**arguments))


def _wait(pid: int, seconds: float) -> int | None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


if __name__ == "__main__":
    serve()
