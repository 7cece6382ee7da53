"""Hosts on one Linux machine: network namespaces, each linked to one bridge."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

BRIDGE = "lb0"
_NETWORK = "10.77.0"  # .1, .2, ... are the hosts
HERE = f"{_NETWORK}.254"  # the address of this machine for its hosts
_SPACE, _LINK = "lbh", "lbv"  # with the number of the host


class LocalClusterError(RuntimeError):
    """The cluster cannot be started, or is not running; the message is one line."""


def available() -> bool:
    """Whether network namespaces, links and mounts can be created here: by root, on a Linux that allows it."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "unshare"))):
        return False
    tried = subprocess.run(
        ["unshare", "--net", "--pid", "--uts", "--fork", "--mount-proc", "ip", "link", "add", "lbtry", "type", "veth"],
        capture_output=True, check=False,
    )  # fmt: skip
    return tried.returncode == 0


def address(number: int) -> str:
    """The address of a host."""
    return f"{_NETWORK}.{number + 1}"


def make(hosts: int, names: Path) -> None:
    """Create a bridge and a linked namespace per host; write the host names to the file `names` (/etc/hosts).

    Raises LocalClusterError.
    """
    _ip("link", "add", BRIDGE, "type", "bridge")
    _ip("addr", "add", f"{HERE}/24", "dev", BRIDGE)
    _ip("link", "set", BRIDGE, "up")
    names.write_text(
        "127.0.0.1 localhost\n" + "".join(f"{address(number)} lb-host-{number}\n" for number in range(hosts))
    )
    for number in range(hosts):
        space, link = f"{_SPACE}{number}", f"{_LINK}{number}"
        _ip("netns", "add", space)
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("link", "set", link, "master", BRIDGE, "up")
        _ip("-n", space, "addr", "add", f"{address(number)}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        _ip("-n", space, "link", "set", "lo", "up")


def left() -> list[str]:
    """The names of the existing namespaces, links and bridge."""
    links = [path.name for path in Path("/sys/class/net").glob("*")]
    return [*_spaces(), *(name for name in links if name == BRIDGE or name.startswith(_LINK))]


def remove() -> None:
    """Remove all of them, after their processes have exited. Raises LocalClusterError."""
    if not shutil.which("ip"):
        return
    for link in Path("/sys/class/net").glob(f"{_LINK}*"):  # the kernel removes them with their namespace, but late
        _ip("link", "del", link.name)
    for name in _spaces():
        _ip("netns", "del", name)
    if Path("/sys/class/net", BRIDGE).exists():
        _ip("link", "del", BRIDGE)


def inside(number: int, folder: Path, command: Sequence[str]) -> list[str]:
    """The command line that runs a command on a host. A shell is the host's first process, as in a container, and reaps
    orphans (otherwise a finished job remains a zombie, for which Ray waits).
    """
    script = f"hostname lb-host-{number}; mount -t tmpfs tmpfs /dev/shm; mount --bind {folder}/hosts /etc/hosts; "
    # Ray passes the head's session path to every node: each host needs a disk of its own there.
    script += f"mount --bind {folder}/h{number} {folder}/ray; {shlex.join(command)}; exit"
    private = ["unshare", "--pid", "--uts", "--mount", "--fork", "--mount-proc", "--kill-child"]
    return ["ip", "netns", "exec", f"{_SPACE}{number}", *private, "sh", "-ec", script]


def plug(number: int, state: str) -> None:
    """Disconnect a host's network (`down`), or reconnect it (`up`)."""
    _ip("link", "set", f"{_LINK}{number}", state)


def _spaces() -> list[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
    return [line.split()[0] for line in listed.splitlines() if line.startswith(_SPACE)]


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LocalClusterError(f"ip {' '.join(words)}: {done.stderr.strip()}")
