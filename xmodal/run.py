"""What every recipe does around its method: folder, processes, size of the data, checkpoint, scores.

A recipe reads: `begin`, then data and method, then `train`, then `finish`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from xmodal import attendance, checkpoint, distributed
from xmodal import config as configuration
from xmodal.data.batches import Batches, Quarantine, Steps, Trained
from xmodal.data.source import Source
from xmodal.errors import InputError
from xmodal.loop import Setting, fit
from xmodal.method import Method
from xmodal.report.log import Log, say

if TYPE_CHECKING:
    from xmodal.data.views import Views
    from xmodal.encoders.tokenizer import PiecesTokenizer
    from xmodal.evaluators.scores import Scores
    from xmodal.report.evaluated import Classified, Evaluated

# What may differ between a run and its resumption without a word; of data and teacher the fingerprint may not.
NOT_THE_RUN = {
    *("batch_size", "compile", "data", "distill", "eval_every", "fsdp", "max_bad_fraction", "micro_batch"),
    *("output", "preset", "save_every", "timeout", "track", "val", "workers"),
}


@dataclass(frozen=True)
class Evaluation:
    """What a model was found to do: protocol, scores, and for the report what they were computed from."""

    protocol: dict[str, Any]
    scores: Scores
    shown: dict[str, Evaluated | Classified] = field(default_factory=dict)


@dataclass
class Run:
    """A run that has begun; nothing is written before its data and its model have been found to be in order."""

    name: str
    config: configuration.Shared
    folder: Path
    accelerator: Any
    resume: checkpoint.Checkpoint | None
    own_tokenizer: PiecesTokenizer | None = None

    def tokenizer(self, train: Callable[[], PiecesTokenizer], length: int = 32) -> PiecesTokenizer:
        """The tokenizer that is trained on this run's texts; a resumed run has the one that it began with."""
        from xmodal.encoders.tokenizer import PiecesTokenizer

        if self.resume is not None and (self.folder / "tokenizer.model").is_file():
            return PiecesTokenizer.load(self.folder, length)
        self.own_tokenizer = found = distributed.first_says(train())
        return found

    def batches(
        self,
        source: Source,
        prepare_images: Callable[..., Any],
        tokenize: Callable[..., Any],
        captions: int | Literal["all"] = 1,
        views: Views | None = None,
    ) -> Batches:
        """This process's part of each global batch of images and texts; see `share`.

        captions: how many of a row's texts are in the batch. views: what else is made of each picture.
        """
        return Batches(
            source,
            **self.share(source),
            seed=self.config.seed,
            prepare_images=prepare_images,
            tokenize=tokenize,
            captions=captions,
            views=views,
        )

    def share(self, source: Trained) -> dict[str, Any]:
        """The global batch, and which part of it is this process's; says what was left out of the data.

        On a resume the global batch of the checkpoint counts. Raises InputError where it can't be shared out, and
        where the data is not what the run began with.
        """
        processes = distributed.processes()
        batch = self.config.batch_size * processes
        if self.resume is not None:
            batch = self.resume.state["batch"]
            if batch % processes:
                raise InputError(
                    f"The run has batches of {batch}, which {processes} processes cannot share evenly. "
                    f"Resume it on a number that divides {batch}."
                )
            if self.resume.state["data"] != source.fingerprint():
                before, now = self.resume.state.get("rows"), len(source)
                how = f"{now:,} rows instead of {before:,}" if before != now else "captions or files differ"
                if self.resume.state["data"].partition(" ")[0] == source.fingerprint().partition(" ")[0]:
                    how = "another teacher's rows, or none"
                told = f"{self.folder} was trained on other data than {self.config.data} holds now: {how}."
                if not self.config.allow_changed_data:
                    raise InputError(f"{told}\nBegin anew in another --output, or go on by --allow-changed-data.")
                say(told)
            if (changed := self._changes()) and not self.config.allow_changed_config:
                raise InputError(
                    f"{self.folder} began with other settings: {changed}.\nGive the same, begin anew in another "
                    "--output, or go on by --allow-changed-config."
                )
        for lack, n in source.dropped.items():
            if n:
                say(f"Left out of {source.name}: {n} with {lack}.")
        here = distributed.part(batch)
        return {"batch": batch, "part": (here.start, here.stop)}

    def train(
        self,
        method: Method,
        data: Steps,
        *,
        optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
        lr: Callable[[int], Callable[[int], float]],
        evaluate: Callable[[], Evaluation] | None = None,
        evaluate_last: bool = False,
        clip_norm: float | None = 1.0,
    ) -> None:
        """Write the configuration, then fit; lr(steps)(step) is the learning rate of a step.

        evaluate: the loop logs its scores' values; evaluate_last: after the last step, too.
        """
        config, processes = self.config, distributed.processes()
        steps = config.steps or max(1, round(config.epochs * data.steps_per_epoch))
        if distributed.is_first():
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.resume is None:
                resolved = dataclasses.replace(config, output=self.folder)
                configuration.write(resolved, self.folder / "config.yaml", recipe=self.name)
                if self.own_tokenizer is not None:
                    self.own_tokenizer.save(self.folder)
        distributed.wait()
        say(
            f"{self.name}: preset {config.preset}, {processes} process{'es' if processes > 1 else ''} on "
            f"{self.accelerator.device.type}, {self.accelerator.mixed_precision.replace('no', 'fp32')}, "
            f"global batch {data.global_batch}, {steps} steps of {data.steps_per_epoch} an epoch -> {self.folder}"
        )
        if self.resume is not None:
            changed = self._changes()
            say(f"Going on after step {self.resume.step}." + (f" Other settings now: {changed}." if changed else ""))
        if config.track:
            told = {name: "" if value is None else str(value) for name, value in configuration.plain(config).items()}
            self.accelerator.init_trackers(self.name, config=told)
        setting = Setting(
            steps=steps,
            seed=config.seed,
            micro_batch=config.micro_batch,
            clip_norm=clip_norm,
            workers=_workers() if config.workers is None else config.workers,
            save_every=config.save_every,
            eval_every=config.eval_every,
            eval_last=evaluate_last,
            compile=config.compile,
            fsdp=config.fsdp,
        )
        done = self.resume.step if self.resume else 0
        quarantine = Quarantine(self.folder / "skipped.jsonl", config.max_bad_fraction, len(data.source), until=done)
        fit(
            method,
            data,
            setting,
            accelerator=self.accelerator,
            optimizer=optimizer,
            lr=lr(steps),
            log=Log(self.folder, self.accelerator),
            quarantine=quarantine,
            evaluate=(lambda: {n: s["value"] for n, s in evaluate().scores.items()}) if evaluate else None,
            resume=self.resume,
        )
        attendance.doing("exporting the model")
        exported = method.export()  # on every process, for of sharded towers each has a part
        if distributed.is_first():
            exported.save(self.folder)
        distributed.wait()
        attendance.doing("evaluating what was trained")

    def finish(
        self, now: Evaluation, before: Evaluation | None = None, scan: dict[float, Scores] | None = None
    ) -> dict[str, Any]:
        """Write scores.json and report.html, print the table, end the trackers.

        before: the same with the model as training found it; scan: scores of weights between the first and the last.
        """
        from xmodal.evaluators.scores import print_table, write_scores
        from xmodal.report.evaluated import Before
        from xmodal.report.page import write_page

        attendance.doing("writing scores and report")
        protocol, scores = now.protocol, now.scores
        if distributed.is_first():
            more = {"before training": before.scores if before else None, "scan": scan}
            write_scores(
                self.folder / "scores.json", protocol, scores, **{name: told for name, told in more.items() if told}
            )
            print_table(protocol, scores)
            if before is not None:
                changed = {n: s for n, s in before.scores.items() if s != scores.get(n)}
                say("Before training: " + _first_figures(changed or before.scores))
            write_page(
                self.folder,
                title=f"{self.name}: {self.folder.name}",
                protocol=protocol,
                scores=scores,
                evaluated=now.shown,
                before=Before(before.scores, before.shown) if before else None,
                scan=scan or None,
            )
        if self.config.track:
            values = {name: score["value"] for name, score in scores.items()}
            self.accelerator.log(values)
            self.accelerator.end_training()
        say(f"Model and scores are in {self.folder}")
        return {"output": str(self.folder), "protocol": protocol, "scores": scores}

    def _changes(self) -> str:
        """The settings that are others than the run began with; what is not the run's own, such as workers, may be."""
        try:
            before = configuration.read(self.folder / "config.yaml")
        except InputError:
            return ""
        now = configuration.plain(self.config)
        told = [name for name in before if name in now and name not in NOT_THE_RUN]
        return ", ".join(f"{name} {before[name]} -> {now[name]}" for name in told if now[name] != before[name])


def begin(name: str, config: configuration.Shared) -> Run:
    """Start the processes and claim the folder. Raises InputError for a folder in use."""
    folder = Path(config.output or Path("runs") / name)
    accelerator = distributed.start(config.precision, config.track, folder, config.timeout)
    attendance.doing("opening data and model")
    resume = checkpoint.claim(folder, config.resume)
    distributed.wait()  # a folder is looked at by all before the first writes into it
    torch.manual_seed(config.seed)
    return Run(name, config, folder, accelerator, resume)


def _first_figures(scores: Scores) -> str:
    from xmodal.evaluators.units import shown
    from xmodal.report.names import parse

    first = {n: s for n, s in scores.items() if parse(n).is_first_place} or scores
    return ", ".join(f"{n} {shown(n, s['value'])}" for n, s in first.items())


def _workers() -> int:
    """On a CPU the cores are busy with training; on a GPU this process's share of them, up to 8."""
    if not torch.cuda.is_available():
        return 0
    return max(1, min(8, (os.cpu_count() or 1) // torch.cuda.device_count() - 1))
