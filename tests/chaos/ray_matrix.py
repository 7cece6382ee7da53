"""The matrix under Ray: killed workers, drivers and hosts, cut links and drained hosts."""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from cluster.local import hosts as local
from tests.chaos.checks import problems, repeated, steps_of
from tests.chaos.matrix import Bench, Result
from tests.chaos.rank import Death
from tests.chaos.ray_bed import HOSTS, RayBed, RayJob, plan
from tests.chaos.runs import BATCH, STEPS, logs
from tests.chaos.stores import StoreBench, Trouble

FIXED, ELASTIC = "2", "[1,2]"
PACE = 0.25  # seconds of a step where fault comes from outside
NAMES = {FIXED: "Ray, 2 workers", ELASTIC: "Ray, 1 to 2 workers"}


class RayBench:
    """Faults in runs on one cluster; the references are those of a `Bench`, by local ranks."""

    def __init__(self, bench: Bench, bed: RayBed):
        self.bench, self.bed, self.draw = bench, bed, bench.draw

    def kills(self, workers: str, moments: tuple[str, ...], runs: int, each: int) -> Result:
        """Workers that kill themselves; Ray starts the ranks again and the job goes on to its end."""
        reference, began = self.bench.reference(2), time.monotonic()
        injected, wrong, cold, waits = 0, [], [], []
        for _ in range(runs):
            config, folder = self.bench.new("ray-killed")
            places = sorted(self.draw.randrange(STEPS * BATCH) for _ in range(each))
            deaths = [
                Death(moment := self.draw.choice(moments), place, self.draw.random() * 0.1)._replace(
                    rank=0 if moment in ("manifest", "rows", "committed") else self.draw.randrange(2)
                )
                for place in places
            ]
            job = RayJob(self.bed, plan(config, folder, workers, deaths))
            wrong += self._end(job, reference, workers)
            injected += job.deaths
            start, again = job.waits()
            cold.append(start)
            waits += again
        medians = f"first step after {statistics.median(cold):.0f} s, the next after a kill {_median(waits):.0f} s"
        name = f"SIGKILL of a worker: {', '.join(moments)} ({medians})"
        return self._result(workers, name, runs, injected, wrong, began)

    def driver(self, workers: str, number: int, runs: int, each: int) -> Result:
        """SIGTERM or SIGKILL to the driver at random moments, and the same command again."""
        reference, began = self.bench.reference(2), time.monotonic()
        injected, wrong = 0, []
        name = signal.Signals(number).name
        for _ in range(runs):
            config, folder = self.bench.new(f"ray-driver-{name.lower()}")
            for place in sorted(self.draw.randrange((STEPS - 4) * BATCH) for _ in range(each)):
                job = RayJob(self.bed, plan(config, folder, workers, pace=PACE))
                job.until(place)
                job.signal(number)
                status = job.wait()
                injected += status == -number or "stopped and committed after" in logs(folder)
                if number == signal.SIGTERM and status:
                    wrong.append(f"{folder.name}: SIGTERM ended it with {status}: {logs(folder)[-300:]}")
            wrong += self._end(RayJob(self.bed, plan(config, folder, workers)), reference, workers)
            if number == signal.SIGTERM and (twice := repeated(folder)):
                wrong.append(f"{folder.name}: {twice} images were trained twice")
        return self._result(workers, f"{name} to the driver", runs, injected, wrong, began)

    def lost_host(self, cut: bool, runs: int) -> Result:
        """The host of a rank of an elastic run dies, or its cable is pulled; the run goes on with what is left."""
        reference, began = self.bench.reference(2), time.monotonic()
        injected, wrong, waits = 0, [], []
        for _ in range(runs):
            self.bed.whole()
            config, folder = self.bench.new("ray-lost-host")
            job = RayJob(self.bed, plan(config, folder, ELASTIC, pace=PACE))
            job.until(self.draw.randrange(4, STEPS // 2) * BATCH)
            number, attempt = self._host_of_a_rank(job), max(step.attempt for step in steps_of(folder))
            lost = time.time()
            if cut:
                local.plug(self.bed.cluster, number, "down")
            else:
                self.bed.kill_host(number)
            job.until(0, attempt)
            waits.append(min((step.time for step in steps_of(folder) if step.attempt > attempt), default=lost) - lost)
            wrong += self._end(job, reference, ELASTIC)
            injected += 1
        self.bed.whole()
        fault = "link of a host cut" if cut else "host lost"
        wrong += [f"trained again only after {wait:.0f} s" for wait in waits if wait > 60]
        shown = ", ".join(f"{wait:.0f}" for wait in waits)
        return self._result(ELASTIC, f"{fault} (training again after {shown} s)", runs, injected, wrong, began)

    def drained_host(self, runs: int) -> Result:
        """A host is taken away with a notice: the ranks commit before it goes, and nothing is done twice."""
        reference, began = self.bench.reference(2), time.monotonic()
        injected, wrong = 0, []
        for _ in range(runs):
            self.bed.whole()
            config, folder = self.bench.new("ray-drained")
            job = RayJob(self.bed, plan(config, folder, ELASTIC, pace=2 * PACE))
            job.until(self.draw.randrange(4, STEPS // 3) * BATCH)
            local.drain(self.bed.cluster, self._host_of_a_rank(job))
            wrong += self._end(job, reference, ELASTIC)
            injected += 1
            if twice := repeated(folder):
                wrong.append(f"{folder.name}: {twice} images were trained twice")
        self.bed.whole()
        return self._result(ELASTIC, "host drained", runs, injected, wrong, began)

    def store(self, stores: StoreBench, trouble: Trouble) -> Result:
        """Two workers whose store fails; `stores` has its proxies where the hosts can reach them."""

        def start(config: Path, folder: Path, environment: dict[str, str], pace: float) -> Callable[[], bool]:
            job = RayJob(self.bed, plan(config, folder, FIXED, pace=pace), environment)
            return lambda: job.wait() == 0

        return stores.through(NAMES[FIXED], 2, trouble, start)

    def _host_of_a_rank(self, job: RayJob) -> int:
        """The number of a host, not the head, on which a rank trains."""
        for number in range(1, HOSTS):
            space = Path(f"/run/netns/lbh{number}").stat().st_ino
            for process in local._processes(self.bed.folder):
                title = " ".join(local._words(process, "cmdline"))
                if "RayTrainWorker" in title and Path(f"/proc/{process}/ns/net").stat().st_ino == space:
                    return number
        raise AssertionError("no rank is on a host that could be lost")

    def _end(self, job: RayJob, reference: str, workers: str) -> list[str]:
        status = job.wait()
        if status:
            return [f"{job.folder.name}: ended with {status}: {logs(job.folder)[-300:]}"]
        found = problems(str(job.folder / "run"), job.folder, reference, bitwise=workers == FIXED)
        return [f"{job.folder.name}: {problem}" for problem in found]

    def _result(self, workers: str, fault: str, runs: int, injected: int, wrong: list[str], began: float) -> Result:
        return Result(NAMES[workers], fault, runs, injected, wrong, time.monotonic() - began)


def _median(values: list[float]) -> float:
    return statistics.median(values) if values else 0.0
