"""Check machines, store and credentials before a run; each check prints ok, or what to do.

    python -m jobs.doctor [CONFIG] [key=value ...]               on a machine of the cluster, or for this machine alone
    python -m jobs.doctor [CONFIG] --address http://head:8265    from elsewhere: as a job on the cluster

A task on each machine of the cluster checks versions, clock, GPUs, shared memory and, with a CONFIG, that it can read
the shards and write the run folder. With GPUs it measures the bandwidth of an NCCL all-reduce.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cluster.storage.storage import Storage, is_local
from datasets.config import DataConfig
from jobs.cli import config_parser, run
from jobs.config.loading import load_config
from jobs.config.resolved import with_absolute_paths
from jobs.config.schema import RunConfig
from jobs.ray.node_report import NodeReport, inspect

CLOCK_SECONDS = 5.0  # largest difference between machines; S3 refuses requests from 15 minutes on
SHARED_MEMORY = 1 << 30  # bytes of /dev/shm below which Ray's object store falls back to slow disks


class Finding(NamedTuple):
    """A row of the report."""

    check: str
    ok: bool
    message: str  # what was found, or what to do


def main(arguments: Sequence[str]) -> int:
    parser = config_parser("doctor", __doc__, optional=True)
    parser.add_argument(
        "--address", help="dashboard of a cluster (default: RAY_API_SERVER_ADDRESS): check from inside it, as a job"
    )
    options = parser.parse_intermixed_args(arguments)
    config = load_config(options.config, options.overrides) if options.config else None
    if not os.environ.get("RAY_ADDRESS"):  # otherwise this is such a job, or a machine of a cluster
        options.address = options.address or os.environ.get("RAY_API_SERVER_ADDRESS")
    if options.address:
        return _as_a_job(options)
    findings = diagnose(with_absolute_paths(config) if config else None)
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        print(f"{'ok  ' if finding.ok else 'BAD '} {finding.check:{width}}  {finding.message}")
    return 0 if all(finding.ok for finding in findings) else 1


def diagnose(config: RunConfig | None) -> list[Finding]:
    """Check the cluster of RAY_ADDRESS, or this machine alone without one."""
    if os.environ.get("RAY_ADDRESS"):
        reached, reports, all_reduce = _inspect_cluster(config)
        if not reports:
            return [reached]
        findings = [reached]
    else:
        reports, all_reduce = [inspect(*_inspected(config))], None
        findings = [Finding("Ray", True, "RAY_ADDRESS is not set: checking this machine alone")]
    findings += nodes_findings(reports, needs_gpu=bool(config and config.ray.gpus_per_worker))
    if all_reduce is not None:
        findings.append(all_reduce)
    if config is not None:
        findings.append(_wandb(config, reports))
        if is_local(config.run):
            findings.append(_same_disk(config.run, reports))
    return findings


def nodes_findings(reports: Sequence[NodeReport], needs_gpu: bool = False) -> list[Finding]:
    """The findings of the machines' reports."""
    seconds = [report.clock_offset for report in reports]
    spread = max(seconds) - min(seconds)
    gpus = sum(report.gpus for report in reports)
    least = min(report.shared_memory for report in reports)
    wanted = reports[0].versions
    findings = [
        _each(
            "versions",
            reports,
            lambda report: _other_versions(report, wanted),
            ", ".join(map(" ".join, wanted.items())),
        ),
        Finding(
            "clock", spread <= CLOCK_SECONDS, f"differs by {spread:.1f} s" + "; run NTP" * (spread > CLOCK_SECONDS)
        ),
        Finding(
            "GPUs", gpus > 0 or not needs_gpu, f"{gpus} in total" + "; the run requests GPUs" * (needs_gpu and not gpus)
        ),
        _each("CUDA", reports, _unusable_gpus, "torch sees every GPU"),
        _each("/dev/shm", reports, _too_little_shared_memory, f"{least / 2**30:.1f} GiB or more"),
    ]
    if any(report.store for report in reports):
        good = "every machine can read the shards and write the run folder"
        findings.append(_each("store", reports, lambda report: report.store.removeprefix("ok"), good))
    return findings


def _each(check: str, reports: Sequence[NodeReport], bad: Callable[[NodeReport], str], good: str) -> Finding:
    """`bad` returns what is wrong with a machine, "" if nothing is."""
    problems = [f"{report.host}: {problem}" for report in reports if (problem := bad(report))]
    return Finding(check, not problems, "; ".join(problems) or good)


def _other_versions(report: NodeReport, wanted: dict[str, str]) -> str:
    found = report.versions
    other = [
        f"{name} {found.get(name)}, not {version}" for name, version in wanted.items() if found.get(name) != version
    ]
    return ", ".join(other) + "; install one image, or one requirements.lock, on all machines" if other else ""


def _unusable_gpus(report: NodeReport) -> str:
    if report.gpus_listed <= report.gpus:
        return ""
    return f"torch uses {report.gpus} of {report.gpus_listed} GPUs: a CPU build, or a driver older than its CUDA"


