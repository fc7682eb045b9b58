"""What several processes compute, against one: started by torchrun from test_two_processes.py.

Each process computes its part of a global batch and, alone, the whole batch, and writes how far its gradients are
off as JSON. Usage: torchrun --nproc_per_node N two_processes.py FOLDER; more than two compute the losses alone.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Container
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from xmodal import distributed
from xmodal.data.glyphs import Glyphs
from xmodal.data.source import captions
from xmodal.embedding import embed, embedder
from xmodal.encoders.batch_norm import BatchNorm
from xmodal.encoders.once import images_once, texts_once
from xmodal.encoders.small import small_towers
from xmodal.encoders.tokenizer import PiecesTokenizer
from xmodal.errors import Stopped
from xmodal.evaluators.embed import embed_pairs
from xmodal.finetune import Towers
from xmodal.grad_cache import gradients
from xmodal.method import Method, Progress
from xmodal.objectives import (
    barlow_twins_loss,
    byol_loss,
    clip_loss,
    cpc_loss,
    dcl_loss,
    distill_loss,
    guided_info_nce_loss,
    hard_nt_xent_loss,
    info_nce_floor,
    info_nce_loss,
    logistic_loss,
    margin_loss,
    moco_loss,
    n_pair_loss,
    nt_xent_loss,
    rows_without_positive,
    siglip_loss,
    simcse_loss,
    sinkhorn,
    sup_con_loss,
    swav_loss,
    triplet_loss,
)
from xmodal.train import simcse
from xmodal.train.clip import Config, clip, run

GLYPHS = Glyphs("unseen_names")
NAMES = sorted(set(captions(GLYPHS)))
B = 24  # pairs in the global batch
QUICK: dict[str, Any] = {"model": "small", "preset": "quick", "steps": 6, "lr": 1e-3, "warmup": 2, "wd": 0.1,
                         "vocabulary": 64, "precision": "fp32", "max_bad_fraction": 0.2, "save_every": 4}  # fmt: skip


def off(a: Tensor | None, b: Tensor | None) -> float:
    """The largest difference, in parts of the largest value or of 1, whichever is more."""
    if a is None or b is None:
        return 0.0 if a is b else float("inf")
    if not a.numel():
        return 0.0
    return ((a - b).abs().max() / b.abs().max().clamp_min(1)).nan_to_num(float("inf")).item()  # max() passes NaN over


LOSSES: dict[str, Callable[..., Tensor]] = {
    "clip, no ids": lambda i, t, s, b, ids: clip_loss(i, t, s),
    "clip, uniform": lambda i, t, s, b, ids: clip_loss(i, t, s, **ids),
    "clip, mask": lambda i, t, s, b, ids: clip_loss(i, t, s, **ids, positives="mask"),
    "clip, image ids, kept": lambda i, t, s, b, ids: clip_loss(i, t, s, image_id=ids["image_id"], keep_bytes=10**6),
    "siglip, no ids": lambda i, t, s, b, ids: siglip_loss(i, t, s, b),
    "siglip, ids": lambda i, t, s, b, ids: siglip_loss(i, t, s, b, **ids),
    "nt_xent": lambda i, t, s, b, ids: nt_xent_loss(i, t, 1 / s),
    "sup_con": lambda i, t, s, b, ids: sup_con_loss(torch.cat([i, t]), ids["text_id"].repeat(2), 1 / s),
    "info_nce": lambda i, t, s, b, ids: info_nce_loss(3 * i, t, temperature=1 / s),
    "info_nce, negatives": lambda i, t, s, b, ids: info_nce_loss(i, t, (t - i)[ids["image_id"] < 2], temperature=1 / s),
    "simcse": lambda i, t, s, b, ids: simcse_loss(i, t, i.roll(1, 1), temperature=1 / s, hard_negative_weight=0.7),
    "simcse, ids": lambda i, t, s, b, ids: simcse_loss(
        *(i, t, i.roll(1, 1)),
        temperature=1 / s,
        hard_negative_weight=0.7,
        anchor_id=ids["image_id"],
        positive_id=ids["text_id"],
    ),
    "floor": lambda i, t, s, b, ids: (i.sum() + t.sum()) * 0 + info_nce_floor(**ids),
    "moco": lambda i, t, s, b, ids: moco_loss(i, t, QUEUE, temperature=1 / s),
    "byol": lambda i, t, s, b, ids: byol_loss(3 * i, t) + byol_loss(t, i),
    "swav": lambda i, t, s, b, ids: swav_loss(
        torch.stack([i, t, i - t], 1), torch.stack([sinkhorn(i, 0.1), sinkhorn(9 * t)], 1)
    ),
    "barlow_twins": lambda i, t, s, b, ids: barlow_twins_loss(3 * i, i + t),
    "cpc": lambda i, t, s, b, ids: cpc_loss(i, torch.stack([t, i - t], 1), torch.stack([s * EYE, b * EYE - 1])),
    "semi-hard triplets": lambda i, t, s, b, ids: triplet_loss(i + t, ids["text_id"], margin=0.7),
    "hard triplets": lambda i, t, s, b, ids: triplet_loss(i + t, ids["image_id"], mining="hard"),
    "all triplets": lambda i, t, s, b, ids: triplet_loss(i + t, ids["text_id"], mining="all"),
    "random triplets": lambda i, t, s, b, ids: triplet_loss(i, ids["image_id"] // 2, mining="random", seed=3),
    "n_pair": lambda i, t, s, b, ids: n_pair_loss(3 * i, t, norm_weight=0.02),
    "margin": lambda i, t, s, b, ids: margin_loss(i, t, ids["image_id"] < 2, margin=1.5),
    "logistic": lambda i, t, s, b, ids: logistic_loss(i, t, ids["image_id"] < 2, s, b),
    "dcl": lambda i, t, s, b, ids: dcl_loss(i, t, temperature=1 / s),
    "dcl, weighted": lambda i, t, s, b, ids: dcl_loss(i, t, temperature=1 / s, sigma=0.5),
    "hard_nt_xent": lambda i, t, s, b, ids: hard_nt_xent_loss(i, t, temperature=1 / s),
    "guided_info_nce": lambda i, t, s, b, ids: guided_info_nce_loss(
        i, t, i.roll(1, 1), t, (t - i)[ids["image_id"] < 2], t[ids["image_id"] < 2], temperature=1 / s, margin=0.1
    ),
    "guided_info_nce, between": lambda i, t, s, b, ids: guided_info_nce_loss(
        i, t, t, i.roll(1, 1), temperature=1 / s, within=False
    ),
    "distill": lambda i, t, s, b, ids: distill_loss(i, t, s, (i + t)[:, :5], (t - i)[:, :5], 9.0),
    "rows without a positive": lambda i, t, s, b, ids: (
        i.sum() * 0 + t.sum() * 0 + rows_without_positive(ids["text_id"])
    ),
    "batch norm": lambda i, t, s, b, ids: of_batch_norm(i, t, s, b),
}
EYE = torch.eye(6, dtype=torch.float64)
QUEUE = torch.linspace(-1, 1, 42, dtype=torch.float64).view(7, 6)


def of_batch_norm(i: Tensor, t: Tensor, s: Tensor, b: Tensor) -> Tensor:
    """Outputs of two layers, the second with places (b, 2, 3), and the running statistics they leave."""
    first, second = BatchNorm(6).double(), BatchNorm(2, momentum=None).double()
    y = functional_call(first, {"weight": s * EYE[0] + 1, "bias": b * EYE[1]}, i)
    z = second((y * t).view(-1, 2, 3)).view(-1, 6)
    left = [first.running_mean, first.running_var, second.running_mean, second.running_var]
    return distributed.total((z * i).square().sum()) + sum(x.square().sum() for x in left if x is not None)


def loss_cases() -> dict[str, float]:
    """The losses with uneven and empty parts, with ids that repeat across processes, in float64."""
    found = {}
    world, rank = distributed.processes(), distributed.rank()
    for parts in ([5, 5, 5, 5], [7, 3, 1, 6], [4, 0, 2, 0], [0, 3, 0, 0], [1, 1, 1, 1]):
        sizes = parts[:world]
        n, first = sum(sizes), sum(sizes[:rank])
        here = slice(first, first + sizes[rank])
        g = torch.Generator().manual_seed(n)
        rows = [F.normalize(torch.randn(n, 6, generator=g, dtype=torch.float64), dim=-1) for _ in range(2)]
        ids = {"image_id": torch.arange(n) % 4, "text_id": torch.randint(0, 5, (n,), generator=g)}
        for name, loss in LOSSES.items():

            def value(part: slice, loss: Any = loss, rows: Any = rows, ids: Any = ids) -> list[Tensor]:
                inputs = [r[part].clone().requires_grad_() for r in rows]
                inputs += [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (14.0, -9.0)]
                total = loss(*inputs, {k: v[part] for k, v in ids.items()})
                total.backward()
                return [total.detach(), *(torch.zeros_like(x) if x.grad is None else x.grad for x in inputs)]

            loss_here, *gradients_here = value(here)
            with distributed.alone():
                loss_alone, *alone = value(slice(None))
            numbers = torch.stack(gradients_here[2:])
            dist.all_reduce(numbers)  # scale and bias receive shares
            worst = [off(loss_here, loss_alone), off(numbers, torch.stack(alone[2:]))]
            worst += [off(gradients_here[k], alone[k][here]) for k in range(2)]
            found[f"{sizes} {name}"] = max(worst) if name != "floor" else max(worst) / 1e6  # which is float32
    return found


def moved() -> dict[str, list[int]]:
    """Numbers that a loss and its gradient move between processes: of collectives on rows, and of all others."""
    found = {}
    d = 64
    rows = [F.normalize(torch.randn(10 + distributed.rank(), d), dim=1).requires_grad_() for _ in range(2)]
    everywhere = distributed.count(len(rows[0]))
    originals = {name: getattr(dist, name) for name in (distributed.GATHER, distributed.REDUCE_SCATTER, "all_reduce")}
    for name in ("clip, uniform", "siglip, ids", "nt_xent", "sup_con", "simcse"):
        counts = [0, 0]

        def counted(call: Any, counts: list[int] = counts) -> Any:
            def wrapped(*tensors: Any, **settings: Any) -> Any:
                sizes = [t for t in tensors if isinstance(t, Tensor)]
                counts[0 if sizes[0].ndim == 2 and sizes[0].shape[1] == d else 1] += max(t.numel() for t in sizes)
                return call(*tensors, **settings)

            return wrapped

        for call, original in originals.items():
            setattr(dist, call, counted(original))
        ids = {"image_id": torch.arange(len(rows[0])), "text_id": torch.arange(len(rows[0])) % 3}
        LOSSES[name](*rows, torch.tensor(14.0), torch.tensor(-9.0), ids).backward()
        for call, original in originals.items():
            setattr(dist, call, original)
        found[name] = [everywhere, d, *counts]
    return found


def spoil(setattr: Callable[..., Any], steps: Container[int], rank: int = 0) -> None:
    """In those steps put a NaN into one parameter's gradient on one process; the loss stays as it is."""

    def spoiled(method: Method, batch: Any, progress: Progress, *rest: Any) -> Any:
        found = gradients(method, batch, progress, *rest)
        if progress.step in steps and distributed.rank() == rank:
            some = next(p for p in method.parameters() if p.grad is not None)
            some.grad.view(-1)[0] = float("nan")  # type: ignore[union-attr]
        return found

    setattr("xmodal.loop.gradients", spoiled)


