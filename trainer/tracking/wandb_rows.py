"""How far W&B has a run's rows: by its server or by the files of its client, whatever process died when."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

from cluster.storage.json_files import MOST_JSON_BYTES, parse_json

_LEET_SECONDS = 120.0
_MOST = 1 << 53
MOST_LOG_BYTES = 1 << 30

_TAIL = """query RunResumeStatus($project: String, $entity: String, $name: String!) {
  model(name: $project, entityName: $entity) { bucket(name: $name, missingOk: true) { historyTail } } }"""


class RowPlace(NamedTuple):
    """Where a row stands in the order in which a run makes its rows."""

    rollbacks: int  # a rollback repeats image counts
    images: int
    is_evaluation: bool  # a row of its own, after the row of training at the same count


BEFORE_ALL = RowPlace(0, -1, False)


def place(row: Mapping[str, Any]) -> RowPlace:
    """The place of a row of metrics, or of the same row at W&B; BEFORE_ALL for a row of something else."""
    images, rollbacks = row.get("images"), row.get("rollbacks", 0)
    if not all(isinstance(value, int | float) and 0 <= value < _MOST for value in (images, rollbacks)):
        return BEFORE_ALL
    return RowPlace(int(rollbacks), int(images), "evaluation/seconds" in row)  # type: ignore[arg-type]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Whoever answers with a redirect to another host must not be given the key: it is an error."""

    def redirect_request(self, *_: object) -> None:
        return None


def last_place_on_server(entity: str, project: str, run_id: str, timeout: float = 10.0) -> RowPlace | None:
    """The place of the last row that the server has; None if the server does not answer."""
    import wandb

    # By the query with which the client itself resumes a run. wandb.Api has no last row: `summary` may lag behind the
    # history after a kill, and `scan_history` downloads the history.
    url = wandb.setup().settings.base_url
    key = os.environ.get("WANDB_API_KEY") or wandb.Api(timeout=round(timeout)).api_key
    asked = {"query": _TAIL, "variables": {"entity": entity, "project": project, "name": run_id}}
    login = base64.b64encode(f"api:{key}".encode()).decode()
    headers = {"Content-Type": "application/json", "Authorization": f"Basic {login}"}
    request = urllib.request.Request(f"{url}/graphql", json.dumps(asked).encode(), headers)
    try:
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=timeout) as answer:
            bucket = parse_json(answer.read(MOST_JSON_BYTES))["data"]["model"]["bucket"]
        tail = parse_json((bucket or {}).get("historyTail") or "[]")
        return max((place(parse_json(line)) for line in tail), default=BEFORE_ALL)
    except (OSError, HTTPException, ValueError, KeyError, TypeError, AttributeError):  # also: an answer of another kind
        return None


def logs(names: list[str], run_id: str) -> list[str]:
    """Of the paths below a `wandb` folder, the logs of the processes that logged to a run, the newest first.

    A folder's name has the second in which its process started; the client numbers those of one second (-1, -2, ...).
    """
    ours = re.compile(rf"run-(\d{{8}}_\d{{6}})-{re.escape(run_id)}(?:-(\d+))?/run-{re.escape(run_id)}\.wandb$")
    found = [(match[1], int(match[2] or 0), name) for name in names if (match := ours.search(name))]
    return [name for *_, name in sorted(found, reverse=True)]


def last_place_in_log(path: Path) -> RowPlace:
    """The place of the last row in a log of W&B's client, complete or not; BEFORE_ALL if there is none, or if it cannot
    be read.
    """
    if not path.is_file() or path.stat().st_size > MOST_LOG_BYTES:
        return BEFORE_ALL
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    env = {**os.environ, "WANDB_ERROR_REPORTING": "false"}
    try:
        found = subprocess.run(command, env=env, capture_output=True, timeout=_LEET_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return BEFORE_ALL
    return max(map(_place_of_record, found.stdout.splitlines()), default=BEFORE_ALL)


def _place_of_record(line: bytes) -> RowPlace:
    """The place of a record of a log as JSON; BEFORE_ALL for a record of another kind."""
    try:
        return place(parse_json(line)["history"]["item"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return BEFORE_ALL
