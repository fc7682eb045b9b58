"""The flags of open_clip_train 3.3, and those that its main branch has added.

Each is translated, or left out with a note that says why, or refused where it makes another model or objective than any
that is here.
"""

from __future__ import annotations

from typing import Any

# Their flags that have a part in the result here: the type of the value and the default, as in their params.py.
TRANSLATED: dict[str, tuple[type, Any]] = {
    "--train-data": (str, None),
    "--val-data": (str, None),
    "--train-num-samples": (int, None),
    "--train-data-upsampling-factors": (str, None),
    "--dataset-type": (str, "auto"),
    "--csv-img-key": (str, "filepath"),
    "--csv-caption-key": (str, "title"),
    "--logs": (str, "./logs/"),
    "--name": (str, None),
    "--workers": (int, 4),
    "--batch-size": (int, 64),
    "--accum-freq": (int, 1),
    "--epochs": (int, 32),
    "--lr": (float, None),  # it and the next three depend on the model: `_for_model`
    "--beta1": (float, None),
    "--beta2": (float, None),
    "--eps": (float, None),
    "--wd": (float, 0.2),
    "--warmup": (int, 10000),
    "--opt": (str, "adamw"),
    "--lr-scheduler": (str, "cosine"),
    "--skip-scheduler": (bool, False),
    "--grad-clip-norm": (float, None),
    "--save-frequency": (int, 1),
    "--val-frequency": (int, 1),
    "--resume": (str, None),
    "--precision": (str, "amp"),
    "--model": (str, "RN50"),
    "--pretrained": (str, ""),
    "--force-quick-gelu": (bool, False),
    "--lock-image": (bool, False),
    "--lock-image-unlocked-groups": (int, 0),
    "--lock-text": (bool, False),
    "--lock-text-unlocked-layers": (int, 0),
    "--aug-cfg": (list, None),
    "--grad-checkpointing": (bool, False),
    "--torchcompile": (bool, False),
    "--report-to": (str, ""),
    "--seed": (int, 0),
    "--imagenet-val": (str, None),
    "--imagenet-v2": (str, None),
}

# What is left out, and why. Nothing of it changes what is learnt.
LEFT_OUT: dict[tuple[str, ...], str] = {
    ("--local-loss", "--gather-with-grad", "--loss-dist-impl"): (
        "not needed, the loss is always exact over all processes"
    ),
    ("--dist-url", "--dist-backend", "--horovod", "--ddp-static-graph", "--no-set-device-rank"): (
        "not needed, torchrun's environment says how processes find each other, and none is wrapped in DDP"
    ),
    ("--fsdp", "--fsdp-no-reshard-after-forward", "--fsdp-offload-cpu", "--fsdp-checkpoint"): (
        "every process holds the whole model; --micro-batch and --grad-checkpointing save memory"
    ),
    ("--device",): "a GPU is taken where there is one; CUDA_VISIBLE_DEVICES hides them",
    ("--csv-separator",): "not needed, it is found in the table's header",
    ("--val-num-samples",): "not needed, what is evaluated on is counted",
    ("--image-key", "--text-key", "--json-text-key"): (
        "not needed for a table; in shards pictures are found by their suffix, and captions in .txt, else in .json"
    ),
    ("--length-bucketing", "--bucket-pool", "--bucket-chunk"): "not needed, text towers leave the padding out",
    ("--text-pad-multiple",): "not needed, text towers leave the padding out",
    ("--max-image-pixels",): "not needed, a picture that can't be decoded is named in skipped.jsonl",
    ("--zeroshot-frequency",): "there is no zero-shot evaluation while training",
    ("--val-retrieval-chunk-size", "--val-retrieval-precision"): "not needed, retrieval is exact and in tiles",
    ("--cache-dir",): "HF_HOME says where the hub's downloads are kept",
    (
        *("--log-local", "--log-every-n-steps", "--log-metric-every-n-steps", "--train-loss-ema-samples"),
        *("--debug", "--copy-codebase"),
    ): "not needed, metrics.jsonl has every step, config.yaml every setting and the version",
    ("--wandb-notes", "--wandb-project-name"): "not handed on, the tracker's project is called clip",
    ("--remote-sync", "--remote-sync-frequency", "--remote-sync-protocol"): "the run's folder is sent nowhere",
    ("--save-most-recent", "--delete-previous-checkpoint"): "not needed, the two newest checkpoints are kept",
    ("--lock-image-freeze-bn-stats", "--lock-text-freeze-layer-norm"): "not needed, what is locked stays as it is",
    ("--force-custom-text",): "not needed, the towers are two modules always",
    ("--torchscript", "--trace"): "not needed; --torchcompile is --compile",
    ("--torchcompile-strategy", "--torchcompile-backend", "--torchcompile-mode"): "--compile has torch's defaults",
    ("--momentum",): "not AdamW's, there as here",
    ("--coca-caption-loss-weight", "--coca-contrastive-loss-weight"): "CoCa's, there as here",
    ("--epochs-cooldown", "--lr-cooldown-end", "--lr-cooldown-power"): "of a schedule that isn't here",
}

