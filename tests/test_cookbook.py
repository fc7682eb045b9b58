"""Every command and program of docs/cookbook.md runs as it stands, on made data and tiny models of those names."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path

import huggingface_hub
import pytest

from tests.drawings import SHAPES, drawing, texts
from tests.encoders import hubs
from tests.interop.stub_hub import as_cache
from xmodal.cli import main

PAGE = (Path(__file__).parent.parent / "docs" / "cookbook.md").read_text(encoding="utf-8")
RECIPES = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
MODELS = {
    "openai/clip-vit-base-patch32": hubs.clip,
    "google/vit-base-patch16-224": hubs.vit,
    "google-bert/bert-base-uncased": hubs.bert,
    "sentence-transformers/all-MiniLM-L6-v2": hubs.sentence_transformer,
}


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data that the page speaks of, and beside it the hub's cache."""
    folder = tmp_path_factory.mktemp("kitchen")
    for name, make in MODELS.items():
        model = make(tmp_path_factory.mktemp("model") / "model")
        files = {str(p.relative_to(model)): p.read_bytes() for p in model.rglob("*") if p.is_file()}
        as_cache(files, name, folder / "cache")
    lines = ["filepath,caption,split"]
    for n in range(112):
        file = folder / "pictures" / SHAPES[n % 4] / f"{n}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(drawing(n))
        split = {0: "val", 1: "test"}.get(n // 4 % 7, "train")
        lines += [f'{file.relative_to(folder)},"{text}",{split}' for text in texts(n)]
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    things = [f"{verb} {noun} {n}" for n in range(20) for verb, noun in (("a", "cat"), ("the", "dog"), ("one", "bird"))]
    (folder / "lines.txt").write_text("".join(f"{thing} sleeps\n{thing} barks\n" for thing in things))
    rows = [f"what does {thing} do\t{thing} sleeps" for thing in [*things, *(f"{thing} again" for thing in things)]]
    (folder / "pairs.tsv").write_text("\n".join(["anchor\tpositive", *rows]) + "\n")
    rows = [f"{thing} sleeps\t{thing[:-n]} barks\t{5 - n / 2}" for n, thing in enumerate(things[:9], 1)]
    (folder / "scored.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *rows]) + "\n")
    return folder


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_as_written(
    recipe: str, kitchen: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(kitchen)
    monkeypatch.setitem(sys.modules, "vicreg", None)
    monkeypatch.delitem(sys.modules, "vicreg")  # so that what the page's test imports is gone afterwards
    monkeypatch.syspath_prepend(str(kitchen))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(kitchen / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", RECIPES[recipe], re.MULTILINE | re.DOTALL):
        if language == "python":
            write_program(block)
        else:
            assert language == "sh"
            for line in block.replace("\\\n", " ").splitlines():
                run_command(shlex.split(line, comments=True), capsys)


def write_program(block: str) -> None:
    """Into the file that its first line names; the functions of a test are called."""
    match = re.match(r"# (\w+\.py)", block)
    assert match, block
    file = Path(match[1])
    file.write_text(block, encoding="utf-8")
    if file.name.startswith("test_"):
        tests = [f for name, f in runpy.run_path(str(file)).items() if name.startswith("test_")]
        assert tests
        for test in tests:
            test()


def run_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    if words[0] == "python":
        runpy.run_path(words[1], run_name="__main__")
        return
    assert words[0] == "xmodal"
    status = main(words[1:])
    assert status == 0, f"{shlex.join(words)}\n{capsys.readouterr().err}"


def test_the_list_at_the_top_names_every_recipe() -> None:
    listed = re.findall(r"^- \[(.+)\]\(#(.+)\)$", PAGE, re.MULTILINE)
    assert [name for name, _ in listed] == list(RECIPES)
    for name, anchor in listed:
        assert anchor == re.sub(r"[^\w\- ]", "", name.lower()).replace(" ", "-")
