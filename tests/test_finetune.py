"""`xmodal train clip` from towers that exist: what each flag does to the model that comes out, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import xmodal
from tests.encoders import hubs
from xmodal.cli import main
from xmodal.weights import save_tensors

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
FEW = ["--batch-size", "4", "--steps", "3", "--warmup", "1", "--lr", "0.01", "--precision", "fp32", "--save-every", "0"]


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with captions, and models as the hubs hold them."""
    where = tmp_path_factory.mktemp("there")
    rng = np.random.default_rng(0)
    lines = ["filepath,caption,split"]
    for n in range(14):
        Image.fromarray(rng.integers(0, 256, (34, 40, 3), dtype=np.uint8)).save(where / f"{n}.png")
        lines += [f"{n}.png,{kind} dog of {n} cats,{'train' if n < 9 else 'val'}" for kind in ("a", "big", "old")]
    (where / "pairs.csv").write_text("\n".join(lines) + "\n")
    torch.manual_seed(0)
    model = open_clip.CLIP(**TINY)  # pyright: ignore[reportArgumentType]
    (where / "clip").mkdir()
    save_tensors(model.state_dict(), where / "clip" / "open_clip_model.safetensors")
    (where / "clip" / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {}}))
    hubs.vit(where / "vit")
    hubs.bert(where / "bert")
    return where


def train(there: Path, out: Path, *flags: str, status: int = 0) -> dict[str, Any]:
    named = {"--model", "--image-tower"} & set(flags)
    spec = [] if named else ["--model", f"open_clip:local-dir:{there / 'clip'}"]
    command = ["train", "clip", "--data", str(there / "pairs.csv"), "--output", str(out), *spec, *FEW, *flags]
    assert main(command) == status
    if status:
        return {}
    opened = xmodal.load(str(out), device="cpu")  # what every run ends with
    rows = opened.encode_image([there / "0.png"]) @ opened.encode_text(["a cat"]).T
    assert rows.abs() <= 1 + 1e-6
    assert not any("lora_" in name for name in load_file(out / "model.safetensors"))
    assert "</html>" in (out / "report.html").read_text()
    return json.loads((out / "scores.json").read_text())


def moved(there: Path, out: Path) -> set[str]:
    """Names of open_clip's own weights that training has changed, of those in the model that it left."""
    first = xmodal.load(f"open_clip:local-dir:{there / 'clip'}", device="cpu").state_dict()
    last = load_file(out / "model.safetensors")
    assert first.keys() == last.keys()
    return {name for name in first if not torch.equal(first[name], last[name]) and name != "log_scale"}


def test_adapters_come_out_as_plain_weights(there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = train(there, tmp_path / "run", "--lora", "4")
    said = capsys.readouterr().out
    assert "preset lora" in said
    assert "Trained: " in said
    assert "Before training: " in said
    assert set(written["scores"]) == set(written["before training"])
    names = moved(there, tmp_path / "run")
    assert names and all(".attn." in name and name.endswith("weight") for name in names)  # noqa: PT018
    ours = xmodal.load(str(tmp_path / "run"), device="cpu")
    ours.save(tmp_path / "plain", format="open_clip")
    plain, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'plain'}")
    picture = Image.open(there / "0.png")
    with torch.no_grad():
        theirs = plain.eval().encode_image(prepare(picture)[None], normalize=True)  # type: ignore[operator, index]
    torch.testing.assert_close(ours.encode_image([picture]), theirs, rtol=0, atol=1e-5)
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


