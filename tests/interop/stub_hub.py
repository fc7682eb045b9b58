"""A hub on this machine, as far as huggingface_hub asks it: repositories with branches, files, and what it refuses."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

Files = dict[str, bytes]
TOKEN = "hf_" + "q" * 34


@dataclass
class Repository:
    """Files of each branch, and of each commit by its hash."""

    private: bool = False
    branches: dict[str, Files] = field(default_factory=lambda: {"main": {}})
    commits: dict[str, Files] = field(default_factory=dict)

    def commit(self, revision: str) -> tuple[str, Files]:
        files = self.branches[revision] if revision in self.branches else self.commits[revision]
        told = json.dumps({name: hashlib.sha1(content).hexdigest() for name, content in sorted(files.items())})
        sha = hashlib.sha1(told.encode()).hexdigest()
        self.commits[sha] = files
        return sha, files


class StubHub:
    """requests: method and path of each. refused: a status, an error code and a message for paths that match."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.refused: dict[str, tuple[int, str, str]] = {}
        hub = self

        class Handler(_Handler):
            stub = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def put(self, name: str, files: Files, private: bool = False) -> Repository:
        self.repositories[name] = found = Repository(private, {"main": dict(files)})
        return found

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def as_cache(files: Files, repository: str, cache: Path, branch: str = "main", lacks: Sequence[str] = ()) -> str:
    """Write files as huggingface_hub's cache keeps a repository, and return the commit that they are of.

    lacks: files that were asked for in vain, which the cache remembers.
    """
    commit = hashlib.sha1(repository.encode()).hexdigest()
    place = cache / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / branch).write_text(commit)
    for name, content in files.items():
        file = place / "snapshots" / commit / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    for name in lacks:
        file = place / ".no_exist" / commit / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return commit


class _Handler(BaseHTTPRequestHandler):
    stub: StubHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None: ...

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        length, path = int(self.headers.get("Content-Length") or 0), unquote(urlparse(self.path).path)
        body = self.rfile.read(length) if length else b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        self.stub.requests.append(f"{self.command} {path}")
        for pattern, (status, code, message) in self.stub.refused.items():
            if re.search(pattern, f"{self.command} {path}"):
                return self._say(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})
        if path == "/api/validate-yaml":
            return self._say(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            told = json.loads(body)
            name = f"{told['organization']}/{told['name']}"
            self.stub.put(name, {}, told.get("visibility") == "private")
            return self._say(200, {"url": f"{self.stub.address}/{name}"})
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(*found.groups())
        found = re.fullmatch(
            r"/api/models/([^/]+/[^/]+)(?:/(revision|tree|preupload|commit|branch)/([^/]+))?(/.+)?", path
        )
        repository = self.stub.repositories.get(found[1]) if found else None
        if found is None or repository is None or (repository.private and not self._knows_the_token()):
            return self._say(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        what, revision = found[2], found[3] or "main"
        if what == "branch":
            repository.branches[revision] = dict(repository.branches["main"])
            return self._say(200, {})
        if revision not in repository.branches and revision not in repository.commits:
            return self._say(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        if what == "preupload":
            return self._say(200, {"files": [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]})  # fmt: skip
        if what == "commit":
            return self._commit(repository, revision, body)
        sha, files = repository.commit(revision)
        if what == "tree":
            below = {name: content for name, content in files.items() if f"/{name}".startswith(found[4] or "/")}
            if found[4] and not below:
                return self._say(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            return self._say(200, [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in below.items()
            ])  # fmt: skip
        siblings = [{"rfilename": name} for name in files]
        self._say(200, {"id": found[1], "sha": sha, "private": repository.private, "siblings": siblings, "tags": []})

    def _commit(self, repository: Repository, branch: str, body: bytes) -> None:
        if not self._knows_the_token():
            return self._say(401, {"error": "Invalid username or password."})
        files = repository.branches[branch]
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del files[line["value"]["path"]]
        sha, _ = repository.commit(branch)
        self._say(200, {"success": True, "commitOid": sha, "commitUrl": f"{self.stub.address}/o/n/commit/{sha}"})

    def _file(self, name: str, revision: str, file: str) -> None:
        sha, files = self.stub.repositories[name].commit(revision)
        if file not in files:
            lacks = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha}
            return self._say(404, {"error": "Entry not found"}, lacks)
        etag = f'"{hashlib.sha1(files[file]).hexdigest()}"'
        self._say(200, files[file], {"ETag": etag, "X-Repo-Commit": sha})

    def _knows_the_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _say(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
        sent = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(sent)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(sent)
