"""Semantic textual similarity of a model on sets of pairs: embed each sentence once, score, and say the protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xmodal import __version__, distributed
from xmodal.data.sts import StsSet, StsSets
from xmodal.errors import InputError
from xmodal.evaluators import bootstrap
from xmodal.evaluators.alignment import T, alignment_score, uniformity_score
from xmodal.evaluators.embed import embed_texts, rounds
from xmodal.evaluators.evaluate import Result
from xmodal.evaluators.scores import Scores
from xmodal.evaluators.sts import cosines

# Pairs with a score above it are positives (Gao et al. 2021, section 3), on STS-B's scale of 0 to 5. They took the
# whole of STS-B; here it is what is scored, so that their figures are near, not the same.
AT_ONCE = 8192  # sentences that a model is given to encode
POSITIVE = 4.0

INTERVAL = (
    f"{bootstrap.LEVEL:.0%}, percentile bootstrap of {bootstrap.RESAMPLES} resamples of the pairs, each set by itself; "
    "pairs that share a sentence count as independent; no variance over seeds of training"
)


@dataclass(frozen=True)
class Judged:
    """What one model makes of the sets; the same on every process."""

    similarity: dict[str, np.ndarray]  # by set, (n,) cosines
    geometry: Scores  # alignment and uniformity, where a set has positives
    truncated: int | None  # sentences longer than the model reads; None where it doesn't say


def evaluate_sts(
    model: Any, sets: StsSets | Sequence[StsSet], *, batch_size: int | None = None, precision: str = "fp32"
) -> Result:
    """Protocol and scores of a model: of each set by its name, their "average", "alignment", "uniformity".

    model: has encode(list of str) -> (n, d), or else encode_text. Every process must call it.
    """
    sets = _as_sets(sets)
    judged = judge(model, sets, batch_size=batch_size, precision=precision)
    scores, _ = compare_sts([judged], sets)
    return protocol(sets, {"model": judged}), scores[0]


def judge(
    model: Any, sets: StsSets | Sequence[StsSet], *, batch_size: int | None = None, precision: str = "fp32"
) -> Judged:
    """Embed each sentence once and compare the pairs. Every process must call it.

    Raises InputError for a model without an encode method, and for embeddings that aren't finite.
    """
    found = _as_sets(sets).found
    number: dict[str, int] = {}
    for one in found:
        for sentence in (*one.first, *one.second):
            number.setdefault(sentence, len(number))
    before = getattr(model, "truncated", None)
    rows = embed_sentences(model, list(number), batch_size, precision)
    if not torch.isfinite(rows).all():
        raise InputError("The model's embeddings hold numbers that are not finite; there is nothing to compare.")
    sides = {
        one.name: [rows[torch.tensor([number[s] for s in side])] for side in (one.first, one.second)] for one in found
    }
    geometry: Scores = {}
    if (one := _with_positives(found)) is not None:
        positive = torch.from_numpy(one.gold > POSITIVE)
        first, second = (side[positive] for side in sides[one.name])
        own = torch.tensor(sorted({number[s] for s in (*one.first, *one.second)}))
        geometry = {"alignment": alignment_score(first, second)}
        if len(own) > 1:
            geometry["uniformity"] = uniformity_score(rows[own])
    truncated = None
    if isinstance(before, int):
        truncated = sum(distributed.gather_objects(model.truncated - before))
    return Judged({name: cosines(*pair) for name, pair in sides.items()}, geometry, truncated)


def compare_sts(judged: Sequence[Judged], sets: StsSets | Sequence[StsSet]) -> tuple[list[Scores], list[Scores]]:
    """The scores of each of m models, and of each but the first its differences to the first, with paired intervals."""
    by_set = {one.name: ([j.similarity[one.name] for j in judged], one.gold) for one in _as_sets(sets).found}
    scores, differences = bootstrap.compare_spearman(by_set)
    return [{**score, **j.geometry} for score, j in zip(scores, judged, strict=True)], differences


def protocol(sets: StsSets | Sequence[StsSet], judged: Mapping[str, Judged]) -> dict[str, Any]:
    """What the scores of these models on these sets depend on."""
    sets = _as_sets(sets)
    found = sets.found
    said: dict[str, Any] = {
        "task": "semantic textual similarity; Spearman's correlation of cosines with gold scores over all pairs of a "
        "set together, nothing fitted",
        "data": sets.data,
        "sets": {one.name: one.about for one in found},
        "unique sentences": len({s for one in found for s in (*one.first, *one.second)}),
    }
    if sets.missing:
        said["sets that are not there"] = {name: f"looked for {what}" for name, what in sets.missing.items()}
    if len(found) > 1:
        said["average"] = f"of {len(found)} sets: {', '.join(one.name for one in found)}"
    if (one := _with_positives(found)) is not None:
        said["alignment"] = (
            f"mean squared distance of {int((one.gold > POSITIVE).sum()):,} pairs of {one.name} with a score above "
            f"{POSITIVE:g}, unit rows; lower is nearer"
        )
        said["uniformity"] = (
            f"log mean exp(-{T:g} d²) over pairs of the {len({*one.first, *one.second}):,} unique sentences of "
            f"{one.name}, unit rows; lower is more even; interval over sentences"
        )
    if cut := {name: j.truncated for name, j in judged.items() if j.truncated}:
        said["sentences longer than the model reads"] = cut
    return {**said, "similarity": "cosine", "interval": INTERVAL, "xmodal": __version__}


def embed_sentences(
    model: Any, sentences: Sequence[str], batch_size: int | None = None, precision: str = "fp32"
) -> Tensor:
    """Sentences (n) -> unit rows (n, d) by the model's encode, or else encode_text. Every process must call it.

    `encode` is given some thousand sentences at once, to sort and to batch as is fast for it; batch_size and
    precision reach it only where they are asked for.
    """
    if not hasattr(model, "encode"):
        if not hasattr(model, "encode_text"):
            raise InputError(f"{type(model).__name__} has neither encode nor encode_text: it embeds no sentences.")
        if precision != "fp32":
            raise InputError(f"--precision {precision}: this model's texts are encoded in fp32 only.")
        return embed_texts(model, sentences, batch_size or 256)
    options: dict[str, Any] = {}
    if batch_size is not None:
        options["batch_size"] = batch_size
    if precision != "fp32":
        options["precision"] = precision
    parts = []
    for here in rounds(len(sentences), AT_ONCE):
        if len(here):
            rows = torch.as_tensor(model.encode([sentences[i] for i in here], **options)).detach().float().cpu()
            parts.append(torch.nn.functional.normalize(rows, dim=-1))
    return distributed.gather_parts(parts)


def _with_positives(found: Sequence[StsSet]) -> StsSet | None:
    """STS-B, or the only set there is if its scores fit a scale to 5; None without a pair above `POSITIVE`."""
    one = next((one for one in found if one.name == "STS-B"), found[0] if len(found) == 1 else None)
    fits = one is not None and POSITIVE < one.gold.max() <= 5
    return one if fits else None


def _as_sets(sets: StsSets | Sequence[StsSet]) -> StsSets:
    return sets if isinstance(sets, StsSets) else StsSets(", ".join(one.name for one in sets), list(sets))
