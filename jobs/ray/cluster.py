"""The Ray cluster of a command: the one that RAY_ADDRESS names, or a local one for its own lifetime."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from shlex import quote
from typing import Any

ROOT = Path(__file__).parents[2]

# A silent node is declared dead after about 8 s; by default after 64 s.
FAST_FAILURE_DETECTION = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
# Seconds before an elastic run retries with fewer ranks when the requested ones cannot be placed.
START_TIMEOUT = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30"}


def _environment() -> dict[str, Any]:
    """The runtime environment of the workers of a local cluster."""
    environment: dict[str, Any] = {"env_vars": {"PYTHONPATH": str(ROOT)}}
    if quote(sys.executable) != sys.executable:  # Ray starts workers by a shell, without quotes
        environment["py_executable"] = quote(sys.executable)
    return environment


@contextlib.contextmanager
def ray_cluster(cpus: int) -> Iterator[None]:
    """Connect to the cluster at RAY_ADDRESS (set for submitted jobs); without it start a local one for the block.

    A local cluster has `cpus` CPUs, or those of the machine if they are more.
    """
    for name, value in START_TIMEOUT.items():
        os.environ.setdefault(name, value)
    if os.environ.get("RAY_ADDRESS"):
        import ray

        ray.init()
        try:
            yield
        finally:
            ray.shutdown()
        return
    with contextlib.ExitStack() as after:
        folder = after.enter_context(tempfile.TemporaryDirectory(prefix="lb-", ignore_cleanup_errors=True))
        token = Path(folder) / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        # Set before Ray is imported. Its workers run at niceness 15 by default.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_worker_niceness": "0"}
        os.environ |= {name: value for name, value in FAST_FAILURE_DETECTION.items() if name not in os.environ}
        import ray

        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, cpus),
            include_dashboard=True,  # Ray Train asks it for the state of its actors
            dashboard_host="127.0.0.1",
            _temp_dir=folder,
            runtime_env=_environment(),
        )
        after.callback(ray.shutdown)
        yield


def has_gpus() -> bool:
    """Whether any node of the connected cluster has a GPU."""
    import ray

    resources: Callable[[], dict[str, float]] = ray.cluster_resources  # untyped in Ray
    return resources().get("GPU", 0) > 0
