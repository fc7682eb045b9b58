"""A headless Chromium, told what to do over a pair of pipes: its DevTools protocol, without a port or a library."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from types import TracebackType
from typing import Any

from xmodal.errors import Failed, InputError

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE = 120  # seconds for an answer
QUIET = (  # nothing of its own goes to the network
    *("--headless", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--no-default-browser-check"),
    *("--disable-background-networking", "--disable-component-update", "--disable-default-apps", "--disable-sync"),
)


def find_chromium() -> str:
    """The program. Raises InputError where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        raise InputError(f"There is no Chromium to take the picture: none of {', '.join(NAMES)} is on the PATH.")
    return found


class Chromium:
    """A page in a browser of its own, which keeps what it asked the network for in `asked`: addresses.

    width: of the window in CSS pixels. dark: whether it says that its user likes dark pages.
    """

    def __init__(self, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        self.asked: list[str] = []
        self.said: list[str] = []  # errors and warnings in its console
        self._number, self._rest, self._answers = 0, b"", {}
        self._profile = tempfile.TemporaryDirectory(prefix="xmodal-chromium-", ignore_cleanup_errors=True)
        theirs, self._to = os.pipe()
        self._from, back = os.pipe()
        root = ("--no-sandbox",) if hasattr(os, "geteuid") and os.geteuid() == 0 else ()  # its sandbox refuses root
        command = [find_chromium(), *QUIET, *root, f"--user-data-dir={self._profile.name}", "--remote-debugging-pipe"]
        # Chromium reads from file 3 and writes to file 4; a shell puts them there.
        shell = f'exec 3<&{theirs} 4>&{back}; exec "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *command, "about:blank"],
            pass_fds=(theirs, back),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(back)
        self._session: str | None = None
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.resize(width, height)

    def __enter__(self) -> Chromium:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)
        self._profile.cleanup()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and what it gave. Raises Failed where it fails, or takes too long."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + PATIENCE
        while self._number not in self._answers:
            self._read(until)
        answer = self._answers.pop(self._number)
        if "error" in answer:
            raise Failed(f"Chromium can't {method}: {answer['error'].get('message')}")
        return answer["result"]

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, of a promise what it comes to."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise Failed(f"The page can't do {expression!r}: {found['exceptionDetails'].get('text')}")
        return found["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Until a JavaScript expression is true. Raises Failed after PATIENCE seconds."""
        until = time.monotonic() + PATIENCE
        while not self.evaluate(condition):
            if time.monotonic() > until:
                raise Failed(f"The page did not come to {condition} in {PATIENCE} s.")
            time.sleep(0.1)

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)
        self.wait_for("document.readyState === 'complete'")

    def resize(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def picture(self) -> bytes:
        """The window as PNG."""
        import base64

        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def _read(self, until: float) -> None:
        ready, _, _ = select.select([self._from], [], [], max(0, until - time.monotonic()))
        data = os.read(self._from, 1 << 20) if ready else b""
        if not data:
            raise Failed(f"Chromium {'ended' if ready else 'did not answer'}.")
        *messages, self._rest = (self._rest + data).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self._answers[message["id"]] = message
            elif message["method"] == "Network.requestWillBeSent":
                self.asked.append(message["params"]["request"]["url"])
            elif message["method"] == "Network.webSocketCreated":
                self.asked.append(message["params"]["url"])
            elif message["method"] == "Log.entryAdded":
                self.said.append(message["params"]["entry"]["text"])
            elif message["method"] == "Runtime.exceptionThrown":
                self.said.append(json.dumps(message["params"]["exceptionDetails"])[:400])
