"""Up to which image count W&B has a run's rows: the truth, whatever died when."""

from __future__ import annotations

import base64
import json
import os
import struct
import urllib.request
from collections.abc import Iterator
from pathlib import Path

_BLOCK, _HEADER = 32 * 1024, struct.Struct("<IHB")  # of the client's log, which is one in LevelDB's format
_WHOLE, _LAST = 1, 4
_START = 7  # bytes of the log's own header

_TAIL = """query RunResumeStatus($project: String, $entity: String, $name: String!) {
  model(name: $project, entityName: $entity) { bucket(name: $name, missingOk: true) { historyTail } } }"""


def images_on_server(entity: str, project: str, run_id: str, timeout: float = 10.0) -> int | None:
    """The image count of the last row that the server has, -1 for none; None if it does not tell."""
    import wandb

    url = wandb.setup().settings.base_url
    key = os.environ.get("WANDB_API_KEY") or wandb.Api(timeout=round(timeout)).api_key
    asked = {"query": _TAIL, "variables": {"entity": entity, "project": project, "name": run_id}}
    login = base64.b64encode(f"api:{key}".encode()).decode()
    headers = {"Content-Type": "application/json", "Authorization": f"Basic {login}"}
    request = urllib.request.Request(f"{url}/graphql", json.dumps(asked).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            bucket = json.load(answer)["data"]["model"]["bucket"]
        tail = json.loads((bucket or {}).get("historyTail") or "[]")
        return max((int(json.loads(line).get("images", -1)) for line in tail), default=-1)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def images_in_files(folder: Path) -> int:
    """The largest image count in the logs that the client has written below a folder, -1 if there is none."""
    from wandb.proto import wandb_internal_pb2

    newest = -1
    for path in folder.glob("*run-*/run-*.wandb"):
        for data in _records(path.read_bytes()):
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            try:
                record.ParseFromString(data)
            except Exception:  # the class is the protobuf library's own, which one depends on how it was built
                break
            for item in record.history.item:
                if (item.key or "/".join(item.nested_key)) == "images":
                    newest = max(newest, int(float(item.value_json)))
    return newest


def _records(log: bytes) -> Iterator[bytes]:
    """The records of a log, as far as it was written."""
    position, record = _START, b""
    while position + _HEADER.size <= len(log):
        left = _BLOCK - position % _BLOCK
        if left < _HEADER.size:
            position += left
            continue
        _, length, kind = _HEADER.unpack_from(log, position)
        position += _HEADER.size
        part = log[position : position + length]
        if kind == 0 or len(part) < length:
            return
        record += part
        position += length
        if kind in (_WHOLE, _LAST):
            yield record
            record = b""