class Watch:
    """The recipe's method, once there is one, and the steps after which its `after_step` was called."""

    def __init__(self, setattr: Callable[..., Any]) -> None:
        self.steps: list[int] = []
        setattr("xmodal.train.clip.clip", self._watched)

    def _watched(self, config: Config, *more: Any) -> Method:
        self.method = method = clip(config, *more)
        after_step = method.after_step

        def noted(representations: Any, targets: Any, progress: Progress) -> None:
            self.steps.append(progress.step)
            after_step(representations, targets, progress)

        method.after_step = noted  # type: ignore[method-assign]
        return method


SPOILED = {**QUICK, "steps": 4, "save_every": 0}  # and step 3 of the four is skipped


def spoiled_recipe(folder: Path) -> dict[str, Any]:
    """The recipe while one process's gradient is spoiled: in one step, then in all until it gives up.

    Returns the steps that this process took, how far its weights are from the first one's, and how it gave up.
    """
    with pytest.MonkeyPatch.context() as patch:
        watch = Watch(patch.setattr)
        spoil(patch.setattr, {2}, rank=1)
        run(Config(data=str(folder / "pairs.csv"), output=folder / "spoiled", batch_size=8, **SPOILED))
        taken, apart = list(watch.steps), 0.0
        for weight in watch.method.state_dict().values():
            first = weight.clone()
            dist.broadcast(first, src=0)
            apart = max(apart, (weight - first).abs().max().item())
        spoil(patch.setattr, range(20), rank=1)
        try:
            run(Config(data=str(folder / "pairs.csv"), output=folder / "hopeless", batch_size=8, **QUICK))
        except RuntimeError as error:
            return {"taken": taken, "apart": apart, "end": str(error)}
    return {"taken": taken, "apart": apart, "end": "went on"}


