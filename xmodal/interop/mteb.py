"""mteb runs our models: any model spec as the encoder that its tasks call, of texts, of images or of both.

    import mteb
    from xmodal.interop.mteb import as_mteb

    mteb.evaluate(as_mteb("runs/clip"), mteb.get_tasks(tasks=["CIFAR10ZeroShot"]))

Rows are those that mteb's own wrappers make of the same weights, so that its figures are theirs: a sentence encoder's
as `encode` gives them, a dual encoder's and an image encoder's not yet unit. Cosines don't see that, and linear
classifiers do. What has a text and a picture is the sum of both rows.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mteb.models.abs_encoder import AbsEncoder, get_prompt
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import PromptType
from torch import Tensor, nn

from xmodal import load
from xmodal.encoders.image import ImageEncoder
from xmodal.encoders.sentence import SentenceEncoder
from xmodal.encoders.two_tower import TwoTower, head
from xmodal.errors import InputError
from xmodal.weights import digest

OURS = "xmodal"  # the organisation in the names of models that no hub has
HUB_ID = re.compile(r"(?:st|hf|open_clip:hf-hub):([\w.-]+/[\w.-]+)(?:@[\w./-]+)?")

Model = TwoTower | SentenceEncoder | ImageEncoder


def as_mteb(
    model: str | Model, *, name: str | None = None, prompts: Mapping[str, str] | None = None, device: Any = None
) -> MtebEncoder:
    """A model spec, or a model that is open, as `mteb.evaluate` and `mteb.mock_run` take it.

    name: ORGANISATION/MODEL, under which mteb files its results; if not given, the hub's name of a model of a hub, else
    xmodal/ and the last part of the spec. Their revision is a hash of the weights: other weights are another model.
    prompts: what is put before texts, by mteb's keys, a task, a type of tasks, "query", "document" and such; if not
    given, the prompts that a sentence encoder came with.
    Raises InputError for a model of sequences, and for prompts under a key that mteb has no use for.
    """
    spec = model if isinstance(model, str) else None
    opened: Any = load(model, device=device) if isinstance(model, str) else model
    if not isinstance(opened, TwoTower | SentenceEncoder | ImageEncoder):
        raise InputError(f"mteb judges encoders of texts and images; {spec or 'this'} is a {type(opened).__name__}.")
    name = name or _name(spec or "model")
    if "/" not in name:
        raise InputError(f"mteb's names of models are ORGANISATION/MODEL, not {name!r}.")
    meta = _meta(opened, name, None if spec is None else partial(_loaded, spec))
    if checked := _checked(prompts):  # mteb files results under other prompts apart, and hands these to the loader
        meta = meta.model_copy(update={"use_instructions": True, "experiment_kwargs": {"prompts": checked}})
    return MtebEncoder(opened, checked, meta)


class MtebEncoder(AbsEncoder):
    """What mteb calls an encoder (its EncoderProtocol); `similarity` is the cosine, by what the meta says."""

    mteb_model_meta: ModelMeta

    def __init__(self, model: Model, prompts: dict[str, str] | None, meta: ModelMeta) -> None:
        built_in = model.description.get("prompts") if isinstance(model, SentenceEncoder) else None
        self.model, self.model_prompts, self.mteb_model_meta = model, prompts or built_in, meta

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool = True,
        precision: str = "float32",
    ) -> Any:
        """A loader of batches with "text", "image" or both (n) -> (n, d) float32 array.

        Raises InputError for batches with nothing in them that the model takes, and for rows to be quantised.
        """
        if precision != "float32":
            raise InputError(f"Rows come as float32, not {precision}.")
        prompt = get_prompt(self.model_prompts, task_metadata, prompt_type)
        if isinstance(self.model, SentenceEncoder):
            encode = {
                None: self.model.encode,
                PromptType.query: self.model.encode_query,
                PromptType.document: self.model.encode_document,
            }[prompt_type]
            texts = [text for batch in inputs for text in _given(batch, ["text"], task_metadata)["text"]]
            return encode(texts, prompt=prompt, batch_size=batch_size, show_progress_bar=show_progress_bar)
        return self._in_batches(inputs, prompt or "", task_metadata, show_progress_bar)

    @torch.inference_mode()
    def _in_batches(self, inputs: Any, prompt: str, task: Any, progress: bool) -> Any:
        """As large as the loader's."""
        from tqdm import tqdm

        assert not isinstance(self.model, SentenceEncoder)
        was_training = self.model.training
        self.model.eval()
        takes = self.mteb_model_meta.modalities
        rows = []
        for batch in tqdm(inputs, "encoding", disable=not progress):
            found = _given(batch, takes, task)
            if "text" in found:
                found["text"] = [prompt + text for text in found["text"]]
            rows.append(torch.stack([_rows(self.model, kind, items) for kind, items in found.items()]).sum(0).cpu())
        self.model.train(was_training)
        return torch.cat(rows).numpy()


