"""Every flag of open_clip_train is known, and the run that comes of a command line is the one it asked for."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from xmodal.config import parse
from xmodal.errors import InputError
from xmodal.interop import open_clip_flags
from xmodal.interop.open_clip_flags import FLAG, Rows, count_rows, expand, translate
from xmodal.interop.open_clip_params import REFUSED, TRANSLATED
from xmodal.train.clip import Config

TABLE = "--train-data t.csv"

# As people have it in a script: the single-process example of open_clip's README.
README = r"""
python -m open_clip_train.main \
    --save-frequency 1 \
    --zeroshot-frequency 1 \
    --report-to tensorboard \
    --train-data="/path/to/train_data.csv"  \
    --val-data="/path/to/validation_data.csv"  \
    --csv-img-key filepath \
    --csv-caption-key title \
    --imagenet-val=/path/to/imagenet/root/val/ \
    --warmup 10000 \
    --batch-size=128 \
    --lr=1e-3 \
    --wd=0.1 \
    --epochs=30 \
    --workers=8 \
    --model RN50
"""


def their_parser() -> argparse.ArgumentParser:
    """open_clip_train's own, which is a variable of its `parse_args`."""
    from open_clip_train.params import parse_args

    found: list[argparse.ArgumentParser] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", lambda self, args: found.append(self) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            parse_args([])
    return found[0]


ACTIONS = [a for a in their_parser()._actions if a.dest != "help"]


def test_the_example_of_their_readme() -> None:
    found = translate(README)
    assert found.values == {
        "preset": "paper",
        "data": "/path/to/train_data.csv",
        "val": "/path/to/validation_data.csv",
        "image_column": "filepath",
        "caption_column": "title",
        "augment": "clip",
        "model": "open_clip:RN50",
        "lr": 1e-3,
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
        "wd": 0.1,
        "warmup": 10000,
        "clip_norm": 0.0,
        "batch_size": 128,
        "epochs": 30.0,
        "precision": "auto",
        "seed": 0,
        "workers": 8,
        "track": ("tensorboard",),
    }
    assert found.command().startswith("xmodal train clip --preset paper --data /path/to/train_data.csv --val ")
    said = "\n".join(found.notes)
    assert "--imagenet-val: not while training; afterwards" in said
    assert "xmodal eval zeroshot runs/clip --data /path/to/imagenet/root/val/ " in said
    assert "--save-frequency 1: left out, how many steps that is isn't known" in said


def test_its_flags_are_a_run_of_ours() -> None:
    for words in (
        "",
        "--model ViT-B-32 --lock-image --accum-freq 4 --torchcompile --name a --resume latest --eps 1e-9",
    ):
        found = translate(f"{TABLE} {words}")
        config = parse(Config, found.flags(), prog="xmodal train clip")
        told = {name: getattr(config, name) for name in found.values}
        assert {name: str(v) if isinstance(v, Path) else v for name, v in told.items()} == found.values


@pytest.mark.parametrize("action", ACTIONS, ids=lambda a: a.option_strings[0])
def test_every_flag_is_translated_or_explained(action: argparse.Action) -> None:
    name = action.option_strings[0]
    words = ["--train-data", "t.csv", *_example(action)]
    refused = name in {n for names in REFUSED for n in names} | {"--dataset-type", "--opt", "--resume"}
    if refused:
        with pytest.raises(InputError, match=name):
            translate(words)
        return
    found, base = translate(words), translate(TABLE)
    assert (name in TRANSLATED and found.values != base.values) or any(name in note for note in found.notes)


@pytest.mark.parametrize("action", ACTIONS, ids=lambda a: a.option_strings[0])
def test_every_flag_takes_the_values_it_takes_there(action: argparse.Action) -> None:
    ours = next(a for a in open_clip_flags.parser()._actions if a.option_strings[0] == action.option_strings[0])
    assert (ours.nargs == 0) == (action.nargs == 0)
    assert (ours.nargs in ("*", "+")) == (action.nargs in ("*", "+"))


@pytest.mark.parametrize("name", TRANSLATED)
def test_defaults_are_theirs(name: str) -> None:
    action = next(a for a in ACTIONS if name in a.option_strings)
    kind, default = TRANSLATED[name]
    assert (default or None) == (action.default or None)
    assert kind in (bool, list) or (action.type or str) is kind


@pytest.mark.parametrize("model", ["RN50", "ViT-B-32", "convnext_base", "xlm-roberta-base-ViT-B-32"])
def test_the_optimizer_s_numbers_depend_on_the_model(model: str) -> None:
    from open_clip_train.params import parse_args

    theirs, ours = parse_args(["--model", model]), translate(f"{TABLE} --model {model}").values
    for name in ("lr", "beta1", "beta2", "eps", "wd", "warmup", "epochs", "batch_size", "seed"):
        assert ours[name] == getattr(theirs, name)


