"""Weights & Biases, or nothing: the loop logs to a tracker and never asks which rank it is on."""

from __future__ import annotations

import io
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from cluster.storage import Storage
from trainer.config import Config


class TrackingConfig(Config):
    """Weights & Biases. May change on resume."""

    mode: Literal["auto", "online", "offline", "off"] = "auto"
    """auto: online if there is a key (WANDB_API_KEY or a login), else offline."""
    project: str = "lowerbound"
    entity: str | None = None


class Tracker:
    """The null object: takes everything and does nothing."""

    def log(self, row: dict[str, Any], pictures: dict[str, bytes]) -> None:
        """A row of figures at row["images"], and PNG files by name."""

    def commit(self) -> None:
        """A checkpoint is being made: what lies only on this machine's scratch disk goes to the run folder."""

    def finish(self) -> None:
        """The process ends; the run may go on in another."""


class PictureFolder(Tracker):
    """Pictures as files in the run folder."""

    def __init__(self, run: Storage):
        self.run = run

    def log(self, row: dict[str, Any], pictures: dict[str, bytes]) -> None:
        for name, png in pictures.items():
            self.run.write(f"pictures/{name}-{row['images']:012d}.png", png)


class WandbTracker(Tracker):
    """One W&B run for the life of the run folder, on an axis of images.

    A replay after a restart computes the same rows again; `wandb/sent` holds the image count up to which rows have been
    handed over, so that they are not sent twice.
    """

    def __init__(self, run: Storage, config: TrackingConfig, settings: dict[str, Any], say: Callable[[str], None]):
        import wandb

        self.run, self.say = run, say
        self.scratch = None if run.local_path() else TemporaryDirectory(prefix="lowerbound-wandb-")
        folder = Path(self.scratch.name) if self.scratch else run.local_path() or Path()
        self.files = folder / "wandb"
        self.files.mkdir(parents=True, exist_ok=True)
        self.sent_file = self.files / "sent"
        self.sent = self._read_sent()
        self.online = config.mode == "online" or (config.mode == "auto" and _has_key())
        # Rows reach the disk within a second, so that a killed process loses next to nothing.
        own = wandb.Settings(x_transaction_log_flush_interval=1.0, silent=True, console="off")
        self.wandb = wandb.init(
            id=self._id(),
            project=config.project,
            entity=config.entity,
            name=run.url.rsplit("/", 1)[-1],
            dir=str(folder),
            config=settings,
            resume="allow",
            mode="online" if self.online else "offline",
            settings=own,
        )
        self.wandb.define_metric("images")
        self.wandb.define_metric("*", step_metric="images")
        if self.online:
            say(f"W&B: {self.wandb.url}")

    def log(self, row: dict[str, Any], pictures: dict[str, bytes]) -> None:
        if row["images"] <= self.sent:
            return
        import wandb
        from PIL import Image

        loaded = {name: wandb.Image(Image.open(io.BytesIO(png))) for name, png in pictures.items()}
        figures = {name: value for name, value in row.items() if isinstance(value, int | float)}
        self.wandb.log(figures | loaded)
        self.sent = row["images"]
        self.sent_file.write_text(str(self.sent))

    def summarise(self, figures: dict[str, float]) -> None:
        """Set figures of the run as a whole, beside its rows."""
        self.wandb.summary.update(figures)

    def commit(self) -> None:
        if self.scratch:
            for path in self.files.rglob("*"):
                if path.is_file() and not path.is_symlink():
                    self.run.write(f"wandb/{path.relative_to(self.files)}", path)

    def finish(self) -> None:
        self.wandb.finish()
        self.commit()
        if not self.online:
            where = self.run.local_path("wandb") or f"a copy of {self.run.url}/wandb"
            self.say(f"W&B is offline: `wandb leet {where}` shows it, `wandb sync {where}/offline-run-*` uploads it")
        if self.scratch:
            self.scratch.cleanup()

    def _id(self) -> str:
        """The id of the run folder's W&B run, made by whoever comes first."""
        self.run.create("wandb-id", uuid.uuid4().hex[:12].encode())
        return self.run.read("wandb-id").decode()

    def _read_sent(self) -> int:
        if self.scratch and self.run.exists("wandb/sent"):
            self.sent_file.write_bytes(self.run.read("wandb/sent"))
        return int(self.sent_file.read_text()) if self.sent_file.exists() else -1


def _has_key() -> bool:
    """Whether this machine is logged in to W&B."""
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"] == "online"
    if os.environ.get("WANDB_API_KEY"):
        return True
    import wandb

    return bool(wandb.login(prompt=False))