def method_of(dtype: torch.dtype) -> Method:
    torch.manual_seed(3)
    return clip(Config(), Towers(small_towers(PiecesTokenizer.train(NAMES, 500), side=32, d=64))).to(dtype)


def batch_of(number: int, method: Method) -> dict[str, Tensor]:
    """Real pictures and names; the first image comes twice, once on each process."""
    g = torch.Generator().manual_seed(number)
    rows = torch.randperm(len(GLYPHS), generator=g)[:B]
    rows[-1] = rows[0]
    names = [GLYPHS.texts(row)[0] for row in rows.tolist()]
    return {
        "image": method.towers.preparation.stack(GLYPHS.images(rows.numpy())),
        "text": method.towers.tokenizer(names),
        "image_id": torch.from_numpy(GLYPHS.image_id[rows.numpy()]),
        "text_id": torch.tensor([NAMES.index(name) for name in names]),
        "row": rows,
    }


def step(method: Method, batch: dict[str, Tensor], number: int, micro_batch: int | None) -> Tensor:
    method.zero_grad(set_to_none=True)
    progress = Progress(number, 12, 4, B)
    loss, *_ = gradients(method, batch, progress, torch.device("cpu"), 0, micro_batch, nullcontext)
    distributed.sum_gradients(method.parameters())
    return loss