# What is left out although it would change the result a little.
NOT_THE_SAME: dict[tuple[str, ...], str] = {
    ("--use-bn-sync",): "a tower's BatchNorm sees the rows of its own process",
    ("--dataset-resampled",): "each sample comes once an epoch, or as often as its weight says, not by chance",
    ("--image-interpolation", "--image-resize-mode"): "pictures are resized as the model's own configuration says",
}

# What makes another model, objective or optimizer than any that is here.
REFUSED: dict[tuple[str, ...], str] = {
    ("--siglip",): "the sigmoid loss is a recipe of its own, xmodal train siglip, whose flags are those of clip",
    ("--distill-model", "--distill-pretrained"): (
        "a teacher is asked beforehand: xmodal embed --model open_clip:MODEL/PRETRAINED --data … --kind pairs --output "
        "teacher, then --distill teacher"
    ),
    ("--use-bnb-linear",): "there are no 8-bit layers",
    ("--force-image-size", "--force-context-length", "--force-patch-dropout", "--image-mean", "--image-std"): (
        "a model is taken as it is configured: choose one that is so (ViT-B-32-256), or save yours from open_clip and "
        "give --model local-dir:FOLDER"
    ),
    ("--pretrained-image",): "an image tower alone gets no weights; --pretrained TAG gives them to both",
    (
        *("--opt-kwargs", "--opt-fallback-list", "--text-layer-decay", "--image-layer-decay", "--visual-layer-decay"),
        *("--wd-exclude", "--text-pooler-own-group"),
    ): "the optimizer is AdamW without decay of gains and biases; --layer-decay is for both towers alike",
}
FAMILIES = ("--use-naflex", "--force-naflex", "--naflex", "--audio", "--pretrained-audio")  # of their main branch

SWITCHES = {
    *("--local-loss", "--gather-with-grad", "--horovod", "--ddp-static-graph", "--no-set-device-rank", "--fsdp"),
    *("--fsdp-no-reshard-after-forward", "--fsdp-offload-cpu", "--dataset-resampled", "--length-bucketing"),
    *("--log-local", "--debug", "--copy-codebase", "--save-most-recent", "--delete-previous-checkpoint"),
    *("--lock-image-freeze-bn-stats", "--lock-text-freeze-layer-norm", "--force-custom-text", "--torchscript"),
    *("--trace", "--use-bn-sync", "--siglip", "--pretrained-image", "--text-pooler-own-group"),
}
LISTS = {
    *("--aug-cfg", "--force-image-size", "--image-mean", "--image-std"),
    *("--opt-kwargs", "--opt-fallback-list", "--wd-exclude"),
}

PRECISIONS = {
    "fp32": ("fp32", ""),
    "amp_bf16": ("bf16", ""),
    "amp_bfloat16": ("bf16", ""),
    "amp": ("auto", "float16 with loss scaling isn't here: bf16 where the device computes in it, else fp32"),
    "fp16": ("auto", "weights stay float32; bf16 where the device computes in it, else fp32"),
    "pure_fp16": ("auto", "weights stay float32; bf16 where the device computes in it, else fp32"),
    "bf16": ("bf16", "weights stay float32, with bf16 autocast"),
    "pure_bf16": ("bf16", "weights stay float32, with bf16 autocast"),
}
