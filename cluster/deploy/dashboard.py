"""Create the W&B workspace view of a project.

    python -m cluster.deploy.dashboard --entity NAME [--project NAME]

With --view URL the panels of a view that was made before are made anew. Needs the package wandb-workspaces and
a W&B key. Panels are made only for figures that a run logs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace


class Line(NamedTuple):
    """A plot over images seen."""

    title: str
    metrics: tuple[str, ...] = ()
    every: str = ""  # in place of `metrics`: a regular expression, for names that depend on the model
    stacked: bool = False


BOUND = (
    Line("bits per dimension", ("train/bpd", "validation/bpd")),
    Line("negative bound, nats an image", ("train/nats", "validation/nats")),
    Line("rates of the levels, nats (training, raw weights)", every="^train/rate/.*", stacked=True),
    Line("rates of the levels, nats (validation, averaged weights)", every="^validation/rate/.*", stacked=True),
    Line("distortion, nats an image", ("train/distortion", "validation/distortion")),
)
PICTURES = ("samples", "reconstructions")
MACHINE = (
    Line("images a second, all ranks together", ("images_per_second",)),
    Line("images a second, each GPU", ("images_per_second_per_device",)),
    Line("MFU: share of the peak FLOP/s that the model uses", ("mfu",)),
    Line("share of the time that waits for data", ("data_wait",)),
    Line("seconds held up by checkpoints, since the row before", ("checkpoint_stall",)),
    Line("restarts", ("restarts",)),
    Line("quarantined images", ("data/quarantined",)),
    Line("gradient norm", ("train/gradient_norm",)),
    Line("learning rate", ("train/lr",)),
    Line("steps skipped for gradients that are not finite", ("train/skipped",)),
)


def workspace(entity: str, project: str) -> Workspace:
    """The view, not saved yet."""
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as workspaces

    def plot(line: Line) -> reports.LinePlot:
        return reports.LinePlot(
            title=line.title,
            x="images",
            y=list(line.metrics),
            metric_regex=line.every or None,
            plot_type="stacked-area" if line.stacked else "line",
        )

    pictures: list[Any] = [reports.MediaBrowser(title=name, media_keys=[name]) for name in PICTURES]
    sections = [
        workspaces.Section(name="Bound", panels=[plot(line) for line in BOUND], is_open=True),
        workspaces.Section(name="Pictures (averaged weights)", panels=pictures, is_open=True),
        workspaces.Section(name="Machine", panels=[plot(line) for line in MACHINE], is_open=True),
    ]
    return workspaces.Workspace(entity=entity, project=project, name="lowerbound", sections=sections)


def updated(url: str, view: Workspace) -> Workspace:
    """The view at an address with the panels of another one. Raises ValueError if there is none."""
    import wandb_workspaces.workspaces as workspaces

    there = workspaces.Workspace.from_url(url)
    there.sections = view.sections
    return there


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m cluster.deploy.dashboard", description=__doc__.partition(":")[0])
    parser.add_argument("--entity", required=True, help="W&B user or team")
    parser.add_argument("--project", default="lowerbound", help="default: %(default)s")
    parser.add_argument("--view", metavar="URL", help="of a view to bring up to date (default: make another one)")
    options = parser.parse_args(arguments)
    try:
        view = workspace(options.entity, options.project)
        if options.view:
            view = updated(options.view, view)
    except ModuleNotFoundError:
        sys.exit("error: wandb-workspaces is not installed: .venv/bin/uv pip install wandb-workspaces")
    except ValueError as error:
        sys.exit(f"error: --view {options.view}: {error}; the address of a saved view of the project is needed")
    print(view.save().url)


if __name__ == "__main__":
    main(sys.argv[1:])
