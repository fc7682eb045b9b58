"""`xmodal convert`: what it prints, what it refuses and why, and that it then leaves nothing."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import open_clip
import pytest
import small_models
import torch
import transformers
from safetensors.torch import load_file, save_file
from small_models import CLIP, SIGLIP, changed

import xmodal
from xmodal.cli import main
from xmodal.encoders.pair import paired_towers
from xmodal.interop import clip
from xmodal.interop.verify import TEXTS


@pytest.fixture(autouse=True)
def _timm() -> None:
    small_models.register_timm()


class Convert:
    """The command in a folder of its own, where it may leave nothing when it fails."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys
        folder.mkdir()

    def __call__(self, *arguments: object, status: int = 0) -> str:
        self.capsys.readouterr()
        given = [str(a) for a in arguments]
        assert main(["convert", *given]) == status, self.capsys.readouterr().err
        told = self.capsys.readouterr()
        return told.out if status == 0 else told.err

    def refused(self, *arguments: object) -> str:
        said = self(*arguments, self.folder / "out", status=2)
        assert not any(self.folder.iterdir())
        return said


@pytest.fixture
def convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Convert:
    return Convert(tmp_path / "results", capsys)


def test_it_prints_the_largest_difference_and_how_to_open_it(convert: Convert, tmp_path: Path) -> None:
    run = tmp_path / "run"
    xmodal.load(small_models.of_open_clip(tmp_path / "model"), device="cpu").save(run)  # as training leaves it
    out = convert.folder / "there"
    said = convert(run, "--to", "hf", out)
    assert "largest difference from the original: images " in said
    assert f'from_pretrained("{out}")' in said
    assert "note: Where the middle begins at half a pixel" in said
    ours, theirs = (xmodal.load(spec, device="cpu") for spec in (str(run), f"hf:{out}"))
    torch.testing.assert_close(ours.encode_text(TEXTS), theirs.encode_text(TEXTS), rtol=0, atol=1e-5)
    assert [p.name for p in convert.folder.iterdir()] == ["there"]
    assert out.stat().st_mode & 0o055 == run.stat().st_mode & 0o055  # others may read it as they may the run


