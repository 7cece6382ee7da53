"""Weights & Biases, or nothing: the loop logs to a tracker and never asks which rank it is on."""

from __future__ import annotations

import contextlib
import io
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from cluster.storage.storage import Storage
from trainer.checkpoints.journal import read_metrics
from trainer.config import Config
from trainer.errors import TrainingError
from trainer.tracking.wandb_rows import images_in_files, images_on_server
from trainer.training.data import Row
from trainer.training.events import Listener, Pictures

INIT_SECONDS, FINISH_SECONDS = 30.0, 60.0  # that W&B may take at the start and at the end
_BEHIND = "wandb-behind"  # in a run folder: W&B lacks rows of it


class TrackingConfig(Config):
    """Weights & Biases."""

    mode: Literal["auto", "online", "offline", "off"] = "auto"
    """auto: online if there is a key (WANDB_API_KEY or a login), else offline. off: no W&B; rows and pictures are in
    the run folder in any case."""
    project: str = "lowerbound"
    """W&B project."""
    entity: str | None = None
    """W&B team or user. null: the account's default."""


class PictureFolder(Listener):
    """Pictures as files in the run folder."""

    def __init__(self, run: Storage):
        self.run = run
        self.waiting: dict[str, bytes] = {}  # by path; written with the next checkpoint, so that no step waits for it

    def on_row(self, row: Row, pictures: Pictures) -> None:
        self.waiting |= {f"pictures/{name}-{row['images']:012d}.png": png for name, png in pictures.items()}

    def before_commit(self) -> None:
        for path in list(self.waiting):
            self.run.write(path, self.waiting[path])
            del self.waiting[path]


def lacks_rows(run: Storage) -> bool:
    """Whether W&B was away at the end of the run's last process, so that it lacks rows."""
    return run.exists(_BEHIND)


def run_id(run: Storage) -> str:
    """The id of the run folder's W&B run, made by whoever comes first."""
    run.create("wandb-id", uuid.uuid4().hex[:12].encode())
    return run.read("wandb-id").decode()


