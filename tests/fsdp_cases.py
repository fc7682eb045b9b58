"""What two processes compute with sharded towers, against one with whole ones: started by torchrun from test_fsdp.py.

Usage: torchrun --nproc_per_node 2 fsdp_cases.py FOLDER fast|slow; the folder holds test_fsdp.py's models and data and
a finished run of one process, `one`. Each process writes what it found as JSON.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from tests.two_processes import NAMES, QUICK, Asked, B, Watch, batch_of, off
from xmodal import checkpoint, distributed, sharding
from xmodal.encoders import lengths
from xmodal.encoders.depth import blocks
from xmodal.encoders.hf import hf_towers
from xmodal.encoders.lora import add_lora
from xmodal.encoders.open_clip import open_clip_towers
from xmodal.encoders.pair import paired_towers
from xmodal.encoders.small import small_towers
from xmodal.encoders.tokenizer import PiecesTokenizer
from xmodal.encoders.trainable import lock
from xmodal.encoders.two_tower import TwoTower
from xmodal.errors import Failed, Stopped
from xmodal.finetune import Towers
from xmodal.grad_cache import gradients
from xmodal.method import Method, Progress
from xmodal.sharding import full, is_sharded, local, rows_here
from xmodal.train import simcse
from xmodal.train.clip import Config, clip, run

CPU = torch.device("cpu")


def towers_of(kind: str, folder: Path) -> TwoTower:
    """Fresh towers, the same at every call."""
    torch.manual_seed(3)
    if kind == "small":
        return small_towers(PiecesTokenizer.train(NAMES, 500), side=32, d=64)
    if kind == "pair":  # heads on a tower of timm, of which only the last layer is trained, and on one of transformers
        towers = paired_towers("timm:test_vit/random", f"hf:{folder / 'bert'}", head="mlp", d=32)
        lock(towers, "image", 1)
        for module in towers.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return towers
    towers = hf_towers(str(folder / "hf")) if kind == "hf" else open_clip_towers(f"local-dir:{folder / 'open_clip'}")
    if kind == "lora":
        add_lora(towers, 2, where="all")
    towers.set_grad_checkpointing(kind in ("open_clip", "lora"))
    return towers


def method_of(kind: str, folder: Path) -> Method:
    """The same weights at every call, in float64 where the kind says so."""
    kind, _, dtype = kind.partition(", ")
    method = clip(Config(ema=0.5), Towers(towers_of(kind, folder)))
    return method.double() if dtype == "float64" else method


def methods_of(kind: str, folder: Path) -> tuple[Method, Method]:
    """Two methods alike, the second of which is sharded."""
    one, two = method_of(kind, folder), method_of(kind, folder)
    sharding.shard(two, blocks, CPU)
    return one, two


def step(method: Method, batch: dict[str, Tensor], micro_batch: int | None) -> Tensor:
    method.train()
    method.zero_grad(set_to_none=True)
    loss, *_ = gradients(method, batch, Progress(0, 12, 4, B), CPU, 0, micro_batch, nullcontext)
    distributed.sum_gradients(method.parameters())
    return loss


Gradients = dict[str, Tensor | None]


def gradients_of(method: Method) -> Gradients:
    """Of each parameter the whole gradient."""
    return {name: None if p.grad is None else full(p.grad).clone() for name, p in method.named_parameters()}


def half(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: v[distributed.rank() * B // 2 :][: B // 2] for name, v in batch.items()}


def norm_of(found: Gradients, less: Gradients) -> float:
    """The norm of the difference of two gradients, all parameters together."""
    squares = [(g.double() - b.double()).square().sum() for g, b in both(found, less).values()]
    return torch.stack(squares).sum().sqrt().item()


def both(found: Gradients, other: Gradients) -> dict[str, tuple[Tensor, Tensor]]:
    assert {name for name, g in found.items() if g is None} == {name for name, g in other.items() if g is None}
    return {name: (g, b) for name, g in found.items() if g is not None and (b := other[name]) is not None}


def furthest(found: Gradients, whole: Gradients) -> float:
    """The largest difference of a parameter's gradient, in parts of its norm.

    A gradient that isn't there but for rounding, as that of a key's bias, in parts of a millionth of the norm of all.
    """
    pairs = both(found, whole).values()
    least = 1e-6 * torch.stack([b.norm() for _, b in pairs]).norm()
    return max(((g - b).norm() / b.norm().clamp_min(least)).item() for g, b in pairs)


@contextmanager
def texts_in_one_piece() -> Iterator[None]:
    """Whole towers take them so inside, as sharded ones always do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(lengths.GROUP_COST, "cpu", 10**9)
        yield