def _rows(model: TwoTower | ImageEncoder, kind: str, items: Any) -> Tensor:
    """Pictures or texts (b) -> (b, d) float32, not unit."""
    if kind == "image":
        pixels = model.preparation.stack(items).to(model.device)
        rows = model(pixels) if isinstance(model, ImageEncoder) else head(model.image)(model.features(image=pixels))
    else:
        assert isinstance(model, TwoTower)
        rows = head(model.text)(model.features(text=model.tokenizer(items).to(model.device)))
    return rows.float()


def _given(batch: Mapping[str, Any], takes: Sequence[str], task: Any) -> dict[str, Any]:
    """What a batch has of that which the model takes."""
    found = {kind: batch[kind] for kind in takes if kind in batch}
    if not found:
        given = [kind for kind in ("text", "image", "audio", "video") if kind in batch]
        raise InputError(f"The model takes {' and '.join(takes)}, and {task.name} gives {' and '.join(given)}.")
    return found


def _checked(prompts: Mapping[str, str] | None) -> dict[str, str] | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which say what the error says
        known, _ = AbsEncoder.validate_task_to_prompt_name(dict(prompts or {}), raise_for_invalid_keys=False)
    for key in prompts or {}:
        if key not in (known or {}):
            raise InputError(
                f"mteb has no use for a prompt {key!r}: expected query, document, a task such as STSBenchmark, a type "
                "of tasks such as Retrieval, or one of these with -query or -document behind it."
            )
    return known


def _meta(model: Model, name: str, loader: Callable[..., Any] | None) -> ModelMeta:
    modalities = {TwoTower: ["image", "text"], SentenceEncoder: ["text"], ImageEncoder: ["image"]}
    tokenizer = getattr(model, "tokenizer", None)
    inner = getattr(tokenizer, "tokenizer", None)  # open_clip's or transformers'
    width = model.encode_text([]).shape[1] if isinstance(model, TwoTower) else model.d
    tensors = [*model.parameters(), *model.buffers()]
    return ModelMeta.create_empty(
        {
            "loader": loader,
            "name": name,
            "revision": digest(model)[:40],  # as long as those of a hub
            "n_parameters": sum(p.numel() for p in model.parameters()),
            "n_embedding_parameters": sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding)),
            "memory_usage_mb": round(sum(t.numel() * t.element_size() for t in tensors) / 2**20),
            "max_tokens": getattr(tokenizer, "length", None) or getattr(inner, "context_length", None),
            "embed_dim": width,
            "framework": ["PyTorch"],
            "similarity_fn_name": ScoringFunction.COSINE,
            "use_instructions": bool(isinstance(model, SentenceEncoder) and model.description.get("prompts")),
            "modalities": modalities[type(model)],
        }
    )


def _name(spec: str) -> str:
    """A hub's name, or the last part of a path: none of this machine's folders is in it."""
    named = spec.rpartition(":")[2]
    if (match := HUB_ID.fullmatch(spec)) and not os.path.exists(named):
        return match[1]
    last = named if spec == f"open_clip:{named}" else Path(os.path.abspath(named)).name  # MODEL/PRETRAINED is no path
    return f"{OURS}/{re.sub(r'[^A-Za-z0-9_.-]+', '-', last).strip('-') or 'model'}"


def _loaded(spec: str, name: str, revision: str | None = None, **options: Any) -> MtebEncoder:
    """What `ModelMeta.load_model` calls. revision: whatever the spec opens now has its own."""
    return as_mteb(spec, name=name, **options)
