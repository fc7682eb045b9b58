"""Hostile files and texts, and what becomes of them; run in a child of tests/forks.py, with everything it does watched.

`prepare` writes the files of each attack; `all_of_them` lets the toolkit loose on them and notes what came of each,
and what Python was asked to do meanwhile: start a program, connect, unpickle a name, import the attacker's module,
open the attacker's secret.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import socket
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests import children, drawings
from tests.encoders import hubs

FOREIGN = "foreign_module"  # which touches its mark when it is imported
WATCHED = (
    *("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.spawn"),
    *("socket.connect", "socket.getaddrinfo", "socket.gethostby", "socket.sendto", "urllib.Request"),
    "pickle.find_class",
)
TRAINED = {"model": "small", "preset": "quick", "steps": 3, "save_every": 2, "batch_size": 8, "lr": 1e-3, "warmup": 2,
           "precision": "fp32", "max_bad_fraction": 0.2, "vocabulary": 64}  # fmt: skip

HOSTILE_TEXTS = (
    "<img src=x onerror=alert(1)>",
    "</title><script>alert(1)</script>",
    "\x1b]0;owned\x07\x1b[2Jcleared",
    "=cmd|'/c calc'!A1",
    '@SUM(1+1)*cmd|"/c calc"',
)


class Payload:
    """Pickled, it leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.mark,)


def payload(folder: Path, name: str) -> bytes:
    return pickle.dumps(Payload(folder / "marks" / name))


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", data: bytes = b"") -> tuple[Any, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, len(data)
    return info, data


def tar(path: Path, *members: tuple[Any, bytes]) -> Path:
    """A shard with one good pair, 0.png and 0.txt, and these members."""
    with tarfile.open(path, "w") as file:
        for info, data in (member("0.png", data=drawings.drawing(0)), member("0.txt", data=b"good"), *members):
            file.addfile(info, io.BytesIO(data))
    return path


