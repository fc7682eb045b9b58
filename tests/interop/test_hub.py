"""The hub: what is pushed is what was trained, opens here and elsewhere, and tells nothing of the machine."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import small_models
import torch
import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results
from markdown_it import MarkdownIt
from PIL import Image
from stub_hub import TOKEN, StubHub, as_cache

import xmodal
from tests.encoders import hubs
from xmodal.cli import main
from xmodal.encoders.hub import OnHub
from xmodal.encoders.image import ImageEncoder, open_image_encoder
from xmodal.encoders.sentence import SentenceEncoder
from xmodal.encoders.sentence_specs import small_sentences
from xmodal.encoders.sequence import SequenceEncoder
from xmodal.encoders.small import small_towers
from xmodal.encoders.tokenizer import PiecesTokenizer
from xmodal.encoders.two_tower import TwoTower
from xmodal.errors import InputError
from xmodal.interop.disclosure import LEFT_OUT, refuse_disclosure, short, shortened
from xmodal.interop.hub import push
from xmodal.interop.verify import TEXTS, pictures

pytestmark = pytest.mark.filterwarnings("ignore:Where the middle", "ignore:transformers' tokenizer", "ignore:open_clip")

SECRET = "sk-" + "Zz9" * 10
HOSTILE = '<img src=x onerror="alert(1)"> **bold** [link](javascript:alert(1)) `code` | cell\n# heading'
SCORES = {
    "val/image_to_text/R@1": {"value": 0.6149, "low": 0.5, "high": 0.7},
    "val/image_to_text/mean_rank": {"value": 12.5, "low": 11.0, "high": 14.0},
    "zero_shot/top1": {"value": 0.25, "low": 0.2, "high": 0.3},
    "zero_shot/macro_f1": {"value": None, "low": None, "high": None},
    "raw_pixels/top1": {"value": 0.4, "low": 0.3, "high": 0.5},  # not the model's: in the table alone
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StubHub]:
    """An empty hub, a user who is logged in, and an empty cache."""
    stub = StubHub()
    constants = huggingface_hub.constants
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template.replace(constants.ENDPOINT, stub.address))
    monkeypatch.setattr(constants, "ENDPOINT", stub.address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield stub
    stub.close()


def small() -> TwoTower:
    torch.manual_seed(0)
    return small_towers(PiecesTokenizer.train(small_models.WORDS.split(), 80, length=12), 32, 16).eval()


def write_run(folder: Path, scores: dict[str, Any] | None = SCORES, **config: Any) -> Path:
    """A run folder as `train` leaves it, with settings that tell of paths and secrets."""
    small().save(folder)
    told = {
        "data": f"{folder.parent}/my pictures/captions.csv::https://me:pw@127.0.0.1/b.csv?token={TOKEN}",
        "val": str(folder.parent / "other" / "val.tsv"),
        "output": str(folder),
        "batch_size": 32,
        "model": "small",
        "track": ["tensorboard", f"{SECRET}"],
        **config,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump({"xmodal": "0.1.0", "recipe": "clip", **told}))
    protocol = {
        "data": f"{folder.parent}/my pictures/captions.csv, 10% held out",
        "zero_shot": {"data": f"classes of {Path.home()}/classes", "classes": HOSTILE},
        "task": f"in {folder}/tests with {TOKEN}",
    }
    if scores is not None:
        (folder / "scores.json").write_text(json.dumps({"protocol": protocol, "scores": scores}))
    (folder / "checkpoints" / "step-20").mkdir(parents=True)
    (folder / "checkpoints" / "step-20" / "state.json").write_text('{"rows": 1234, "batch": 64, "step": 20}')
    (folder / "skipped.jsonl").write_text(f'{{"path": "{folder}/secret.jpg"}}\n')
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "runs of mine" / "first")


def equal(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_is_pushed_is_what_was_trained_and_tells_nothing_of_the_machine(
    run: Path, hub: StubHub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["push", str(run), "me/first", "--dry-run"]) == 0
    assert not hub.requests
    announced = capsys.readouterr().out
    assert main(["push", str(run), "me/first", "--license", "mit"]) == 0
    assert 'xmodal.load("hub:me/first")' in capsys.readouterr().out
    files = hub.repositories["me/first"].branches["main"]
    names = {"README.md", "config.yaml", "model.json", "model.safetensors", "scores.json", "tokenizer.model"}
    assert set(files) == names
    assert all(name in announced for name in names)
    assert f"{len(files['model.safetensors']):,} bytes" in announced
    assert announced.startswith("---\nlibrary_name: xmodal\n")

    opened = xmodal.load("hub:me/first", device="cpu")
    assert equal(opened, xmodal.load(str(run), device="cpu"))
    torch.testing.assert_close(opened.encode_text(TEXTS), small().encode_text(TEXTS), rtol=0, atol=0)

    for name, content in files.items():
        for told in (TOKEN, SECRET, str(tmp_path), str(Path.home()), "my pictures", "runs of mine", "me:pw"):
            assert told.encode() not in content, (name, told)
    config = yaml.safe_load(files["config.yaml"])
    assert config["data"] == "captions.csv::https://127.0.0.1/b.csv"
    assert (config["val"], config["output"]) == ("val.tsv", "first")
    assert config["track"] == ["tensorboard", LEFT_OUT]
    scores = json.loads(files["scores.json"])
    assert scores["scores"] == SCORES
    assert scores["protocol"]["data"] == "captions.csv, 10% held out"

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert equal(TwoTower.from_pretrained("me/first"), opened.to("cpu"))  # from the cache now
    assert not hub.requests


def test_the_card_is_read_by_the_hubs_own_parser(run: Path, tmp_path: Path) -> None:
    told = push(xmodal.load(str(run), device="cpu"), "me/first", source=str(run), license="mit", dry_run=True)
    file = tmp_path / "README.md"
    file.write_text(told.card, encoding="utf-8")
    header = huggingface_hub.metadata_load(file)
    assert header is not None
    assert header["license"] == "mit"
    assert header["library_name"] == "xmodal"
    assert header["pipeline_tag"] == "zero-shot-image-classification"
    assert not {"datasets", "base_model"} & set(header)
    name, results = model_index_to_eval_results(header["model-index"])
    found = {result.metric_name: result for result in results}
    assert name == "first"
    assert list(found) == ["val, image → text, R@1", "val, image → text, mean rank", "zero shot, top1"]
    first = found["val, image → text, R@1"]
    assert (first.metric_type, first.metric_value) == ("recall_at_1", 0.6149)
    assert first.metric_args == {"low": 0.5, "high": 0.7}
    assert first.dataset_name == "captions.csv, 10% held out"
    assert huggingface_hub.ModelCard.load(file).data.eval_results == results

    text = huggingface_hub.ModelCard.load(file).text
    assert "| val, image → text | R@1 | 61.5 | 50.0 – 70.0 |" in text
    assert "| zero shot | macro f1 | – | – – – |" in text
    assert "| raw pixels | top1 | 40.0 | 30.0 – 50.0 |" in text
    assert "torchrun --nproc_per_node 2 -m xmodal.train.clip --config config.yaml" in text
    assert "1,234 rows" in text
    assert 'xmodal.load("hub:me/first")' in text


def test_names_from_data_are_no_markup(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", data=HOSTILE, val=None, caption_column="```\n<script>x</script>")
    told = push(xmodal.load(str(run), device="cpu"), "me/first", source=str(run), dry_run=True)
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(told.card.partition("\n---\n")[2])
    assert "<img" not in page
    assert "<script" not in page
    assert "<strong>" not in page
    assert "href" not in page.replace('href="config.yaml"', "")
    assert page.count("<h1>") == 1
    assert "alert(1)" in page  # it is there, as text
    header = huggingface_hub.ModelCard(told.card).data
    assert "\n" not in header.eval_results[-1].dataset_name


def test_a_model_without_scores_has_a_card_without_a_table(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", scores=None)
    told = push(xmodal.load(str(run), device="cpu"), "me/first", source=str(run), dry_run=True)
    assert "model-index" not in told.card
    assert "Scores" not in told.card
    assert "No scores came with the model" in told.card
    assert "scores.json" not in told.files
    bare = push(small(), "me/first", dry_run=True)
    assert set(bare.files) == {"README.md", "model.json", "model.safetensors", "tokenizer.model"}
    assert "## Training" not in bare.card


def test_what_the_hub_has_is_named(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "run",
        data="hf-dataset:someone/pairs@v1,streaming::hf-dataset:/here/pairs::hf://datasets/another/set/a-{0..3}.parquet",
        model="open_clip:ViT-B-32",
        image_tower="hf:someone/vit@main",
        text_tower="st:all-MiniLM-L6-v2",
    )
    header = huggingface_hub.ModelCard(push(small(), "me/x", source=str(run), dry_run=True).card).data
    assert header.datasets == ["someone/pairs", "another/set"]
    assert header.base_model == ["someone/vit", "sentence-transformers/all-MiniLM-L6-v2"]
    run = write_run(tmp_path / "second", data="a.csv", model="open_clip:ViT-B-32/openai", text_tower=None)
    header = huggingface_hub.ModelCard(push(small(), "me/x", source=str(run), dry_run=True).card).data
    assert header.base_model == ["timm/vit_base_patch32_clip_224.openai"]
    run = write_run(tmp_path / "third", model=f"hf:{tmp_path}/mine")
    card = push(small(), "me/x", source=str(run), dry_run=True).card
    assert huggingface_hub.ModelCard(card).data.base_model is None
    assert "begun from hf:mine." in card


def test_a_folder_in_the_form_of_the_cache_opens_offline(
    hub: StubHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small()
    model.save(tmp_path / "model")
    files = {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()}
    commit = as_cache(files, "me/cached", Path(huggingface_hub.constants.HF_HUB_CACHE), branch="v1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for opened in (
        xmodal.load("hub:me/cached@v1", device="cpu"),
        TwoTower.from_pretrained("me/cached", revision=commit, device="cpu"),
        TwoTower.from_pretrained("me/cached", revision="v1", local_files_only=True, device="cpu"),
    ):
        assert equal(opened, model)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE forbids"):
        xmodal.load("hub:me/cached")  # of its main branch the cache has nothing
    assert not hub.requests


def sentences() -> SentenceEncoder:
    torch.manual_seed(1)
    words = small_models.WORDS.split()
    return small_sentences(lambda: PiecesTokenizer.train(words, 80, 12), layers=1, dropout=0.0, pooling=None)


MODELS = {
    "image": lambda: open_image_encoder("small"),
    "sentences": sentences,
    "sequences": lambda: SequenceEncoder(of_bytes=True, strides=(4, 2), width=8, d=8),
}


@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_goes_there_and_back(kind: str, hub: StubHub, tmp_path: Path) -> None:
    model = MODELS[kind]()
    assert isinstance(model, OnHub)
    assert "/commit/" in model.push_to_hub("me/model", private=True)
    assert hub.repositories["me/model"].private
    with torch.no_grad():
        changed = MODELS[kind]()
        for parameter in changed.parameters():
            parameter.add_(1)
    changed.push_to_hub("me/model", revision="second")
    for revision, expected in ((None, model), ("main", model), ("second", changed)):
        assert equal(type(model).from_pretrained("me/model", revision=revision, device="cpu"), expected)
    assert equal(xmodal.load("hub:me/model@second", device="cpu"), changed)
    for other in {ImageEncoder, SentenceEncoder} - {type(model)}:
        with pytest.raises(InputError, match=f"no {other.__name__}"):
            other.from_pretrained("me/model")
    model.save_pretrained(tmp_path / "folder")
    assert equal(type(model).from_pretrained(tmp_path / "folder", device="cpu"), model)


def test_sentences_open_in_sentence_transformers(hub: StubHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sentence_transformers import SentenceTransformer

    encoder = xmodal.load(f"st:{hubs.sentence_transformer(tmp_path / 'model', dense=True)}", device="cpu")
    address = encoder.push_to_hub("me/sentences", format="sentence-transformers")
    files = hub.repositories["me/sentences"].branches["main"]
    assert address.endswith(hub.repositories["me/sentences"].commit("main")[0])
    header = huggingface_hub.ModelCard(files["README.md"].decode()).data
    assert (header.library_name, header.pipeline_tag) == ("sentence-transformers", "sentence-similarity")
    cache = tmp_path / "theirs"
    as_cache(files, "me/sentences", cache)
    with monkeypatch.context() as changed:
        changed.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        model = SentenceTransformer("me/sentences", cache_folder=str(cache), device="cpu")
    theirs = model.encode(["a photo", "two dogs"])
    ours = encoder.encode(["a photo", "two dogs"])
    torch.testing.assert_close(torch.from_numpy(theirs), torch.from_numpy(ours), rtol=0, atol=1e-5)
    assert equal(xmodal.load("hub:me/sentences", device="cpu"), encoder)
    with pytest.raises(InputError, match="no form for hf"):
        encoder.push_to_hub("me/other", format="hf")


@pytest.mark.parametrize("form", ["open_clip", "hf", "sentence-transformers"])
def test_other_libraries_open_what_is_pushed_for_them(
    form: str, hub: StubHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its id, from a cache: at another address than the hub's they don't ask."""
    small_models.register_timm()
    spec = small_models.siglip_of_open_clip(tmp_path / "model")  # its tokenizer goes along
    towers = xmodal.load(spec, device="cpu")
    towers.save(tmp_path / "run")
    assert main(["push", str(tmp_path / "run"), "me/siglip", "--format", form]) == 0
    files = hub.repositories["me/siglip"].branches["main"]
    assert "model.json" not in files
    assert not [name for name, content in files.items() if str(tmp_path).encode() in content]
    shown = pictures(towers.preparation)[:2]
    cache = tmp_path / "theirs"
    as_cache(files, "me/siglip", cache, lacks=["config.json"] if form == "open_clip" else [])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    image, text = opened_elsewhere(form, "me/siglip", str(cache), shown)
    torch.testing.assert_close(image, towers.encode_image(shown), rtol=0, atol=1e-5)
    torch.testing.assert_close(text, towers.encode_text(TEXTS[:2]), rtol=0, atol=1e-5)


