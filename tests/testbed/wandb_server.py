"""A W&B server for tests. It answers wandb 0.31 (logging online, resuming a run, syncing an offline run) and
wandb-workspaces (saving a view).

`rows(run)` are the history rows that the server ends up with, by line number, as W&B would show them. Requests that
this server does not know get an empty answer and are recorded in `unknown`.
"""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, unquote, urlsplit

ENTITY = "tester"
HISTORY, EVENTS, OUTPUT = "wandb-history.jsonl", "wandb-events.jsonl", "output.log"


@dataclass
class Run:
    """Everything that one run has sent."""

    name: str  # its id in the URL
    project: str
    group: str | None = None
    job_type: str | None = None
    config: str = "{}"  # JSON
    summary: str = "{}"  # JSON
    lines: dict[str, dict[int, str]] = field(default_factory=dict)  # of the streamed files: line number -> line
    files: dict[str, bytes] = field(default_factory=dict)  # uploaded whole: images, requirements, ...
    exit_code: int | None = None

    @property
    def telemetry(self) -> str:
        """The key "t" that wandb adds to the config, as JSON; a client resumes only a run that has one."""
        added = json.loads(self.config).get("_wandb", {}).get("value", {})
        return json.dumps({"t": added["t"]} if "t" in added else {})

    def count(self, file: str) -> int:
        """Number of lines of a streamed file, counted as W&B does: up to the last one."""
        return max(self.lines.get(file, {}), default=-1) + 1

    def tail(self, file: str) -> str:
        """The last line of a streamed file, as a JSON list of strings."""
        lines = self.lines.get(file, {})
        return json.dumps([lines[max(lines)]] if lines else [])


