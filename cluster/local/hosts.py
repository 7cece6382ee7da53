"""A real multi-host Ray cluster on one Linux machine, to try a cluster before paying for one.

    python -m cluster.local up [--hosts 3] [--cpus 2]     start it; prints how to submit to it
    python -m cluster.local env                           print a client's environment variables, for eval "$(...)"
    python -m cluster.local drain NUMBER                  reclaim a host as a spot machine, with a notice
    python -m cluster.local cut NUMBER | reconnect NUMBER    disconnect a host's network, and reconnect it
    python -m cluster.local down                          stop it and remove everything

A host is a network namespace with its own address, host name, /dev/shm and process table, in which one `ray start
--block` runs, as in a container. This needs root; without root the hosts are plain processes that share this machine's
network (no `cut`). Jobs are authenticated by a token created at `up`.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

from cluster.local import namespaces
from cluster.local.namespaces import LocalClusterError

ROOT = Path(__file__).parents[2]
MARK = "LOWERBOUND_LOCAL_CLUSTER"  # in the environment of every process of the cluster: its folder
GCS_PORT, DASHBOARD_PORT = 6399, 8265
START_SECONDS = 120.0

# As in the production image and manifests; a lost node is noticed in 8 s instead of 64.
SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_worker_niceness": "0",
    "RAY_JOB_STOP_WAIT_TIME_S": "180",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    "PYTHONPATH": str(ROOT),
}


class Cluster(NamedTuple):
    """A running cluster. Its folder has this as state.json, beside the token and the hosts' logs."""

    folder: Path
    hosts: int
    cpus: int
    namespaces: bool

    @property
    def head(self) -> str:
        return self.host(0)

    def host(self, number: int) -> str:
        """The address of a host."""
        return namespaces.address(number) if self.namespaces else "127.0.0.1"

    @property
    def address(self) -> str:
        """Address of the dashboard and the job API."""
        return f"http://{self.head}:{DASHBOARD_PORT}"

    @property
    def token(self) -> Path:
        return self.folder / "token"

    @property
    def client_environment(self) -> dict[str, str]:
        """Environment variables for `ray job submit` and jobs.submit."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_API_SERVER_ADDRESS": self.address,
        }


def up(folder: Path, hosts: int, cpus: int, plain: bool = False) -> Cluster:
    """Start a cluster and wait until all hosts have joined. Raises LocalClusterError."""
    if folder.exists():
        raise LocalClusterError(f"{folder}: a cluster is already running; stop it with: python -m cluster.local down")
    if not 1 <= hosts <= 200:
        raise LocalClusterError(f"--hosts {hosts}: must be 1 to 200")
    cluster = Cluster(folder, hosts, cpus, namespaces=not plain and namespaces.available())
    if cluster.namespaces and namespaces.left():
        raise LocalClusterError(
            f"{namespaces.BRIDGE}: in use by another local cluster; stop that first (down, with its --folder)"
        )
    folder.mkdir(mode=0o700, parents=True)
    try:
        cluster.token.touch(mode=0o600)
        cluster.token.write_text(secrets.token_hex(32))
        state = cluster._asdict() | {"folder": str(folder)}
        (folder / "state.json").write_text(json.dumps(state))
        if cluster.namespaces:
            namespaces.make(hosts, folder / "hosts")
        for number in range(hosts):  # one by one: starting takes most of a small machine
            start_host(cluster, number)
    except BaseException:
        down(folder)
        raise
    return cluster


def running(folder: Path) -> Cluster:
    """The cluster of a folder. Raises LocalClusterError if there is none."""
    try:
        state = json.loads((folder / "state.json").read_text())
    except FileNotFoundError as error:
        raise LocalClusterError(
            f"{folder}: no cluster is running; start one with: python -m cluster.local up"
        ) from error
    return Cluster(**state | {"folder": folder})


def down(folder: Path) -> None:
    """Stop what remains of the cluster of a folder: processes, network, files."""
    _end_processes(folder)
    if not _processes(None):  # otherwise the network belongs to another folder's cluster
        namespaces.remove()
    shutil.rmtree(folder, ignore_errors=True)


def start_host(cluster: Cluster, number: int) -> None:
    """Start a host, or restart a drained one, and wait until it has joined; number 0 is the head."""
    log = cluster.folder / f"h{number}.log"
    before = _alive(cluster)
    for _ in range(3):  # Ray gives a node 30 s to start, too little on a busy machine
        process = _launch(cluster, number, log)
        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            if _alive(cluster) - before:  # not their number: the loss of another host may be noticed only now
                return
            time.sleep(0.5)
        process.kill()
    lines = log.read_text(errors="replace").strip().splitlines()
    raise LocalClusterError(f"host {number} did not start: {lines[-1] if lines else 'its log is empty'}")


def _launch(cluster: Cluster, number: int, log: Path) -> subprocess.Popen[bytes]:
    (cluster.folder / f"h{number}").mkdir(exist_ok=True)
    (cluster.folder / "ray").mkdir(exist_ok=True)
    address = cluster.host(number)
    ray = ["ray", "start", "--block", "--disable-usage-stats", "--object-store-memory=200000000"]
    ray += [f"--num-cpus={cluster.cpus}", f"--node-ip-address={address}"]
    if number == 0:
        ray += [
            "--head",
            f"--port={GCS_PORT}",
            f"--dashboard-port={DASHBOARD_PORT}",
            f"--temp-dir={cluster.folder}/ray",
        ]
        ray += [f"--dashboard-host={address}", "--include-dashboard=true"]
    else:
        ray += [f"--address={cluster.head}:{GCS_PORT}"]
    if not cluster.namespaces:  # hosts share ports: use free ones
        ray += ["--dashboard-agent-listen-port=0", "--dashboard-agent-grpc-port=0", "--metrics-export-port=0"]
    command = namespaces.inside(number, cluster.folder, ray) if cluster.namespaces else ray
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= SETTINGS | {"RAY_AUTH_TOKEN_PATH": str(cluster.token), MARK: str(cluster.folder)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment.get('PATH', '')}"
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            env=environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def drain(cluster: Cluster, number: int) -> None:
    """Notify a host that it will be reclaimed: SIGTERM to its `ray start --block`, which drains the node."""
    for process in _processes(cluster.folder):
        words = _words(process, "cmdline")
        address = f"--node-ip-address={namespaces.address(number)}"
        if "start" in words and "--block" in words and address in words and "unshare" not in words[0]:
            os.kill(process, signal.SIGTERM)
            return
    raise LocalClusterError(f"host {number} is not running, or has no namespace of its own")


def plug(cluster: Cluster, number: int, state: str) -> None:
    """Disconnect a host's network (`down`), or reconnect it (`up`)."""
    if not cluster.namespaces:
        raise LocalClusterError("plain processes share one network; cut needs namespaces")
    namespaces.plug(number, state)