def parameter_groups(part: FSDPModule) -> list[Any]:
    """What torch keeps of a sharded module's parameters: one group until 2.10, several since."""
    state: Any = part._get_fsdp_state()
    return getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]


def step_case(kind: str, folder: Path, accelerator: Any) -> dict[str, Any]:
    """How far gradients are off, with and without slices; how the weights are shared out.

    From those of whole towers for the same slices on the same two processes; from one process's, which multiplies other
    numbers of rows at once and so rounds otherwise; and, as those are, from what float64 gives.
    """
    one, two = methods_of(kind, folder)
    batch = batch_of(2, one)
    with distributed.alone():
        alone_loss = step(one, batch, None)
        exact = method_of(f"{kind.partition(',')[0]}, float64", folder)
        step(exact, batch_of(2, exact), None)
    alone, known = gradients_of(one), gradients_of(exact)
    found: dict[str, Any] = {"layers": len(blocks(one.towers)), "slices": {}}
    for micro in (None, 5):
        loss = step(two, half(batch), micro)
        with texts_in_one_piece():
            step(one, half(batch), micro)
        sharded, whole = gradients_of(two), gradients_of(one)
        found["slices"][str(micro)] = {
            "whole": furthest(sharded, whole),
            "one process": max(off(loss, alone_loss), *(off(g, alone[name]) for name, g in sharded.items())),
            "rounding": norm_of(sharded, known),
        }
    found["rounding of one process"] = norm_of(alone, known)
    found["modules"] = [  # by its layers, and all else, of the towers and of their average
        (group.gradient_divide_factor, group.force_sum_reduction_for_comms)
        for part in two.modules()
        if isinstance(part, FSDPModule)
        for group in parameter_groups(part)
    ]
    sharded = [p for p in two.parameters() if distributed.is_part(p)]
    found["left whole"] = [name for name, p in two.named_parameters() if not distributed.is_part(p)]
    found["share"] = sum(local(p).numel() for p in sharded) / sum(p.numel() for p in sharded)
    found["rows"] = all(torch.equal(full(p)[rows_here(p).start : rows_here(p).stop], local(p)) for p in sharded)
    found["export"] = exported_case(one, two, batch, accelerator)
    return found


def exported_case(one: Method, two: Method, batch: dict[str, Tensor], accelerator: Any) -> float:
    """After a clipped step of AdamW and one of the average: how far apart what is exported embeds; it must be plain."""
    opts = [torch.optim.AdamW(sharding.apart(m.parameter_groups()), lr=0.01, eps=1e-3) for m in (one, two)]
    for method, opt in zip((one, two), opts, strict=True):
        accelerator.clip_grad_norm_(method.parameters(), 0.1)
        opt.step()
        method.after_step({}, {}, Progress(0, 12, 4, B))
    models: Any = one.export().eval(), two.export().eval()  # type: ignore[attr-defined]
    assert not any(distributed.is_part(t) for t in models[1].state_dict().values())
    assert [n for n, _ in models[1].named_modules()] == [n for n, _ in models[0].named_modules()]
    with torch.no_grad():
        rows = [model(image=batch["image"], text=batch["text"]) for model in models]
    return max(off(rows[1][name], rows[0][name]) for name in rows[0])


def forgotten(folder: Path) -> float:
    """How far off the gradients are if one layer's sum is divided, as `fully_shard` does by itself."""
    one, two = methods_of("small", folder)
    batch = batch_of(0, one)
    with distributed.alone():
        step(one, batch, None)
    part = next(part for part in two.towers.modules() if isinstance(part, FSDPModule) and part is not two.towers)
    part.set_gradient_divide_factor(2.0)
    step(two, half(batch), None)
    alone = gradients_of(one)
    return max(off(g, alone[name]) for name, g in gradients_of(two).items())


