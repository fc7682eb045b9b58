"""Signs of life: each process tells the launcher's store every second that it is there, and what it is doing.

When one is gone (killed, out of memory, its host off), the others wait for it. Over gloo a call fails at once if the
connection breaks; over NCCL nothing does before its own timeout, which ends the process with pages about the device.
Here whoever is left learns which process it was, on which host, and at what.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import time
from typing import Any

BEAT = 1.0  # seconds
ENOUGH = 5 * BEAT  # without a sign, once a connection has broken; a busy machine may delay some
GOING, ENDED, LEFT_ALONE = "", "ended", "left alone"  # what a process says of itself; or which error ended it
LAST = -1  # the number of a process's last sign
# Where the store has what is wrong with the input of one of them, and that one was asked to stop.
WRONG, STOP = "wrong", "stop"


class Presence:
    """One process's signs, and what it sees of the others'.

    timeout: seconds without a sign after which a process is taken for dead, and this one ends.
    store: a connection for this alone; a call that waits in the process group's would hold up the signs.
    """

    def __init__(self, rank: int, processes: int, timeout: float, store: Any) -> None:
        self.rank, self.timeout = rank, timeout
        self.step, self.state = 0, GOING  # steps done
        self.doing = ""  # if it isn't a step
        self.first: int | None = None  # steps done when this run began
        self.wrong: str | None = None  # as the store has it
        self.stop: str | None = None
        self._keys = [f"presence/{r}" for r in range(processes)]
        self._address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._store = store
        self._ended, self._news = False, threading.Event()
        self._tell(0)
        self._thread = threading.Thread(target=self._go_on, name="presence", daemon=True)
        self._thread.start()

    @property
    def name(self) -> str:
        return f"rank {self.rank} on {socket.gethostname()}"

    def is_doing(self, what: str) -> None:
        """Tell it at once, for it may be the last that the others hear."""
        self.doing = what
        self._news.set()

    def end(self) -> None:
        """The last sign, of a process that ends in order."""
        self._end_signs()
        self._thread.join(5 * BEAT)
        self.state = self.state or ENDED
        if not self._store_is_there():  # nobody is left to be told
            return
        self._tell(LAST)
        until = time.monotonic() + 2 * BEAT
        while self.wrong and self.rank == 0 and time.monotonic() < until and not self._all_have_ended():
            time.sleep(BEAT / 10)  # the store may end with this process, and the others learn there what was wrong

    def is_to_say(self, wrong: str) -> bool:
        """Tell the others what is wrong with the input; whether the user hears it from this process.

        The first process says it if it finds the same, else the first to have waited for that. Takes seconds.
        """
        known, self.wrong = self.wrong, wrong
        if not self._store_is_there():
            return known != wrong
        self.post(WRONG, wrong)
        self._news.set()
        said = f"said/{hashlib.sha256(wrong.encode()).hexdigest()}"
        until = time.monotonic() + ENOUGH
        while self.rank and time.monotonic() < until and not self._store.check([said]):
            time.sleep(BEAT / 10)
        return self._store.add(said, 1) == 1

    def post(self, key: str, text: str | None) -> None:
        """Put up what all shall know, or take it down."""
        if not self._store_is_there():
            return
        if text is None:
            self._store.delete_key(key)
        else:
            self._store.set(key, text)

    def account(self, problem: str) -> str:
        """What became of the others, for a message, after a connection broke or timed out. Takes seconds."""
        self._end_signs()
        self.state = LEFT_ALONE
        here = f"Rank {self.rank} of {len(self._keys)} on {socket.gethostname()} can't go on{self._where()}"
        time.sleep(BEAT)  # a process that was killed takes a moment to close what it had open
        if not self._store_is_there():
            host, port = self._address
            return f"{here}: the store at {host}:{port} is gone, and rank 0 or the launcher with it: {problem}"
        self._tell(0)
        first = last = self._all()
        until = time.monotonic() + ENOUGH
        while time.monotonic() < until and not any(_failed(sign) for sign in last):
            time.sleep(BEAT / 4)
            last = self._all()
        self._listen()
        lost = [f"{_name(r, sign)} failed: {sign['state']}" for r, sign in enumerate(last) if _failed(sign)]
        lost += [f"{_name(r, sign)} has ended" for r, sign in enumerate(last) if sign["state"] == ENDED]
        lost += [
            f"{_name(r, now)} is gone: killed, or its host is down"
            for r, (then, now) in enumerate(zip(first, last, strict=True))
            if now == then and now["state"] == GOING and r != self.rank
        ]
        if lost:
            return f"{here}: " + "; ".join(lost[:4]) + (" …" if len(lost) > 4 else "") + "."
        if any(sign["doing"] for sign in last):
            all_of_them = "; ".join(_name(r, sign) for r, sign in enumerate(last[:4])) + (" …" if len(last) > 4 else "")
            return f"{here}: {problem} All ranks are there: {all_of_them}."
        behind = min(sign["step"] for sign in last)
        where = ", ".join(str(r) for r, sign in enumerate(last) if sign["step"] == behind)
        return f"{here}: {problem} All ranks are there; least far, after step {behind}: {where}."

    def _tell(self, number: int) -> None:
        sign = {"number": number, "pid": os.getpid(), "host": socket.gethostname(), "doing": self.doing}
        self._store.set(self._keys[self.rank], json.dumps({**sign, "step": self.step, "state": self.state}))

    def _listen(self) -> None:
        self.wrong = self.wrong or self._posted(WRONG)
        self.stop = self._posted(STOP)

    def _posted(self, key: str) -> str | None:
        return self._store.get(key).decode() if self._store.check([key]) else None

    def _end_signs(self) -> None:
        self._ended = True
        self._news.set()

    def _where(self) -> str:
        return f", {self.doing}" if self.doing else "" if self.first is None else f" after step {self.step}"

    def _store_is_there(self) -> bool:
        """Asked of the socket: a call to a store that is gone prints a page."""
        try:
            socket.create_connection(self._address, timeout=ENOUGH).close()
        except OSError:
            return False
        return True

    def _all(self) -> list[dict[str, Any]]:
        return [json.loads(sign) for sign in self._store.multi_get(self._keys)]

    def _all_have_ended(self) -> bool:
        return all(sign["number"] == LAST for sign in self._all())

    def _go_on(self) -> None:
        seen: dict[int, tuple[dict[str, Any], float]] = {}
        number, looked = 0, time.monotonic()
        try:
            while True:
                self._news.wait(BEAT)
                self._news.clear()
                if self._ended:
                    return
                number += 1
                self._tell(number)
                self._listen()
                if time.monotonic() - looked > self.timeout / 20:
                    looked = time.monotonic()
                    self._look(seen, looked)
        except RuntimeError:
            return  # the store is gone; what the main thread does next with the others fails, and it tells

    def _look(self, seen: dict[int, tuple[dict[str, Any], float]], now: float) -> None:
        """End this process if another has given no sign for too long: over NCCL nothing else would."""
        for r, sign in enumerate(self._all()):
            if r not in seen or seen[r][0] != sign:
                seen[r] = sign, now
            elif now - seen[r][1] > 0.9 * self.timeout and sign["state"] != ENDED and r != self.rank:
                here = f"Rank {self.rank} on {socket.gethostname()} ends{self._where()}"
                told = f"{_name(r, sign)} has given no sign of life for {now - seen[r][1]:.0f} s"
                os.write(2, f"error: {here}: {told}.\n".encode())
                os._exit(1)


def _failed(sign: dict[str, Any]) -> bool:
    return sign["state"] not in (GOING, ENDED, LEFT_ALONE)


def _name(rank: int, sign: dict[str, Any]) -> str:
    return f"rank {rank} on {sign['host']} (pid {sign['pid']}{sign['doing'] and ', ' + sign['doing']})"
