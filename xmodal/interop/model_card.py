"""The page that goes to the hub with a model: what it is, how to open it, what it learned from, what it scores and what
nobody knows of it. What comes from data and settings is text there, never markup."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from xmodal import __version__
from xmodal.encoders.image import ImageEncoder
from xmodal.encoders.sentence import SentenceEncoder
from xmodal.encoders.two_tower import TwoTower
from xmodal.evaluators.scores import plain
from xmodal.evaluators.units import shown
from xmodal.interop.model_index import eval_results
from xmodal.interop.origin import Origin
from xmodal.interop.tokenizers import length_of
from xmodal.report.names import parse

TAG = "xmodal"  # by which a repository is known to be one of ours
LIBRARIES = {
    "xmodal": "xmodal",
    "open_clip": "open_clip",
    "hf": "transformers",
    "sentence-transformers": "sentence-transformers",
}
_KINDS = {
    TwoTower: ("An image encoder and a text encoder whose unit rows are compared by their cosine",
               "zero-shot-image-classification", ["contrastive-learning", "image-text", "clip"]),
    SentenceEncoder: ("A sentence encoder whose rows are compared by their cosine",
                      "sentence-similarity", ["contrastive-learning", "feature-extraction"]),
    ImageEncoder: ("An image encoder: features of pictures, taken before any head",
                   "image-feature-extraction", ["contrastive-learning"]),
}  # fmt: skip
_OTHER = ("An encoder of sequences", "feature-extraction", ["contrastive-learning"])

_USE = {
    TwoTower: 'image = model.encode_image(["a.jpg", "b.jpg"])  # paths, PIL images or arrays -> (n, d) unit rows\n'
    'text = model.encode_text(["a cat", "a dog"])\nmodel.similarity(image, text)',
    SentenceEncoder: 'rows = model.encode(["a man plays a guitar", "somebody makes music"])\n'
    "model.similarity(rows, rows)",
    ImageEncoder: 'rows = model.encode_image(["a.jpg", "b.jpg"])  # paths, PIL images or arrays -> (n, d) unit rows',
}
_THERE = {
    "open_clip": "import open_clip\n\n"
    'model, _, preprocess = open_clip.create_model_and_transforms("hf-hub:{id}")\n'
    'tokenizer = open_clip.get_tokenizer("hf-hub:{id}")',
    "hf": "from transformers import AutoModel, AutoProcessor\n\n"
    'model = AutoModel.from_pretrained("{id}"{more})\n'
    'processor = AutoProcessor.from_pretrained("{id}"{more}, backend="pil")',
    "sentence-transformers": "from sentence_transformers import SentenceTransformer\n\n"
    'model = SentenceTransformer("{id}"{more})',
}


def card(
    model: Any,
    repository: str,
    origin: Origin,
    *,
    format: str = "xmodal",
    revision: str | None = None,
    license: str | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The text of README.md: a header of YAML, which the hub reads, and sections of Markdown.

    notes: what of a conversion isn't quite the same. Sections that would be empty are left out.
    """
    sections = {
        "Use": _use(model, repository, format, revision),
        "Data": _data(origin),
        "Training": _training(origin),
        "Scores": _scores(origin),
        "Limits": _limits(model, origin, notes),
    }
    title = f"# {escaped(repository.partition('/')[2])}\n\n{_what(model, origin)}\n"
    body = "\n".join(f"## {name}\n\n{text}\n" for name, text in sections.items() if text)
    return f"---\n{_header(model, repository, origin, format, license)}\n---\n\n{title}\n{body}"


def spec_of(model: Any, repository: str, format: str, revision: str | None = None) -> str:
    """What `xmodal.load` opens the pushed model by."""
    if format == "open_clip":
        return f"open_clip:hf-hub:{repository}"  # open_clip reads the main branch
    kind = "hub" if format == "xmodal" else "st" if isinstance(model, SentenceEncoder) else "hf"
    return f"{kind}:{repository}{'@' + revision if revision else ''}"


def escaped(value: Any) -> str:
    """Data as text in Markdown and HTML: in a line, none of it markup."""
    text = re.sub(r"([\\`*_\[\]|~$])", r"\\\1", html.escape(" ".join(plain(value).split()), quote=False))
    return re.sub(r"^(\d*)([#+.)-])", r"\1\\\2", text)  # at its beginning, what would be a heading or a list