def one_tower_alone(folder: Path) -> dict[str, float]:
    """Texts without pictures and the reverse: rows, and gradients of their sum over both processes."""
    found = {}
    one, two = methods_of("open_clip", folder)
    batch = batch_of(0, one)
    for which in ("text", "image"):
        for method, part in ((one, batch), (two, half(batch))):
            method.zero_grad(set_to_none=True)
            rows = method.towers(**{which: part[which]})[which]
            (rows * torch.arange(rows.shape[1])).sum().backward()
        alone, now = gradients_of(one), gradients_of(two)
        assert {name for name, g in alone.items() if g is None} == {name for name, g in now.items() if g is None}
        scale = max(g.abs().max().item() for g in alone.values() if g is not None)
        found[which] = max((g - alone[name]).abs().max().item() for name, g in now.items() if g is not None) / scale  # type: ignore[operator]
    return found


def saved(folder: Path) -> dict[str, Any]:
    """A sharded checkpoint, read by whole towers and by sharded ones; and a disk that is full on one process."""
    one, two = methods_of("open_clip", folder)
    step(two, half(batch_of(0, one)), None)
    opts = [torch.optim.AdamW(sharding.apart(m.parameter_groups()), lr=0.01) for m in (one, two)]
    opts[1].step()
    run_folder = folder / "saved"
    made = checkpoint.save(run_folder, 1, two, opts[1], {"batch": B})
    found: dict[str, Any] = {"files": sorted(p.name for p in made.iterdir()), "damage": checkpoint.damage(made)}

    newest = checkpoint.newest(run_folder)
    assert newest is not None
    newest.restore(one, opts[0])
    _, other = methods_of("open_clip", folder)
    other_opt = torch.optim.AdamW(sharding.apart(other.parameter_groups()), lr=0.01)
    newest.restore(other, other_opt)
    found["equal"] = all(
        torch.equal(full(b), a) and torch.equal(local(b), local(c))
        for a, b, c in zip(
            one.state_dict().values(), two.state_dict().values(), other.state_dict().values(), strict=True
        )
    )
    names: Any = [{id(p): name for name, p in method.named_parameters()} for method in (one, two, other)]
    states: Any = [
        {(n[id(p)], kind): full(value) for p, state in opt.state.items() for kind, value in state.items()}
        for n, opt in zip(names, (*opts, other_opt), strict=True)
    ]
    found["optimizer equal"] = all(
        state.keys() == states[0].keys() and all(torch.equal(v, states[0][key]) for key, v in state.items())
        for state in states
    )
    for failing in (0, 1):
        with pytest.MonkeyPatch.context() as patch:
            if distributed.rank() == failing:
                patch.setattr("xmodal.checkpoint.save_tensors", full_disk)
            try:
                checkpoint.save(run_folder, 2, two, opts[1], {"batch": B})
                found[f"full disk of {failing}"] = "saved"
            except Failed as error:
                found[f"full disk of {failing}"] = str(error)
        distributed.wait()  # until the first process has cleared it away
    found["left"] = sorted(p.name for p in (run_folder / "checkpoints").iterdir())
    return found


def full_disk(*_: Any) -> None:
    raise OSError(28, "No space left on device")


RUN = {**QUICK, "save_every": 2, "micro_batch": 3, "ema": 0.5, "eval_every": 3}


def told_of_run(folder: Path) -> dict[str, Any]:
    return {**RUN, "data": str(folder / "pairs.csv"), "batch_size": 8, "fsdp": True}


def recipe(folder: Path) -> None:
    """The recipe, sharded: from the start, and from one process's checkpoint on."""
    told = told_of_run(folder)
    run(Config(output=folder / "two", **told))
    if distributed.is_first():
        shutil.copytree(folder / "one", folder / "one then two")
        shutil.rmtree(folder / "one then two" / "checkpoints" / "step-6")
    distributed.wait()
    run(Config(output=folder / "one then two", resume=True, **told))


