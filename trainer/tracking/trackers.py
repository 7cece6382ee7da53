"""Listeners of rank 0 that show a run: pictures as files, and Weights & Biases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cluster.storage.storage import Storage
from trainer.checkpoints.journal import Row, read_metrics
from trainer.errors import TrainingError
from trainer.tracking.listener import Listener, Pictures
from trainer.tracking.wandb_rows import (
    BEFORE_ALL,
    MOST_LOG_BYTES,
    RowPlace,
    last_place_in_log,
    last_place_on_server,
    logs,
    place,
)
from trainer.tracking.wandb_run import TrackingConfig, WandbRun, run_id

_BEHIND = "wandb-behind"  # exists in a run folder whose W&B run lacks rows


class PictureFolder(Listener):
    """Pictures as files in the run folder."""

    def __init__(self, run: Storage):
        self.run = run
        self.waiting: Pictures = {}  # by path; written with the next checkpoint, so that no step waits for it

    def on_row(self, row: Row, pictures: Pictures) -> None:
        self.waiting |= {f"pictures/{name}-{row['images']:012d}.png": png for name, png in pictures.items()}

    def before_commit(self) -> None:
        for path in list(self.waiting):
            self.run.write(path, self.waiting[path])
            del self.waiting[path]

    def finish(self) -> None:
        self.before_commit()


class WandbTracker(Listener):
    """One W&B run for the life of the run folder, on an axis of images.

    A process that resumes the run computes rows again. Rows that W&B has (its server says so, or the log of its
    client) are not sent twice; rows that it has lost are sent again from the run's own metrics.
    """

    def __init__(self, run: Storage, config: TrackingConfig, settings: dict[str, Any], say: Callable[[str], None]):
        self.run, self.say = run, say
        name = run.url.rsplit("/", 1)[-1]
        self.wandb = WandbRun(
            run, config, say, run_id(run, say), name=name, group=name, job_type="train", config=settings
        )
        self.sent = self.newest = self.wandb.attempt(self._last_sent, BEFORE_ALL)  # places of rows
        self.failed = False  # a row could not be logged: those after it wait for the next process, which fills the gap
        self.wandb.attempt(self._send_missing, None)
        if self.wandb.online:
            say(f"W&B: {self.wandb.wandb.url}")

    def on_row(self, row: Row, pictures: Pictures) -> None:
        self.newest = max(self.newest, place(row))
        if place(row) > self.sent and not self.failed:
            self.failed = not self.wandb.log(row, pictures)
            self.sent = self.sent if self.failed else place(row)

    def before_commit(self) -> None:
        self.wandb.attempt(self.wandb.store_files, None)

    def finish(self) -> None:
        self.wandb.finish()
        if self.wandb.wanted_online:
            self._mark_what_is_missing()

    def _mark_what_is_missing(self) -> None:
        """Mark the run folder if the server lacks rows."""
        server = self._last_on_server() if self.wandb.online else None
        if server is not None and server >= self.newest:
            self.run.delete(_BEHIND)
        else:
            self.run.write(_BEHIND, b"")
            self.say("W&B lacks rows of this run; the same command, started again, sends them")

    def _last_sent(self) -> RowPlace:
        """The place of the last row that W&B has."""
        if self.wandb.online:
            server = self._last_on_server()
            return place(dict(self.wandb.wandb.summary)) if server is None else server
        names = [entry.path for entry in self.run.list("wandb")]
        with TemporaryDirectory(prefix="lowerbound-wandb-") as scratch:
            for name in logs(names, self.wandb.id):
                path = self.run.local_path(name)
                if path is None:
                    path = Path(scratch) / "run.wandb"
                    path.write_bytes(self.run.read(name, MOST_LOG_BYTES))
                if (last := last_place_in_log(path)) > BEFORE_ALL:
                    return last  # older processes have sent earlier rows only
        return BEFORE_ALL

    def _last_on_server(self) -> RowPlace | None:
        run = self.wandb.wandb
        return last_place_on_server(run.entity, run.project, self.wandb.id)

    def _send_missing(self) -> None:
        """Send the rows of the run's metrics that W&B lacks."""
        try:
            rows = [row for row in read_metrics(self.run) if place(row) > self.sent]
        except TrainingError:  # reported by whoever begins the attempt
            return
        shown = [entry.path for entry in self.run.list("pictures")] if rows else []
        drawn = {row["images"]: place(row) for row in rows}  # of rows at one count the last one has the pictures
        for row in rows:
            ending = f"-{row['images']:012d}.png"
            own = [path for path in shown if path.endswith(ending)] if drawn[row["images"]] == place(row) else []
            named = {path.removeprefix("pictures/").removesuffix(ending): self.run.read(path) for path in own}
            self.on_row(row, named)


def lacks_rows(run: Storage) -> bool:
    """Whether W&B lacks rows of a run, its last process having ended without W&B."""
    return run.exists(_BEHIND)


def send_report(
    run: Storage,
    config: TrackingConfig,
    name: str,
    facts: Mapping[str, Any],
    figures: Mapping[str, float],
    say: Callable[[str], None],
    plot: bytes | None = None,
) -> None:
    """Send the figures of a report, and a PNG, to a W&B run of its own, named `name`, in the group of the run that they
    are of.

    The run of the training stays as it is: it may be live, and a second process would end it. `facts` becomes the
    configuration of the report's run; sent again, a report replaces the summary of the one before.
    """
    group = run.url.rsplit("/", 1)[-1]
    wandb = WandbRun(
        run,
        config,
        say,
        f"{run_id(run)}-{name}",
        on_failure="the report is in the run folder only",
        name=f"{group} {name}",
        group=group,
        job_type="evaluation",
        config={"run": run.url, **facts},
    )
    wandb.log({"images": facts.get("images_seen") or 0, **figures}, {} if plot is None else {"plot": plot})
    wandb.finish()