def test_over_the_limit_it_fails_with_1(convert: Convert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = small_models.of_open_clip(tmp_path / "model", changed(CLIP, quick_gelu=True))
    monkeypatch.setattr(clip, "activation", lambda module: "gelu")
    said = convert(spec, "--to", "hf", convert.folder / "out", status=1)
    assert said.startswith("error: The model came out as another")
    assert not any(convert.folder.iterdir())


RESNET = {"vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64, "patch_size": None}}
OTHERS = {
    "ResNet": changed(CLIP, **RESNET),
    "pooling other than that of the class token": changed(CLIP, vision_cfg={"pool_type": "avg"}),
    "no LayerNorm before": changed(CLIP, vision_cfg={"no_ln_pre": True}),
    "LayerScale": changed(CLIP, vision_cfg={"ls_init_value": 1.0}),
    "what comes after a token": changed(CLIP, text_cfg={"no_causal_mask": True}),
    "one with a bias": changed(CLIP, custom_text=True, vision_cfg={"pool_type": "tok"}, text_cfg={"proj_type": "none"}),
    "open_clip's own design": changed(CLIP, text_cfg={"qk_norm": True}),
    "ResNet of timm": changed(
        CLIP, vision_cfg={"timm_model_name": "resnet10t", "timm_pool": "", "timm_proj": "linear", "image_size": 64}
    ),
    "reads|last place": changed(SIGLIP, text_cfg={"pool_type": "first", "hf_tokenizer_name": ""}),
}


@pytest.mark.parametrize("reason", OTHERS)
def test_an_architecture_that_transformers_has_not(reason: str, convert: Convert, tmp_path: Path) -> None:
    config = OTHERS[reason]
    if "init_logit_bias" in config:
        config["text_cfg"]["tokenizer_kwargs"] = {}
    if config["vision_cfg"].get("patch_size", 0) is None:
        del config["vision_cfg"]["patch_size"]
    spec = small_models.of_open_clip(tmp_path / "model", config)
    for target in ("hf", "sentence-transformers"):
        said = convert.refused(spec, "--to", target)
        assert any(part in said for part in reason.split("|")), said


def test_an_architecture_that_open_clip_has_not(convert: Convert, tmp_path: Path) -> None:
    wide = small_models.siglip_of_transformers(tmp_path / "wide", width=48)
    said = convert.refused(wide, "--to", "open_clip")
    assert "timm has none such as this, 48 wide" in said
    assert f"it has: {small_models.TIMM} (32 × 2)" in said
    odd = small_models.clip_of_transformers(tmp_path / "odd", "relu")
    assert "no activation 'relu'" in convert.refused(odd, "--to", "open_clip")


def test_the_other_form_of_gelu_is_told_and_the_comparison_decides(convert: Convert, tmp_path: Path) -> None:
    spec = small_models.siglip_of_transformers(tmp_path / "tanh", "gelu_pytorch_tanh")
    status = main(["convert", spec, "--to", "open_clip", str(convert.folder / "out")])
    told = convert.capsys.readouterr()
    assert "computes gelu and this model gelu_pytorch_tanh" in told.out + told.err
    assert status == (0 if (convert.folder / "out").exists() else 1)


def test_a_pair_of_single_towers(convert: Convert, tmp_path: Path) -> None:
    spec = small_models.of_open_clip(tmp_path / "model")
    paired_towers(spec, spec, d=8).save(tmp_path / "run")
    for target in ("open_clip", "hf", "sentence-transformers"):
        assert "heads of our own" in convert.refused(tmp_path / "run", "--to", target)


def test_wrong_input_is_refused_in_a_line(convert: Convert, tmp_path: Path) -> None:
    spec = small_models.clip_of_transformers(tmp_path / "model")
    for target in ("hf", "open_clip"):
        assert "no folder" in convert.refused("runs/nothing", "--to", target)
    assert "needs --to" in convert.refused(spec)
    assert "onnx" in convert.refused(spec, "--to", "tensorflow")
    assert "hf:" in convert.refused(tmp_path / "model", "--to", "open_clip")  # the folder without its kind
    assert "no config.json" in convert.refused(f"hf:{tmp_path}", "--to", "open_clip")
    assert "open_clip_config.json" in convert.refused(f"open_clip:local-dir:{tmp_path / 'model'}", "--to", "hf")
    assert "by itself" in convert.refused(spec, "--model", "open_clip:ViT-B-32", "--to", "open_clip")
    for file in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        (tmp_path / "model" / file).unlink()
    assert "no tokenizer" in convert.refused(spec, "--to", "open_clip")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    assert "holds something" in convert(spec, "--to", "open_clip", tmp_path / "taken", status=2)


def test_pictures_of_any_shape(convert: Convert, tmp_path: Path) -> None:
    transformers.Siglip2Config().save_pretrained(tmp_path / "naflex")
    assert "NaFlex" in convert.refused(f"hf:{tmp_path / 'naflex'}", "--to", "open_clip")


def checkpoint(folder: Path, file: Path, wrapper: str = "module._orig_mod.") -> dict[str, torch.Tensor]:
    """A model's weights as open_clip_train saves them under data parallelism."""
    state = {f"{wrapper}{n}": t for n, t in load_file(folder / "open_clip_model.safetensors").items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": state, "optimizer": {"step": torch.tensor(7)}}, file)
    return state


def test_a_checkpoint_of_open_clips_trainer(convert: Convert, tmp_path: Path) -> None:
    small_models.of_open_clip(tmp_path / "model")
    file = tmp_path / "epoch_3.pt"
    state = checkpoint(tmp_path / "model", file)
    other = tmp_path / "other"  # the architecture, with other weights
    small_models.of_open_clip(other)
    ours = load_file(other / "open_clip_model.safetensors")
    save_file({n: t + 1 for n, t in ours.items()}, other / "open_clip_model.safetensors")
    model = f"open_clip:local-dir:{other}"
    assert "--trust-pickle" in convert.refused(file, "--model", model, "--to", "open_clip")
    assert "--trust-pickle" in convert.refused(file, "--to", "open_clip")
    assert "--model" in convert.refused(file, "--trust-pickle", "--to", "open_clip")
    out = convert.folder / "out"
    convert(file, "--trust-pickle", "--model", model, "--to", "open_clip", out)
    there = load_file(out / "open_clip_model.safetensors")
    assert all(torch.equal(there[name.removeprefix("module._orig_mod.")], tensor) for name, tensor in state.items())
    assert len(there) == len(state)


def test_a_checkpoint_of_another_model(convert: Convert, tmp_path: Path) -> None:
    small_models.of_open_clip(tmp_path / "model")
    wider = small_models.of_open_clip(tmp_path / "wider", changed(CLIP, embed_dim=40))
    checkpoint(tmp_path / "model", tmp_path / "epoch.pt", "")
    told = convert.refused(tmp_path / "epoch.pt", "--trust-pickle", "--model", wider, "--to", "open_clip")
    assert "is of another model" in told


@pytest.mark.parametrize("library", ["hf", "open_clip"])
def test_a_folder_with_a_pickle(library: str, convert: Convert, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    if library == "hf":
        spec, weights = small_models.clip_of_transformers(folder), folder / "model.safetensors"
        pickled = folder / "pytorch_model.bin"
    else:
        spec, weights = small_models.of_open_clip(folder), folder / "open_clip_model.safetensors"
        pickled = folder / "open_clip_pytorch_model.bin"
    expected = xmodal.load(spec, device="cpu").encode_text(TEXTS)
    torch.save(load_file(weights), pickled)
    weights.unlink()
    assert "--trust-pickle" in convert.refused(spec, "--to", library)
    convert(spec, "--trust-pickle", "--to", library, convert.folder / "out")
    kind = "open_clip:local-dir:" if library == "open_clip" else "hf:"
    got = xmodal.load(f"{kind}{convert.folder / 'out'}", device="cpu").encode_text(TEXTS)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return (open, (str(self.mark), "w"))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_pickle_is_not_run_even_when_trusted(convert: Convert, tmp_path: Path) -> None:
    model = small_models.of_open_clip(tmp_path / "model")
    mark = tmp_path / "ran"
    torch.save({"state_dict": {"visual.proj": Malicious(mark)}}, tmp_path / "epoch.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Malicious(mark)))
    for name in ("epoch.pt", "plain.pt"):
        said = convert.refused(tmp_path / name, "--trust-pickle", "--model", model, "--to", "open_clip")
        assert "more than tensors" in said
    assert not mark.exists()
    pickle.loads((tmp_path / "plain.pt").read_bytes())  # it would have
    assert mark.exists()


def test_a_file_that_holds_no_weights(convert: Convert, tmp_path: Path) -> None:
    model = small_models.of_open_clip(tmp_path / "model")
    torch.save({"loss": 3.0}, tmp_path / "epoch.pt")
    said = convert.refused(tmp_path / "epoch.pt", "--trust-pickle", "--model", model, "--to", "open_clip")
    assert "holds no weights" in said


def test_what_is_written_opens_in_open_clip(convert: Convert, tmp_path: Path) -> None:
    spec = small_models.clip_of_transformers(tmp_path / "model")
    out = convert.folder / "out"
    convert(spec, "--to", "open_clip", out)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{out}")
    assert type(model) is open_clip.CLIP
    assert json.loads((out / "open_clip_config.json").read_text())["model_cfg"]["quick_gelu"] is True
    assert "Resize(size=32" in str(preprocess)