def _header(model: Any, repository: str, origin: Origin, format: str, license: str | None) -> str:
    from huggingface_hub import ModelCardData

    _, pipeline, tags = _kind(model)
    results = eval_results(origin.scores, origin.protocol)
    data = ModelCardData(
        library_name=LIBRARIES[format],
        license=license,
        pipeline_tag=pipeline,
        tags=[TAG, *tags, *([LIBRARIES[format]] if format != "xmodal" else [])],
        datasets=list(origin.datasets) or None,
        base_model=list(origin.base_models) or None,
        model_name=repository.partition("/")[2] if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _what(model: Any, origin: Origin) -> str:
    what, *_ = _kind(model)
    sizes = [f"{sum(p.numel() for p in model.parameters()):,} parameters"]
    if (seen := getattr(model, "preparation", None)) is not None:
        sizes.append(f"pictures of {seen.height} × {seen.width} pixels")
    if (length := _length(model)) is not None:
        sizes.append(f"texts of up to {length} tokens")
    began = f", begun from {escaped(' and '.join(origin.starts))}" if origin.starts and origin.config else ""
    by = f" Trained with `xmodal train {origin.recipe}`{began}." if origin.recipe else ""
    if not origin.config and origin.spec:
        by = f" The weights are those of {escaped(origin.spec)}."
    return f"{what}; {', '.join(sizes)}.{by}"


def _use(model: Any, repository: str, format: str, revision: str | None) -> str:
    of_hub = f', revision="{revision}"' if revision else ""
    ours = f'import xmodal\n\nmodel = xmodal.load("{spec_of(model, repository, format, revision)}")\n'
    blocks = [ours + _USE.get(type(model), "rows = model.encode(sequences)")]
    if format == "xmodal" and isinstance(model, SentenceEncoder) and model.description["kind"] == "st":
        format = "sentence-transformers"  # its folders open there, too
    if format in _THERE:
        blocks.insert(0, _THERE[format].format(id=repository, more=of_hub))
    return "\n\n".join(f"```python\n{block}\n```" for block in blocks)


def _data(origin: Origin) -> str:
    config = origin.config
    lines = []
    if data := config.get("data"):
        rows = f", {origin.rows:,} rows" if origin.rows else ""
        lines.append(f"- Trained on: {escaped(data)}{rows}")
    judged = [config["val"]] if config.get("val") else _judged_on(origin.protocol)
    if origin.scores and judged:
        lines.append(f"- Judged on: {'; '.join(map(escaped, judged))}")
    return "\n".join(lines)


def _judged_on(protocol: Mapping[str, Any]) -> list[str]:
    each = [protocol, *(inner for inner in protocol.values() if isinstance(inner, Mapping))]
    return list(dict.fromkeys(str(one["data"]) for one in each if one.get("data")))


def _training(origin: Origin) -> str:
    if not origin.config:
        return ""
    parts = []
    if origin.recipe:
        processes = _processes(origin)
        run = f"torchrun --nproc_per_node {processes} -m xmodal.train.{origin.recipe}" if processes > 1 else (
            f"xmodal train {origin.recipe}")  # fmt: skip
        parts.append(f"With [config.yaml](config.yaml) of this repository and the data at hand:\n\n"
                     f"```sh\n{run} --config config.yaml --data DATA --output OUTPUT\n```")  # fmt: skip
    facts = {"steps": origin.steps, "pairs or rows in a step, over all processes": origin.batch}
    told = [f"{name}: {value:,}" for name, value in facts.items() if value]
    parts.append(f"xmodal {escaped(origin.version or __version__)}" + "".join(f"; {one}" for one in told) + ".")
    settings = yaml.safe_dump(dict(origin.config), sort_keys=False, allow_unicode=True).rstrip()
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", settings)), default=0))
    parts.append(f"<details>\n<summary>All settings</summary>\n\n{fence}yaml\n{settings}\n{fence}\n\n</details>")
    return "\n\n".join(parts)


def _processes(origin: Origin) -> int:
    each = origin.config.get("batch_size")
    return origin.batch // each if origin.batch and isinstance(each, int) and each > 0 else 1


def _scores(origin: Origin) -> str:
    if not origin.scores:
        return ""
    before = origin.told.get("before training") or {}
    columns = ["test", "figure", "score", "interval", *(["before training"] if before else [])]
    rows = [columns, ["---", "---", *["---:"] * (len(columns) - 2)]]
    for name, score in origin.scores.items():
        said = parse(name)
        low, high = (_figure(name, score.get(end)) for end in ("low", "high"))
        row = [escaped(said.question) or "–", escaped(said.figure.replace("_", " ")), _figure(name, score.get("value"))]
        row += [f"{low} – {high}", *([_figure(name, (before.get(name) or {}).get("value"))] if before else [])]
        rows.append(row)
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    unit = "Fractions and correlations ×100; ranks, alignment and uniformity as they are, less is better."
    protocol = "\n".join(_protocol(origin.protocol))
    return f"{table}\n\n{unit}" + (f"\n\nWhat the scores depend on:\n\n{protocol}" if protocol else "")


def _figure(name: str, value: Any) -> str:
    return shown(name, value) if isinstance(value, int | float) else "–"


def _protocol(protocol: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    for name, said in protocol.items():
        if isinstance(said, Mapping):
            yield f"{indent}- {escaped(name)}"
            yield from _protocol(said, indent + "  ")
        else:
            yield f"{indent}- {escaped(name)}: {escaped(said)}"


def _limits(model: Any, origin: Origin, notes: Sequence[str]) -> str:
    lines = []
    if origin.scores:
        lines.append("The scores are of the data named above; how the model does on other data was not measured.")
        lines.append(
            "An interval says how far other queries of the same kind would move a score. It holds no variance between "
            "seeds of training: this is one run."
        )
    else:
        lines.append("No scores came with the model: how well it does was not measured here.")
    lines.append("It was not examined for bias, nor for what it makes of harmful, private or misleading input.")
    if (length := _length(model)) is not None:
        lines.append(f"Of a text, what comes after its first {length} tokens is not read.")
    if origin.config and not origin.starts:
        lines.append("It was trained from random weights: it knows nothing but what is in its training data.")
    return "\n".join(f"- {escaped(line)}" for line in (*lines, *notes))


def _length(model: Any) -> int | None:
    return length_of(model.tokenizer) if hasattr(model, "tokenizer") else None


def _kind(model: Any) -> tuple[str, str, list[str]]:
    return next((told for kind, told in _KINDS.items() if isinstance(model, kind)), _OTHER)