@pytest.mark.parametrize(
    ("start", "ours"),
    [
        ("", "xmodal train clip"),
        ("python -m open_clip_train.main", "xmodal train clip"),
        ("/usr/bin/python3 -m training.main", "xmodal train clip"),
        ("CUDA_VISIBLE_DEVICES=1 python src/training/main.py", "CUDA_VISIBLE_DEVICES=1 xmodal train clip"),
        (
            "cd open_clip/src && torchrun --nproc_per_node 1 -m open_clip_train.main",
            "torchrun --nproc_per_node 1 -m xmodal.train.clip",
        ),
        ("srun --cpu-bind=v python -u -m open_clip_train.main", "srun --cpu-bind=v python -u -m xmodal.train.clip"),
    ],
)
def test_what_starts_theirs_starts_ours(start: str, ours: str) -> None:
    assert translate(f"{start} \\\r\n  {TABLE}").command().startswith(f"{ours} --preset paper --data t.csv ")


def test_words_of_a_shell() -> None:
    found = translate("--train-data 'my pairs.csv' \\\n --name \"a b\" --lr=1e-3")
    assert (found.values["data"], found.values["output"], found.values["lr"]) == ("my pairs.csv", "logs/a b", 1e-3)
    assert shlex.split(found.command())[3:] == found.flags()
    assert "--train-data" not in found.command()
    assert translate(["--train-data", "my pairs.csv"]).values["data"] == "my pairs.csv"


@pytest.mark.parametrize(
    ("flags", "values"),
    [
        ("--batch-size 64 --accum-freq 4", {"batch_size": 256, "micro_batch": 64}),
        ("--precision amp_bf16", {"precision": "bf16"}),
        ("--precision fp32", {"precision": "fp32"}),
        ("--model ViT-B/32 --pretrained openai", {"model": "open_clip:ViT-B-32/openai"}),
        ("--model ViT-B-32 --force-quick-gelu", {"model": "open_clip:ViT-B-32-quickgelu"}),
        ("--model hf-hub:org/model", {"model": "open_clip:hf-hub:org/model"}),
        ("--lock-image --lock-image-unlocked-groups 3", {"lock_image": True, "unlock_image": 2}),
        ("--lock-text --lock-text-unlocked-layers 2", {"lock_text": True, "unlock_text": 1}),
        ("--logs out --name first", {"output": "out/first"}),
        ("--logs out", {"output": "out/clip"}),
        ("--name first --resume latest", {"output": "logs/first", "resume": True}),
        ("--report-to all", {"track": ("tensorboard", "wandb")}),
        ("--report-to wandb,tensorboard", {"track": ("tensorboard", "wandb")}),
        ("--grad-clip-norm 1.0", {"clip_norm": 1.0}),
        ("--grad-checkpointing --torchcompile", {"grad_checkpointing": True, "compile": True}),
        ("--save-frequency 0", {"save_every": 0}),
        ("--aug-cfg scale='(0.9, 1.0)'", {"augment": "clip"}),
        ("--batch 8", {"batch_size": 8}),  # argparse takes what is cut short, theirs too
    ],
)
def test_values(flags: str, values: dict[str, Any]) -> None:
    found = translate(f"{TABLE} {flags}")
    assert {name: found.values.get(name) for name in values} == values


