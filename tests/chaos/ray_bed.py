"""A Ray cluster of three hosts in network namespaces, and jobs on it whose drivers and hosts can be matrix."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from cluster.local import hosts as local
from tests.chaos.checks import steps_of
from tests.chaos.rank import Death
from tests.chaos.under_ray import Plan
from tests.testbed.processes import REPOSITORY, wait_until

HOSTS = 3  # the head, on which drivers run, and two more
PATIENCE = 400.0  # seconds for what a busy machine takes long to do


class RayBed:
    """The cluster, up inside the block; one CPU a host."""

    def __init__(self, folder: Path = Path("/tmp/lb-chaos")):  # short: Ray's sockets lie below it
        self.folder = folder

    def __enter__(self) -> RayBed:
        self.cluster = local.up(self.folder, HOSTS, cpus=1)
        return self

    def __exit__(self, *_: object) -> None:
        local.down(self.folder)

    def whole(self) -> None:
        """Every cable plugged in and every host up."""
        for number in range(HOSTS):
            local.plug(self.cluster, number, "up")
            if not self.pids("--block", f"--node-ip-address={self.cluster.host(number)}"):
                local.start_host(self.cluster, number)

    def pids(self, *words: str) -> list[int]:
        """The processes of the cluster that have all these words on their command line, but for their wrappers."""
        found = []
        for process in local._processes(self.folder):
            line = local._words(process, "cmdline")
            if all(word in line for word in words) and not {"unshare", "nsenter", "ip"} & {Path(line[0]).name}:
                found.append(process)
        return found

    def kill_host(self, number: int) -> None:
        """SIGKILL to the host's first process, and with it to all that runs there."""
        for process in self.pids("start", "--block", f"--node-ip-address={self.cluster.host(number)}"):
            os.kill(process, signal.SIGKILL)


class RayJob:
    """One start of a run under Ray, by a driver on the head."""

    def __init__(self, bed: RayBed, plan: Plan, environment: Mapping[str, str] | None = None):
        """`environment` is that of the driver and of its ranks, beside the cluster's own."""
        self.bed, self.plan, self.folder = bed, plan, Path(plan.folder)
        self.began = time.time()
        self.path = self.folder / f"plan-{time.time_ns()}.json"
        plan.write(self.path)
        cluster = bed.cluster
        (head,) = bed.pids("start", "--head")
        enter = ["nsenter", f"--target={head}", "--net", "--mount", "--pid", "--uts", f"--wd={REPOSITORY}"]
        asked = dict(environment or {})
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | asked
        # how `ray job submit` hands it to the workers
        environment["RAY_JOB_CONFIG_JSON_ENV_VAR"] = json.dumps({"runtime_env": {"env_vars": asked}})
        environment |= local.SETTINGS | {"RAY_AUTH_TOKEN_PATH": str(cluster.token), local.MARK: str(cluster.folder)}
        environment["RAY_ADDRESS"] = f"{cluster.head}:{local.GCS_PORT}"
        with (self.folder / "log-driver.txt").open("ab") as log:
            self.process = subprocess.Popen(
                [*enter, sys.executable, "-m", "tests.chaos.under_ray", str(self.path)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def signal(self, number: int) -> None:
        """To the driver itself."""
        for process in self.bed.pids("tests.chaos.under_ray", str(self.path)):
            os.kill(process, number)

    def wait(self, timeout: float = PATIENCE) -> int:
        """The driver's status; negative: the signal that ended it. TimeoutExpired after a while, and it is killed."""
        try:
            return self.process.wait(timeout)
        finally:
            self.signal(signal.SIGKILL)

    def until(self, images: int, attempt: int = 0) -> None:
        """Return when so many images have been trained, by an attempt after number `attempt`."""

        def there() -> bool:
            ended = self.process.poll() is not None
            return ended or any(s.images >= images and s.attempt > attempt for s in steps_of(self.folder))

        wait_until(there, PATIENCE, f"{images} images in {self.folder}")

    def waits(self) -> tuple[float, list[float]]:
        """Seconds from the start of the job to its first step, and from each death to the first of the next attempt."""
        steps = sorted(steps_of(self.folder), key=lambda step: step.time)
        marks = [self.plan.mark(number) for number in range(len(self.plan.deaths))]
        waits = []
        for died in (float(mark.read_text()) for mark in marks if mark.exists()):
            attempt = max(step.attempt for step in steps if step.time <= died)
            waits += [step.time - died for step in steps if step.attempt > attempt][:1]
        return steps[0].time - self.began, waits

    @property
    def deaths(self) -> int:
        """How many of the planned deaths have come."""
        return sum(self.plan.mark(number).exists() for number in range(len(self.plan.deaths)))


def plan(config: Path, folder: Path, workers: str, deaths: list[Death] | None = None, pace: float = 0.0) -> Plan:
    """A job with so many `workers`, "2" or "[1,2]", that Ray starts again as often as it takes."""
    overrides = [f"ray.workers={workers}", "ray.max_failures=50"]
    return Plan(str(config), overrides, str(folder), deaths or [], pace)