# ---- processes


def _processes(folder: Path | None) -> list[int]:
    """The processes of a cluster, or of all (None): those with the mark and their descendants (some of Ray's overwrite
    their environment with their name).
    """
    found, children = [], dict[int, list[int]]()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            number = int(entry.name)
            children.setdefault(_parent(number), []).append(number)
            marks = [word.removeprefix(f"{MARK}=") for word in _words(number, "environ") if word.startswith(f"{MARK}=")]
            if marks and (folder is None or str(folder) in marks):
                found.append(number)
    for number in found:  # grows during the loop
        found += [child for child in children.get(number, []) if child not in found]
    return found


def _end_processes(folder: Path) -> None:
    deadline = time.monotonic() + 20
    known: set[int] = set()  # also those whose parents have exited
    while left := known | {*_processes(folder)}:
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise LocalClusterError(f"processes {sorted(left)} do not exit")
        time.sleep(0.2)
        known = {process for process in left if _words(process, "cmdline") not in ([], [""])}  # otherwise it has exited


def _parent(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0


def _words(process: int, file: str) -> list[str]:
    try:
        return Path(f"/proc/{process}/{file}").read_bytes().decode(errors="replace").split("\0")
    except OSError:  # it has exited, or belongs to another user
        return []


def _alive(cluster: Cluster) -> set[str]:
    """The ids of the live nodes, as the dashboard reports them."""
    request = urllib.request.Request(
        f"{cluster.address}/nodes?view=summary", headers={"Authorization": f"Bearer {cluster.token.read_text()}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            nodes = json.load(answer)["data"]["summary"]
    except (urllib.error.URLError, OSError, ValueError, KeyError):
        return set()
    return {node["raylet"]["nodeId"] for node in nodes if node["raylet"].get("state") == "ALIVE"}
