"""Stores to test against: a folder of this machine, a bucket of the S3 server, the same behind a faulty network."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.storage.storage import Storage
from tests.testbed.faults import FaultProxy
from tests.testbed.s3 import S3Server


@pytest.fixture
def bucket(s3_environment: S3Server) -> Storage:
    """An empty folder in a bucket."""
    return Storage(f"{s3_environment.bucket('storage')}/{uuid.uuid4()}")


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty folder, once on a local disk and once in a bucket."""
    return Storage(str(tmp_path / "folder")) if request.param == "local" else request.getfixturevalue("bucket")


@pytest.fixture
def proxy(s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy in front of the S3 server, through which stores opened from now on are reached."""
    with FaultProxy(s3_environment.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy
