"""The Ray cluster of a command: the one that RAY_ADDRESS names, or a local one for its own lifetime."""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

from jobs.cli import USER_ERRORS

ROOT = Path(__file__).parents[2]

# So that a lost node costs seconds: a silent one is dead after about 8 s (Ray: 64 s) ...
PROMPT = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
# ... and ranks that cannot be placed are given up after so many seconds, to try with fewer.
PATIENCE = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30"}


@contextlib.contextmanager
def ray_cluster(cpus: int) -> Iterator[None]:
    """The cluster that RAY_ADDRESS names (a submitted job has it), else one of this process's own, ended after it.

    One of our own offers `cpus` CPUs, or as many as the machine has if those are more.
    """
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    if os.environ.get("RAY_ADDRESS"):
        import ray

        ray.init()
        yield
        return
    with contextlib.ExitStack() as after:
        folder = after.enter_context(tempfile.TemporaryDirectory(prefix="lb-", ignore_cleanup_errors=True))
        token = Path(folder) / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        # before Ray is imported; its workers would otherwise run at a low priority
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_worker_niceness": "0"}
        os.environ |= {name: value for name, value in PROMPT.items() if name not in os.environ}
        import ray

        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, cpus),
            include_dashboard=True,  # Ray Train asks it for the state of its actors
            dashboard_host="127.0.0.1",
            _temp_dir=folder,
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
        )
        after.callback(ray.shutdown)
        try:
            yield
        except USER_ERRORS:
            # A thread may still wait for the ranks, and Ray ends a process that asks for them after the shutdown: not
            # before the error has been said.
            atexit.register(after.pop_all().close)
            raise