class WandbTracker(Listener):
    """One W&B run for the life of the run folder, on an axis of images.

    A replay after a restart computes the same rows again. What W&B has by then (its server says so, or the files that
    its client has written) is not sent twice, and what it lost is sent again from the run's own metrics. Whatever W&B
    does, training goes on.
    """

    def __init__(self, run: Storage, config: TrackingConfig, settings: dict[str, Any], say: Callable[[str], None]):
        self.run, self.say, self.failed = run, say, False
        self.scratch = None if run.local_path() else TemporaryDirectory(prefix="lowerbound-wandb-")
        folder = Path(self.scratch.name) if self.scratch else run.local_path() or Path()
        self.files = folder / "wandb"
        self.files.mkdir(parents=True, exist_ok=True)
        self.online = self.wanted = config.mode == "online" or (config.mode == "auto" and _has_key())
        self.wandb = self._begun(config, settings, folder)
        self.wandb.define_metric("images")
        self.wandb.define_metric("*", step_metric="images")
        self.sent = (0, self._handed_over(), True)
        self._send_again()
        if self.online:
            say(f"W&B: {self.wandb.url}")

    def on_row(self, row: Row, pictures: Pictures) -> None:
        if _place(row) <= self.sent:
            return
        import wandb
        from PIL import Image

        try:
            loaded = {name: wandb.Image(Image.open(io.BytesIO(png))) for name, png in pictures.items()}
            figures = {name: value for name, value in row.items() if isinstance(value, int | float)}
            self.wandb.log(figures | loaded)
        except Exception as error:  # of a library whose failures must not be ours
            self._warn(error)
            return
        self.sent = _place(row)

    def summarise(self, figures: dict[str, float]) -> None:
        """Set figures of the run as a whole, beside its rows."""
        self.wandb.summary.update(figures)

    def before_commit(self) -> None:
        if self.scratch:
            for path in self.files.rglob("*"):
                if path.is_file() and not path.is_symlink():
                    self.run.write(f"wandb/{path.relative_to(self.files)}", path)

    def finish(self) -> None:
        try:
            self.wandb.finish()
        except Exception as error:
            self._warn(error)
        self.before_commit()
        if self.wanted:
            self._note_what_is_missing()
        if not self.online:
            where = self.run.local_path("wandb") or f"a copy of {self.run.url}/wandb"
            self.say(f"W&B is offline: `wandb leet {where}` shows it, `wandb sync {where}/offline-run-*` uploads it")
        if self.scratch:
            self.scratch.cleanup()

    def _begun(self, config: TrackingConfig, settings: dict[str, Any], folder: Path) -> Any:
        import wandb

        # Rows reach the disk within a second, so that a killed process loses next to nothing.
        own = wandb.Settings(
            x_transaction_log_flush_interval=1.0,
            silent=True,
            console="off",
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
        )

        def begin(mode: Literal["online", "offline", "disabled"]) -> Any:
            return wandb.init(
                id=run_id(self.run),
                project=config.project,
                entity=config.entity,
                name=self.run.url.rsplit("/", 1)[-1],
                dir=str(folder),
                config=settings,
                resume="allow",
                mode=mode,
                settings=own,
            )

        for mode in ("online", "offline") if self.online else ("offline",):
            try:
                return begin(mode)
            except Exception as error:  # which class it has depends on where W&B failed
                self._warn(error)
            self.online = False
            with contextlib.suppress(Exception):
                wandb.teardown()  # its service would call the run's id taken
        return begin("disabled")

    def _warn(self, error: Exception) -> None:
        """Say once that W&B fails; the next process of the run sends again what is missing there."""
        if not self.failed:
            reason = " ".join(str(error).split())
            self.say(f"W&B fails ({reason}); training goes on, and what is missing there is sent when the run goes on")
        self.failed = True

    def _note_what_is_missing(self) -> None:
        """Leave word in the run folder if the server has not all rows."""
        server_has = images_on_server(self.wandb.entity, self.wandb.project, self.wandb.id) if self.online else None
        if server_has is not None and server_has >= self.sent[1]:
            self.run.delete(_BEHIND)
        else:
            self.run.write(_BEHIND, b"")
            self.say("W&B lacks rows of this run; the same command, started again, sends them")

    def _handed_over(self) -> int:
        """The image count up to which W&B has the rows."""
        if self.online:
            images = images_on_server(self.wandb.entity, self.wandb.project, self.wandb.id)
            return int(self.wandb.summary.get("images", -1)) if images is None else images
        if self.scratch:  # what earlier processes wrote lies in the run folder
            for entry in self.run.list("wandb"):
                if entry.path.endswith(".wandb"):
                    path = self.files / entry.path.removeprefix("wandb/")
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(self.run.read(entry.path))
        return images_in_files(self.files)

    def _send_again(self) -> None:
        """Send the rows of the run's metrics that W&B has not."""
        try:
            rows = [row for row in read_metrics(self.run) if _place(row) > self.sent]
        except TrainingError:  # whoever begins the attempt will say so
            return
        shown = [entry.path for entry in self.run.list("pictures")] if rows else []
        for row in rows:
            ending = f"-{row['images']:012d}.png"
            mine = [path for path in shown if path.endswith(ending)]
            named = {path.removeprefix("pictures/").removesuffix(ending): self.run.read(path) for path in mine}
            self.on_row(row, named)


def _place(row: Row) -> tuple[int, int, bool]:
    """Where a row stands in the order in which rows are made: a rollback repeats image counts, and an evaluation
    follows the row of training at the same count.
    """
    return row.get("rollbacks", 0), row["images"], "evaluation/seconds" in row


def _has_key() -> bool:
    """Whether this machine is logged in to W&B."""
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"] == "online"
    if os.environ.get("WANDB_API_KEY"):
        return True
    import wandb

    return bool(wandb.login(prompt=False))