def opened_elsewhere(form: str, name: str, cache: str, shown: list[Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows of pictures and of two texts by the library alone, from its id on the hub."""
    texts = list(TEXTS[:2])
    if form == "open_clip":
        model, _, prepare = open_clip.create_model_and_transforms(f"hf-hub:{name}", cache_dir=cache)
        tokens = open_clip.get_tokenizer(f"hf-hub:{name}", cache_dir=cache)(texts)
        with torch.inference_mode():
            pixels = torch.stack([prepare(picture) for picture in shown])  # pyright: ignore
            model.eval()
            return model.encode_image(pixels, normalize=True), model.encode_text(tokens, normalize=True)  # pyright: ignore
    if form == "hf":
        from transformers import AutoModel, AutoProcessor

        model = AutoModel.from_pretrained(name, cache_dir=cache)
        processor: Any = AutoProcessor.from_pretrained(name, cache_dir=cache, backend="pil")
        told = processor(text=texts, images=shown, padding="max_length", return_tensors="pt")
        with torch.inference_mode():
            out = model(**told)
        return (torch.nn.functional.normalize(rows, dim=-1) for rows in (out.image_embeds, out.text_embeds))  # pyright: ignore
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(name, cache_folder=cache, device="cpu")
    return torch.from_numpy(model.encode(shown)), torch.from_numpy(model.encode(texts))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command says that ends with 2: a single line."""
    capsys.readouterr()
    assert main(list(arguments)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert "Traceback" not in said
    return said


def test_pushing_is_refused_in_a_line(
    run: Path, hub: StubHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*arguments: str) -> str:
        return refused(capsys, "push", str(run), *arguments)

    assert "expected ORG/NAME" in said("first")
    assert "no name of a branch" in said("me/first", "--revision", "a b")
    assert "licence" in said("me/first", "--license", "My Own")
    assert "xmodal's own small towers exist nowhere else" in said("me/first", "--format", "hf")
    hub.put("me/bert", {"config.json": b"{}", "model.safetensors": b"", ".gitattributes": b""})
    assert "holds something else, such as config.json, model.safetensors" in said("me/bert")
    hub.put("me/public", {})
    assert "is there and public" in said("me/public", "--private")
    assert not hub.repositories["me/public"].branches["main"]
    hub.refused["POST /api/repos/create"] = (403, "", "You don't have the rights to create a model here.")
    assert "You don't have the rights" in said("someone/first")
    hub.refused = {"commit": (403, "", "Storage limit reached.")}
    assert "Storage limit reached" in said("me/public")
    hub.refused = {"": (401, "", "Invalid credentials in Authorization header")}
    assert "Invalid credentials" in said("me/public")
    assert hub.repositories["me/bert"].branches["main"].keys() == {"config.json", "model.safetensors", ".gitattributes"}
    hub.requests.clear()
    with monkeypatch.context() as changed:
        changed.delenv("HF_TOKEN")
        assert "Nobody is logged in" in said("me/first")
    with monkeypatch.context() as changed:
        changed.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        assert "--dry-run" in said("me/first")
    assert not hub.requests
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "can't be reached" in said("me/first")


def test_opening_is_refused_in_a_line(hub: StubHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(spec: str) -> str:
        with pytest.raises(InputError) as caught:
            xmodal.load(spec)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "expected ORG/NAME" in said("hub:first")
    assert "no repository me/nothing that you may see" in said("hub:me/nothing")
    hub.put("me/clip", {"open_clip_config.json": b"{}", "open_clip_model.safetensors": b""})
    assert said("hub:me/clip").endswith("Perhaps open_clip:hf-hub:me/clip?")
    hub.put("me/bert", {"config.json": b"{}"})
    assert said("hub:me/bert").endswith("Perhaps hf:me/bert?")
    assert "no branch, tag or commit 'v9'" in said("hub:me/bert@v9")
    hub.put(
        "me/pickle", {"model.json": b'{"kind": "small"}', "pytorch_model.bin": b"", "modeling.py": b"", "a.pkl": b""}
    )
    hub.requests.clear()
    assert "lacks model.json or model.safetensors" in said("hub:me/pickle")
    assert not [request for request in hub.requests if request.endswith((".bin", ".py", ".pkl"))]
    hub.refused = {"me/gated": (403, "GatedRepo", "Access to model me/gated is restricted.")}
    assert "is gated: ask for access" in said("hub:me/gated")
    hub.refused = {"me/none": (403, "", "Forbidden")}
    assert "me/none" in said("hub:me/none")
    with monkeypatch.context() as changed:
        changed.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        assert "HF_HUB_OFFLINE forbids" in said("hub:me/elsewhere")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "can't be reached" in said("hub:me/elsewhere")


def test_a_repository_of_ours_becomes_what_is_pushed_and_one_with_a_page_keeps_it(
    run: Path, hub: StubHub, capsys: pytest.CaptureFixture[str]
) -> None:
    page = b"---\nlicense: mit\n---\nWritten by hand."
    hub.put("me/page", {"README.md": page, ".gitattributes": b"", "LICENSE": b"MIT"})
    assert main(["push", str(run), "me/page"]) == 0
    files = hub.repositories["me/page"].branches["main"]
    assert files["README.md"] == page
    assert "README.md of its own, which stays" in capsys.readouterr().out
    assert equal(xmodal.load("hub:me/page", device="cpu"), small())

    assert main(["push", str(run), "me/first"]) == 0
    files = hub.repositories["me/first"].branches["main"]
    files |= {"figure.png": b"", "2_Dense/config.json": b"{}"}
    shutil.rmtree(huggingface_hub.constants.HF_HUB_CACHE)
    (run / "scores.json").unlink()
    assert main(["push", str(run), "me/first"]) == 0
    assert "were deleted: 2_Dense/config.json, scores.json." in capsys.readouterr().out
    assert {"figure.png", "model.safetensors", "README.md"} <= set(files)
    assert not {"2_Dense/config.json", "scores.json"} & set(files)


def test_what_was_fetched_brings_no_code(tmp_path: Path) -> None:
    """Settings that ask for it, with code beside them: a tokenizer of transformers, opened as open_clip's."""
    small_models.register_timm()
    folder, mark = tmp_path / "run", tmp_path / "mark"
    xmodal.load(small_models.siglip_of_open_clip(tmp_path / "model"), device="cpu").save(folder)
    told = json.loads((folder / "model.json").read_text())
    told["config"]["text_cfg"]["tokenizer_kwargs"]["trust_remote_code"] = True
    (folder / "model.json").write_text(json.dumps(told))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Evil: ...\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        xmodal.load(str(folder), device="cpu")
    assert not mark.exists()


SHORT = {
    "hf:/home/me/clip": "hf:clip",
    "hf:org/name.v2": "hf:org/name.v2",
    "st:../models/mini": "st:mini",
    "open_clip:local-dir:/a/b": "open_clip:local-dir:b",
    "open_clip:hf-hub:org/name": "open_clip:hf-hub:org/name",
    "open_clip:ViT-B-32/openai": "open_clip:ViT-B-32/openai",
    "hub:org/name@v1": "hub:org/name@v1",
    "timm:vit_small/random": "timm:vit_small/random",
    "a/b.csv::/x/y z/{000..099}.tar": "b.csv::{000..099}.tar",
    "https://me:pw@127.0.0.1/a.csv?signature=1": "https://127.0.0.1/a.csv",
    "glyphs/unseen_names": "glyphs/unseen_names",
    "hf-dataset:org/name@r": "hf-dataset:org/name@r",
    "/home/alice": LEFT_OUT,
    "~": LEFT_OUT,
    "C:\\Users\\me\\d.csv": "d.csv",
}


@pytest.mark.parametrize("spec", SHORT)
def test_specs_by_their_last_part(spec: str) -> None:
    assert short(spec) == SHORT[spec]


def test_texts_without_paths_and_tokens() -> None:
    texts = {
        "9 of the 10 pictures of /data/me/some.parquet": "9 of the 10 pictures of some.parquet",
        "/data/me mine/some.parquet, 10% held out": "some.parquet, 10% held out",
        "begun from hf:/home/me/clip and C:\\me\\x": "begun from hf:clip and x",
        "cosine; a/b </b> 1 / 2, images/texts": "cosine; a/b </b> 1 / 2, images/texts",
        f"by {TOKEN}": f"by {LEFT_OUT}",
    }
    assert shortened(list(texts), {}) == list(texts.values())
    assert shortened({"/a/b": ["/c/d", 1, None]}, {}) == {"b": ["d", 1, None]}


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", f'{{"a": "{TOKEN}"}}', "a token"),
        ("tokenizer_config.json", '{"file": "/home/somebody/x.json"}', "a path"),
        ("README.md", "read from /data/x.csv", "a path"),
        ("vocab.txt", f"{Path.home()}/mine\n" if Path.home() != Path("/root") else SECRET, "of this machine"),
        ("tokenizer.json", SECRET, "a secret of this machine"),
        ("pytorch_model.bin", "", "neither settings"),
        ("modeling.py", "", "neither settings"),
        ("model.safetensors", "", "a token"),
    ],
)
def test_a_file_that_tells_stops_the_push(
    file: str, content: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import save_file

    monkeypatch.setenv("SOME_API_KEY", SECRET)
    (tmp_path / "vocab.json").write_text('{"/home/": 1, "/tmp/x": 2}')  # words
    refuse_disclosure(tmp_path)
    if file.endswith(".safetensors"):
        save_file({"a": torch.zeros(1)}, tmp_path / file, metadata={"by": TOKEN})
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises(InputError, match=said):
        refuse_disclosure(tmp_path)
    assert hashlib.sha256(TOKEN.encode()).hexdigest() not in said