def _too_little_shared_memory(report: NodeReport) -> str:
    if report.shared_memory >= SHARED_MEMORY:
        return ""
    return f"{report.shared_memory / 2**30:.1f} GiB free; increase it (docker --shm-size, kuberay shm)"


# ---- the cluster


def _inspect_cluster(config: RunConfig | None) -> tuple[Finding, list[NodeReport], Finding | None]:
    """Whether the cluster can be reached, its machines' reports, and the all-reduce (None without GPUs)."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ray.exceptions.RaySystemError, ray.exceptions.AuthenticationError) as error:
        message = f"{os.environ['RAY_ADDRESS']}: {str(error).splitlines()[0]}; check that the head runs, and the token"
        return Finding("Ray", False, message), [], None
    list_nodes: Callable[[], list[dict[str, Any]]] = ray.nodes  # untyped in Ray
    resources: Callable[[], dict[str, float]] = ray.cluster_resources
    nodes = [node for node in list_nodes() if node["Alive"]]
    ask = ray.remote(num_cpus=0)(_timed_inspect)
    reports, lost, began = [], [], time.time()
    pending = {
        node["NodeManagerAddress"]: ask.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(*_inspected(config))
        for node in nodes
    }
    for host, reference in pending.items():
        try:
            report, clock = ray.get(reference, timeout=120)
        except (ray.exceptions.RayError, TimeoutError) as error:
            lost.append(f"{host}: {type(error).__name__}")
            continue
        # The task read its clock at some time between the request and now.
        offset = max(0.0, clock - time.time()) + min(0.0, clock - began)
        reports.append(report._replace(clock_offset=offset))
    message = f"{len(reports)} machines, Ray {ray.__version__}"
    if lost:
        message += f"; no answer from {', '.join(lost)}: see `ray status` and the machine's own log"
    return Finding("Ray", not lost, message), reports, _all_reduce(resources().get("GPU", 0))


def _inspected(config: RunConfig | None) -> tuple[str | None, DataConfig | None]:
    return (config.run, config.data) if config else (None, None)


def _timed_inspect(run: str | None, data: DataConfig | None) -> tuple[NodeReport, float]:
    return inspect(run, data), time.time()


def _all_reduce(gpus: float) -> Finding | None:
    """The bandwidth of an all-reduce over all GPUs; None with fewer than two."""
    if gpus < 2:
        return None
    import ray.train
    from ray.train.torch import TorchTrainer

    from jobs.ray.node_report import all_reduce_bandwidth

    scaling = ray.train.ScalingConfig(num_workers=int(gpus), use_gpu=True)
    found: dict[str, float] = {}
    try:
        result = TorchTrainer(all_reduce_bandwidth, scaling_config=scaling).fit()
        found = result.metrics or {}
    except Exception as error:  # any failure of a rank is a finding
        return Finding("NCCL", False, f"all-reduce failed ({str(error).splitlines()[0]}); try NCCL_DEBUG=INFO")
    return Finding("NCCL", True, f"all-reduce over {int(gpus)} GPUs: {found['gigabytes_per_second']:.1f} GB/s (bus)")


def _wandb(config: RunConfig, reports: Sequence[NodeReport]) -> Finding:
    without = [report.host for report in reports if not report.wandb_key]
    if config.tracking.mode in ("off", "offline"):
        return Finding("W&B", True, f"tracking.mode={config.tracking.mode}: no key needed")
    if not without:
        return Finding("W&B", True, "every machine has a key")
    message = f"no WANDB_API_KEY on {', '.join(without)}"
    if config.tracking.mode == "auto":
        return Finding("W&B", True, f"{message}: metrics stay in the run folder until `wandb sync`")
    return Finding("W&B", False, f"{message}; set it in the environment of the machines (kuberay: the Secret)")


def _same_disk(run: str, reports: Sequence[NodeReport]) -> Finding:
    """Whether all machines wrote to the same local folder."""
    names = {report.probe for report in reports if report.probe}
    seen = {path.name for path in Path(run).glob("doctor-*")} if Path(run).is_dir() else set()
    for name in names & seen:
        Storage(run).delete(name)
    shared = names <= seen
    message = "one folder on all machines" if shared else "not shared by all machines; use shared storage or a URL"
    return Finding("run folder", shared, f"{run} is {message}")


def _as_a_job(options: argparse.Namespace) -> int:
    from jobs.ray.submissions import connect, follow, submit

    client = connect(options.address)
    arguments: list[str] = []
    if options.config:
        from jobs.submit import absolute_paths, relative

        changed = absolute_paths(load_config(options.config, options.overrides))
        arguments = [relative(options.config), *options.overrides, *changed]
    job = submit(client, f"doctor-{time.strftime('%m%d-%H%M%S')}", "jobs.doctor", arguments, {})
    return 0 if follow(client, job) == "SUCCEEDED" else 1


if __name__ == "__main__":
    run(main)
