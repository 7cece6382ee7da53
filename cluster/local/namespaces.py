"""Hosts on one Linux machine: network namespaces, each with a cable to one bridge."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

BRIDGE = "lb0"
_NETWORK = "10.77.0"  # .1, .2, ... are the hosts
HERE = f"{_NETWORK}.254"  # the address of this machine to its hosts
_SPACE, _CABLE = "lbh", "lbv"  # with the number of the host


class LocalClusterError(RuntimeError):
    """The cluster cannot be had, or is not there; the message is one line."""


def can_be_had() -> bool:
    """Whether network namespaces, links and mounts can be made here: by root on a Linux that lets it."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "unshare"))):
        return False
    tried = subprocess.run(
        ["unshare", "--net", "--pid", "--uts", "--fork", "--mount-proc", "ip", "link", "add", "lbtry", "type", "veth"],
        capture_output=True, check=False,
    )  # fmt: skip
    return tried.returncode == 0


def address(number: int) -> str:
    """Of a host."""
    return f"{_NETWORK}.{number + 1}"


def make(hosts: int, names: Path) -> None:
    """A bridge, and a namespace with a cable to it for every host, whose names go into the file `names` (/etc/hosts).

    Raises LocalClusterError.
    """
    _ip("link", "add", BRIDGE, "type", "bridge")
    _ip("addr", "add", f"{HERE}/24", "dev", BRIDGE)
    _ip("link", "set", BRIDGE, "up")
    names.write_text(
        "127.0.0.1 localhost\n" + "".join(f"{address(number)} lb-host-{number}\n" for number in range(hosts))
    )
    for number in range(hosts):
        space, cable = f"{_SPACE}{number}", f"{_CABLE}{number}"
        _ip("netns", "add", space)
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("link", "set", cable, "master", BRIDGE, "up")
        _ip("-n", space, "addr", "add", f"{address(number)}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        _ip("-n", space, "link", "set", "lo", "up")


def left() -> list[str]:
    """What there is of namespaces, cables and the bridge, by name."""
    links = [path.name for path in Path("/sys/class/net").glob("*")]
    return [*_spaces(), *(name for name in links if name == BRIDGE or name.startswith(_CABLE))]


def remove() -> None:
    """End all of them. Their processes must have ended. Raises LocalClusterError."""
    if not shutil.which("ip"):
        return
    for cable in Path("/sys/class/net").glob(f"{_CABLE}*"):  # the kernel takes its time to end them with a namespace
        _ip("link", "del", cable.name)
    for name in _spaces():
        _ip("netns", "del", name)
    if Path("/sys/class/net", BRIDGE).exists():
        _ip("link", "del", BRIDGE)


def inside(number: int, folder: Path, command: Sequence[str]) -> list[str]:
    """The words that run a command on a host. A shell is the host's first process, as in a container: it waits for
    those whose parents have gone (else a job that has ended stays in the table of processes, and Ray waits for it).
    """
    script = f"hostname lb-host-{number}; mount -t tmpfs tmpfs /dev/shm; mount --bind {folder}/hosts /etc/hosts; "
    # Ray gives every node the path of the head's sessions: here too each must find a disk of its own there.
    script += f"mount --bind {folder}/h{number} {folder}/ray; {shlex.join(command)}; exit"
    private = ["unshare", "--pid", "--uts", "--mount", "--fork", "--mount-proc", "--kill-child"]
    return ["ip", "netns", "exec", f"{_SPACE}{number}", *private, "sh", "-ec", script]


def plug(number: int, state: str) -> None:
    """Pull a host's network cable (`down`), or plug it in (`up`)."""
    _ip("link", "set", f"{_CABLE}{number}", state)


def _spaces() -> list[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
    return [line.split()[0] for line in listed.splitlines() if line.startswith(_SPACE)]


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LocalClusterError(f"ip {' '.join(words)}: {done.stderr.strip()}")
