"""A hub of datasets on this machine: as much of its API as finding and reading files takes, over a folder each."""

from __future__ import annotations

import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote


class Hub:
    """repositories: a folder for each, which holds a folder for each revision: main, or refs/convert/parquet.

    asked: what for; broken: how many more reads of files are refused; private: whether all is.
    """

    def __init__(self, repositories: dict[str, Path]) -> None:
        hub = self
        self.repositories, self.asked = repositories, list[str]()
        self.broken, self.private = 0, False

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._answer()

            def do_GET(self) -> None:
                self._answer()

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self._answer()

            def _answer(self) -> None:
                path, _, query = self.path.partition("?")
                path, self.deep = unquote(path), "recursive=true" in query.lower()
                part = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                hub.asked.append(f"{self.command} {path} {part[0] if part else ''}".strip())
                for name, folder in hub.repositories.items():
                    if not hub.private and (match := re.fullmatch(rf"/api/datasets/{name}(?:/(\w+)/(.+))?", path)):
                        return self._api(name, folder, match[1] or "revision", match[2] or "main")
                    if not hub.private and (match := re.fullmatch(rf"/datasets/{name}/resolve/(.+)", path)):
                        return self._file(folder, match[1], part)
                self._send(401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})

            def _api(self, name: str, folder: Path, what: str, rest: str) -> None:
                revision, inside = _revision(folder, rest)
                if revision is None:
                    return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
                if what == "revision":
                    told: Any = {"id": name, "sha": _sha(revision), "tags": [], "siblings": []}
                elif (revision / inside).is_dir():
                    found = (revision / inside).rglob("*") if self.deep else (revision / inside).iterdir()
                    told = [_entry(path, revision) for path in sorted(found)]
                else:
                    return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                self._send(200, json.dumps(told).encode(), {"Content-Type": "application/json"})

            def _file(self, folder: Path, rest: str, part: re.Match[str] | None) -> None:
                revision, inside = _revision(folder, rest)
                if revision is None or not (revision / inside).is_file():
                    return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                if hub.broken and part:
                    hub.broken -= 1
                    return self._send(500, b"", {})
                data = (revision / inside).read_bytes()
                more = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": _sha(revision)}
                if part is None:
                    return self._send(200, data, more)
                stop = min(int(part[2]), len(data) - 1)
                more["Content-Range"] = f"bytes {part[1]}-{stop}/{len(data)}"
                self._send(206, data[int(part[1]) : stop + 1], more)

            def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def log_message(self, *_: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        Thread(target=self.http.serve_forever, daemon=True).start()


def _revision(folder: Path, rest: str) -> tuple[Path | None, str]:
    """The folder of a revision by its name or its hash, and what is asked for in it."""
    for revision in (folder / "main", folder / "refs/convert/parquet"):
        for name in (str(revision.relative_to(folder)), _sha(revision)):
            if revision.is_dir() and (rest == name or rest.startswith(f"{name}/")):
                return revision, rest[len(name) + 1 :]
    return None, ""


def _sha(revision: Path) -> str:
    return hashlib.sha1(str(revision).encode()).hexdigest()


def _entry(path: Path, revision: Path) -> dict[str, Any]:
    told = {"path": str(path.relative_to(revision)), "oid": hashlib.sha1(path.name.encode()).hexdigest()}
    if path.is_dir():
        return told | {"type": "directory", "size": 0}
    return told | {"type": "file", "size": path.stat().st_size, "oid": hashlib.sha1(path.read_bytes()).hexdigest()}
