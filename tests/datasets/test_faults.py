"""Reading from a real object store over a bad network gives the same images, or a one-line error."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.storage.storage import Storage
from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.loading.build import training_batches
from datasets.shards.index import Index
from tests.datasets.small_sets import write_set
from tests.testbed.faults import Fault, FaultProxy

COUNTS = [40, 40, 40]


@pytest.fixture
def sets(s3_environment, tmp_path, monkeypatch):
    """The same set on disk and in a store behind a fault-injecting proxy."""
    local = write_set(tmp_path / "set", COUNTS)
    url = f"{s3_environment.bucket('faults')}/{tmp_path.name}"
    for path in sorted((tmp_path / "set").rglob("*")):
        if path.is_file():
            Storage(url).write(str(path.relative_to(tmp_path / "set")), path)
    monkeypatch.setenv("LOWERBOUND_PATIENCE", "30")
    with FaultProxy(s3_environment.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield local, Index.open(url), proxy


def take(index: Index, steps: int, workers: int = 0) -> list[bytes]:
    config = DataConfig(shards=index.url, streams=4, window=16, workers=workers, cache=0)
    with training_batches(config, index, seed=2, batch=24) as batches:
        return [next(batches).images.numpy().tobytes() for _ in range(steps)]


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", method="GET", path=r"\.tar", status=503, times=3),
        Fault("refuse", method="GET", path=r"\.tar", times=2),
        Fault("reset", method="GET", path=r"\.tar", after=700, times=4),
        Fault("truncate", method="GET", path=r"\.tar", after=900, times=4),
        Fault("corrupt", method="GET", path=r"\.tar", after=600, times=3),
        Fault("corrupt", method="GET", path=r"\.tar", after=1500, share=0.3),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.after}",
)
def test_network_faults_do_not_change_the_images(sets, fault):
    local, remote, proxy = sets
    proxy.add(fault)
    assert take(remote, 10) == take(local, 10)
    assert proxy.faults > 0


def test_network_faults_do_not_change_the_images_of_loader_processes(sets):
    local, remote, proxy = sets
    proxy.add(Fault("reset", path=r"\.tar", after=700, share=0.3))
    proxy.add(Fault("corrupt", path=r"\.tar", after=600, share=0.2))
    assert take(remote, 10, workers=2) == take(local, 10)


def test_a_byte_flipped_in_the_store_is_a_one_line_error(sets, tmp_path):
    _, remote, _ = sets
    shard = tmp_path / "set" / "0001.tar"
    data = bytearray(shard.read_bytes())
    data[data.index(b"IDAT") + 8] ^= 1
    remote.folders[0].storage.write("0001.tar", bytes(data))
    with pytest.raises(DataError, match=r"0001\.tar: sample '000040': png does not match its checksum") as error:
        take(remote, 5)
    assert "\n" not in str(error.value)


def test_an_unreachable_set_is_a_one_line_error(sets, monkeypatch):
    _, remote, proxy = sets
    monkeypatch.setenv("LOWERBOUND_PATIENCE", "0")
    proxy.add(Fault("status", path=r"\.tar", status=403))
    with pytest.raises(OSError, match="access denied") as error:
        take(Index.open(remote.url), 1)
    assert "\n" not in str(error.value)


def test_an_interrupted_read_resumes_where_it_ended(sets, tmp_path):
    """A read of 3 MB that is interrupted twice: bytes received are not fetched again."""
    _, remote, proxy = sets
    blob = Path("/dev/urandom").open("rb").read(3_000_000)  # noqa: SIM115
    remote.folders[0].storage.write("blob", blob)
    proxy.forget()
    proxy.add(Fault("reset", method="GET", path="blob", after=1_000_000, times=2))
    assert bytes(remote.folders[0].storage.read_range("blob", 0, len(blob))) == blob
    assert proxy.sent < 2 * len(blob)