@pytest.mark.parametrize(
    ("flags", "note"),
    [
        ("--local-loss --gather-with-grad", "--local-loss, --gather-with-grad: not needed, the loss is always exact"),
        ("--accum-freq 2", "--accum-freq 2: batches of 128 in slices of 64, the same gradient"),
        ("", "--precision amp (their default): auto; float16 with loss scaling isn't here"),
        ("--lr-scheduler const", "not the same: --lr-scheduler const: after --warmup"),
        ("--skip-scheduler", "not the same: --skip-scheduler: the learning rate rises"),
        ("--aug-cfg scale='(0.5, 1.0)'", "not the same: --aug-cfg scale=(0.5, 1.0): pictures are cut"),
        ("--aug-cfg use_timm=True re_prob=0.1", "not the same: --aug-cfg use_timm=True re_prob=0.1: pictures"),
        ("--lock-image-unlocked-groups 2", "--lock-image-unlocked-groups: means nothing without --lock-image"),
        ("--lock-text --lock-text-unlocked-layers 1", "not the same: --lock-text-unlocked-layers 1: there the proj"),
        ("", "not the same: equal images or captions of a batch are positives here"),
        ("--logs none", "--logs none: a run always has a folder"),
        ("--fsdp --max-image-pixels 4", "--fsdp: every process holds the whole model"),
    ],
)
def test_notes(flags: str, note: str) -> None:
    notes = translate(f"{TABLE} {flags}").notes
    assert any(line.startswith(note) for line in notes)
    same = [not line.startswith("not the same: ") for line in notes]
    assert same == sorted(same)  # what changes the result comes first


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (f"{TABLE} --batchsize 4", "no flag --batchsize; did you mean '--batch-size'"),
        (f"{TABLE} --batch-size many", "--batch-size: invalid int value: 'many'"),
        (f"{TABLE} extra", "no use for 'extra'"),
        (f"{TABLE} --precision fp8", "no --precision 'fp8'; there are: fp32, amp_bf16"),
        (f"{TABLE} --siglip", "--siglip: the sigmoid loss is a recipe of its own"),
        (f"{TABLE} --opt timm/lion", "--opt timm/lion: the optimizer is AdamW"),
        (f"{TABLE} --pretrained logs/epoch_3.pt", "--pretrained logs/epoch_3.pt: a pickle, which may run code"),
        (f"{TABLE} --pretrained a.safetensors", "a file of weights alone"),
        (f"{TABLE} --resume logs/epoch_3.pt", "a checkpoint of open_clip is a pickle"),
        (f"{TABLE} --force-image-size 336", "--force-image-size: a model is taken as it is configured"),
        (f"{TABLE} --model coca_ViT-B-32", "CoCa is no dual encoder"),
        (f"{TABLE} --use-naflex", "--use-naflex: there are no NaFlex"),
        ("--train-data 'pipe:aws s3 cp s3://b/{00..41}.tar -'", "a command isn't run; name the address itself"),
        ("--train-data t.csv --dataset-type webdataset", "--train-data t.csv names no tar files"),
        ("--train-data a.tar::b.tar --train-data-upsampling-factors 1::x", "expected numbers with :: between"),
        ("--dataset-type synthetic", "no made-up pictures"),
        ("--val-data v.csv --model RN50", "--train-data isn't given"),
        ("python", "put quotes around it"),
        ("", "put quotes around it"),
        ("--train-data 't.csv", "no command line (no closing quotation)"),
    ],
)
def test_refused(words: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        translate(words)
    assert said in str(caught.value)


def test_all_that_is_refused_is_said_at_once() -> None:
    with pytest.raises(InputError) as caught:
        translate("--train-data pipe:t.tar --siglip --opt nadamw")
    assert all(word in str(caught.value) for word in ("--train-data pipe:t.tar", "--siglip", "--opt nadamw"))


def test_epochs_are_as_long_as_theirs() -> None:
    def steps(lines: int, images: int, words: str, processes: int = 1) -> Any:
        rows = Rows(lines, images, lines)
        return translate(f"{TABLE} {words}", processes=processes, count=lambda data, column: rows).values.get("steps")

    assert steps(1000, 1000, "--batch-size 10 --epochs 3") is None
    assert steps(1000, 200, "--batch-size 10 --epochs 3") == 300
    assert steps(1000, 200, "--batch-size 10 --accum-freq 3 --epochs 3") == 99
    assert steps(1001, 200, "--batch-size 10 --epochs 3", processes=4) == 75  # ⌈1001 / 4⌉ lines each, whole batches
    assert steps(5, 5, "--batch-size 10") is None


def test_what_they_say_in_epochs() -> None:
    found = translate(
        f"{TABLE} --val-data v.csv --batch-size 10 --epochs 4 --save-frequency 2 --val-frequency 3 --warmup 50",
        count=lambda data, column: Rows(100, 100, 120, "split"),
    )
    assert (found.values["save_every"], found.values["eval_every"]) == (20, 30)
    assert "not the same: the table has a column split: its 100 lines of train are trained on" in "\n".join(found.notes)
    assert "--warmup 50: longer than the run of 40 steps" in "\n".join(found.notes)
    assert "80% of --lr" in "\n".join(found.notes)


def test_rows_of_a_table(tmp_path: Path) -> None:
    table = tmp_path / "t.tsv"
    assert count_rows(str(table), "filepath") is None
    table.write_text("filepath\ttitle\na.png\tone\n./a.png\ttwo\nb.png\tthree\n")
    assert count_rows(str(table), "filepath") == Rows(3, 2, 3)
    table.write_text("filepath\ttitle\tsplit\na.png\tone\ttrain\na.png\ttwo\ttrain\nb.png\tthree\tval\n")
    assert count_rows(str(table), "filepath") == Rows(2, 1, 3, "split")
    with pytest.raises(InputError, match="no column 'image'"):
        count_rows(str(table), "image")


def test_unlocked_groups_are_theirs() -> None:
    import open_clip

    from xmodal.encoders.open_clip import open_clip_towers
    from xmodal.encoders.trainable import lock

    values = translate(
        f"{TABLE} --model ViT-S-32-alt --lock-image --lock-image-unlocked-groups 3 --lock-text "
        "--lock-text-unlocked-layers 2"
    ).values
    theirs = open_clip.create_model("ViT-S-32-alt", force_custom_text=True)
    theirs.lock_image_tower(unlocked_groups=3)  # pyright: ignore[reportCallIssue]
    theirs.lock_text_tower(unlocked_layers=2)  # pyright: ignore[reportCallIssue]
    ours = open_clip_towers("ViT-S-32-alt")
    for which in ("image", "text"):
        lock(ours, which, values[f"unlock_{which}"])
    trained = {name for name, p in ours.named_parameters() if p.requires_grad}
    names = {n.replace("visual.", "image."): p for n, p in theirs.named_parameters() if not n.startswith("logit")}
    assert trained == {name for name, p in names.items() if p.requires_grad}


def test_flags_beside_it_win(tmp_path: Path) -> None:
    said: list[str] = []
    command = f"python -m open_clip_train.main {TABLE} --lr 1e-3 --report-to wandb --torchcompile --local-loss"
    argv = ["--lr", "3e-4", FLAG, command, "--track", "tensorboard", "--no-compile", "--epochs=2"]
    flags = expand(argv, said.append)
    config = parse(Config, flags, prog="x")
    assert (config.lr, config.track, config.compile, config.epochs) == (3e-4, ("tensorboard",), False, 2.0)
    assert (config.wd, config.warmup, config.data, config.preset) == (0.2, 10000, "t.csv", "paper")
    assert said[0] == f"{FLAG}: {shlex.join(['xmodal', 'train', 'clip', *flags])}"
    assert any("--local-loss" in line for line in said[1:])


def test_epochs_beside_it_say_how_long_the_run_is(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("filepath,title\n" + "a.png,one\na.png,two\nb.png,one\nb.png,two\n" * 50)
    command = f"--train-data {table} --batch-size 2"
    assert parse(Config, expand([FLAG, command], lambda text: None), prog="x").steps == 32 * 100
    assert parse(Config, expand([f"{FLAG}={command}", "--epochs", "1"], lambda text: None), prog="x").steps is None


def test_only_the_first_process_says_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command = f"torchrun --nproc_per_node 2 -m open_clip_train.main {TABLE}"
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, lines in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        expand([FLAG, command])
        assert bool(capsys.readouterr().out) == lines
    assert not any("processes" in note for note in translate(command, processes=2).notes)
    assert any("starts 2 processes on a machine and this run has 1" in note for note in translate(command).notes)


def test_without_the_flag_nothing_happens() -> None:
    assert expand(["--lr", "1"]) == ["--lr", "1"]
    with pytest.raises(InputError, match="needs a value"):
        expand([FLAG])
    with pytest.raises(InputError, match="given twice"):
        expand([FLAG, TABLE, f"{FLAG}={TABLE}"])


def test_light_to_import() -> None:
    code = "import sys, xmodal.interop.open_clip_flags; sys.exit(any(m in sys.modules for m in ('torch', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def _example(action: argparse.Action) -> list[str]:
    """A flag with a value that isn't its default."""
    name = action.option_strings[0]
    if action.nargs == 0:
        return [name]
    special = {"--aug-cfg": "scale=(0.5,1.0)", "--precision": "amp_bf16", "--train-data": "other.csv"}
    if name in special:
        return [name, special[name]]
    if action.choices:
        return [name, next(str(choice) for choice in action.choices if choice != action.default)]
    return [name, {int: "3", float: "0.25"}.get(action.type, "tensorboard")]  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_shards_their_weights_and_the_length_of_their_epochs() -> None:
    command = (
        "--train-data 'a/{00..41}.tar::s3://b/{00..09}.tar' --train-data-upsampling-factors 1::2.5 --dataset-resampled "
        "--train-num-samples 100000 --batch-size 256 --workers 6 --epochs 3 --accum-freq 2 --warmup 10"
    )
    found = translate(command, processes=4)
    assert found.values["data"] == "a/{00..41}.tar::s3://b/{00..09}.tar"
    assert found.values["weights"] == (1.0, 2.5)
    assert not {"image_column", "caption_column"} & found.values.keys()
    # 98 batches of 4 × 256; 17 for each of 6 workers are 102, in twos.
    assert found.values["steps"] == 3 * 51
    config = parse(Config, found.flags(), prog="xmodal train clip")
    assert (config.weights, config.steps) == ((1.0, 2.5), 153)
    assert any(line.startswith("not the same: --dataset-resampled: each sample comes once") for line in found.notes)
    assert translate("--train-data a.tar").values["data"] == "a.tar"
