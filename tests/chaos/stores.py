"""The matrix of stores: a run whose shards and checkpoints lie in an object store that fails, behind a proxy."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from datasets.packing.pack import pack
from datasets.packing.sources.digits import Digits
from tests.chaos.checks import problems, steps_of
from tests.chaos.matrix import Bench, Result, ranks_name
from tests.chaos.runs import BATCH, STEPS, Launch, logs
from tests.testbed.faults import Fault, FaultProxy
from tests.testbed.processes import wait_until
from tests.testbed.s3 import S3Server


class Trouble(NamedTuple):
    """What the store does from the run's `begin`th step on; healed after `seconds`, None: when the run has ended."""

    name: str
    faults: tuple[Fault, ...]
    begin: int = 0  # steps
    seconds: float | None = None
    pace: float = 0.0  # seconds that a step takes longer
    patience: int = 60  # seconds for which the run asks a store again
    said: str = ""  # what its log must have; what the client's own retries get over leaves no word
    # Whether the run ends with an error (None: it may), and is started again with a store that is well.
    fails: bool | None = False


def troubles(outage: float = 60.0) -> list[Trouble]:
    """Every way in which a store fails; the outage is longer than the run asks again, and shorter than the run.

    A commit that falls into the outage is left out; a run that needs an image or an index meanwhile ends in one line.
    """
    resets = (
        Fault("reset", after=3000, share=0.1, method="GET"),
        Fault("cut upload", after=3000, share=0.2, method="PUT"),
        Fault("lose answer", share=0.1),
        Fault("refuse", share=0.1),
    )
    lost = "was not made, training continues"
    return [
        Trouble("503 to two requests of five", (Fault("status", share=0.4),)),
        Trouble("resets and lost answers", resets),
        Trouble("two answers that stall", (Fault("stall", after=100, seconds=120, times=2, method="GET"),)),
        Trouble(f"outage of {outage:.0f} s", (Fault("refuse"),), 4, outage, 1.6 * outage / STEPS, 5, lost, None),
        Trouble("credentials that expire", (Fault("status", status=403),), 22, pace=0.1, said=lost, fails=True),
    ]  # fmt: skip


@contextlib.contextmanager
def object_store(bench: Bench) -> Iterator[S3Server]:
    """A store with the digits in its bucket "chaos", its variables in this process's environment."""
    server = S3Server(bench.folder / f"s3-{bench.runs}")
    server.start()
    os.environ.update(server.environment)
    try:
        pack(Digits(), f"{server.bucket('chaos')}/digits")
        yield server
    finally:
        server.close()


class StoreBench:
    """Faults in the stores of runs; the undisturbed ones lie on the local disk and are equal to the bit."""

    def __init__(self, bench: Bench, server: S3Server, host: str = "127.0.0.1"):
        """`server` is that of `object_store`; proxies before it listen on the address `host`."""
        self.bench, self.server, self.host = bench, server, host

    def trouble(self, ranks: int, trouble: Trouble) -> Result:
        """A run of local ranks through the trouble."""

        def start(config: Path, folder: Path, environment: dict[str, str], pace: float) -> Callable[[], bool]:
            launch = Launch(config, folder, ranks, environment=environment, pace=pace)
            return lambda: launch.wait() == [0] * ranks

        return self.through(ranks_name(ranks), ranks, trouble, start)

    def through(self, launcher: str, ranks: int, trouble: Trouble, start: Callable[..., Callable[[], bool]]) -> Result:
        """`start(config, folder, environment, pace)` starts a run and returns what waits for its end: is it well?"""
        reference, began = self.bench.reference(ranks), time.monotonic()
        bucket, wrong = self.server.bucket("chaos"), []
        data = {"shards": f"{bucket}/digits/train", "validation": f"{bucket}/digits/validation", "cache": 0}
        config, folder = self.bench.new("store", bucket, data=data)
        run = f"{bucket}/{folder.name}"
        with FaultProxy(self.server.endpoint, seed=len(trouble.name), host=self.host) as proxy:
            environment = {"AWS_ENDPOINT_URL": proxy.url, "LOWERBOUND_PATIENCE": str(trouble.patience)}
            ended_well = start(config, folder, self.server.environment | environment, trouble.pace)
            if trouble.begin:
                begun = trouble.begin * BATCH
                wait_until(lambda: any(s.images >= begun for s in steps_of(folder)), 300, f"step {trouble.begin}")
            for fault in trouble.faults:
                proxy.add(fault)
            if trouble.seconds:
                time.sleep(trouble.seconds)
                proxy.heal()
            well, injected = ended_well(), proxy.faults
            if well == trouble.fails:
                wrong.append(
                    f"{folder.name}: ended {'as if all were well' if well else 'badly'}: {logs(folder)[-300:]}"
                )
            proxy.heal()
            if not well and not start(config, folder, self.server.environment | environment, 0.0)():
                wrong.append(f"{folder.name}: did not go on: {logs(folder)[-300:]}")
        if trouble.said not in logs(folder):
            wrong.append(f"{folder.name}: {trouble.said!r} was never said")
        wrong += [f"{folder.name}: {problem}" for problem in problems(run, folder, reference)]
        return Result(launcher, f"store: {trouble.name}", 1, injected, wrong, time.monotonic() - began)
