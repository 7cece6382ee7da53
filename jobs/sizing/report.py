"""A prediction as text, and several as a table."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.storage.sizes import format_bytes
from datasets.order.dealing import deal
from datasets.order.streams import memory_needed
from jobs.config.resolved import ResolvedRun
from jobs.sizing.hardware import Hardware
from jobs.sizing.prediction import FREE, Prediction, predict
from jobs.sizing.setting import Setting, of_run
from trainer.images import PatchSpec

SHAPES = 3  # of the images that are listed, the most frequent


def size_report(run: ResolvedRun, hardware: Hardware | None = None) -> str:
    """The sizes of a run, as text. Raises ConfigError in one line if the model does not fit the images."""
    setting = of_run(run)
    epochs = run.config.trainer.images / run.index.images
    more = {
        "images": f"{run.index.images:,} per epoch; {run.config.trainer.images:,} in total, {epochs:.3g} epochs",
        "patches": "" if run.spec.patches is None else _patches(run.spec.patches),
        "loader": _loader(run, setting.ranks[0]),
    }
    return setting_report(setting, hardware or Hardware(), more)


def setting_report(setting: Setting, hardware: Hardware, more: dict[str, str]) -> str:
    """The sizes of a setting on its least number of ranks, as text, with `more` lines."""
    found, trainer = predict(setting, setting.ranks[0], hardware), setting.config.trainer
    least, most = setting.ranks
    ranks = f"{least} rank{'s' * (least > 1)}" if least == most else f"{least} to {most} ranks"
    of = f" of {found.parameters:,}" if found.trained != found.parameters else ""
    lines = {
        "parameters": f"{found.trained:,} trained{of}",
        "memory": _memory(found, setting.precision),
        "fits": _fits(found),
        "traffic": _traffic(found),
        "compute": f"{found.costs.flops / 1e9:.3g} GFLOP per image, forward and backward (matrix products, "
        f"convolutions); {found.costs.flops * trainer.images:.3g} FLOP in total",
        "time": _time(found),
        "images": f"{trainer.images:,} in total",
        "steps": f"{-(-trainer.images // trainer.batch):,} of {trainer.batch} images; {ranks}, at most {found.share} "
        f"images per rank{'' if found.passes == 1 else f' in {found.passes} micro-batches'}",
        "checkpoint": f"{format_bytes(found.state.checkpoint)}, every {trainer.checkpoint_every:,} images; "
        f"{max(trainer.checkpoints.keep, 2)} are kept; {found.state.checkpoint / hardware.store:,.0f} s in the "
        f"background at {format_bytes(hardware.store)}/s",
    }
    return "".join(f"{name:11} {text}\n" for name, text in (lines | more).items() if text)


COLUMNS = ("ranks", "copies of the state", "micro-batch", "peak GiB a rank", "state", "activations", "sent a step, GiB",
           "least ms a step", "images a day", "days")  # fmt: skip


def table(predictions: Sequence[Prediction]) -> str:
    """Predictions for several numbers of ranks, as Markdown."""
    columns = [*COLUMNS, *(["price"] if predictions[0].hardware.price is not None else [])]
    lines = [" | ".join(columns), " | ".join(["---:"] * len(columns))]
    for found in predictions:
        peak = found.peak
        state = peak.weights + peak.gradients + peak.moments + peak.averages
        pace, ranks = found.images_per_day, found.at_once.ranks
        row = [
            f"{ranks:,}",
            f"{ranks // (found.at_once.shard_over or 1)}",
            f"{found.at_once.images} x {found.passes}",
            _gib(peak.total),
            _gib(state),
            _gib(peak.total - state),
            _gib(found.traffic.total),
            f"{1000 * found.least_seconds:,.0f}",
            "" if pace is None else f"{pace / 1e6:,.1f} M",
            "" if pace is None else f"{found.images / pace:,.1f}",
        ]
        if found.hardware.price is not None and found.gpu_hours is not None:
            row.append(f"{found.gpu_hours * found.hardware.price:,.0f}")
        lines.append(" | ".join(row))
    return "".join(f"| {line} |\n" for line in lines)


def _memory(found: Prediction, precision: str) -> str:
    """The device memory of a rank."""
    listed = ", ".join(
        f"{name} {format_bytes(size)}" for name, size in found.peak._asdict().items() if size or name == "gradients"
    )
    images = found.at_once.images
    said = "bfloat16 autocast" if precision == "bf16" else precision
    text = f"{format_bytes(found.peak.total)} per rank at the peak of a step: {listed}"
    text += f"\n{'':11} ({images} image{'s' * (images > 1)} at once in {said}; without the CUDA context and workspaces)"
    return text + (f"\n{'':11} ({found.note})" if found.note else "")


def _fits(found: Prediction) -> str:
    if found.fits is None or found.hardware.memory is None:
        return ""
    of = f"{format_bytes(found.hardware.memory)} of a {found.hardware.gpu}, with {FREE:.0%} left free"
    if not found.fits:
        return f"not even 1 image at once in {of}; use more ranks, trainer.sharding: fsdp or activation_checkpointing"
    whole = ", a rank's whole share," if found.fits == found.share else ""
    return f"{found.fits:,} images at once{whole} in {of}"


def _traffic(found: Prediction) -> str:
    if not found.traffic.total:
        return ""
    listed = ", ".join(f"{name} {format_bytes(size)}" for name, size in found.traffic._asdict().items() if size)
    return f"{format_bytes(found.traffic.total)} sent per rank and step: {listed}"


def _time(found: Prediction) -> str:
    if found.compute_seconds is None or found.images_per_day is None or found.gpu_hours is None:
        return ""
    hardware = found.hardware
    text = (
        f"at least {1000 * found.least_seconds:,.1f} ms per step on {hardware.gpu} "
        f"(compute at the peak {1000 * found.compute_seconds:,.1f} ms, traffic {1000 * found.network_seconds:,.1f} ms "
        f"at {format_bytes(hardware.inside)}/s within a machine and {format_bytes(hardware.network)}/s between "
        f"machines)\n{'':11} {found.images_per_day:,.0f} images per day at an MFU of {hardware.mfu:.0%}; the run takes "
        f"{found.images / found.images_per_day:,.1f} days, {found.gpu_hours:,.0f} GPU-hours"
    )
    return text + ("" if hardware.price is None else f", {found.gpu_hours * hardware.price:,.0f} in all")


def _gib(size: float) -> str:
    return f"{size / 2**30:,.1f}"


def _patches(patches: PatchSpec) -> str:
    """The shapes of the training images, and the share of the tokens that is padding."""
    images = sum(count for *_, count in patches.grids)
    used = sum(rows * columns * count for rows, columns, count in patches.grids)
    listed = ", ".join(
        f"{rows * patches.side} x {columns * patches.side}" for rows, columns, _ in patches.grids[:SHAPES]
    )
    more = f" and {len(patches.grids) - SHAPES:,} more" if len(patches.grids) > SHAPES else ""
    padding = 1 - used / (images * patches.most)
    each = f"{patches.side} x {patches.side}"
    return f"up to {patches.most:,} of {each} pixels an image, {padding:.1%} padding; {listed}{more}"


def _loader(run: ResolvedRun, ranks: int) -> str:
    """The host memory of a rank's loader, when there are `ranks` of them."""
    data = run.config.data
    streams = len(deal(run.streams, ranks, ranks - 1))
    needed = memory_needed(run.index, streams, data.window)
    within = "within" if needed <= data.memory else "above (so that each image is a request of its own)"
    return f"{format_bytes(needed)} of encoded images per rank, {within} data.memory {format_bytes(data.memory)}"
