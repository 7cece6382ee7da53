"""Submit a training run to a Ray cluster; list, follow and stop jobs.

    python -m jobs.submit CONFIG [key=value ...] [--address http://head:8265] [--workers 4 | 1-8] [--follow]
    python -m jobs.submit --list | --logs ID [--follow] | --stop ID

Checks everything that can be checked from here before submitting. Without the checks, with Ray alone:
`ray job submit --working-dir . -- python -m jobs.train CONFIG [key=value ...]`.

Secrets are not sent: the machines of the cluster have them in their environment, which ranks inherit. A job carries at
most their names (--secret), and does not start if one is missing.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import yaml

from cluster.storage.errors import StorageError
from cluster.storage.storage import Storage, is_local
from jobs.cli import config_parser, run
from jobs.errors import ConfigError
from jobs.ray.submissions import ROOT, connect, details, follow, running_at, stop, submit
from jobs.sizing.hardware import add_options, hardware_of

if TYPE_CHECKING:  # listing and following jobs needs no PyTorch
    from ray.job_submission import JobStatus, JobSubmissionClient

    from jobs.config.resolved import ResolvedRun
    from jobs.config.schema import RunConfig


def main(arguments: Sequence[str]) -> int:
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)
    if options.list:
        return _list(connect(options.address))
    if options.stop:
        client = connect(options.address)
        return _ended(client, options.stop, stop(client, options.stop))
    if options.logs:
        client = connect(options.address)
        if options.follow:
            return _follow(client, options.logs)
        details(client, options.logs)
        print(client.get_job_logs(options.logs), end="")
        return 0
    if not options.config:
        parser.error("give a CONFIG, or --list, --logs ID, --stop ID")
    overrides = [*options.overrides, *_ray_overrides(options)]
    resolved, sent = checked(options.config, overrides)
    for warning in resolved.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if options.dry_run:
        from jobs.sizing.report import size_report

        print(size_report(resolved, hardware_of(options)), end="")
        return 0
    config = resolved.config
    secrets = sorted({*options.secret, *(["WANDB_API_KEY"] if config.tracking.mode == "online" else [])})
    if wrong := next((name for name in secrets if not re.fullmatch(r"[A-Za-z_]\w*", name)), None):
        # Not printed in full: it may be the secret itself.
        raise ConfigError(f"--secret {wrong[:4]}...: give the name of a variable, not its value")
    check_run_folder(resolved)
    client = connect(options.address)
    if other := running_at(client, config.run):
        raise ConfigError(f"{config.run}: job {other} is training this run; stop it first: --stop {other}")
    name = options.name or f"{config.run.rsplit('/', 1)[-1]}-{time.strftime('%m%d-%H%M%S')}"
    metadata = {"run": config.run, "secrets": " ".join(secrets)}
    job = submit(client, name, "jobs.train", [relative(options.config), *sent], metadata)
    _print_job(client, job, config)
    return _follow(client, job) if options.follow else 0


# ---- before submitting


def checked(path: str, overrides: Sequence[str]) -> tuple[ResolvedRun, list[str]]:
    """The run, and the overrides with which the cluster reads the same from the same file: local paths absolute.

    Raises ConfigError, DataError or StorageError in one line if the run could not start.
    """
    import torch

    from datasets.order.dealing import deal
    from jobs.config.loading import load_config
    from jobs.config.resolved import resolve
    from trainer.checkpoints.warm_start import check_fits

    relative(path)
    config = load_config(path, overrides)
    changed = absolute_paths(config)
    for url in _urls(config):
        if "://" in url and (urlsplit(url).username or urlsplit(url).password):
            raise ConfigError(
                f"{re.sub('://.*@', '://...@', url)}: contains a user name or password, which would be visible to "
                "everybody who sees the job; set credentials in the environment of the cluster's machines"
            )
    resolved = resolve(config, gpu=config.ray.gpus_per_worker != 0)
    most = config.ray.workers if isinstance(config.ray.workers, int) else config.ray.workers[1]
    deal(resolved.streams, most, 0)
    with torch.device("meta"):
        model = resolved.build_model()
    if resolved.config.init_from:
        check_fits(model, resolved.config.init_from)
    return resolved, [*overrides, *changed]


def absolute_paths(config: RunConfig) -> list[str]:
    """Overrides that make the local paths of a configuration absolute."""
    from jobs.config.resolved import with_absolute_paths

    before, after = _paths(config), _paths(with_absolute_paths(config))
    return [f"{key}={_flow(value)}" for key, value in after.items() if value != before[key]]


def check_run_folder(resolved: ResolvedRun) -> None:
    """Raises StorageError if the run's folder cannot be written, ConfigError if it holds another run."""
    from jobs.config.loading import config_of
    from jobs.config.resume import completed, difference, fixed_settings

    config = resolved.config
    folder = Storage(config.run)
    try:
        saved = config_of(folder)
    except ConfigError:  # no run yet, or one of another version, which the job reports itself
        saved = config
    if differs := difference(completed(fixed_settings(saved), config), fixed_settings(config)):
        raise ConfigError(f"{config.run}: {differs}; use another run folder (run=...), or the run's own settings")
    probe = f"submit-check-{os.getpid()}"
    folder.write(probe, b"written and deleted by jobs.submit")
    folder.delete(probe)


