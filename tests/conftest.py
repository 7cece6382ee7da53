"""Fixtures of all tests: the servers of the test bed, a clean environment, one thread."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.testbed.s3 import S3Server

_FOREIGN = re.compile(r"(AWS|WANDB|RAY|GOOGLE|AZURE)_|(HTTPS?|ALL)_PROXY$", re.IGNORECASE)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A running S3-compatible store; processes reach it with `s3.environment`, tests with `s3_environment`."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.close()


@pytest.fixture
def s3_environment(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The S3 store, with its address and keys in this process's environment for the length of a test."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return s3
