"""SimCSE: a sentence encoder that finds a sentence's other view among all sentences of a batch.

Gao et al. 2021, "SimCSE: Simple Contrastive Learning of Sentence Embeddings" (arXiv:2104.08821). Without labels the
other view is the same sentence under another dropout mask; with them it is a sentence that follows from the first, and
one that contradicts it is a negative; of groups of paraphrases all are each other's.

    xmodal train simcse                                          English prose of Python itself, from nothing
    xmodal train simcse --data lines.txt --model hf:bert-base-uncased --val stsb-dev.tsv
    xmodal train simcse --data nli.csv --model hf:bert-base-uncased --val stsb-dev.tsv
    xmodal train simcse --data captions.tsv.gz --model st:all-MiniLM-L6-v2 --lora 16
    torchrun --nproc_per_node 8 -m xmodal.train.simcse --data lines.txt --batch-size 64

Expect several points between seeds without labels: the paper's own script gave others 73.5 to 76.1 on average.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from xmodal.cli import guard
from xmodal.config import Shared, parse, require
from xmodal.errors import InputError

if TYPE_CHECKING:
    from xmodal.data.sentences import Sentences
    from xmodal.encoders.sentence import SentenceEncoder
    from xmodal.encoders.tokenizer import PiecesTokenizer
    from xmodal.method import Method


@dataclass(frozen=True, kw_only=True)
class Config(Shared):
    # Gao et al. 2021, appendix A, and princeton-nlp/SimCSE run_unsup_example.sh: BERT-base without labels.
    data: str = "prose"
    """prose, or a file: a sentence a line, or a CSV or TSV with columns of sentences, pairs, triplets or groups, each
    maybe gzipped; or hf-dataset:NAME."""
    val: str | None = None
    """A folder of STS sets, a table of scored pairs (CSV, TSV) or hf-dataset:mteb: the best weights on STS-B's dev set,
    or on the table, are kept, and the test sets are reported; or prose. Without it built-in data has its own."""
    model: str = "hf:google-bert/bert-base-uncased"
    """hf:ID_OR_FOLDER, st:ID_OR_FOLDER, the folder of a run; or small, from nothing."""
    preset: Literal["auto", "paper", "supervised", "groups", "quick"] = "auto"
    """paper: the defaults listed here, for sentences alone. supervised: for pairs and triplets. groups: for groups of
    paraphrases. quick: `small` from nothing on two CPU cores. auto: quick for built-in data, for small and, unless
    --model is given, without a GPU; else by the form of the data."""
    batch_size: int = 64
    epochs: float = 1
    lr: float = 3e-5
    wd: float = 0.0
    warmup: int = 0
    eval_every: int = 125
    """Look every so many steps whether the weights are the best so far on --val; 0: only at the end."""
    clip_norm: float = 1.0
    """The largest norm of the gradient; 0 leaves it as it is."""
    temperature: float = 0.05
    """What cosines are divided by (section 3.1)."""
    learn_temperature: bool = False
    """Train the temperature along, from --temperature."""
    head: Literal["train", "keep", "none"] = "train"
    """A linear layer with tanh after the pooling: for training alone (section 3.1), kept in the model (with labels), or
    none."""
    pooling: Literal["auto", "cls", "mean", "last"] = "auto"
    """From the last layer to one row. auto: st: models' and runs' own, cls for hf:, mean for small."""
    hard_negative_weight: float = 0.0
    """The logarithm of the weight of a sentence's own contradiction (section 5)."""
    max_length: int = 32
    """Tokens of a sentence that training reads; evaluation reads as many as the model takes."""
    dropout: float | None = None
    """The rate of every dropout in the encoder instead of its own: for one sentence's two views it is all the noise."""
    delete: float = 0.0
    """Leave out each token of a training text with this probability, each view others (word deletion, table 1; it
    harms BERT, and gives an encoder that starts from nothing something to learn)."""
    layers: int | None = None
    """Keep so many of the encoder's lower layers; of small, have so many (2 if not given)."""
    members: int = 2
    """How many texts of a group are in a batch."""
    columns: tuple[str, ...] = ()
    """The columns of text, if they have no usual names: one for sentences, two pairs, three triplets, more groups."""
    form: Literal["auto", "sentences", "pairs", "triplets", "groups"] = "auto"
    """What a row is; auto goes by the columns."""
    group_column: str | None = None
    """Rows with one value in this column are a group of paraphrases."""
    leave_out: tuple[str, ...] = ()
    """Files whose texts are not trained on, such as those of a test; case and punctuation don't count."""
    vocabulary: int = 8000
    """Pieces of `small`'s tokenizer."""
    lora: int | None = None
    """Train low-rank adapters of this rank instead of the encoder's weights."""
    lora_on: Literal["attention", "all"] = "attention"
    """Which maps of a layer have adapters: those of attention, or all."""
    layer_decay: float = 1.0
    """Each layer learns at so much of the rate of the one above it."""

    def check(self) -> None:
        super().check()
        require(self, "clip_norm", lambda v: v >= 0, "0 or more")
        require(self, "temperature", lambda v: v > 0, "more than 0")
        require(self, "dropout", lambda v: 0 <= v < 1, "at least 0, less than 1")
        require(self, "delete", lambda v: 0 <= v < 1, "at least 0, less than 1")
        require(self, "layer_decay", lambda v: 0 < v <= 1, "more than 0, at most 1")
        require(self, "max_length", lambda v: v >= 3, "at least 3")
        require(self, "members", lambda v: v >= 2, "at least 2")
        for name in ("layers", "lora"):
            require(self, name, lambda v: v >= 1, "at least 1")
        require(self, "vocabulary", lambda v: v >= 64, "at least 64")
        if self.model == "small" and (self.lora is not None or self.head == "keep"):
            flag = "--lora" if self.lora is not None else "--head keep"
            raise InputError(
                f"{flag} is for models that come with weights; small is trained whole and has its own head."
            )
        if self.lora is None and self.lora_on != "attention":
            raise InputError(f"--lora-on {self.lora_on} means nothing without --lora.")


