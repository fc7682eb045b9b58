"""`xmodal doctor`: what this machine has, what is missing, and the command that installs it.

Which packages are needed, and from which version on, is read from xmodal's own metadata.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from xmodal import __version__
from xmodal.machine import memory_bytes, usable_cores

GIB = 2**30
AHEAD = 4  # batches of each worker, as xmodal.data.workers has them
PICTURES = 256 * 3 * 224 * 224  # bytes of a batch, for want of the one to come


@dataclass(frozen=True)
class Line:
    """One thing that was looked at; `wrong` is empty where it is as it should be."""

    name: str
    found: str
    wrong: str = ""


@dataclass(frozen=True)
class Need:
    """A package that xmodal needs, for one of its extras or (extra == "") always."""

    package: str
    floor: str  # as pip takes it: ">=2.0"
    extra: str
    found: str | None
    enough: bool


def examine() -> int:
    """Print the account; 0 if what xmodal always needs is there, else 1."""
    needs = read_needs()
    packages = [_line(need) for need in needs]
    if not needs:
        packages = [Line("xmodal", "no metadata", "not installed: run pip install -e . in its checkout")]
    _show("Packages", [Line("Python", f"{platform.python_version()}, {sys.executable}"), *packages])
    _show("Devices", devices())
    _show("Memory and disk", room())
    commands = install_commands(needs)
    for title, command in commands.items():
        print(f"{title}:\n  {command}")
    well = bool(needs) and all(need.enough for need in needs if not need.extra)
    print(f"xmodal {__version__} has all it needs." if well else "xmodal lacks what it needs; see above.")
    return 0 if well else 1


def read_needs(distribution: str = "xmodal") -> list[Need]:
    """The packages in the metadata of a distribution and what is installed of them; empty if it has none."""
    try:
        texts = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    try:
        from packaging.requirements import Requirement
    except ImportError:  # then a lot is missing: names and floors can be told apart without it, versions not compared
        return [_need_by_eye(text) for text in texts]
    needs = []
    for requirement in map(Requirement, texts):
        extra = _extra(str(requirement.marker or ""))
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            found = _version(requirement.name)
            enough = found is not None and requirement.specifier.contains(found, prereleases=True)
            needs.append(Need(requirement.name, str(requirement.specifier), extra, found, enough))
    return needs


def _need_by_eye(text: str) -> Need:
    requirement, _, marker = text.partition(";")
    package, at_least, floor = requirement.strip().partition(">=")
    found = _version(package)
    return Need(package, at_least + floor, _extra(marker), found, found is not None)


def _extra(marker: str) -> str:
    """`extra == "bench"` -> bench."""
    return marker.partition("extra ==")[2].strip().strip("\"'") if "extra ==" in marker else ""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _line(need: Need) -> Line:
    name = f"{need.package} [{need.extra}]" if need.extra else need.package
    if need.found is None:
        return Line(
            name,
            "missing",
            f"needed only for [{need.extra}]" if need.extra else f"needed: {need.floor or 'any version'}",
        )
    return Line(name, need.found, "" if need.enough else f"too old: {need.floor} needed")


def install_commands(needs: list[Need]) -> dict[str, str]:
    """Which command brings what is missing or too old, by what it is for."""
    if importlib.util.find_spec("pip"):
        installer = f"{sys.executable} -m pip install"
    else:
        installer = f"uv pip install --python {sys.executable}"  # environments without pip are uv's as a rule
    commands = {}
    for extra in dict.fromkeys(need.extra for need in needs):
        lacking = [f'"{n.package}{n.floor}"' for n in needs if n.extra == extra and not n.enough]
        if lacking:
            title = f"For the extra [{extra}]" if extra else "Needed"
            commands[title] = f"{installer} {' '.join(lacking)}"
    return commands


def devices() -> list[Line]:
    """The processor and the accelerators that torch sees."""
    lines = [Line("CPU", f"{_cpu_model()}, {_cores()}")]
    try:
        import torch
    except Exception as error:  # a broken installation fails in many ways, and this is where to say so
        return [*lines, Line("torch", "does not import", f"{type(error).__name__}: {error}".splitlines()[0])]
    lines.append(Line("Threads of torch", str(torch.get_num_threads())))
    bf16 = [
        name
        for name, has in {
            "AVX512_BF16": torch.cpu._is_avx512_bf16_supported(),
            "AMX": torch.cpu._is_amx_tile_supported(),
        }.items()
        if has
    ]
    lines.append(Line("bf16 on the CPU", ", ".join(bf16) if bf16 else "no; float32 is used"))
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16"
        lines.append(Line(f"GPU {i}", f"{gpu.name}, {gpu.total_memory / GIB:.0f} GiB, {bf16}"))
    if torch.backends.mps.is_available():
        lines.append(Line("GPU", "Apple MPS"))
    elif not torch.cuda.is_available():
        unused = Path("/proc/driver/nvidia/version").exists() and "the NVIDIA driver is loaded, but torch finds no GPU"
        lines.append(Line("GPU", "none", unused or ""))
    return lines


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cores() -> str:
    """Cores of the machine and, where it is fewer, those this process may use."""
    every, usable = os.cpu_count() or 1, usable_cores()
    return f"{every} cores" + (f", {usable:g} of them usable here" if usable < every else "")


def room() -> list[Line]:
    """Memory, shared memory, disk and open files."""
    lines = []
    memory = memory_bytes()
    if memory:
        lines.append(Line("Memory", f"{memory / GIB:.1f} GiB"))
    if Path("/dev/shm").exists():
        shared = shutil.disk_usage("/dev/shm")
        workers = max(1, min(8, int(usable_cores()) - 1))  # as a run takes them on a GPU
        needed = workers * AHEAD * PICTURES
        little = (
            f"{workers} --workers hold {needed / GIB:.1f} GiB of pictures ready, in batches of 256 at 224 × 224: take "
            "fewer, or give more by docker run --shm-size 8g"
            if shared.free < needed
            else ""
        )
        lines.append(Line("/dev/shm", f"{shared.free / GIB:.1f} of {shared.total / GIB:.1f} GiB free", little))
    disk = shutil.disk_usage(Path.cwd())
    little = "less than 2 GiB: checkpoints may not fit" if disk.free < 2 * GIB else ""
    lines.append(Line("Disk here", f"{disk.free / GIB:.1f} of {disk.total / GIB:.1f} GiB free", little))
    if importlib.util.find_spec("resource"):  # not on Windows
        import resource

        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        endless = files == resource.RLIM_INFINITY
        few = "" if endless or files >= 1024 else "few for data workers: ulimit -n 4096"
        lines.append(Line("Open files", "no limit" if endless else f"at most {files}", few))
        lines.append(_address_space(resource.getrlimit(resource.RLIMIT_AS)[0], resource.RLIM_INFINITY))
    return lines


def _address_space(limit: int, endless: int) -> Line:
    """What may be mapped, used or not; of workers each has as much for itself."""
    if limit == endless:
        return Line("Address space", "no limit")
    little = ""
    if Path("/proc/driver/nvidia/version").exists():
        little = "CUDA maps more than there is memory: ulimit -v unlimited"
    elif limit < 8 * GIB:
        little = "torch alone maps 4 GiB, and each worker as much as the run: ulimit -v unlimited"
    return Line("Address space", f"at most {limit / GIB:.1f} GiB", little)


def _show(title: str, lines: list[Line]) -> None:
    """A table on a terminal, plain lines in a log or without rich."""
    if sys.stdout.isatty() and importlib.util.find_spec("rich"):
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title, title_justify="left", show_header=False)
        for line in lines:
            # Text, not str, in which "[bench]" would be markup
            table.add_row(Text(line.name), Text(line.found), Text(line.wrong, style="bold red"))
        Console().print(table)
        return
    print(title)
    width = max(len(line.name) for line in lines)
    for line in lines:
        print(f"  {line.name:{width}}  {line.found}{'  ! ' + line.wrong if line.wrong else ''}")
    print()
