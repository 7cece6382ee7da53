"""Ray's job API in the words of this project: connect, send, follow, stop. A thin layer over ray.job_submission."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.errors import ConfigError

if TYPE_CHECKING:  # Ray takes seconds to import
    from ray.dashboard.modules.job.pydantic_models import JobDetails
    from ray.job_submission import JobStatus, JobSubmissionClient

ROOT = Path(__file__).parents[2]
# They log a line for every file that is left out, and for every connection that ends.
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
    "ray._private.runtime_env.working_dir",
)
STOP_SECONDS = 180  # that a stopped job has to commit before Ray kills it; Ray's own default is 3


def connect(address: str | None) -> JobSubmissionClient:
    """The job API at an address (http://head:8265); None: the one in RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or of this
    machine. Raises ConfigError in one line if there is none, or if it does not take our token.
    """
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    if address:  # Ray lets its variables overrule what was asked for
        os.environ.pop("RAY_ADDRESS", None)
        os.environ["RAY_API_SERVER_ADDRESS"] = address = address if "://" in address else f"http://{address}"
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        where = address or os.environ.get("RAY_API_SERVER_ADDRESS") or "the cluster"
        raise ConfigError(f"{where}: {_token_advice()}") from error
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        found = re.search(r"address: (\S+?)\.?$", str(error))
        where = address or (found[1] if found else "no --address, and none in RAY_API_SERVER_ADDRESS")
        raise ConfigError(
            f"{where}: no Ray cluster answers there; the address is that of its dashboard, http://head:8265"
        ) from error


def _token_advice() -> str:
    have = [name for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH") if os.environ.get(name)]
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return "asks for a token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file with the cluster's token"
    return f"refuses our token, the one in {have[0] if have else '~/.ray/auth_token'}"


def submit(
    client: JobSubmissionClient, job: str, module: str, arguments: Sequence[str], metadata: Mapping[str, str]
) -> str:
    """Send the working directory and start `python -m module arguments` on the cluster; the job's id.

    `metadata["secrets"]` names variables that must stand in the environment of the cluster's machines.
    """
    from trainer.checkpoints.provenance import COMMIT, commit_name  # which imports torch

    command = "exec " + shlex.join(["python", "-m", module, *arguments])
    needed = metadata.get("secrets", "").split()
    checks = [f': "${{{name}:?is not in the environment of the cluster}}" && ' for name in needed]
    try:
        return client.submit_job(
            entrypoint="".join(checks) + command,
            submission_id=job,
            runtime_env={
                "working_dir": str(ROOT),  # Ray leaves out what .gitignore and .rayignore name
                "env_vars": {
                    "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),
                    "PYTHONUNBUFFERED": "1",
                    COMMIT: commit_name(),
                },
            },
            metadata=dict(metadata),
        )
    except (RuntimeError, ValueError) as error:
        text = str(error)
        if "already exists" in text:
            raise ConfigError(f"--name {job}: the cluster has had a job of this name; give another one") from error
        if "exceeds the maximum size" in text:
            raise ConfigError(f"{ROOT}: too large to be sent; name what is not needed in .rayignore") from error
        raise


def running_at(client: JobSubmissionClient, run_url: str) -> str | None:
    """The id of a job on this cluster that has not ended and trains into this run folder."""
    for job in client.list_jobs():
        if job.submission_id and not job.status.is_terminal() and (job.metadata or {}).get("run") == run_url:
            return job.submission_id
    return None


def details(client: JobSubmissionClient, job: str) -> JobDetails:
    """What the cluster knows of a job. Raises ConfigError if it knows of none."""
    try:
        return client.get_job_info(job)
    except RuntimeError as error:
        raise ConfigError(f"{job}: the cluster has no such job; --list shows those it has") from error


def follow(client: JobSubmissionClient, job: str) -> JobStatus:
    """Print a job's log as it comes, until the job has ended; its last status. A broken connection is made again."""
    shown = 0

    async def tail() -> None:
        nonlocal shown
        received = 0
        async for text in client.tail_job_logs(job):
            new = text[max(shown - received, 0) :]  # a new connection sends the log from its beginning
            received += len(text)
            shown = max(shown, received)
            print(new, end="", flush=True)

    while True:
        try:
            asyncio.run(tail())
        except (RuntimeError, OSError) as error:
            print(f"(connection lost: {error}; following again)", flush=True)
        status = details(client, job).status
        if status.is_terminal():
            return status
        time.sleep(1)


def stop(client: JobSubmissionClient, job: str) -> JobStatus:
    """Ask a job to commit and leave, and wait until it has; its last status."""
    status = details(client, job).status
    if not status.is_terminal():
        client.stop_job(job)
    give_up = time.monotonic() + STOP_SECONDS + 30
    while not status.is_terminal() and time.monotonic() < give_up:
        time.sleep(0.5)
        status = details(client, job).status
    return status
