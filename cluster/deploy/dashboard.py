"""Create the W&B workspace view of a project.

    python -m cluster.deploy.dashboard --entity NAME [--project NAME]

With --view URL the panels of an existing view are replaced. Needs the package wandb-workspaces and a W&B key.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace


class PanelLine(NamedTuple):
    """A plot against images seen."""

    title: str
    metrics: tuple[str, ...] = ()
    every: str = ""  # instead of `metrics`: a regular expression, for names that depend on the model
    stacked: bool = False


BOUND = (
    PanelLine("bits per dimension", ("train/bpd", "validation/bpd")),
    PanelLine("negative bound, nats per image", ("train/nats", "validation/nats")),
    PanelLine("rate per level, nats (training, raw weights)", every="^train/rate/.*", stacked=True),
    PanelLine("rate per level, nats (validation, averaged weights)", every="^validation/rate/.*", stacked=True),
    PanelLine("distortion, nats per image", ("train/distortion", "validation/distortion")),
)
PICTURES = ("samples", "reconstructions")
MACHINE = (
    PanelLine("images per second, all ranks", ("images_per_second",)),
    PanelLine("images per second and GPU", ("images_per_second_per_device",)),
    PanelLine("MFU: fraction of peak FLOP/s used by the model", ("mfu",)),
    PanelLine("fraction of time waiting for data", ("data_wait",)),
    PanelLine("seconds stalled by checkpoints, since the last row", ("checkpoint_stall",)),
    PanelLine("restarts", ("restarts",)),
    PanelLine("quarantined images", ("data/quarantined",)),
    PanelLine("samples of the shards", ("data/samples", "data/indexed", "data/quarantined_by_index")),
    PanelLine("gradient norm", ("train/gradient_norm",)),
    PanelLine("learning rate", ("train/lr",)),
    PanelLine("skipped steps", ("train/skipped",)),
)


def workspace(entity: str, project: str) -> Workspace:
    """The view, not saved yet."""
    from wandb_workspaces import workspaces
    from wandb_workspaces.reports.v2.interface import LinePlot, MediaBrowser

    def plot(line: PanelLine) -> LinePlot:
        return LinePlot(
            title=line.title,
            x="images",
            y=list(line.metrics),
            metric_regex=line.every or None,
            plot_type="stacked-area" if line.stacked else "line",
        )

    pictures: list[Any] = [MediaBrowser(title=name, media_keys=[name]) for name in PICTURES]
    sections = [
        workspaces.Section(name="Bound", panels=[plot(line) for line in BOUND], is_open=True),
        workspaces.Section(name="Pictures (averaged weights)", panels=pictures, is_open=True),
        workspaces.Section(name="Machine", panels=[plot(line) for line in MACHINE], is_open=True),
    ]
    return workspaces.Workspace(entity=entity, project=project, name="lowerbound", sections=sections)


def updated(url: str, view: Workspace) -> Workspace:
    """The existing view at `url` with the panels of `view`. Raises ValueError if there is none."""
    from wandb_workspaces import workspaces

    existing: Workspace = workspaces.Workspace.from_url(url)
    existing.sections = view.sections
    return existing


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m cluster.deploy.dashboard", description=__doc__.partition(":")[0])
    parser.add_argument("--entity", required=True, help="W&B user or team")
    parser.add_argument("--project", default="lowerbound", help="default: %(default)s")
    parser.add_argument("--view", metavar="URL", help="view to update (default: create one)")
    options = parser.parse_args(arguments)
    try:
        view = workspace(options.entity, options.project)
        if options.view:
            view = updated(options.view, view)
    except ModuleNotFoundError:
        sys.exit("error: wandb-workspaces is not installed: .venv/bin/uv pip install wandb-workspaces")
    except ValueError as error:
        sys.exit(f"error: --view {options.view}: {error}; give the URL of a saved view of the project")
    save: Any = view.save  # untyped
    print(save().url)


if __name__ == "__main__":
    main(sys.argv[1:])
