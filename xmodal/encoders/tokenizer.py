"""Tokenizers: lists of strings in, padded rows of numbers out. `PiecesTokenizer` is trained on a run's own captions."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xmodal.encoders.lengths import NOTHING
from xmodal.errors import InputError

PAD, UNKNOWN, START, END = 0, 1, 2, 3


class PiecesTokenizer:
    """SentencePiece (byte pairs, case folded), at most `length` pieces with the end mark.

    Byte pairs rather than the unigram model: from a few thousand captions the latter finds few pieces and cuts
    common words (LATIN becomes ▁lat in), which makes rows a third longer.
    """

    def __init__(self, model: bytes, length: int = 32) -> None:
        from sentencepiece import SentencePieceProcessor

        self.model, self.length = model, length
        self.pieces = SentencePieceProcessor(model_proto=model)

    @classmethod
    def train(cls, captions: Iterable[str], vocabulary: int = 1500, length: int = 32) -> PiecesTokenizer:
        """Learn at most `vocabulary` pieces from captions; the same captions in the same order give the same model."""
        from sentencepiece import SentencePieceTrainer

        model = io.BytesIO()
        try:
            SentencePieceTrainer.train(
                sentence_iterator=iter(captions),
                model_writer=model,
                model_type="bpe",
                vocab_size=vocabulary,
                hard_vocab_limit=False,
                normalization_rule_name="nmt_nfkc_cf",  # case folded: names and captions differ in case by habit
                split_digits=True,  # BRAILLE PATTERN DOTS-1234 is composed of its dots
                character_coverage=1.0,
                num_threads=1,  # results do not depend on the machine
                pad_id=PAD,
                unk_id=UNKNOWN,
                bos_id=START,
                eos_id=END,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise InputError(f"No tokenizer can be trained on these captions: {error}") from error
        return cls(model.getvalue(), length)

    def __len__(self) -> int:
        return self.pieces.vocab_size()

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(m) strings -> (m, l) long, l the longest of these rows; shorter ones end in NOTHING."""
        rows, _ = self.ragged(texts)
        tokens = torch.full((len(rows), max(map(len, rows), default=1)), NOTHING)
        for row, numbers in enumerate(rows):
            tokens[row, : len(numbers)] = torch.tensor(numbers)
        return tokens

    def ragged(self, texts: Sequence[str]) -> tuple[list[list[int]], int]:
        """(m) strings -> the pieces of each with the end mark, at most `length`, and how many strings had more."""
        whole = self.pieces.encode(list(texts))
        rows = [[*row[: self.length - 1], END] for row in whole]
        return rows, sum(len(row) >= self.length for row in whole)

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model, "length": self.length}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["model"], state["length"])

    def save(self, folder: Path) -> None:
        (folder / "tokenizer.model").write_bytes(self.model)

    @classmethod
    def load(cls, folder: Path, length: int) -> PiecesTokenizer:
        """What `save` wrote. Raises InputError where that can't be read or is damaged."""
        file = folder / "tokenizer.model"
        try:
            model = file.read_bytes()
        except OSError as error:
            raise InputError(f"{file} can't be read: {error.strerror}.") from None
        if not model:  # which sentencepiece would take, and fail at the first text
            raise InputError(f"{file} is damaged: it is empty.")
        try:
            return cls(model, length)
        except RuntimeError:  # whose message names a line of sentencepiece's source
            raise InputError(f"{file} is damaged: it is no model of sentencepiece.") from None