def step_cases() -> dict[str, float]:
    """A whole step: every parameter's gradient, after the sum, on every process."""
    found = {}
    for dtype in (torch.float32, torch.float64):
        method = method_of(dtype)
        batch = batch_of(0, method)
        with distributed.alone():
            alone_loss = step(method, batch, 0, None)
        alone = {name: p.grad.clone() for name, p in method.named_parameters()}
        half = {name: v[distributed.rank() * B // 2 :][: B // 2] for name, v in batch.items()}
        for micro in (None, 5, 12):
            loss = step(method, half, 0, micro)
            worst = max(off(p.grad, alone[name]) for name, p in method.named_parameters())
            found[f"{dtype} micro_batch={micro}"] = max(worst, off(loss, alone_loss))
        with distributed.alone():
            step(method, batch, 0, 7)
        found[f"{dtype} one process micro_batch=7"] = max(
            off(p.grad, alone[name]) for name, p in method.named_parameters()
        )
    return found


def weights_after(steps: int) -> float:
    """AdamW with eps 1e-6 and a clipped norm, as in the loop, in float32: the largest difference of a weight."""

    def train(whole: bool) -> Method:
        method = method_of(torch.float32)
        opt = torch.optim.AdamW(method.parameter_groups(), lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1)
        for number in range(steps):
            batch = batch_of(number, method)
            part = {name: v if whole else v[distributed.rank() * B // 2 :][: B // 2] for name, v in batch.items()}
            step(method, part, number, None)
            torch.nn.utils.clip_grad_norm_(method.parameters(), 1.0)
            opt.step()
        return method

    together = train(whole=False)
    with distributed.alone():
        one = train(whole=True)
    return max((a - b).abs().max().item() for a, b in zip(together.parameters(), one.parameters(), strict=True))


def sum_cases() -> dict[str, Any]:
    """None stays None where no process has a gradient; one process's gradient is everyone's; `extra` is summed."""
    nobody, first, both = (torch.zeros(3, requires_grad=True) for _ in range(3))
    wide = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    r = distributed.rank()
    first.grad = torch.full((3,), 5.0) if r == 0 else None
    both.grad, wide.grad = torch.full((3,), 1.0 + r), torch.full((2,), 1.0 + r, dtype=torch.float64)
    extra = distributed.sum_gradients([nobody, first, both, wide], torch.tensor([2.0, float(r)]))
    return {
        "nobody": nobody.grad is None,
        "first": first.grad.tolist(),
        "both": both.grad.tolist(),
        "wide": wide.grad.tolist(),
        "extra": extra.tolist(),
        "reduce": _reduce_case(),
    }


def _reduce_case() -> list[float]:
    """d/dx of the sum over processes of (r + 1) · (sum of x): each process's use of the sum counts."""
    x = torch.ones(2, requires_grad=True)
    share = (distributed.rank() + 1) * distributed.reduce(x).sum()
    distributed.total(share).backward()
    return x.grad.tolist()


def embeddings() -> float:
    """Pictures and texts that two processes embed in parts, against those that one embeds."""
    towers = method_of(torch.float32).export()
    together = embed_pairs(towers, GLYPHS, batch_size=100)
    with distributed.alone():
        one = embed_pairs(towers, GLYPHS, batch_size=100)
    assert (together.pairs == one.pairs).all()
    assert together.texts == one.texts
    once = images_once(towers, GLYPHS, 100).features, texts_once(towers, GLYPHS, 100).features
    with distributed.alone():
        whole = images_once(towers, GLYPHS, 100).features, texts_once(towers, GLYPHS, 100).features
    differences = [off(a, b) for a, b in zip(once, whole, strict=True)]
    return max(off(together.image, one.image), off(together.text, one.text), *differences)


def recipe(folder: Path) -> None:
    """The recipe itself, with a broken picture; its folder is compared with that of one process."""
    run(Config(data=str(folder / "pairs.csv"), output=folder / "two", batch_size=8, **QUICK))


def sentences(folder: Path) -> None:
    """Sentences, trained and scored: the folder is compared with that of one process."""
    simcse.run(simcse.Config(output=folder / "sentences two", batch_size=8, **told_of_sentences(folder)))


def told_of_sentences(folder: Path) -> dict[str, Any]:
    """Without dropout and deletion, whose draws are others on another number of processes."""
    files = {"data": str(folder / "triplets.tsv"), "val": str(folder / "scored.tsv")}
    return {**files, "model": "small", "preset": "quick", "steps": 4, "vocabulary": 80, "precision": "fp32",
            "dropout": 0.0, "delete": 0.0}  # fmt: skip


def embedded(folder: Path) -> None:
    """Pictures, one of them broken, and texts, each into an index; bytes are compared with those of one process."""
    if distributed.is_first():  # a copy: the run itself goes on later
        shutil.copytree(folder / "two", folder / "towers")
    distributed.wait()
    embedder.SIZE = {"text": 4, "image": 6}
    for kind in ("image", "text"):
        embed.run(embed.Config(output=folder / f"{kind}s two", **told_of_embedding(folder, kind)))


def told_of_embedding(folder: Path, kind: Any) -> dict[str, Any]:
    return {"model": str(folder / "towers"), "data": str(folder / "pairs.csv"), "kind": kind, "batch_size": 4}


class Asked:
    """Send this process a signal while it does something for the nth time; `moments` says what it can be doing."""

    moments: ClassVar = {
        "step": "xmodal.loop.gradients",
        "evaluation": "xmodal.evaluators.embed.embed_texts",
        "saving": "xmodal.checkpoint.save",
    }

    def __init__(self, setattr: Callable[..., Any], moment: str, nth: int, number: int = signal.SIGTERM) -> None:
        self.nth, self.number = nth, number
        target = self.moments[moment]
        module, _, name = target.rpartition(".")
        self.original = getattr(importlib.import_module(module), name)
        setattr(target, self)

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        self.nth -= 1
        if self.nth == 0:
            os.kill(os.getpid(), self.number)
        return self.original(*arguments, **more)


STOPPED = {**QUICK, "eval_every": 2}  # of six steps; checkpoints after the fourth and the last


def stopped(folder: Path) -> dict[str, Any]:
    """A run of which one process is asked to stop at different moments, and goes on; its words, its seconds."""
    found = {}
    told: dict[str, Any] = {**STOPPED, "data": str(folder / "pairs.csv"), "batch_size": 8}
    run(Config(output=folder / "not stopped", **told))
    for moment, nth, rank in (("step", 3, 1), ("evaluation", 1, 1), ("saving", 1, 0)):
        output = folder / f"stopped {moment}"
        with pytest.MonkeyPatch.context() as patch:
            if distributed.rank() == rank:
                Asked(patch.setattr, moment, nth)
            began = time.monotonic()
            try:
                run(Config(output=output, **told))
                found[moment] = ["went on", 0.0]
            except Stopped as error:
                found[moment] = [str(error), time.monotonic() - began]
        run(Config(output=output, resume=True, **told))
    return found


def main() -> None:
    distributed.start("fp32")
    torch.use_deterministic_algorithms(True)
    if distributed.processes() > 2:
        return write({"processes": distributed.processes(), "loss": loss_cases()})
    found = {
        "processes": distributed.processes(),
        "loss": loss_cases(),
        "moved": moved(),
        "step": step_cases(),
        "weights after 12 steps": weights_after(12),
        "sums": sum_cases(),
        "objects": distributed.gather_objects(distributed.rank()),
        "first": distributed.first_says(distributed.rank()),
        "embeddings": embeddings(),
    }
    recipe(Path(sys.argv[1]))
    found["stopped"] = stopped(Path(sys.argv[1]))
    sentences(Path(sys.argv[1]))
    embedded(Path(sys.argv[1]))
    found["spoiled"] = spoiled_recipe(Path(sys.argv[1]))
    write(found)


def write(found: dict[str, Any]) -> None:
    Path(sys.argv[1], f"rank{distributed.rank()}.json").write_text(json.dumps(found, indent=1))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