def prepare(folder: Path) -> None:
    """Everything that the attacks need."""
    picture = drawings.drawing(1)
    for name in ("marks", "inside"):
        (folder / name).mkdir()
    (folder / "secret.txt").write_text("secret")
    (folder / "secret.jpg").write_bytes(picture)
    (folder / f"{FOREIGN}.py").write_text(
        f"from pathlib import Path\nPath({str(folder / 'marks' / 'code')!r}).touch()\n"
    )

    evil = payload(folder, "tar")
    kinds = [member(f"0.{end}", data=evil) for end in ("pkl", "pyd", "pth", "npy", "pickle")]
    tar(folder / "pickles.tar", *kinds, member("1.png", data=evil), member("1.txt", data=b"a pickle as a picture"))
    tar(folder / "above.tar", member("../../above.png", data=picture), member("../../above.txt", data=b"above"))
    there = str(folder / "marks" / "absolute")
    tar(folder / "absolute.tar", member(f"{there}.png", data=picture), member(f"{there}.txt", data=b"absolute"))
    secret, both = str(folder / "secret.txt"), (tarfile.SYMTYPE, tarfile.LNKTYPE)
    links = [
        m
        for n, kind in enumerate(both, 1)
        for m in (member(f"{n}.png", data=picture), member(f"{n}.txt", kind, secret))
    ]
    tar(folder / "links.tar", *links)
    devices = []
    for n, kind in enumerate((tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE), 1):
        devices += [member(f"{n}.png", kind), member(f"{n}.txt", data=b"a device")]
    tar(folder / "devices.tar", *devices)
    (folder / "evil.pt").write_bytes(payload(folder, "model"))
    os.mkfifo(folder / "fifo.png")
    (folder / "0.png").write_bytes(picture)
    (folder / "fifo.csv").write_text("filepath,caption\nfifo.png,a pipe\n0.png,a picture\n")
    mark = folder / "marks" / "yaml"
    (folder / "evil.yaml").write_text(f'batch_size: !!python/object/apply:os.system ["touch {mark}"]\n')
    rows = np.empty(2, dtype=object)
    rows[:] = [Payload(folder / "marks" / "npy"), 1]
    (folder / "index").mkdir()
    np.save(folder / "index" / "embeddings.npy", rows, allow_pickle=True)
    about = {"rows": 2, "width": 1, "kind": "text", "normalized": True}
    (folder / "index" / "index.json").write_text(json.dumps(about))

    hub = hubs.clip(folder / "auto_map")
    told = json.loads((hub / "config.json").read_text())
    code = {"AutoConfig": f"{FOREIGN}.Config", "AutoModel": f"{FOREIGN}.Model"}
    (hub / "config.json").write_text(json.dumps({**told, "model_type": "foreign", "auto_map": code}))
    (hub / f"{FOREIGN}.py").write_text((folder / f"{FOREIGN}.py").read_text())
    sentence = hubs.sentence_transformer(folder / "modules")
    modules = json.loads((sentence / "modules.json").read_text())
    modules[1]["type"] = f"{FOREIGN}.Pooling"  # as sentence-transformers has one, too
    (sentence / "modules.json").write_text(json.dumps(modules))
    (sentence / f"{FOREIGN}.py").write_text((folder / f"{FOREIGN}.py").read_text())
    hubs.sentence_transformer(folder / "sentences")
    bin_folder = hubs.clip(folder / "bin")
    (bin_folder / "model.safetensors").unlink()
    (bin_folder / "pytorch_model.bin").write_bytes(payload(folder, "bin"))
    script = folder / "script"
    script.mkdir()
    (script / "script.py").write_text((folder / f"{FOREIGN}.py").read_text())

    lines = ["filepath,caption,split"]
    for n in range(24):
        (folder / f"{n}.png").write_bytes(drawings.drawing(n))
        text = HOSTILE_TEXTS[n % len(HOSTILE_TEXTS)].replace('"', '""')
        lines.append(f'{n}.png,"{text} {n}",{"train" if n % 3 else "val"}')
    (folder / "texts.csv").write_text("\n".join(lines) + "\n")
    pairs = "\n".join(f"{text}\t{other}" for text, other in zip(HOSTILE_TEXTS, HOSTILE_TEXTS[1:], strict=False))
    (folder / "pairs.tsv").write_text(f"sentence1\tsentence2\n{pairs}\n")


def trained(folder: str) -> int:
    """A run on the hostile texts, page and all, and then a run whose checkpoint was exchanged for a pickle."""
    here = Path(folder)
    told = {**TRAINED, "data": str(here / "texts.csv")}
    if status := children.train({**told, "output": here / "run"}, page=True):
        return status
    if status := children.train({**told, "output": here / "exchanged"}):
        return status
    for file in (here / "exchanged" / "checkpoints").glob("step-*/method.safetensors"):
        evil = payload(here, "checkpoint")
        file.write_bytes(evil)
        manifest = json.loads((file.parent / "manifest.json").read_text())
        manifest["files"][file.name] = {"bytes": len(evil), "sha256": hashlib.sha256(evil).hexdigest()}
        (file.parent / "manifest.json").write_text(json.dumps(manifest))
    return 0


def all_of_them(folder: str) -> int:
    """Write what came of each attack as JSON: its outcome, and the events it caused."""
    here = Path(folder)
    os.chdir(here / "inside")
    found: dict[str, Any] = {}
    events: list[str] = []
    sys.addaudithook(_noting(events, here))
    for name, attack in ATTACKS.items():
        events.clear()
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                outcome: Any = attack(here)
            except Exception as error:
                outcome = f"{type(error).__name__}: {error}"
        found[name] = {"outcome": outcome, "events": list(events), "said": said.getvalue()}
    events.clear()
    with contextlib.suppress(OSError):
        (here / "secret.txt").read_text()
        socket.create_connection(("127.0.0.1", 1), timeout=1)
    pickle.loads(pickle.dumps(Path))
    os.system("true")
    found["the hook itself"] = {"outcome": None, "events": list(events), "said": ""}
    (here / "found.json").write_text(json.dumps(found))
    return 0


