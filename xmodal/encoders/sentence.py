"""A sentence encoder: one text tower whose rows are compared by their cosine, under sentence-transformers' names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xmodal.encoders.asleep import Sleepers
from xmodal.encoders.encode import RaggedTokenizer, encode_texts
from xmodal.encoders.flat import flat
from xmodal.encoders.hub import OnHub
from xmodal.encoders.lengths import NOTHING, by_length
from xmodal.encoders.sentence_transformers import ACTIVATIONS, Chain, Dense
from xmodal.sharding import is_sharded

Rows = Tensor | np.ndarray
Precision = Literal["fp32", "bf16"]


class SentenceEncoder(Sleepers, OnHub):
    """What `xmodal train simcse` trains, and what st: and hf: specs of a text model open.

    text: (b, l) long, NOTHING where a row has ended -> (b, d). description: what builds the tower again; it goes into
    model.json. With "normalize" rows are unit whatever is asked for; "prompts" are put before texts by name.
    truncated: how many texts were longer than the tower takes, since it was opened.
    """

    def __init__(self, text: nn.Module, d: int, *, tokenizer: RaggedTokenizer, description: dict[str, Any]) -> None:
        super().__init__()
        self.text, self.d = text, d
        self.tokenizer, self.description = tokenizer, description
        self.truncated = 0

    def forward(self, text: Tensor) -> Tensor:
        """Tokens (b, l) or, several texts of each row, (b, k, l) -> (b, d) or (b, k, d), not normalised."""
        tokens = text.flatten(0, -2)
        sharded = is_sharded(self)
        # On a CPU a step without any padding takes 0.87 of one in groups of about one length (MiniLM, 256 sentences).
        plain = tokens.device.type == "cpu" and not torch.compiler.is_compiling() and not sharded
        flattened = flat(self.text) if plain else None
        if flattened is None or not len(tokens) or (tokens[:, 0] == NOTHING).any():
            rows = by_length(self.text, tokens, at_once=sharded)
        else:
            rows = flattened.padded(tokens)
        return rows.unflatten(0, text.shape[:-1])

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @overload
    def encode(self, sentences: Sequence[str], *args: Any, convert_to_tensor: Literal[True], **more: Any) -> Tensor: ...
    @overload
    def encode(self, sentences: str | Sequence[str], *args: Any, **more: Any) -> Any: ...
    def encode(
        self,
        sentences: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        *,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = False,
        precision: Precision = "fp32",
    ) -> Rows | list[Tensor]:
        """Texts (n) -> (n, d) float32 in their order; a single text -> (d,). On the CPU, as an array or a tensor.

        prompt: what is put before each text; prompt_name: one of the model's own; without both the model's default.
        batch_size: at most so many texts go through the model at a time; without it as many as are fast.
        precision: bf16 takes weights and products in bfloat16; on a CPU that lacks them it raises InputError.
        A text is text: nothing is opened or fetched because of what it says. Raises ValueError for an unknown prompt.
        """
        single = isinstance(sentences, str)
        texts = [sentences] if isinstance(sentences, str) else list(sentences)
        before = self._prompt(prompt_name, prompt)
        was_training = self.training
        self.eval()
        with torch.inference_mode():
            found = encode_texts(
                self.text,
                self.tokenizer,
                [before + text for text in texts] if before else texts,
                device=self.device,
                batch_size=batch_size,
                precision=precision,
                progress=show_progress_bar,
            )
        self.train(was_training)
        self.truncated += found.truncated
        rows = found.rows if len(texts) else found.rows.reshape(0, self.d)
        if normalize_embeddings or self.description.get("normalize"):
            rows = F.normalize(rows, dim=-1)
        if convert_to_tensor:
            return rows[0] if single else rows
        if convert_to_numpy:
            return rows[0].numpy() if single else rows.numpy()
        return rows[0] if single else list(rows)

    def encode_query(self, sentences: str | Sequence[str], **options: Any) -> Any:
        """`encode` with the model's prompt "query", where it has one."""
        return self.encode(sentences, **{"prompt_name": self._own("query"), **options})

    def encode_document(self, sentences: str | Sequence[str], **options: Any) -> Any:
        """`encode` with the model's prompt "document", where it has one, or "passage" or "corpus"."""
        return self.encode(sentences, **{"prompt_name": self._own("document", "passage", "corpus"), **options})

    def similarity(self, first: Any, second: Any) -> Tensor:
        """Cosines of rows, (n, d) and (m, d) -> (n, m)."""
        return _unit(first) @ _unit(second).T

    def similarity_pairwise(self, first: Any, second: Any) -> Tensor:
        """Cosines of rows with those of the same number, (n, d) and (n, d) -> (n,)."""
        return (_unit(first) * _unit(second)).sum(-1)

    def set_grad_checkpointing(self, on: bool = True) -> None:
        """Recompute activations in the backward pass, where the tower can."""
        if hasattr(self.text, "set_grad_checkpointing"):
            self.text.set_grad_checkpointing(on)  # pyright: ignore[reportCallIssue]

    def save(self, folder: str | Path) -> None:
        """Write what `xmodal.load(folder)` opens; and what `SentenceTransformer(folder)` does, unless it is `small`.

        A reader sees the old weights or the new ones, never half of one.
        """
        from xmodal.encoders.sentence_files import write

        write(self, Path(folder))

    def _own(self, *names: str) -> str | None:
        prompts = self.description.get("prompts") or {}
        return next((name for name in names if name in prompts), None)

    def _prompt(self, name: str | None, prompt: str | None) -> str:
        if prompt is not None:
            return prompt
        prompts = self.description.get("prompts") or {}
        name = name or self.description.get("default_prompt")
        if name is None:
            return ""
        if name not in prompts:
            raise ValueError(f"prompt_name must be one of {list(prompts) or 'none: the model has none'}, not {name!r}")
        return prompts[name]


def with_head(encoder: SentenceEncoder, head: Dense) -> SentenceEncoder:
    """The encoder with one more layer after its pooling, sharing its weights."""
    features, dense = (
        (encoder.text.features, list(encoder.text.dense)) if isinstance(encoder.text, Chain) else (encoder.text, [])
    )
    linear = head.linear
    activation = next(name for name, kind in ACTIVATIONS.items() if type(head.activation) is kind)
    shapes = [*encoder.description["dense"], (linear.in_features, linear.out_features, True, activation)]
    return SentenceEncoder(
        Chain(features, [*dense, head]),  # pyright: ignore[reportArgumentType]
        linear.out_features,
        tokenizer=encoder.tokenizer,
        description={**encoder.description, "dense": shapes},
    )


def _unit(rows: Any) -> Tensor:
    """Rows of any kind as a unit matrix."""
    rows = torch.stack(list(rows)) if isinstance(rows, list | tuple) and rows and isinstance(rows[0], Tensor) else rows
    return F.normalize(torch.atleast_2d(torch.as_tensor(np.asarray(rows) if isinstance(rows, list) else rows)), dim=-1)
