"""Fixtures of all tests: the servers of the test bed, a clean environment, one thread."""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections.abc import Iterator, MutableMapping
from pathlib import Path

import pytest

from tests.testbed.processes import REPOSITORY
from tests.testbed.s3 import S3Server
from tests.testbed.wandb_server import WandbServer

# What would let a developer's own accounts, clusters or proxies take part in a test.
_PERSONAL = re.compile(r"(AWS|AZURE|GOOGLE|RAY|WANDB)_|(HTTPS?|ALL)_PROXY$", re.IGNORECASE)

# Sums of one thread are the same sums every time. Set before torch is imported; children inherit it.
os.environ.update(
    OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", NO_PROXY="127.0.0.1,localhost", no_proxy="127.0.0.1,localhost"
)


def _personal(environment: MutableMapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if _PERSONAL.match(name)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ray's tests come first: they take longest, and the other process has the rest meanwhile."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)


@pytest.fixture(scope="module")
def only_ray() -> Iterator[None]:
    """Of several test processes one at a time starts Ray: two clusters on a machine can find each other."""
    with open(Path(tempfile.gettempdir()) / "lowerbound-tests-ray.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session", autouse=True)
def nobodys_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No credentials, addresses or settings of the person who runs the tests, nor keys from the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        for name in _personal(os.environ):
            patch.delenv(name)
        patch.setenv("LOWERBOUND_PATIENCE", "20")  # seconds for a store that is away: an outage is over sooner
        patch.setenv("NETRC", os.devnull)  # where wandb looks for a key
        patch.setenv("WANDB_CONFIG_DIR", str(tmp_path_factory.mktemp("wandb-settings")))
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        yield


@pytest.fixture(autouse=True)
def nobodys_test(nobodys_session: None) -> Iterator[None]:
    """Variables of accounts and clusters that a test sets end with that test."""
    before = _personal(os.environ)
    yield
    for name in _personal(os.environ).keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of published data sets beside the repository (idx and CIFAR-10 files); skips where it is absent."""
    folder = (REPOSITORY / ".." / "shared" / "data").resolve()
    if not folder.is_dir():
        pytest.skip(f"{folder}: the published data sets are not on this machine")
    return folder


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


@pytest.fixture
def wandb_server() -> Iterator[WandbServer]:
    """A W&B server without runs; processes log to it with `wandb_server.environment`."""
    with WandbServer() as server:
        yield server