def relative(path: str) -> str:
    """The path of a configuration relative to the root of what is uploaded."""
    try:
        return str(Path(path).resolve().relative_to(ROOT))
    except ValueError as error:
        raise ConfigError(f"{path}: is outside {ROOT}, which is uploaded to the cluster; copy it there") from error


def _paths(config: RunConfig) -> dict[str, object]:
    """The values that `with_absolute_paths` may change, by dotted key."""
    values = config.model_dump(mode="json")
    found = {"run": values["run"], "init_from": values["init_from"]}
    found |= {f"data.{name}": value for name, value in values["data"].items()}
    return found | {f"model.{name}": values["model"][name] for name in ("vae",) if name in values["model"]}


def _urls(config: RunConfig) -> list[str]:
    data = config.data
    found = [config.run, config.init_from or "", data.shards, data.index, data.validation, data.validation_index]
    found += [url for mixed in data.mixture for url in (mixed.shards, mixed.index)]
    return [url for entry in found for url in ((entry,) if isinstance(entry, str) else entry)]


def _ray_overrides(options: argparse.Namespace) -> list[str]:
    found = []
    if options.workers:
        least, dash, most = options.workers.partition("-")
        if not least.isdigit() or (dash and not most.isdigit()):
            raise ConfigError(f"--workers {options.workers}: must be a number, as in 4, or a range, as in 1-8")
        found.append(f"ray.workers=[{least},{most}]" if dash else f"ray.workers={least}")
    if options.gpus_per_worker is not None:
        found.append(f"ray.gpus_per_worker={options.gpus_per_worker}")
    return found


def _flow(value: object) -> str:
    """A value as YAML on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()


# ---- after submitting


def _print_job(client: JobSubmissionClient, job: str, config: RunConfig) -> None:
    here = f"python -m jobs.submit --address {client.get_address()}"
    print(f"submitted {job}")
    print(f"run:       {config.run}")
    if is_local(config.run):
        print("           (a folder that every machine of the cluster must have at this path)")
    print(f"dashboard: {client.get_address()}/#/jobs/{job}")
    if config.tracking.mode in ("auto", "online"):
        print(f"W&B:       {_wandb_address(config)}")
    print(f"follow it: {here} --logs {job} --follow")
    print(f"stop it:   {here} --stop {job}", flush=True)


def _wandb_address(config: RunConfig) -> str:
    """The address of the run's W&B page, as far as it is known here."""
    from trainer.tracking.wandb_run import run_id

    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").replace("//api.wandb.ai", "//wandb.ai")
    entity = config.tracking.entity or os.environ.get("WANDB_ENTITY")
    name = run_id(Storage(config.run))
    if entity is None:
        return f"run {name} of project {config.tracking.project}; its log prints the address"
    return f"{server}/{entity}/{config.tracking.project}/runs/{name}"


def _follow(client: JobSubmissionClient, job: str) -> int:
    """Print the log until the job ends. Ctrl-C asks whether to stop the job."""
    details(client, job)
    while True:
        try:
            return _ended(client, job, follow(client, job))
        except KeyboardInterrupt:
            print()
            if not sys.stdin.isatty() or input(f"stop job {job} as well? [y/N] ").strip().lower() not in ("y", "yes"):
                print(f"{job} continues; follow it with --logs {job} --follow")
                return 0
            print("stopping it, after a commit")
            client.stop_job(job)


def _ended(client: JobSubmissionClient, job: str, status: JobStatus) -> int:
    print(f"{job}: {status.lower()}{_newest_commit(client, job)}")
    return 0 if status in ("SUCCEEDED", "STOPPED") else 1


def _newest_commit(client: JobSubmissionClient, job: str) -> str:
    """The run's newest commit in words, if the store can be reached from here."""
    from trainer.checkpoints.lineage import Lineage

    run_url = (details(client, job).metadata or {}).get("run")
    try:
        commit = next(iter(Lineage(Storage(run_url)).history()), None) if run_url else None
    except StorageError:
        return ""
    return f"; newest commit after {commit.images:,} images" if commit else ""


def _list(client: JobSubmissionClient) -> int:
    jobs = sorted((job for job in client.list_jobs() if job.submission_id), key=lambda job: job.start_time or 0)
    for job in jobs:
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime((job.start_time or 0) / 1000))
        print(f"{job.submission_id:32} {job.status:9} {began}  {(job.metadata or {}).get('run', job.entrypoint)}")
    if not jobs:
        print("no jobs")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = config_parser("submit", __doc__, optional=True)
    parser.add_argument("--address", help="dashboard of the cluster (default: RAY_API_SERVER_ADDRESS)")
    parser.add_argument("--workers", metavar="N | MIN-MAX", help="ranks (ray.workers)")
    parser.add_argument("--gpus-per-worker", type=int, metavar="N", help="ray.gpus_per_worker")
    parser.add_argument("--name", help="job id (default: name of the run folder and time)")
    parser.add_argument("--secret", action="append", default=[], metavar="NAME", help="variable the cluster must have")
    parser.add_argument("--follow", action="store_true", help="print the log until the job ends")
    parser.add_argument("--dry-run", action="store_true", help="submit nothing; print the sizes of the run")
    add_options(parser)
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--list", action="store_true", help="list the cluster's jobs")
    other.add_argument("--logs", metavar="ID", help="print a job's log")
    other.add_argument("--stop", metavar="ID", help="stop a job, after a commit")
    return parser


if __name__ == "__main__":
    run(main)
