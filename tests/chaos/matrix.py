"""The matrix: which fault comes to which run, and how often."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

from cluster.storage.storage import Storage
from tests.chaos.checks import problems, repeated
from tests.chaos.rank import Death
from tests.chaos.runs import BATCH, STEPS, Launch, logs, write_config
from trainer.checkpoints.lineage import Lineage

MOMENTS = ("step", "upload", "manifest", "rows", "committed")


class Result(NamedTuple):
    """A line of the table."""

    launcher: str
    fault: str
    runs: int
    injected: int  # that really came
    wrong: list[str]
    seconds: float


class Bench:
    """A folder of runs with an undisturbed one for each number of ranks."""

    def __init__(self, folder: Path, digits: Path, seed: int = 0, **trainer: Any):
        """`trainer`: keys of that section, of every run."""
        self.folder, self.digits, self.draw = folder, digits, random.Random(seed)
        self.trainer = trainer
        self.references: dict[int, str] = {}
        self.runs = 0

    def reference(self, ranks: int) -> str:
        """The run that nothing happens to."""
        if ranks not in self.references:
            config, folder = self.new(f"undisturbed-{ranks}")
            status = Launch(config, folder, ranks).wait()
            assert status == [0] * ranks, logs(folder)
            self.references[ranks] = str(folder / "run")
        return self.references[ranks]

    def kills(self, ranks: int, moments: tuple[str, ...], runs: int, each: int) -> Result:
        """Runs that are killed `each` times at random moments of these kinds, and then left to end."""
        reference, began = self.reference(ranks), time.monotonic()
        injected, wrong = 0, []
        for _ in range(runs):
            config, folder = self.new(f"killed-{ranks}")
            places = sorted(self.draw.randrange(STEPS * BATCH) for _ in range(each))
            for place in places:
                death = Death(self.draw.choice(moments), place, self.draw.random() * 0.1, self.draw.randrange(ranks))
                if death.moment in ("manifest", "rows", "committed"):
                    death = death._replace(rank=0)  # who makes the commit
                status = Launch(config, folder, ranks, death).wait()
                injected += -signal.SIGKILL in status
            wrong += self._ended(config, folder, ranks, reference)
        return Result(
            self._name(ranks), f"SIGKILL: {', '.join(moments)}", runs, injected, wrong, time.monotonic() - began
        )

    def terminations(self, ranks: int, runs: int, each: int) -> Result:
        """SIGTERM to one rank at random moments: it commits, and nothing is done twice."""
        reference, began = self.reference(ranks), time.monotonic()
        injected, wrong = 0, []
        for _ in range(runs):
            config, folder = self.new(f"terminated-{ranks}")
            for number, place in enumerate(sorted(self.draw.randrange(STEPS * BATCH // 2) for _ in range(each))):
                death = Death("step", place, rank=self.draw.randrange(ranks), signal=signal.SIGTERM)
                # slowly: the ranks ask one another whether to stop four times a second
                status = Launch(config, folder, ranks, death, pace=0.05).wait()
                injected += logs(folder).count("stopped and committed after") > number
                if status != [0] * ranks:
                    wrong.append(f"SIGTERM ended it with {status}")
            wrong += self._ended(config, folder, ranks, reference)
            if twice := repeated(folder):
                wrong.append(f"{folder.name}: {twice} images were trained twice")
        return Result(self._name(ranks), "SIGTERM", runs, injected, wrong, time.monotonic() - began)

    def damage(self, ranks: int, how: str) -> Result:
        """A killed run whose newest checkpoint is spoilt before it goes on."""
        reference, began = self.reference(ranks), time.monotonic()
        config, folder = self.new(f"damaged-{ranks}")
        Launch(config, folder, ranks, Death("step", 1700)).wait()
        run = Storage(str(folder / "run"))
        newest = next(Lineage(run).history())
        file = max((entry for entry in run.list(f"checkpoints/{newest.name}")), key=lambda entry: entry.size)
        data = bytearray(run.read(file.path))
        if how == "flipped byte":
            data[len(data) // 2] ^= 1
        else:
            del data[len(data) // 2 :]
        (folder / "run" / file.path).write_bytes(data)
        wrong = self._ended(config, folder, ranks, reference)
        if "going back to the commit before" not in logs(folder):
            wrong.append("the damage was not noticed")
        return Result(ranks_name(ranks), f"newest checkpoint: {how}", 1, 1, wrong, time.monotonic() - began)

    def full_disk(self, ranks: int) -> Result:
        """No file may grow beyond 20 KiB in the middle of a run: it goes on, and ends with an error; then with room."""
        reference, began = self.reference(ranks), time.monotonic()
        config, folder = self.new(f"full-{ranks}")
        Launch(config, folder, ranks, Death("step", 900)).wait()
        status = Launch(config, folder, ranks, file_limit=20_000).wait()
        wrong = [] if status != [0] * ranks else ["a run without a last commit ended as if all were well"]
        if "was not made, training continues" not in logs(folder):
            wrong.append("no warning")
        wrong += self._ended(config, folder, ranks, reference)
        return Result(ranks_name(ranks), "disk full", 1, 1, wrong, time.monotonic() - began)

    def new(self, name: str, store: str | None = None, **sections: Any) -> tuple[Path, Path]:
        """The configuration of a new run, in a folder of its own; `store`: the URL of a bucket for the run itself."""
        self.runs += 1
        folder = self.folder / f"{name}-{self.runs:03d}"
        folder.mkdir(parents=True)
        run = f"{store}/{folder.name}" if store else str(folder / "run")
        sections["trainer"] = sections.get("trainer", {}) | self.trainer
        write_config(folder / "config.yaml", self.digits, run, **sections)
        return folder / "config.yaml", folder

    def _name(self, ranks: int) -> str:
        return ", ".join([ranks_name(ranks), *map(str, self.trainer.values())])

    def _ended(self, config: Path, folder: Path, ranks: int, reference: str) -> list[str]:
        """Let a run go on to its end; what is wrong with it then."""
        status = Launch(config, folder, ranks).wait()
        if status != [0] * ranks:
            return [f"{folder.name}: ended with {status}: {logs(folder)[-300:]}"]
        bitwise = ranks <= 2  # beyond, sums over the ranks have no fixed order
        found = problems(str(folder / "run"), folder, reference, bitwise)
        return [f"{folder.name}: {problem}" for problem in found]


def table(results: list[Result]) -> str:
    """The results as Markdown."""
    lines = ["| ranks | fault | runs | injected | wrong | seconds |", "|---|---|---|---|---|---|"]
    for result in results:
        wrong = "; ".join(result.wrong) or "nothing"
        cells = (result.launcher, result.fault, result.runs, result.injected, wrong, f"{result.seconds:.0f}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def ranks_name(ranks: int) -> str:
    return "one process" if ranks == 1 else f"{ranks} ranks"
