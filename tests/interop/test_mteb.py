"""mteb on our models: its mock run, its own wrappers' rows, its STS tasks beside ours, what is said of wrong input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mteb
import numpy as np
import pytest
import torch
from mteb.mocks import mock_run
from mteb.models.model_implementations.clip_models import CLIPModel
from mteb.types import PromptType
from PIL import Image
from sentence_transformers import SentenceTransformer

import xmodal
import xmodal.interop.mteb as adapter
from tests.encoders import hubs
from tests.interop import small_models
from xmodal.cli import main
from xmodal.encoders.image import open_image_encoder
from xmodal.errors import InputError
from xmodal.interop.mteb import MtebEncoder, as_mteb

# One of each kind, those that take long left out; `-m slow` has all.
QUICK = {
    "MockBitextMiningTask",
    "MockPairClassificationTask",
    "MockClusteringTask",
    "MockRerankingTask",
    "MockRetrievalTask",
    "MockSTSTask",
    "MockSummarizationTask",
    "MockInstructionRetrieval",
    "MockTextZeroShotClassification",
    "MockAny2AnyRetrievalI2T",
    "MockAny2AnyRetrievalT2I",
    "MockVisionCentricQA",
    "MockImageClassification",
    "MockImageTextPairClassification",
    "MockZeroShotClassification",
    "MockImageRegressionTask",
    "MockPairImageClassificationTask",
}
TEXTS = ["a cat", "dog!", "cat dog cat", "the dog and the cat", "a"]
TASK = mteb.get_task("STSBenchmark").metadata
HERE = {"task_metadata": TASK, "hf_split": "test", "hf_subset": "default", "show_progress_bar": False}


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence encoder as sentence-transformers saves it, whose rows aren't unit."""
    return hubs.sentence_transformer(tmp_path_factory.mktemp("st") / "sentences", normalize=False)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dual encoder as transformers saves it."""
    folder = tmp_path_factory.mktemp("hf") / "pairs"
    small_models.clip_of_transformers(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image encoder as our recipes save it."""
    folder = tmp_path_factory.mktemp("run") / "images"
    open_image_encoder("small").save(folder)
    return folder


@pytest.fixture(scope="module")
def text(sentences: Path) -> MtebEncoder:
    return as_mteb(spec_of(sentences), device="cpu")


@pytest.fixture(scope="module")
def dual(pairs: Path) -> MtebEncoder:
    return as_mteb(spec_of(pairs), device="cpu")


def pictures(n: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(n)]


class Loader:
    """Batches as mteb's loaders give them."""

    def __init__(self, **columns: list[Any]) -> None:
        self.columns, self.dataset = columns, SimpleNamespace(features=columns)

    def __iter__(self) -> Any:
        n = len(next(iter(self.columns.values())))
        return iter([{name: values[a : a + 2] for name, values in self.columns.items()} for a in range(0, n, 2)])


