"""Submit, follow and stop jobs: a thin layer over ray.job_submission with one-line errors."""

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
# They log a line for each excluded file and each closed connection.
_VERBOSE_LOGGERS = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
    "ray._private.runtime_env.working_dir",
)
STOP_SECONDS = 180  # for a stopped job to commit before Ray kills it; Ray's default is 3


def connect(address: str | None) -> JobSubmissionClient:
    """A client of the job API at `address` (http://head:8265); None: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or this
    machine. Raises ConfigError in one line if no cluster answers, or if it rejects our token.
    """
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in _VERBOSE_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    if address:  # Ray's variables would take precedence
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
            f"{where}: no Ray cluster answers; the address must be its dashboard's, http://head:8265"
        ) from error


def _token_advice() -> str:
    have = [name for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH") if os.environ.get(name)]
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return "requires a token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file with the cluster's token"
    return f"rejects the token in {have[0] if have else '~/.ray/auth_token'}"


def submit(
    client: JobSubmissionClient, job: str, module: str, arguments: Sequence[str], metadata: Mapping[str, str]
) -> str:
    """Upload the working directory and start `python -m module arguments` on the cluster; returns the job's id.

    `metadata["secrets"]` names variables that must be set in the environment of the cluster's machines.
    """
    from trainer.checkpoints.provenance import COMMIT, commit_name  # which imports torch

    command = "exec " + shlex.join(["python", "-m", module, *arguments])
    needed = metadata.get("secrets", "").split()
    checks = [f': "${{{name}:?is not set in the environment of the cluster}}" && ' for name in needed]
    try:
        return client.submit_job(
            entrypoint="".join(checks) + command,
            submission_id=job,
            runtime_env={
                "working_dir": str(ROOT),  # without what .gitignore and .rayignore name
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
            raise ConfigError(f"--name {job}: the cluster already has a job of this name; choose another") from error
        if "exceeds the maximum size" in text:
            raise ConfigError(f"{ROOT}: too large to upload; exclude what is not needed in .rayignore") from error
        raise


def running_at(client: JobSubmissionClient, run_url: str) -> str | None:
    """The id of an unfinished job on this cluster that trains in this run folder, if any."""
    for job in client.list_jobs():
        if job.submission_id and not job.status.is_terminal() and (job.metadata or {}).get("run") == run_url:
            return job.submission_id
    return None


def details(client: JobSubmissionClient, job: str) -> JobDetails:
    """The details of a job. Raises ConfigError if the cluster has no such job."""
    try:
        return client.get_job_info(job)
    except RuntimeError as error:
        raise ConfigError(f"{job}: no such job on the cluster; --list shows its jobs") from error


def follow(client: JobSubmissionClient, job: str) -> JobStatus:
    """Print a job's log until the job ends; returns its final status. Reconnects after a lost connection."""
    shown = 0

    async def tail() -> None:
        nonlocal shown
        received = 0
        async for text in client.tail_job_logs(job):
            new = text[max(shown - received, 0) :]  # a new connection sends the whole log again
            received += len(text)
            shown = max(shown, received)
            print(new, end="", flush=True)

    while True:
        try:
            asyncio.run(tail())
        except (RuntimeError, OSError) as error:
            print(f"(connection lost: {error}; reconnecting)", flush=True)
        status = details(client, job).status
        if status.is_terminal():
            return status
        time.sleep(1)


def stop(client: JobSubmissionClient, job: str) -> JobStatus:
    """Ask a job to commit and stop, and wait for it; returns its last status."""
    status = details(client, job).status
    if not status.is_terminal():
        client.stop_job(job)
    deadline = time.monotonic() + STOP_SECONDS + 30
    while not status.is_terminal() and time.monotonic() < deadline:
        time.sleep(0.5)
        status = details(client, job).status
    return status