def _noting(events: list[str], folder: Path) -> Callable[[str, tuple[Any, ...]], None]:
    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        foreign = event == "import" and FOREIGN in str(arguments[0])
        opened = event == "open" and str(arguments[0]).startswith((f"{folder}/secret", f"{folder}/marks"))
        if event.startswith(WATCHED) or foreign or opened:
            events.append(f"{event} {arguments!r}"[:300])

    return hook


def _shard(name: str) -> Callable[[Path], Any]:
    """What a shard's rows are: for each its texts, and its picture or why there is none; and what was left out."""

    def read(folder: Path) -> Any:
        from xmodal.data.source import open_source

        source = open_source(str(folder / name))
        rows = range(len(source))
        pictures = [getattr(picture, "reason", "fine") for picture in source.images(np.arange(len(source)))]
        return {
            "rows": {source.key(r): [*source.texts(r), pictures[r]] for r in rows},
            "left out": dict(source.dropped),
        }

    return read


def _xmodal(*argv: str) -> Callable[[Path], int]:
    """A command of the toolkit; {} stands for the folder."""

    def command(folder: Path) -> int:
        from xmodal.cli import main

        return main([word.replace("{}", str(folder)) for word in argv])

    return command


def _loaded(spec: str) -> Callable[[Path], str]:
    def load(folder: Path) -> str:
        import xmodal

        return f"opened {xmodal.load(spec.replace('{}', str(folder)))}"

    return load


def _texts_are_texts(folder: Path) -> Any:
    """Texts that another library would open or fetch."""
    import xmodal

    texts = [
        *("http://127.0.0.1:1/a.jpg", "https://127.0.0.1:1/a.png", "data:image/png;base64,iVBORw0KGgo="),
        *(f"{folder}/secret.jpg", f"{folder}/secret.txt", f"file://{folder}/secret.jpg"),
    ]
    run, sentences = xmodal.load(str(folder / "run")), xmodal.load(f"st:{folder}/sentences")
    return [list(run.encode_text(texts).shape), list(sentences.encode(texts).shape)]


def _train(*argv: str) -> Callable[[Path], int]:
    told = [f"--{name.replace('_', '-')}={value}" for name, value in TRAINED.items()]
    return _xmodal("train", "clip", *told, *argv)


ATTACKS: dict[str, Callable[[Path], Any]] = {
    "pickles in a tar": _shard("pickles.tar"),
    "members above the folder": _shard("above.tar"),
    "absolute members": _shard("absolute.tar"),
    "links in a tar": _shard("links.tar"),
    "devices in a tar": _shard("devices.tar"),
    "a pipe as a picture": _shard("fifo.csv"),
    "a command as data": _train("--data=pipe:touch {}/marks/pipe.tar", "--output={}/none"),
    "a pickle as a model": _train("--data={}/texts.csv", "--model={}/evil.pt", "--output={}/none"),
    "a folder with a pickle as a model": _loaded("hf:{}/bin"),
    "a pickle as a checkpoint": _train("--data={}/texts.csv", "--output={}/exchanged", "--resume", "--steps=4",
                                       "--allow-changed-config"),
    "objects in a configuration": _train("--config={}/evil.yaml", "--output={}/none"),
    "a model with code": _loaded("hf:{}/auto_map"),
    "a module of another's": _loaded("st:{}/modules"),
    "a dataset with code": _train("--data=hf-dataset:{}/script", "--output={}/none"),
    "an array of objects": _xmodal("search", "{}/index", "a query", "--model={}/run"),
    "texts that name files and addresses": _texts_are_texts,
    "texts in a terminal": _xmodal("score", "--model={}/run", *HOSTILE_TEXTS),
    "texts in a table": _xmodal("score", "--model={}/run", "--file={}/pairs.tsv", "--output={}/cosines.csv"),
    "texts that are listed": _xmodal("data", "inspect", "{}/texts.csv"),
    "texts in an index": _xmodal("embed", "--model={}/run", "--data={}/texts.csv", "--output={}/found"),
    "texts in a page": _xmodal("search", "{}/found", "a circle", "--html={}/found.html"),
}  # fmt: skip
