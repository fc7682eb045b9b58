"""The server: what it listens on, what it answers at all, and what a browser may do with it."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from xmodal.demo.answers import MOST_BYTES, Answers
from xmodal.errors import InputError

if TYPE_CHECKING:
    import uvicorn  # pyright: ignore[reportMissingImports]

MOST_ASKED = MOST_BYTES + 1_000_000  # bytes of a request
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# What the page and gradio's clients ask for. All else that gradio answers, files by their path, pages of others through
# a proxy and editing itself among it, is as good as not there.
PAGES = ("/", "/config", "/theme.css", "/favicon.ico", "/gradio_api/info", "/gradio_api/upload")
FOLDERS = ("/assets/", "/static/", "/gradio_api/queue/", "/gradio_api/heartbeat/", "/gradio_api/upload_progress")
# The browser sees to it that the page asks no other host for anything. gradio makes functions of its templates.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; object-src 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Gate:
    """In front of the application: hosts, paths and sizes that it has no use for are refused.

    hosts: the names that it may be asked under, so that no page of another name, which resolves to this machine, can
    read it; None for any.
    """

    def __init__(self, app: Any, hosts: tuple[str, ...] | None) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        if self.hosts is not None and _host(scope) not in self.hosts:
            await _refuse(send, 421)
            return
        path = scope["path"]
        if path not in PAGES and not path.startswith(FOLDERS):
            await _refuse(send, 404)
            return
        length = _header(scope, b"content-length") or "0"
        if not length.isdecimal() or int(length) > MOST_ASKED:
            await _refuse(send, 413)
            return
        came = 0

        async def counted() -> Any:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            return message if came <= MOST_ASKED else {"type": "http.disconnect"}

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                ours = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *ours]}
            await send(message)

        await self.app(scope, counted, with_headers)


def _header(scope: Any, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


def _host(scope: Any) -> str:
    """The name that was asked for, without its port."""
    host = _header(scope, b"host") or ""
    return host[1:].partition("]")[0] if host.startswith("[") else host.rpartition(":")[0] or host


async def _refuse(send: Any, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one. Raises InputError for a port or a host that can't be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()
    except (OSError, OverflowError) as error:
        listening.close()
        hint = f"; another: --port {port + 1}" if isinstance(error, OSError) and port else ""
        raise InputError(f"Cannot listen on {host}, port {port}: {getattr(error, 'strerror', error)}{hint}.") from None
    return listening


def address_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


@contextmanager
def server(answers: Answers, listening: socket.socket) -> Iterator[uvicorn.Server]:
    """A server, not running yet; what is uploaded lies in a folder of its own that goes with it."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported: nothing is reported or looked up
    with tempfile.TemporaryDirectory(prefix="xmodal-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        import fastapi  # pyright: ignore[reportMissingImports]
        import gradio  # pyright: ignore[reportMissingImports]
        import uvicorn  # pyright: ignore[reportMissingImports]

        from xmodal.demo.page import build, head, theme

        app = gradio.mount_gradio_app(
            fastapi.FastAPI(openapi_url=None),
            build(answers),
            path="/",
            allowed_paths=[],
            footer_links=[],
            max_file_size=MOST_BYTES,
            enable_monitoring=False,
            run_history=False,
            ssr_mode=False,
            pwa=False,
            theme=theme(),
            head=head(),
        )
        host = listening.getsockname()[0]
        gate = Gate(app, LOOPBACK if host in LOOPBACK else None)
        # A page that is open keeps its connection; ending the server neither waits for it nor complains of it. What
        # goes wrong in an answer gradio prints by itself.
        yield uvicorn.Server(uvicorn.Config(gate, log_level="critical", timeout_graceful_shutdown=1))
