"""The listeners of rank 0 that a run's metrics and pictures go to."""

from __future__ import annotations

from cluster.storage.storage import Storage
from jobs.config.schema import RunConfig
from trainer.tracking.display import say_on_rank_zero
from trainer.tracking.listener import Listener
from trainer.tracking.trackers import PictureFolder, WandbTracker, lacks_rows


def trackers(config: RunConfig, run: Storage) -> list[Listener]:
    """The listeners of rank 0."""
    if not config.tracking.wanted:
        return [PictureFolder(run)]
    settings = config.model_dump(mode="json")
    return [PictureFolder(run), WandbTracker(run, config.tracking, settings, say_on_rank_zero)]


def catch_up(config: RunConfig, run: Storage) -> None:
    """Send W&B the rows of a finished run that it is missing."""
    if config.tracking.wanted and lacks_rows(run):
        for tracker in trackers(config, run):
            tracker.finish()