class WandbServer:
    """Listens at `url`, in threads. While `failing` is a status, every request is answered with it."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.views: list[dict[str, Any]] = []  # as sent; "spec" is JSON
        self.unknown: list[str] = []
        self.failing: int | None = None
        self.refused = 0  # requests answered with `failing`
        self._lock = threading.Lock()
        self._http = _QuietServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"wandb": self}))
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> WandbServer:
        threading.Thread(target=self._http.serve_forever, args=[0.05], daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables for a process that logs to this server."""
        return {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": "local-" + "0123456789" * 4,
            "WANDB_MODE": "online",
            "WANDB_SILENT": "true",
        }

    def rows(self, run: str) -> list[dict[str, Any]]:
        """The history of a run, one dict per row; [] for an unknown run."""
        lines = self.runs[run].lines.get(HISTORY, {}) if run in self.runs else {}
        return [json.loads(lines[number]) for number in sorted(lines)]

    # ---- requests of a client; each method returns the JSON of the answer

    def graphql(self, query: str, variables: dict[str, Any], base: str) -> dict[str, Any]:
        operation = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = operation[1] if operation else query[:60]
        answers: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "Viewer": self._viewer,
            "UpsertBucket": self._upsert,
            "RunResumeStatus": self._resume_status,
            "CreateRunFiles": lambda asked: self._create_files(asked, base),
            "UpsertView2": self._upsert_view,
            "View": self._view,
            "OrganizationCoreWeaveOrganizationID": lambda _: {"entity": None},
        }
        with self._lock:
            if name not in answers:
                self.unknown.append(name)
                return {"data": {}}
            return {"data": answers[name](variables)}

    def file_stream(self, project: str, run: str, sent: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            kept = self._run(run, project)
            for file, chunk in (sent.get("files") or {}).items():
                content = chunk.get("content") or []
                if file == "wandb-summary.json":
                    kept.summary = content[-1]
                else:
                    kept.lines.setdefault(file, {}).update(enumerate(content, chunk.get("offset", 0)))
            if sent.get("complete"):
                kept.exit_code = sent.get("exitcode")
        return {"exitcode": None, "limits": {}}

    def upload(self, run: str, name: str, data: bytes) -> dict[str, Any]:
        with self._lock:
            self.runs[run].files[name] = data
        return {}

    def _run(self, name: str, project: str) -> Run:
        return self.runs.setdefault(name, Run(name, project))

    def _viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        user = {"id": "VXNlcjox", "username": ENTITY, "entity": ENTITY, "email": "tester@example.org", "flags": "{}"}
        return {"viewer": {**user, "teams": {"edges": []}}}

    def _upsert(self, asked: dict[str, Any]) -> dict[str, Any]:
        name, project = asked["name"], asked.get("project") or "uncategorized"
        inserted = name not in self.runs
        run = self._run(name, project)
        run.config = asked.get("config") or run.config
        run.group, run.job_type = asked.get("groupName") or run.group, asked.get("jobType") or run.job_type
        home = {"id": "UHJvamVjdA==", "name": project, "entity": {"id": "RW50aXR5", "name": ENTITY}}
        bucket = {"id": f"run:{name}", "name": name, "displayName": asked.get("displayName") or name, "project": home}
        rest = {"description": None, "config": run.config, "sweepName": None, "historyLineCount": run.count(HISTORY)}
        return {"upsertBucket": {"bucket": {**bucket, **rest}, "inserted": inserted}}

    def _upsert_view(self, asked: dict[str, Any]) -> dict[str, Any]:
        number = int(asked["id"].removeprefix("view:")) if asked.get("id") else len(self.views) + 1
        self.views[number - 1 :] = [asked, *self.views[number:]]
        return {"upsertView": {"view": {"id": f"view:{number}", "name": asked["name"]}, "inserted": "id" not in asked}}

    def _view(self, asked: dict[str, Any]) -> dict[str, Any]:
        found = [
            {"node": {"id": f"view:{number}", "displayName": view["displayName"], "spec": view["spec"]}}
            for number, view in enumerate(self.views, 1)
            if view["name"] == asked["viewName"]
        ]
        return {"project": {"allViews": {"edges": found}}}

    def _resume_status(self, asked: dict[str, Any]) -> dict[str, Any]:
        home = {"name": asked.get("project"), "entity": {"name": ENTITY}}
        if (run := self.runs.get(asked["name"])) is None:
            return {"model": {**home, "bucket": None}}
        bucket = {
            "name": run.name,
            "displayName": run.name,
            "config": run.config,
            "wandbConfig": run.telemetry,
            "summaryMetrics": run.summary,
            "historyLineCount": run.count(HISTORY),
            "eventsLineCount": run.count(EVENTS),
            "logLineCount": run.count(OUTPUT),
            "historyTail": run.tail(HISTORY),
            "eventsTail": run.tail(EVENTS),
            "tags": [],
            "notes": None,
        }
        return {"model": {**home, "bucket": bucket}}

    def _create_files(self, asked: dict[str, Any], base: str) -> dict[str, Any]:
        run = asked["run"]
        self._run(run, asked["project"])
        files = [{"name": name, "uploadUrl": f"{base}/uploads/{run}/{quote(name)}"} for name in asked["files"]]
        return {"createRunFiles": {"runID": f"run:{run}", "uploadHeaders": [], "files": files}}


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Clients close connections when they are done."""


class _Handler(BaseHTTPRequestHandler):
    wandb: WandbServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.wandb.failing:
            self.wandb.refused += 1
            self._answer(self.wandb.failing, {"error": "on purpose"})
            return
        path = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if path == ["graphql"]:
            asked = json.loads(body)
            base = f"http://{self.headers['Host']}"  # as the client sees it, through a proxy or not
            self._answer(200, self.wandb.graphql(asked["query"], asked.get("variables") or {}, base))
        elif path[0] == "files" and path[-1] == "file_stream":
            self._answer(200, self.wandb.file_stream(path[2], path[3], json.loads(body)))
        elif path[0] == "uploads":
            self._answer(200, self.wandb.upload(path[1], "/".join(path[2:]), body))
        elif path[:2] == ["sdk", "otel"]:
            self._answer(200, {})  # the client's own telemetry
        else:
            self.wandb.unknown.append(f"{self.command} {self.path}")
            self._answer(404, {})

    def do_PUT(self) -> None:
        self.do_POST()

    def do_GET(self) -> None:
        self.do_POST()

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