def in_turn(folder: Path) -> None:
    """The recipe on 2 processes, sharded, then on 1, whole, then on 2 again."""
    told = told_of_run(folder)
    with pytest.MonkeyPatch.context() as patch:
        if distributed.rank() == 1:
            Asked(patch.setattr, "step", 2)
        with pytest.raises(Stopped, match="after step 2"):
            run(Config(output=folder / "in turn", **told))
    with pytest.MonkeyPatch.context() as patch, distributed.alone():
        if dist.get_rank() == 0:
            Asked(patch.setattr, "step", 2)
            with pytest.raises(Stopped, match="after step 4"):
                run(Config(output=folder / "in turn", resume=True, **{**told, "fsdp": False}))
    distributed.wait()
    run(Config(output=folder / "in turn", resume=True, **told))


def sentences(folder: Path) -> None:
    """A sentence encoder, all of whose trained weights are sharded, the best of which is kept."""
    simcse.run(simcse.Config(output=folder / "sentences two", batch_size=8, fsdp=True, **told_of_sentences(folder)))


def told_of_sentences(folder: Path) -> dict[str, Any]:
    files = {"data": str(folder / "triplets.tsv"), "val": str(folder / "scored.tsv"), "model": f"hf:{folder / 'bert'}"}
    return {**files, "preset": "supervised", "steps": 3, "lr": 1e-3, "head": "none", "dropout": 0.0, "eval_every": 1,
            "precision": "fp32"}  # fmt: skip


def spoiled(folder: Path) -> dict[str, Any]:
    """A gradient that is not finite in the rows of one process: which steps are taken on each."""
    told: dict[str, Any] = {**QUICK, "data": str(folder / "pairs.csv"), "steps": 3, "save_every": 0}
    with pytest.MonkeyPatch.context() as patch:
        watch = Watch(patch.setattr)

        def spoilt(method: Method, batch: Any, progress: Progress, *rest: Any) -> Any:
            found = gradients(method, batch, progress, *rest)
            if progress.step == 1 and distributed.rank() == 1:
                p = next(p for p in method.parameters() if distributed.is_part(p))
                local(p.grad).fill_(float("nan"))  # type: ignore[arg-type]
            return found

        patch.setattr("xmodal.loop.gradients", spoilt)
        run(Config(output=folder / "spoiled", batch_size=8, micro_batch="auto", fsdp=True, **told))
        finite = all(torch.isfinite(local(t)).all() for t in watch.method.state_dict().values())
    return {"taken": watch.steps, "finite": bool(finite), "sharded": is_sharded(watch.method.towers)}


def compiled(folder: Path) -> float:
    """How far off the gradients of sharded, compiled towers are that keep few activations."""
    one, two = methods_of("open_clip", folder)
    two.towers.compile(backend="aot_eager")
    batch = batch_of(0, one)
    step(two, half(batch), None)
    with texts_in_one_piece():
        step(one, half(batch), None)
    return furthest(gradients_of(two), gradients_of(one))


def main() -> None:
    folder, slow = Path(sys.argv[1]), sys.argv[2] == "slow"
    accelerator = distributed.start("fp32")
    torch.use_deterministic_algorithms(True)
    lengths.GROUP_COST["cpu"] = 1  # as many groups as there are lengths, which differ from process to process
    found: dict[str, Any]
    if slow:
        kinds = [f"{kind}{dtype}" for kind in ("open_clip", "hf", "pair") for dtype in ("", ", float64")]
        found = {"step": {kind: step_case(kind, folder, accelerator) for kind in kinds}}
        found["one tower alone"] = one_tower_alone(folder)
        found["compiled"] = compiled(folder)
        recipe(folder)
        sentences(folder)
    else:
        found = {"step": {kind: step_case(kind, folder, accelerator) for kind in ("small", "small, float64", "lora")}}
        found["forgotten"] = forgotten(folder)
        found["saved"] = saved(folder)
        in_turn(folder)
        found["spoiled"] = spoiled(folder)
    (folder / f"rank{distributed.rank()}.json").write_text(json.dumps(found, indent=1))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