PRESETS: dict[str, dict[str, Any]] = {
    # Gao et al. 2021, appendix A, and run_sup_example.sh: BERT-base on NLI.
    "supervised": {"batch_size": 512, "epochs": 3, "lr": 5e-5, "head": "keep"},
    # Ours, measured on Flickr30k's captions; see the README.
    "groups": {"batch_size": 128, "epochs": 1, "lr": 5e-5, "head": "none"},
    # Ours, measured on prose; see the README.
    "quick": {
        "model": "small",
        "batch_size": 256,
        "epochs": 3,
        "lr": 1e-3,
        "wd": 0.01,
        "warmup": 50,
        "head": "none",
        "delete": 0.5,
    },
}


def simcse(config: Config, encoder: SentenceEncoder, form: str, judged: bool) -> Method:
    """The method: one encoder, a head for training, InfoNCE from each sentence to its positive.

    form: what a row of the data is. judged: a score decides which weights are exported.
    """
    import torch
    from torch import Tensor, nn
    from torch.nn.functional import normalize

    from xmodal.data.token_deletion import delete_tokens
    from xmodal.encoders.best import Best
    from xmodal.encoders.lora import merged
    from xmodal.encoders.sentence import with_head
    from xmodal.encoders.sentence_transformers import Dense
    from xmodal.encoders.trainable import parameter_groups
    from xmodal.method import Batch, Method, Progress
    from xmodal.objectives import simcse_loss, sup_con_loss

    class SimCSE(Method):
        def __init__(self) -> None:
            super().__init__()
            self.towers = encoder
            self.head: nn.Module = nn.Identity()
            if config.head != "none":
                self.head = Dense(encoder.d, encoder.d, True, "Tanh")
                nn.init.normal_(self.head.linear.weight, std=0.02)  # as BERT's own layers begin, and the reference's
                nn.init.zeros_(self.head.linear.bias)
            log_scale = torch.tensor(-math.log(config.temperature))
            self.log_scale = nn.Parameter(log_scale, requires_grad=config.learn_temperature)
            self.best = Best(nn.ModuleDict({"encoder": encoder, "head": self.head})) if judged else None
            self.done = 0

        def encode(self, batch: Batch) -> dict[str, Tensor]:
            text = batch["text"]  # (b, k, l)
            if form == "sentences":
                text = text.expand(-1, 2, -1)  # twice in one pass, each time under a dropout mask of its own
            if config.delete:
                text = delete_tokens(text, config.delete)
            rows = self.head(self.towers(text=text))
            return {"text": normalize(rows.float(), dim=-1)}  # (b, k, d) unit

        def targets(self, batch: Batch) -> dict[str, Tensor]:
            return {"text_id": batch["text_id"], "row": batch["row"]}

        def objective(
            self, representations: dict[str, Tensor], targets: dict[str, Tensor], progress: Progress
        ) -> tuple[Tensor, dict[str, float | Tensor]]:
            text, ids = representations["text"], targets["text_id"]
            temperature = (-self.log_scale).exp()
            metrics: dict[str, float | Tensor] = {"scale": self.log_scale.detach().exp()}
            if form == "groups":  # all texts of a group are each other's positives, in both directions
                labels = targets["row"].repeat_interleave(text.shape[1])
                return sup_con_loss(text.flatten(0, 1), labels, temperature), metrics
            loss = simcse_loss(
                text[:, 0],
                text[:, 1],
                text[:, 2] if text.shape[1] == 3 else None,
                temperature=temperature,
                hard_negative_weight=config.hard_negative_weight,
                anchor_id=ids[:, 0].contiguous(),
                positive_id=None if form == "sentences" else ids[:, 1].contiguous(),
            )
            return loss, metrics

        @torch.no_grad()
        def after_step(
            self, representations: dict[str, Tensor], targets: dict[str, Tensor], progress: Progress
        ) -> None:
            self.log_scale.clamp_(0, math.log(100))  # as CLIP bounds it
            self.done = progress.step + 1

        def see(self, score: float) -> None:
            """Keep the weights as they are now if the score is the best so far."""
            assert self.best is not None
            self.best.see(nn.ModuleDict({"encoder": encoder, "head": self.head}), score, self.done)

        def export(self) -> SentenceEncoder:
            """The encoder as it was best, or is now; merged, with its head where that is kept."""
            chosen: Any = {"encoder": encoder, "head": self.head}
            if self.best is not None and self.best.found:
                chosen = self.best.module
            return self._plain(chosen)

        def now(self) -> SentenceEncoder:
            return self._plain({"encoder": encoder, "head": self.head})

        def _plain(self, parts: Any) -> SentenceEncoder:
            plain = merged(parts["encoder"])
            return with_head(plain, parts["head"]) if config.head == "keep" else plain

        def parameter_groups(self) -> list[dict[str, Any]]:
            return parameter_groups(self, encoder, layer_decay=config.layer_decay)

    return SimCSE()


