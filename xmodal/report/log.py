"""What a run says while it trains: metrics.jsonl always, a progress line, and accelerate's trackers on request."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from xmodal import distributed
from xmodal.durable import replace_text
from xmodal.evaluators.units import shown
from xmodal.report.names import parse

LINE_EVERY = 10.0  # seconds between lines where there is no terminal


class Log:
    """Only the first process writes and prints; the others' calls do nothing.

    A line of an optimizer step has the key `loss`; other lines (evaluation, events) have not.
    """

    def __init__(self, folder: Path, accelerator: Any = None) -> None:
        self.folder = folder
        self.first = distributed.is_first()
        self.accelerator = accelerator
        self.bar: Any = None

    def begin(self, start: int, steps: int, batch: int) -> None:
        """Open metrics.jsonl, cut back to `start` steps, and the progress display."""
        self.start, self.steps, self.batch = start, steps, batch
        self.began = self.printed = time.perf_counter()
        if not self.first:
            return
        path = self.folder / "metrics.jsonl"
        kept = [line for line in path.read_text().splitlines() if _step(line) <= start] if path.exists() else []
        replace_text(path, "".join(line + "\n" for line in kept))
        self.file = path.open("a", encoding="utf-8")
        if sys.stdout.isatty():
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self.bar = Progress(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(),
                TextColumn("loss {task.fields[loss]:.3f}  {task.fields[speed]:,.0f} pairs/s"),
                TimeRemainingColumn(),
            )
            self.bar.start()
            self.task = self.bar.add_task("", total=steps, completed=start, loss=float("nan"), speed=0.0)

    def step(self, step: int, **figures: float) -> None:
        """One optimizer step: `loss`, `lr`, `grad_norm`, `pairs_per_second` and the method's own figures."""
        if not self.first:
            return
        self._write({"step": step, **figures})
        now = time.perf_counter()
        speed = (step - self.start) * self.batch / (now - self.began)
        if self.bar is not None:
            self.bar.update(self.task, completed=step, loss=figures["loss"], speed=speed)
        elif now - self.printed >= LINE_EVERY or step in (self.start + 1, self.steps):
            self.printed = now
            left = (self.steps - step) * (now - self.began) / max(1, step - self.start)
            print(
                f"step {step}/{self.steps}  loss {figures['loss']:.3f}  {speed:,.0f} pairs/s  {_clock(left)} left",
                flush=True,
            )

    def event(self, step: int, **figures: Any) -> None:
        """Anything that is no optimizer step, such as scores: all of it is written, the first of each kind printed."""
        if not self.first:
            return
        self._write({"step": step, **figures})
        told = {k: v for k, v in figures.items() if not isinstance(v, float) or parse(k).is_first_place}
        line = "  ".join(f"{k} {shown(k, v)}" if isinstance(v, float) else f"{k}: {v}" for k, v in told.items())
        if self.bar is not None:
            self.bar.console.print(f"step {step}  {line}", markup=False)  # a file's name may have brackets
        else:
            print(f"step {step}  {line}", flush=True)

    def warn(self, step: int, text: str) -> None:
        """A guard's warning, from any thread. Another process than the first prints what the first can't know of."""
        if self.first:
            self.event(step, warning=text)
        else:
            print(f"process {distributed.rank()}, step {step}  warning: {text}", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.first:
            self.file.close()
            if self.bar is not None:
                self.bar.stop()

    def _write(self, line: dict[str, Any]) -> None:
        # JSON has no NaN: what is not finite is null.
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        self.file.write(json.dumps(plain, allow_nan=False) + "\n")
        self.file.flush()
        if self.accelerator is not None and self.accelerator.trackers:
            figures = {k: v for k, v in line.items() if k != "step" and isinstance(v, (int, float))}
            self.accelerator.log(figures, step=line["step"])


def say(text: str) -> None:
    """A line for the user from the first process."""
    if distributed.is_first():
        print(text, flush=True)


def _step(line: str) -> float:
    """The step of a line of metrics.jsonl; a line torn by a kill belongs to no step that is kept."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"