def close(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(ours, torch.as_tensor(theirs).numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("model", ["sentences", "pairs", "images"])
def test_the_mock_run_passes(
    model: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    quick = [task for task in mock_run.ALL_MOCK_TASK_TEST_GRID if task.metadata.name in QUICK]
    monkeypatch.setattr(mock_run, "ALL_MOCK_TASK_TEST_GRID", quick)
    assert main(["eval", "mteb", spec_of(request.getfixturevalue(model)), "--mock"]) == 0
    said = capsys.readouterr().out
    ran, takes = {
        "sentences": (9, "text"),
        "pairs": (17, "image and text"),
        "images": (3, "image"),
    }[model]
    assert f"All {ran} mock tasks of mteb {mteb.__version__} with {takes} passed." in said


@pytest.mark.slow
@pytest.mark.parametrize("model", ["sentences", "pairs", "images"])
def test_the_whole_mock_run_passes(model: str, request: pytest.FixtureRequest) -> None:
    run = mteb.mock_run(as_mteb(spec_of(request.getfixturevalue(model))))
    assert run.all_passed
    assert sum(status is not None for _, status in run.items()) == {"sentences": 28, "pairs": 43, "images": 8}[model]


def test_a_mock_task_that_fails_is_named(
    sentences: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = [task for task in mock_run.ALL_MOCK_TASK_TEST_GRID if task.metadata.name == "MockSTSTask"]
    monkeypatch.setattr(mock_run, "ALL_MOCK_TASK_TEST_GRID", quick)
    monkeypatch.setattr(MtebEncoder, "similarity_pairwise", lambda *_: 1 / 0)
    assert main(["eval", "mteb", spec_of(sentences), "--mock"]) == 1
    assert "1 of 1 mock tasks failed: MockSTSTask." in capsys.readouterr().err


def spec_of(folder: Path) -> str:
    return {"sentences": "st:", "pairs": "hf:", "images": ""}[folder.name] + str(folder)


def test_rows_are_those_of_mtebs_wrapper_of_sentence_transformers(
    sentences: Path, text: MtebEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = SentenceTransformer(str(sentences), device="cpu", local_files_only=True)
    inner.prompts = {"query": "cat ", "STS": "dog "}
    theirs = mteb.SentenceTransformerEncoderWrapper(inner)
    monkeypatch.setattr(text, "model_prompts", dict(inner.prompts))
    for prompt_type in (None, PromptType.query, PromptType.document):
        for name in ("STSBenchmark", "SICK-R", "Banking77Classification"):
            here = {**HERE, "task_metadata": mteb.get_task(name).metadata, "prompt_type": prompt_type}
            found = text.encode(Loader(text=TEXTS), **here)
            close(found, theirs.encode(Loader(text=TEXTS), **here))  # pyright: ignore[reportArgumentType]
    assert abs(np.linalg.norm(found[0]) - 1) > 1e-3
    close(text.similarity(found, found), theirs.similarity(found, found))
    close(text.similarity_pairwise(found, found), np.ones(len(TEXTS)))


def test_rows_are_those_of_mtebs_wrapper_of_clip(pairs: Path, dual: MtebEncoder) -> None:
    theirs = CLIPModel(str(pairs), revision=None, device="cpu")  # pyright: ignore[reportArgumentType]
    both = {"text": TEXTS, "image": pictures(5)}
    for columns in ({"text": TEXTS}, {"image": both["image"]}, both):
        expected = theirs.encode(Loader(**columns), **HERE)  # pyright: ignore[reportArgumentType]
        close(dual.encode(Loader(**columns), **HERE), expected)
        assert abs(torch.as_tensor(expected)[0].norm() - 1) > 1e-3


def test_prompts_are_put_before_texts(dual: MtebEncoder, text: MtebEncoder, sentences: Path) -> None:
    prompts = {"STSBenchmark": "cat ", "Retrieval-query": "dog "}
    other = {**HERE, "task_metadata": mteb.get_task("SICK-R").metadata}
    for plain, model in ((dual, dual.model), (text, spec_of(sentences))):
        told = as_mteb(model, prompts=prompts)
        close(told.encode(Loader(text=TEXTS), **HERE), plain.encode(Loader(text=[f"cat {t}" for t in TEXTS]), **HERE))
        close(told.encode(Loader(text=TEXTS), **other), plain.encode(Loader(text=TEXTS), **other))
        assert told.mteb_model_meta.experiment_kwargs == {"prompts": prompts}  # so that results are filed apart
    again = told.mteb_model_meta.load_model()
    close(again.encode(Loader(text=TEXTS), **HERE), told.encode(Loader(text=TEXTS), **HERE))
    with pytest.raises(InputError, match="no use for a prompt 'STSBenchmrk': expected query, document, a task"):
        as_mteb(dual.model, prompts={"STSBenchmrk": "cat "})


def test_what_the_meta_says(dual: MtebEncoder, text: MtebEncoder, sentences: Path, images: Path) -> None:
    of_both, of_text, of_images = (one.mteb_model_meta for one in (dual, text, as_mteb(spec_of(images))))
    assert (of_both.name, of_text.name, of_images.name) == ("xmodal/pairs", "xmodal/sentences", "xmodal/images")
    assert (of_both.modalities, of_text.modalities, of_images.modalities) == (["image", "text"], ["text"], ["image"])
    assert (of_both.max_tokens, of_text.max_tokens, of_images.max_tokens) == (16, 10, None)
    assert (of_both.embed_dim, of_text.embed_dim) == (24, 32)
    loaded = xmodal.load(spec_of(sentences))
    assert of_text.n_parameters == sum(p.numel() for p in loaded.parameters())
    assert as_mteb(loaded, name="me/mine").mteb_model_meta.name == "me/mine"
    with torch.no_grad():
        next(loaded.parameters()).add_(1)
    assert as_mteb(loaded).mteb_model_meta.revision != of_text.revision  # other weights are another model
    with pytest.raises(InputError, match="ORGANISATION/MODEL"):
        as_mteb(loaded, name="mine")


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("runs/clip", "xmodal/clip"),
        ("/home/somebody/my model/", "xmodal/my-model"),
        ("st:sentence-transformers/all-MiniLM-L6-v2@abc", "sentence-transformers/all-MiniLM-L6-v2"),
        ("hf:openai/clip-vit-base-patch32", "openai/clip-vit-base-patch32"),
        ("st:all-MiniLM-L6-v2", "xmodal/all-MiniLM-L6-v2"),
        ("open_clip:ViT-B-32/openai", "xmodal/ViT-B-32-openai"),
        ("open_clip:hf-hub:laion/CLIP-ViT-B-32", "laion/CLIP-ViT-B-32"),
        ("open_clip:local-dir:/home/somebody/b32", "xmodal/b32"),
        ("timm:vit_small_patch16_224", "xmodal/vit_small_patch16_224"),
    ],
)
def test_names(spec: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_image_encoder("small")
    monkeypatch.setattr(adapter, "load", lambda spec, device: model)
    assert as_mteb(spec).mteb_model_meta.name == name


def written(folder: Path) -> tuple[Path, Path]:
    """STS-B and SICK-R of our own: as the tables that `eval sts` reads, and as copies of mteb's repositories."""
    words = ["cat", "dog", "a", "the", "!", "cats", "dogs"]
    for table, copy, seed in (("stsb-test", "stsbenchmark-sts", 0), ("sickr-test", "sickr-sts", 1)):
        rng = np.random.default_rng(seed)
        rows = [(rng.permutation(words)[:4], rng.permutation(words)[:5], rng.random() * 5) for _ in range(40)]
        told = [{"sentence1": " ".join(a), "sentence2": " ".join(b), "score": round(s, 3)} for a, b, s in rows]
        (folder / "copies" / "mteb" / copy).mkdir(parents=True)
        (folder / "copies" / "mteb" / copy / "test.jsonl").write_text("\n".join(map(json.dumps, told)))
        (folder / "tables").mkdir(exist_ok=True)
        lines = ["\t".join(str(row[name]) for name in ("score", "sentence1", "sentence2")) for row in told]
        (folder / "tables" / f"{table}.tsv").write_text("\n".join(["score\tsentence1\tsentence2", *lines]) + "\n")
    return folder / "tables", folder / "copies"


def values(file: Path) -> dict[str, float]:
    return {name: score["value"] for name, score in json.loads(file.read_text())["scores"].items()}


def test_sts_through_mtebs_own_code_is_that_of_eval_sts(
    sentences: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tables, copies = written(tmp_path)
    told = ("eval", "mteb", spec_of(sentences), "--tasks", "STSBenchmark", "SICK-R", "--data", str(copies))
    told += ("--output", str(tmp_path / "results"), "--json", str(tmp_path / "theirs.json"))
    assert main([*told]) == 0
    theirs = values(tmp_path / "theirs.json")
    assert main(["eval", "sts", spec_of(sentences), "--data", str(tables), "--json", str(tmp_path / "ours.json")]) == 0
    ours = values(tmp_path / "ours.json")
    assert theirs["STSBenchmark/test/cosine_spearman"] == pytest.approx(ours["STS-B"], abs=1e-9)
    assert theirs["SICK-R/test/cosine_spearman"] == pytest.approx(ours["SICK-R"], abs=1e-9)
    assert 0 < abs(ours["STS-B"]) < 1

    filed = [file for file in (tmp_path / "results").rglob("*") if file.is_file()]
    assert {file.name for file in filed} >= {"STSBenchmark.json", "SICK-R.json", "model_meta.json"}
    hidden = (str(tmp_path), str(sentences.parent))
    assert not any(path in file.read_text() for path in hidden for file in filed)
    assert json.loads(next(f for f in filed if f.name == "SICK-R.json").read_text())["dataset_revision"] == "copy"

    capsys.readouterr()
    monkeypatch.setattr(MtebEncoder, "encode", lambda *_, **__: pytest.fail("a task that is done was run again"))
    assert main([*told]) == 0
    assert "results of before: STSBenchmark, SICK-R" in capsys.readouterr().out
    assert values(tmp_path / "theirs.json") == pytest.approx(theirs, abs=1e-6)  # mteb rounds what it files


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str], sentences: Path) -> Callable[..., str]:
    def ask(*argv: str) -> str:
        assert main(["eval", "mteb", spec_of(sentences), *argv]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert len(said.err.splitlines()) <= 2
        return said.err

    return ask


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--tasks", "STSBenchmrk"), "has no task 'STSBenchmrk'; did you mean 'STSBenchmark'?"),
        pytest.param(
            ("--benchmarks", "MTEB(eng, v22)"),
            "has no benchmark 'MTEB(eng, v22)'; did you mean 'MTEB(eng, v2)'?",
            marks=pytest.mark.slow,  # mteb makes all tasks of all benchmarks for it
        ),
        (("--tasks", "CIFAR10ZeroShot"), "takes text, and CIFAR10ZeroShot has"),
        ((), "Expected either --tasks or --benchmarks, or --mock."),
        (("--mock", "--tasks", "STS12"), "Expected either --tasks or --benchmarks, or --mock."),
        (("--mock", "--output", "there"), "--mock has no scores to write"),
        (("--tasks", "STS12", "--prompts", "query"), "--prompts is ('query',); expected KEY=TEXT for each."),
        (("--tasks", "STS12", "--prompts", "qery=a"), "mteb has no use for a prompt 'qery'"),
        (("--tasks", "STS12", "--name", "mine"), "--name is mine; expected ORGANISATION/MODEL."),
        (("--tasks", "STS12", "--data", "nowhere"), "--data nowhere is no folder."),
        (("--tasks", "STS12", "--output", __file__), f"--output is {__file__}; expected a folder."),
    ],
)
def test_what_cannot_be_run_is_said_in_a_line(argv: tuple[str, ...], said: str, complaint: Callable[..., str]) -> None:
    assert said in complaint(*argv)


def test_data_that_cannot_be_had(
    complaint: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(MtebEncoder, "encode", lambda *_, **__: pytest.fail("something was run"))
    copies = written(tmp_path)[1]
    error = complaint("--tasks", "SICK-R", "STS12", "--data", str(copies), "--output", str(tmp_path / "results"))
    assert error.startswith("error: The data of STS12 can't be had: ")
    assert "put a copy of mteb/sts12-sts into FOLDER/ORGANISATION/NAME" in error
    assert not (tmp_path / "results").exists()


def test_without_mteb(complaint: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xmodal.eval.mteb.find_spec", lambda name: None)
    assert complaint("--mock") == 'error: This needs mteb: pip install "xmodal[mteb]"\n'


def test_what_a_model_does_not_take(images: Path, text: MtebEncoder) -> None:
    with pytest.raises(InputError, match="The model takes image, and STSBenchmark gives text."):
        as_mteb(spec_of(images)).encode(Loader(text=TEXTS), **HERE)
    with pytest.raises(InputError, match="The model takes text, and STSBenchmark gives image."):
        text.encode(Loader(image=pictures(2)), **HERE)
    with pytest.raises(InputError, match="not int8"):
        text.encode(Loader(text=TEXTS), **HERE, precision="int8")
    with pytest.raises(InputError, match="this is a Linear"):
        as_mteb(torch.nn.Linear(2, 2))  # pyright: ignore[reportArgumentType]