def run(config: Config) -> dict[str, Any]:
    """Train and evaluate; returns the protocol and the scores, which are also in the run folder."""
    import torch

    from xmodal import run as runs
    from xmodal.data.sentence_batches import SentenceBatches
    from xmodal.encoders.sentence_specs import shortened
    from xmodal.evaluators.sentence_judge import PROSE, SentenceJudge
    from xmodal.report.log import say
    from xmodal.run import Evaluation
    from xmodal.schedule import linear

    this = runs.begin("simcse", config)
    judge = SentenceJudge.of(config.val or (PROSE if config.data == PROSE else None))
    source = sentences(config)
    if source.replaced:
        say(f"{source.name}: {source.replaced:,} texts held characters that are none; U+FFFD stands for them.")
    encoder = open_encoder(config, source, this.tokenizer)
    method: Any = simcse(config, encoder, source.form, judged=judge.dev is not None)
    data = SentenceBatches(
        source,
        **this.share(source),
        seed=config.seed,
        tokenize=shortened(encoder.tokenizer, config.max_length),
        members=config.members,
    )
    before = Evaluation(*judge.test(method.now()))

    def develop() -> Evaluation:
        assert judge.dev is not None
        score = judge.development(method.now())
        method.see(score)
        return Evaluation({}, {f"{judge.dev.name}/spearman": {"value": score, "low": score, "high": score}})

    this.train(
        method,
        data,
        optimizer=lambda groups: torch.optim.AdamW(groups, weight_decay=config.wd, eps=1e-6),
        lr=lambda steps: linear(config.lr, steps, config.warmup),
        clip_norm=config.clip_norm or None,
        evaluate=develop if judge.dev is not None else None,
        evaluate_last=True,
    )
    protocol, scores = judge.test(method.export())
    if not scores:
        say("Nothing was scored: --val names scored pairs.")
    if judge.dev is not None:
        best = method.best
        protocol["weights"] = (
            f"of step {best.step.item()}, the best on {judge.dev.name} of those at every {config.eval_every or 'last'} "
            f"steps: {100 * best.score.item():.2f}"
        )
    return this.finish(Evaluation(protocol, scores), before if before.scores else None)


