"""Training a sentence encoder: sentence-transformers' own trainer beside ours, from one start on one set of sentences.

Theirs is the recipe of its examples: MultipleNegativesRankingLoss at scale 20, of (sentence, sentence) pairs where
there are no labels; two of a group's texts, drawn once, where there are groups; anchor, positive and negative of
triplets. Both have the same batch, rate, number of steps and cut at 32 tokens, and neither chooses among its steps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xmodal.benchmarks.timing import Others, machine, summed_up
from xmodal.data.sentences import Sentences
from xmodal.data.sts import read_sts, read_sts_dev
from xmodal.evaluators.evaluate_sts import evaluate_sts
from xmodal.train import simcse  # pyright: ignore[reportMissingImports]

SKIPPED = 3  # steps that don't count: first allocations
LENGTH = 32  # tokens, SimCSE's


def compare(
    model: str,
    data: str,
    val: str,
    *,
    leave_out: Sequence[str],
    layers: int | None,
    steps: int,
    batch_size: int,
    lr: float,
    precision: str,
    seeds: Sequence[int],
) -> dict[str, Any]:
    """Seconds a step and Spearman correlations of both after training, for each seed; as plain data.

    val: what both are judged on, see `read_sts`; its dev set, where there is one, is only reported.
    """
    sets = [*([dev] if (dev := read_sts_dev(val)).name == "STS-B dev" else []), *read_sts(val).found]
    told: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "lr": lr, "precision": precision}
    config = simcse.Config(data=data, model=model, layers=layers, leave_out=tuple(leave_out), eval_every=0, **told)
    source = simcse.sentences(config)
    # Without labels the paper's head is used; with them neither has one.
    config = dataclasses.replace(config, head="train" if source.form == "sentences" else "none")
    seconds: dict[str, list[float]] = {"xmodal": [], "sentence-transformers": []}
    found: dict[str, list[dict[str, float]]] = {"before": [], **{who: [] for who in seconds}}

    def judge(who: str, model: Any) -> None:
        scores = evaluate_sts(model, sets)[1]
        found[who].append({one.name: scores[one.name]["value"] for one in sets})

    with tempfile.TemporaryDirectory(prefix="xmodal-speed-") as name, Others() as others:
        folder = Path(name)
        start = simcse.open_encoder(config, source)
        start.save(folder / "start")
        judge("before", start)
        for number, seed in enumerate(seeds):
            turn = [("xmodal", _ours), ("sentence-transformers", _theirs)]
            for who, train in turn[:: -1 if number % 2 else 1]:
                model, each = train(config, source, folder / "start", seed, folder / f"{who}-{seed}")
                seconds[who].append(each)
                judge(who, model)
    return {
        "what": f"training a sentence encoder on {source.form}: a step, and what comes of it",
        "protocol": {
            "start": f"{config.model}" + (f", its {config.layers} lower layers" if config.layers else ""),
            "data": f"{source.name}: {len(source):,} {source.form}",
            "steps": config.steps,
            "batch size": config.batch_size,
            "learning rate": config.lr,
            "type": config.precision,
            "ours": f"xmodal train simcse --head {config.head}; the last weights",
            "theirs": "MultipleNegativesRankingLoss, scale 20; the last weights",
            "seconds": f"a step, the median after {SKIPPED} that don't count; one figure a seed",
            "scores": f"Spearman ×100, mean ± standard deviation over seeds {', '.join(map(str, seeds))}",
            **machine(),
            "CPU taken by others": others.said(),
        },
        **summed_up(seconds),
        "columns": {who: {name: f"{value}" for name, value in _told(runs).items()} for who, runs in found.items()},
        "scores": found,
        "peak bytes": {},
    }


def _told(runs: Sequence[dict[str, float]]) -> dict[str, str]:
    """Mean ± standard deviation of each score, ×100."""
    each = {name: [100 * run[name] for run in runs] for name in runs[0]}
    return {
        name: f"{statistics.mean(v):.1f}" + (f" ± {statistics.stdev(v):.1f}" if len(v) > 1 else "")
        for name, v in each.items()
    }


def _ours(config: simcse.Config, source: Sentences, start: Path, seed: int, folder: Path) -> tuple[Any, float]:
    import xmodal

    told = dataclasses.replace(
        config, model=str(start), layers=None, val=None, seed=seed, output=folder, save_every=0, max_length=LENGTH
    )
    with contextlib.redirect_stdout(io.StringIO()):
        simcse.run(told)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rates = [line["pairs_per_second"] for line in lines if "loss" in line][SKIPPED:]
    return xmodal.load(str(folder)), config.batch_size / statistics.median(rates)


def _theirs(config: simcse.Config, source: Sentences, start: Path, seed: int, folder: Path) -> tuple[Any, float]:
    import datasets
    import torch
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from transformers import TrainerCallback

    model = SentenceTransformer(str(start), local_files_only=True)
    reads, model.max_seq_length = model.max_seq_length, LENGTH
    rows = _rows(source, seed)
    columns = {
        name: [row[k] for row in rows] for k, name in enumerate(("anchor", "positive", "negative")[: len(rows[0])])
    }
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    assert config.steps is not None
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.lr,
        weight_decay=config.wd,
        warmup_steps=config.warmup,
        seed=seed,
        bf16=config.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=datasets.Dataset.from_dict(columns),
        loss=MultipleNegativesRankingLoss(model),
        callbacks=[Clock()],
    )
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    model.max_seq_length = reads  # both are judged on whole sentences
    return model, statistics.median(np.diff(ends)[SKIPPED:])


def _rows(source: Sentences, seed: int) -> list[list[str]]:
    """What theirs is given: pairs of a sentence with itself, two of each group's texts, or the rows as they are."""
    rows = [source.texts(row) for row in range(len(source))]
    if source.form == "sentences":
        return [[*row, *row] for row in rows]
    if source.form == "groups":
        rng = np.random.default_rng(seed)
        return [[row[i] for i in rng.choice(len(row), 2, replace=False)] for row in rows]
    return rows
