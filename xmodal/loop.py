"""The training loop: slices, sum, clip, schedule, log, evaluate, save, resume. It knows no objective.

Nothing is wrapped and no scheduler, sampler or random state is kept: the learning rate, the rows of a batch, their
augmentation and every random draw are functions of the step, so a run that goes on from a checkpoint is the run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from xmodal import attendance, checkpoint, distributed, sharding, stopping
from xmodal.data.batches import Quarantine, Steps
from xmodal.data.workers import deaths_named, loader
from xmodal.encoders.depth import blocks
from xmodal.errors import Stopped
from xmodal.grad_cache import gradients
from xmodal.guards import Guards
from xmodal.method import Method, Progress
from xmodal.micro_batch import largest_slice
from xmodal.report.log import Log, say

MOST_SKIPPED = 5  # steps in a row without a finite gradient before the run ends


@dataclass(frozen=True)
class Setting:
    """What a run is, beside its method and its data; a recipe fills it from its Config."""

    steps: int
    seed: int = 0
    micro_batch: int | Literal["auto"] | None = None
    clip_norm: float | None = 1.0
    workers: int = 0
    save_every: int = 0  # steps; 0 is only at the end
    eval_every: int = 0
    eval_last: bool = False  # after the last step as well, where what it finds has a part in what is exported
    compile: bool = False
    fsdp: bool = False


@stopping.watched()
@attendance.losses_named()
@deaths_named()
def fit(
    method: Method,
    data: Steps,
    setting: Setting,
    *,
    accelerator: Any,
    optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
    lr: Callable[[int], float],
    log: Log,
    quarantine: Quarantine,
    evaluate: Callable[[], dict[str, float]] | None = None,
    resume: checkpoint.Checkpoint | None = None,
) -> Progress:
    """Train `method` for `setting.steps` optimizer steps and leave its last checkpoint in the run folder.

    optimizer: builds an optimizer from parameter groups; a group's `lr_scale` multiplies the learning rate.
    evaluate: called on every process after each `eval_every` steps; its figures go into the log.
    Raises InputError when more samples are unreadable than allowed, RuntimeError when the gradient stays non-finite,
    Stopped, with a checkpoint written, when a signal asked any process to stop.
    """
    device = accelerator.device
    if setting.fsdp:
        sharding.shard(method, blocks, device)
    else:
        method.to(device)
        distributed.take_from_first(method.state_dict().values())  # a seed may give other weights on other hardware
    progress = Progress(0, setting.steps, data.steps_per_epoch, data.global_batch)
    groups = sharding.apart(method.parameter_groups())
    opt = optimizer(groups)
    start, skipped_steps, micro_batch = 0, 0, setting.micro_batch
    saved = 0  # steps that were done then; of the beginning there is nothing to save
    if resume is not None:
        resume.restore(method, opt)
        start = saved = resume.step
        skipped_steps = resume.state["skipped_steps"]
        if micro_batch == "auto":  # dropout's draws depend on the slices
            micro_batch = resume.state.get("micro_batch") or "auto"
    if setting.compile:
        method.towers.compile()
    parameters = [p for g in groups for p in g["params"]]
    fingerprint = data.source.fingerprint() if distributed.is_first() else ""

    def save(step: int, evaluation_due: bool = False) -> None:
        state = {
            "batch": data.global_batch,
            "data": fingerprint,
            "rows": len(data.source),
            "micro_batch": micro_batch,
            "skipped_steps": skipped_steps,
            "evaluation_due": evaluation_due,
        }
        attendance.doing("saving a checkpoint")
        checkpoint.save(log.folder, step, method, opt, state)
        nonlocal saved
        saved = step

    def judge(step: int) -> None:
        if evaluate is not None:
            attendance.doing("evaluating")
            method.eval()
            log.event(step, **evaluate())

    def stopped(after: int, evaluation_due: bool = False) -> Stopped:
        if saved != after:
            save(after, evaluation_due)
        log.end()
        return Stopped(f"Stopped after step {after} of {setting.steps}. With --resume it goes on.")

    in_a_row, guards = 0, Guards()
    log.begin(start, setting.steps, data.global_batch)
    if resume is not None and resume.state.get("evaluation_due"):
        judge(start)
        saved = -1  # for what was saved says that it is due
    attendance.at(start)
    began = time.perf_counter()
    for step, batch, skipped in loader(data, start, setting.steps, setting.workers, log.warn):
        # Before anything is done with it, for a process whose data is late can take no part in what all do together.
        if distributed.any_of(not batch, meanwhile=stopping.spread):
            raise stopped(step)
        progress = Progress(step, setting.steps, data.steps_per_epoch, data.global_batch)
        method.train()
        if micro_batch == "auto":
            micro_batch = largest_slice(method, batch, device, accelerator.autocast)
            say(f"--micro-batch auto: {micro_batch} of {data.global_batch // distributed.processes()} pairs at a time.")
        loss, metrics, representations, targets = gradients(
            method, batch, progress, device, setting.seed, micro_batch, accelerator.autocast
        )
        unreadable = quarantine.new(skipped, step + 1)
        told = torch.tensor([float(len(unreadable)), float(stopping.asked())])
        found = distributed.sum_gradients(parameters, told)
        assert found is not None
        some_unreadable, stop = found.tolist()
        norm = sharding.full(accelerator.clip_grad_norm_(parameters, setting.clip_norm or math.inf))
        rate = lr(step)
        for group in opt.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        # Loss and norm are sums over all processes: they are the same, and finite, on all or on none.
        if bool(torch.isfinite(loss) & torch.isfinite(norm)):
            opt.step()
            method.after_step(representations, targets, progress)
            in_a_row = 0
        else:
            skipped_steps, in_a_row = skipped_steps + 1, in_a_row + 1
            log.event(step + 1, skipped_step="the loss or the gradient was not finite")
            if in_a_row == MOST_SKIPPED:
                raise RuntimeError(
                    f"The gradient was not finite in {in_a_row} steps in a row, up to step {step + 1}. "
                    f"Samples of the last one: {[data.source.key(r) for r in batch['row'].tolist()[:8]]} …"
                )
        opt.zero_grad(set_to_none=True)
        if some_unreadable:  # so that all know of all, without talking in every step
            everywhere = [line for lines in distributed.gather_objects(unreadable) for line in lines]
            quarantine.take(everywhere, write=distributed.is_first())
            quarantine.check()
        log.step(
            step + 1,
            loss=loss.item(),
            lr=rate,
            grad_norm=norm.item(),
            pairs_per_second=data.global_batch / (time.perf_counter() - began),  # reading included
            **{name: float(value) for name, value in metrics.items()},
        )
        for warning in guards.step(loss.item(), rate, metrics, representations):
            log.warn(step + 1, warning)
        done = step + 1
        # Evaluation first: a method may keep the best it has been, and that belongs into the checkpoint.
        last = done == setting.steps
        due = setting.eval_last if last else setting.eval_every and done % setting.eval_every == 0
        if due and not stop:
            try:
                judge(done)
                due = False
            except Stopped:
                stop = True
        if stop:
            raise stopped(done, evaluation_due=bool(due))
        if setting.save_every and done % setting.save_every == 0 and not last:
            save(done)
        attendance.at(done)
        began = time.perf_counter()
    log.end()
    if start < setting.steps:
        save(setting.steps)
    return Progress(setting.steps, setting.steps, data.steps_per_epoch, data.global_batch)