def sentences(config: Config) -> Sentences:
    """What to train on."""
    from collections import Counter

    from xmodal.data.sentences import Sentences, read_sentences

    if config.data == "prose":
        from xmodal.data.prose import Prose

        return Sentences("prose", "sentences", ([text] for text in Prose("train").sentences), Counter())
    form = None if config.form == "auto" else config.form
    return read_sentences(config.data, config.columns, form, config.group_column, leave_out=config.leave_out)


def open_encoder(
    config: Config, source: Sentences, tokenizer: Callable[..., PiecesTokenizer] = lambda train, _: train()
) -> SentenceEncoder:
    """The encoder to begin with, as the configuration changes it. Raises InputError for a spec that names none.

    tokenizer: a run's own, of what trains one and how many pieces of a sentence it takes; for `small`.
    """
    from xmodal.encoders.lora import add_lora
    from xmodal.encoders.sentence_specs import keep_layers, open_sentences, set_dropout, small_sentences
    from xmodal.encoders.tokenizer import PiecesTokenizer
    from xmodal.report.log import say

    def train_tokenizer() -> PiecesTokenizer:
        return PiecesTokenizer.train(source.every_text(), config.vocabulary, config.max_length)

    pooling = None if config.pooling == "auto" else config.pooling
    if config.model == "small":
        encoder = small_sentences(
            lambda: tokenizer(train_tokenizer, config.max_length),
            layers=config.layers or 2,
            dropout=0.1 if config.dropout is None else config.dropout,
            pooling=pooling,
        )
    else:
        encoder = open_sentences(config.model, pooling or ("cls" if config.model.startswith("hf:") else None))
        if config.layers is not None:
            keep_layers(encoder, config.layers)
        if config.dropout is not None:
            set_dropout(encoder, config.dropout)
    if config.lora is not None:
        add_lora(encoder, config.lora, where=config.lora_on, only=("text",))
    encoder.set_grad_checkpointing(config.grad_checkpointing)
    trained, total = (sum(p.numel() for p in encoder.parameters() if p.requires_grad or whole) for whole in (0, 1))
    if trained < total:
        say(f"Trained: {trained:,} of {total:,} parameters ({trained / total:.1%}).")
    return encoder


def preset(config: Config) -> str:
    """What "auto" stands for."""
    from xmodal.data.sentences import form_of

    named = config.model != Config.model
    if config.model == "small" or (not named and (config.data == "prose" or not Path("/dev/nvidia0").exists())):
        return "quick"
    if config.data == "prose":
        return "paper"
    form = form_of(config.data, config.columns, None if config.form == "auto" else config.form, config.group_column)
    return {"sentences": "paper", "groups": "groups"}.get(form, "supervised")


def main(argv: Sequence[str] | None = None) -> int:
    run(parse(Config, argv, prog="xmodal train simcse", presets=PRESETS, choose_preset=preset))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
