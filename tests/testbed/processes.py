"""Free ports, and children that never outlive the tests."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
_FIRST, _LAST = 20_000, 32_767  # below the range from which the kernel takes ports of outgoing connections


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 on which nobody listens now, and that no outgoing connection will take by chance."""
    ports: list[int] = []
    for port in random.SystemRandom().sample(range(_FIRST, _LAST), 1000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError(f"no {count} free ports between {_FIRST} and {_LAST}")


def start_module(module: str, arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start `python -m module arguments` from the repository's root, its output appended to `log`."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal is for pytest, which ends its children itself
        )


def stop(process: subprocess.Popen[bytes], grace: float = 5.0) -> None:
    """End a child: SIGTERM, after `grace` seconds SIGKILL."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def wait_until(ready: Callable[[], bool], seconds: float, what: str, pause: float = 0.05) -> None:
    """Call `ready` until it answers true; TimeoutError naming `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not after {seconds:g} s")
        time.sleep(pause)


def leave_with_parent() -> None:
    """In a child: exit as soon as the parent is gone, also when that was killed without a chance to clean up."""
    parent, sleep = os.getppid(), time.sleep  # kept from before anybody patches `time`

    def watch() -> None:
        while os.getppid() == parent:
            sleep(0.5)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
