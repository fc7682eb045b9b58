"""A picture of the page for a README: as wide as a desk's window, as high as the answer, in few colours."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from xmodal.demo.chromium import PATIENCE, Chromium
from xmodal.demo.server import address_of
from xmodal.errors import Failed, InputError

WIDTH, LOWEST, HIGHEST = 1280, 400, 1400
COLOURS = 128  # of the file; a page has few, and a README's picture should load at once
READY = """document.querySelector('.report .pictures img, .report .captions li, .report .likely li') !== null
    && !document.body.innerText.includes('Loading')
    && Array.from(document.images).every(image => image.complete)"""


@contextmanager
def running(serving: Any, listening: Any) -> Iterator[str]:
    """The server in a thread of its own; its address."""
    thread = threading.Thread(target=serving.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield address_of(listening)
    finally:
        serving.should_exit = True
        thread.join(timeout=10)


def take(serving: Any, listening: Any, path: Path) -> None:
    """Write the page's picture. Raises Failed where it asked another host for something, InputError for the file."""
    # A page is never lower than its window, so that begins low.
    with running(serving, listening) as address, Chromium(WIDTH, LOWEST) as browser:
        browser.open(address)
        browser.wait_for(READY)
        height = browser.evaluate(
            "Math.ceil(document.querySelector('.gradio-container').getBoundingClientRect().height)"
        )
        browser.resize(WIDTH, min(HIGHEST, height))
        data = at_rest(browser)
    strangers = {host for url in browser.asked if (host := foreign(url, address))}
    if strangers:
        raise Failed(f"The page asked other hosts: {', '.join(sorted(strangers))}")
    image = Image.open(io.BytesIO(data)).convert("RGB").quantize(COLOURS)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, "PNG", optimize=True)
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror}.") from None


def at_rest(browser: Chromium) -> bytes:
    """The window as PNG when nothing in it moves any more: twice the same, half a second apart."""
    until, last = time.monotonic() + PATIENCE, b""
    while (now := browser.picture()) != last:
        if time.monotonic() > until:
            raise Failed(f"The page did not come to rest in {PATIENCE} s.")
        last = now
        time.sleep(0.5)
    return now


def foreign(url: str, address: str) -> str | None:
    """The host of an address on the network that is not the server's own."""
    found = urlsplit(url)
    return (
        None if found.scheme in ("data", "blob", "about") or found.netloc == urlsplit(address).netloc else found.netloc
    )