def test_a_run_with_adapters_goes_on_as_if_it_had_not_been_stopped(there: Path, tmp_path: Path) -> None:
    flags = ["--lora", "2", "--lock-text", "--ema", "0.9", "--save-every", "2"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(there, whole, *flags)
    train(there, parts, *flags)
    newest = parts / "checkpoints" / "step-3"
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    (parts / "model.safetensors").unlink()
    train(there, parts, *flags, "--resume")
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()


def test_the_last_layers_of_a_locked_tower_learn_alone(there: Path, tmp_path: Path) -> None:
    flags = ["--lock-image", "--unlock-image", "1", "--lock-text", "--layer-decay", "0.5", "--augment", "none"]
    train(there, tmp_path / "run", *flags)
    names = moved(there, tmp_path / "run")
    after = ("image.proj", "image.ln_post", "image.transformer.resblocks.1")
    assert all(name.startswith(after) for name in names)
    assert all(any(name.startswith(part) for name in names) for part in after)


def test_each_layer_learns_at_its_part_of_the_rate(there: Path, tmp_path: Path) -> None:
    flags = ["--layer-decay", "0.5", "--steps", "1", "--warmup", "0", "--wd", "0", "--lr", "0.001"]
    train(there, tmp_path / "run", *flags)
    first = xmodal.load(f"open_clip:local-dir:{there / 'clip'}", device="cpu").state_dict()
    last = load_file(tmp_path / "run" / "model.safetensors")
    # AdamW's first step is as long as the rate, wherever the gradient is far from zero.
    for name, rate in {
        "image.conv1.weight": 1 / 8,
        "image.transformer.resblocks.0.mlp.c_fc.weight": 1 / 4,
        "image.transformer.resblocks.1.mlp.c_fc.weight": 1 / 2,
        "image.proj": 1,
        "text.positional_embedding": 1 / 8,
        "text.transformer.resblocks.1.mlp.c_fc.weight": 1 / 2,
        "text.text_projection": 1,
        "log_scale": 1,
    }.items():
        assert (last[name] - first[name]).abs().max().item() == pytest.approx(0.001 * rate, rel=0.02), name


def test_locked_towers_below_heads_are_embedded_once(
    there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    towers = ["--image-tower", f"hf:{there / 'vit'}", "--text-tower", f"hf:{there / 'bert'}", "--head", "mlp"]
    locked = ["--lock-image", "--lock-text", "--embed-dim", "24"]
    train(there, tmp_path / "once", *towers, *locked)
    said = capsys.readouterr().out
    assert "Embedding 9 images once" in said
    assert "Embedding the texts once" in said
    model = xmodal.load(str(tmp_path / "once"), device="cpu")
    assert model.encode_text(["a cat"]).shape == (1, 24)
    settings = yaml.safe_load((tmp_path / "once" / "config.yaml").read_text())
    assert settings["preset"] == "heads"
    page = (tmp_path / "once" / "report.html").read_text()
    assert "open_clip:ViT-B-32" not in page.split("</header>")[0].split("<h2")[0]

    # The same without the shortcut: a tower that is asked anew at every step.
    train(there, tmp_path / "anew", *towers, *locked, "--augment", "clip")
    assert "but its pictures change" in capsys.readouterr().out


HEADS = ["--head", "mlp", "--head-dropout", "0", "--lock-image", "--lock-text", "--embed-dim", "24", "--seed", "3"]


def test_towers_embedded_once_learn_what_they_would_have(
    there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--image-tower", f"hf:{there / 'vit'}", "--text-tower", f"hf:{there / 'bert'}", *HEADS]
    (tmp_path / "broken.png").write_bytes(b"no picture")
    lines = [f"{there / f'{n}.png'},a dog of {n} cats,{'train' if n < 8 else 'val'}" for n in range(12)]
    table = ["filepath,caption,split", *lines, f"{tmp_path / 'broken.png'},a broken dog,train"]
    (tmp_path / "pairs.csv").write_text("\n".join(table) + "\n")
    flags += ["--data", str(tmp_path / "pairs.csv"), "--steps", "6", "--captions", "2"]
    train(there, tmp_path / "once", *flags, "--micro-batch", "3")
    monkeypatch.setattr("xmodal.image_text.embed_locked", lambda towers, pairs, view, augmented: (
        pairs, view, towers.tokenizer))  # fmt: skip
    train(there, tmp_path / "anew", *flags)

    logs = [[json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
            for name in ("once", "anew")]  # fmt: skip
    for a, b in zip(*logs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
    once, anew = (load_file(tmp_path / name / "model.safetensors") for name in ("once", "anew"))
    for name, weight in anew.items():
        torch.testing.assert_close(once[name], weight, rtol=0, atol=0 if "backbone" in name else 1e-4, msg=name)
    skipped = [(tmp_path / name / "skipped.jsonl").read_text() for name in ("once", "anew")]
    assert skipped[0] == skipped[1]
    assert "broken.png" in json.loads(skipped[0])["key"]


def test_pictures_none_of_which_can_be_embedded_are_refused(
    there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["filepath,caption"]
    for n in range(6):
        (tmp_path / f"{n}.png").write_bytes(b"no picture")
        lines.append(f"{n}.png,a dog of {n} cats")
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n")
    train(there, tmp_path / "run", "--data", str(tmp_path / "pairs.csv"), "--lock-image", status=2)
    said = capsys.readouterr().err
    assert "No image of" in said
    assert "damaged header" in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_everything_at_once(there: Path, tmp_path: Path) -> None:
    flags = ["--lora", "2", "--lora-on", "all", "--ema", "0.9", "--wise-ft", "0.7", "--captions", "2"]
    faster = ["--micro-batch", "3", "--grad-checkpointing", "--lock-image", "--unlock-image", "1"]
    written = train(there, tmp_path / "run", *flags, *faster)
    assert written["scan"]["0.0"] == written["before training"]
    assert written["scan"]["0.7"] == written["scores"]
    names = moved(there, tmp_path / "run")
    blocks = tuple(f"text.transformer.resblocks.{n}." for n in (0, 1))
    text = {name for name in names if name.startswith("text.")}
    assert text
    assert all(name.startswith(blocks) and name.endswith("weight") and "ln_" not in name for name in text)
    image = names - text
    assert image
    assert all(name.startswith(("image.transformer.resblocks.1.", "image.ln_post", "image.proj")) for name in image)


def test_the_average_is_what_is_saved(there: Path, tmp_path: Path) -> None:
    train(there, tmp_path / "last")
    train(there, tmp_path / "first", "--ema", "1.0", "--lock-image")
    assert moved(there, tmp_path / "last")
    # The first steps count for more whatever the decay, so that the average isn't where training began.
    first, last = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "last"))
    name = "text.positional_embedding"
    begun = xmodal.load(f"open_clip:local-dir:{there / 'clip'}", device="cpu").state_dict()[name]
    assert 0 < (first[name] - begun).norm() < (last[name] - begun).norm() * 1.5
    assert torch.equal(first["image.proj"], xmodal.load(f"open_clip:local-dir:{there / 'clip'}").cpu().image.proj)  # type: ignore[arg-type]


def test_half_way_between_the_weights(there: Path, tmp_path: Path) -> None:
    written = train(there, tmp_path / "run", "--wise-ft", "0.5")
    assert list(written["scan"]) == [str(tenth / 10) for tenth in range(11)]
    assert written["scan"]["0.0"] == written["before training"]
    assert written["scan"]["0.5"] == written["scores"]
    train(there, tmp_path / "whole")
    first = xmodal.load(f"open_clip:local-dir:{there / 'clip'}", device="cpu").state_dict()["image.proj"]
    half, whole = (load_file(tmp_path / name / "model.safetensors")["image.proj"] for name in ("run", "whole"))
    torch.testing.assert_close(half, (first + whole) / 2, rtol=0, atol=1e-6)


def test_several_captions_of_a_picture(there: Path, tmp_path: Path) -> None:
    train(there, tmp_path / "run", "--captions", "2", "--augment", "none", "--steps", "1")
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert line["floor"] == pytest.approx(np.log(2) / 2 + np.log(2) / 2, rel=1e-3)


TWO = ["--image-tower", "timm:x", "--text-tower", "st:x"]
REFUSED = {
    "--image-tower needs a --text-tower": ["--image-tower", "timm:vit"],
    "--text-tower needs an --image-tower": ["--text-tower", "st:x"],
    "add --lock-image": ["--unlock-image", "2"],
    "no tower to adapt": ["--lora", "4", "--lock-image", "--lock-text"],
    "--lora is 0; expected at least 1": ["--lora", "0"],
    "--unlock-text leaves layers of a locked tower open: add --lock-text": ["--unlock-text", "1", "--lock-image"],
    "--embed-dim is 0; expected at least 1": ["--embed-dim", "0"],
    "--layer-decay is 0.0": ["--layer-decay", "0"],
    "--layer-decay is 1.1; expected more than 0, at most 1": ["--layer-decay", "1.1"],
    "--backbone-lr is 0.0": ["--backbone-lr", "0"],
    "--backbone-lr is 2.0": ["--backbone-lr", "2"],
    "--unlock-image is -1; expected 0 or more": ["--lock-image", "--unlock-image", "-1"],
    "--unlock-text 3: the tower has 2 layers": ["--lock-text", "--unlock-text", "3"],
    "--ema is nan": ["--ema", "nan"],
    "--lora-on": ["--lora", "2", "--lora-on", "mlp"],
    "--image-tower bert:x": ["--image-tower", "bert:x", "--text-tower", "st:x"],
    "--ema is 1.5": ["--ema", "1.5"],
    "--head mlp means nothing without --image-tower": ["--head", "mlp"],
    "--head-dropout 0.5 means nothing without --image-tower": ["--head-dropout", "0.5"],
    "--lora-on all means nothing without --lora": ["--lora-on", "all"],
    "--model small and --image-tower both name": [
        "--model",
        "small",
        "--image-tower",
        "timm:x",
        "--text-tower",
        "st:x",
    ],
    "--wise-ft goes back to the weights": [*TWO, "--wise-ft", "0.5"],
    "--wise-ft is -1.0": ["--wise-ft", "-1"],
    "--head-dropout is 1.0": ["--head-dropout", "1"],
    "the tower has 2 layers": ["--lock-image", "--unlock-image", "3"],
    "--captions is 0": ["--captions", "0"],
}


@pytest.mark.parametrize("complaint", REFUSED)
def test_what_makes_no_sense_is_refused(
    complaint: str, there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(there, tmp_path / "run", *REFUSED[complaint], status=2)
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_tower_without_attention_has_no_place_for_adapters(
    there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {**TINY, "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64}}
    model = open_clip.CLIP(**config)  # pyright: ignore[reportArgumentType]
    (tmp_path / "resnet").mkdir()
    save_tensors(model.state_dict(), tmp_path / "resnet" / "open_clip_model.safetensors")
    (tmp_path / "resnet" / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    flags = ["--model", f"open_clip:local-dir:{tmp_path / 'resnet'}", "--lora", "2"]
    train(there, tmp_path / "run", *flags, status=2)
    assert "the image tower has no linear maps of attention" in capsys.readouterr().err
