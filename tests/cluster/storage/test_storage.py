"""Storage behaves the same on a local disk and in a real S3-compatible store."""

import itertools
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.storage.errors import MissingError, StorageError
from cluster.storage.storage import Storage, absolute, is_local, join
from tests.testbed.processes import REPOSITORY
from tests.testbed.s3 import PAGE

NAMES = ["a b", "100%", "a%20b", "a+b", "a#b", "a?b=c&d", "it's", 'x"y', "x:y", "~", "ünï-日本", "very/deep/a b/c#d"]


def python(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own, from the repository's root."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)


# ---- objects


@pytest.mark.parametrize("size", [0, 1, 65_537, 11_000_000])
def test_written_bytes_are_read_back(storage, size):
    data = os.urandom(size)
    storage.write("a/b", data)
    assert storage.read("a/b") == data
    storage.write("a/b", memoryview(b"another"))
    assert storage.read("a/b") == b"another"


def test_a_range_has_exactly_the_requested_bytes(storage):
    data = os.urandom(100_000)
    storage.write("o", data)
    for start, stop in [(0, 1), (0, 100_000), (99_999, 100_000), (12_345, 67_890), (500, 500)]:
        assert storage.read_range("o", start, stop) == data[start:stop]
    assert storage.read_range("o", 99_990, 100_010) == data[99_990:]


@pytest.mark.parametrize("name", ["50% #x", "a?b=c&d", "naïve~[x]", "a%20b", "deep/er/o"])
def test_a_range_is_read_by_the_name_that_was_written(storage, name):
    storage.write(name, b"12345")
    assert storage.read_range(name, 1, 3) == b"23"
    assert storage.read(name) == b"12345"


def test_a_range_of_a_file_outside_the_folder_is_refused(tmp_path):
    (tmp_path / "secret").write_bytes(b"12345")
    storage = Storage(str(tmp_path / "folder"))
    storage.write("o", b"1")
    with pytest.raises(StorageError):
        storage.read_range("../secret", 1, 3)


@pytest.mark.parametrize("start", [5, 6])
def test_a_range_beyond_the_end_is_an_error(storage, start):
    storage.write("o", b"12345")
    with pytest.raises(StorageError, match=r"/o: the object ends before the requested bytes$"):
        storage.read_range("o", start, 10)


def test_stat_has_the_size_and_an_etag_that_follows_the_content(storage):
    assert storage.stat("o") is None
    assert not storage.exists("o")
    storage.write("o", b"first")
    first = storage.stat("o")
    assert (first.path, first.size) == ("o", 5)
    assert storage.stat("o") == first
    storage.write("o", b"other")
    assert storage.stat("o").etag != first.etag
    assert storage.exists("o")


def test_a_deleted_object_is_gone_and_deleting_a_missing_one_is_not_an_error(storage):
    storage.delete("o")
    storage.write("o", b"x")
    storage.delete("o")
    assert not storage.exists("o")
    storage.delete("o")


@pytest.mark.parametrize("ask", [lambda s: s.read("a/o"), lambda s: s.read_range("a/o", 0, 5)], ids=["read", "range"])
def test_the_error_of_a_missing_object_has_its_url(storage, ask):
    storage.write("something", b"else")
    with pytest.raises(FileNotFoundError) as caught:
        ask(storage)
    assert isinstance(caught.value, MissingError)
    assert str(caught.value) == f"{storage.url}/a/o: no such object"


def test_a_local_file_is_uploaded(storage, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(data := os.urandom(21_000_000))
    storage.write("o", b"old")
    storage.write("o", source)
    assert storage.read("o") == data
    assert source.read_bytes() == data


UPLOAD = """
import resource, sys
from pathlib import Path
from cluster.storage.storage import Storage
storage = Storage(sys.argv[1])
storage.write("small", b"x")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
storage.write("large", Path(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_an_uploaded_file_is_never_in_memory_as_a_whole(storage, tmp_path):
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(150 << 20)
    done = python(UPLOAD, storage.url, source)
    assert not done.stderr
    assert int(done.stdout) < 100 << 10  # KiB
    assert storage.stat("large").size == 150 << 20


@pytest.mark.parametrize("name", NAMES)
def test_special_characters_in_names_are_kept(storage, name):
    storage.write(f"x/{name}", name.encode())
    assert storage.read(f"x/{name}") == name.encode()
    assert [entry.path for entry in storage.list("x")] == [f"x/{name}"]
    folder = storage.folder(f"y {name}")
    folder.write("o", b"within")
    assert storage.read(f"y {name}/o") == b"within"
    assert [entry.path for entry in folder.list()] == ["o"]
    assert [entry.path for entry in storage.list(f"y {name}")] == [f"y {name}/o"]


# ---- listing


def test_all_objects_below_a_folder_are_listed_sorted(storage):
    names = ["b", "a/2", "a/10", "a/1/x", "ab/1", "Z", "é", "a-b/1"]
    for size, name in enumerate(names):
        storage.write(name, b"x" * size)
    entries = list(storage.list())
    assert [entry.path for entry in entries] == sorted(names)
    assert {entry.path: entry.size for entry in entries} == {name: size for size, name in enumerate(names)}
    assert [entry.path for entry in storage.list("a")] == ["a/1/x", "a/10", "a/2"]
    assert [entry.path for entry in storage.folder("a").list()] == ["1/x", "10", "2"]
    assert all(storage.stat(entry.path) == entry for entry in entries)


def test_an_empty_or_missing_folder_has_no_entries(storage):
    assert list(storage.list()) == []
    storage.write("a/b", b"")
    assert list(storage.list("c")) == []


def test_listings_of_several_pages_are_complete(bucket):
    names = [f"{i:03}" for i in range(2 * PAGE + 1)]
    for name in names:
        bucket.write(name, b"")
    assert [entry.path for entry in bucket.list()] == names


# ---- writers at the same time


def test_only_the_first_creates_an_object(storage):
    assert storage.create("o", b"first") is True
    assert storage.create("o", b"second") is False
    assert storage.read("o") == b"first"


def test_of_many_concurrent_creators_exactly_one_succeeds(storage):
    storages = [Storage(storage.url) for _ in range(8)]
    start = threading.Barrier(8)

    def create(writer: int, name: str) -> bool:
        start.wait()
        return storages[writer].create(name, b"%d" % writer)

    with ThreadPoolExecutor(8) as pool:
        for name in ("attempts/1", "attempts/2", "attempts/3", "attempts/4", "attempts/5"):
            won = list(pool.map(create, range(8), [name] * 8))
            assert won.count(True) == 1
            assert storage.read(name) == b"%d" % won.index(True)


def test_a_reader_sees_the_old_object_or_the_new_one(storage):
    storage.write("o", b"0" * 1_000_000)
    enough = threading.Event()

    def write() -> None:
        for digit in itertools.cycle(b"123456789"):
            if enough.is_set():
                return
            storage.write("o", bytes([digit]) * 1_000_000)

    writer = threading.Thread(target=write)
    writer.start()
    seen: set[int] = set()
    try:
        while len(seen) < 5:
            data = storage.read("o")
            assert len(data) == 1_000_000
            assert len(set(data)) == 1
            seen.add(data[0])
    finally:
        enough.set()
        writer.join()


# ---- URLs and processes


def test_a_pickled_storage_opens_its_own_connection(storage):
    storage.write("o", b"x")
    copy = pickle.loads(pickle.dumps(storage))
    assert copy.url == storage.url
    assert copy.read("o") == b"x"


def test_a_relative_path_survives_a_change_of_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = Storage("runs/first")
    storage.write("o", b"x")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert Storage(storage.url).read("o") == storage.read("o") == b"x"
    assert storage.local_path("o") == tmp_path / "runs" / "first" / "o"


def test_a_file_url_is_a_local_path(tmp_path):
    folder = tmp_path / "a b%"
    Storage(folder.as_uri()).write("o", b"x")
    assert (folder / "o").read_bytes() == b"x"
    assert Storage(folder.as_uri()).url == str(folder)


@pytest.mark.parametrize(
    ("url", "whole", "local"),
    [
        ("/data/digits/", "/data/digits", True),
        ("file:///data/a%20b", "/data/a b", True),
        ("s3://bucket/", "s3://bucket", False),
        ("s3://bucket/a b/", "s3://bucket/a b", False),
        ("https://host/x", "https://host/x", False),
    ],
)
def test_absolute_urls(url, whole, local):
    assert absolute(url) == absolute(absolute(url)) == whole
    assert is_local(url) is local
    assert join(url, "a", "b").endswith("/a/b")


@pytest.mark.parametrize("url", ["s3://", "s3:///", "gs://"])
def test_a_url_without_a_bucket_is_refused(url):
    with pytest.raises(StorageError, match=r"no bucket or host"):
        Storage(url)


def test_an_unknown_scheme_is_refused():
    with pytest.raises(StorageError, match=r"^ftp2://host/a/o: .*ftp2"):
        Storage("ftp2://host/a").read("o")


FORK = """
import os, sys
from cluster.storage.storage import Storage
storage = Storage(sys.argv[1])
storage.write("o", b"x")
if os.fork() == 0:
    try:
        Storage(sys.argv[1]).read("o")
    except RuntimeError as error:
        print(error, flush=True)
    os._exit(0)
os.wait()
"""


def test_a_forked_process_gets_an_error_and_does_not_hang(storage):
    assert "use the spawn or forkserver" in python(FORK, storage.url).stdout


# ---- a local disk


def test_reading_creates_no_folder(tmp_path):
    storage = Storage(str(tmp_path / "none"))
    assert list(storage.list()) == []
    assert storage.stat("o") is None
    storage.delete("o")
    with pytest.raises(MissingError, match=r"none: no such folder$"):
        storage.read("o")
    assert not (tmp_path / "none").exists()


def test_a_file_in_place_of_the_folder_is_a_one_line_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file: a file, not a folder$"):
        Storage(str(tmp_path / "file")).write("o", b"x")


FULL = """
import resource, sys
from pathlib import Path
from cluster.storage.errors import StorageError
from cluster.storage.storage import Storage
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
storage = Storage(sys.argv[1])
for name, data in (("bytes", b"new" * 1_000_000), ("file", Path(sys.argv[2])), ("none", b"new" * 1_000_000)):
    try:
        storage.create(name, data) if name == "none" else storage.write(name, data)
    except StorageError as error:
        print(error)
"""


def test_a_full_disk_keeps_the_old_objects(tmp_path):
    storage = Storage(str(tmp_path / "folder"))
    for name in ("bytes", "file"):
        storage.write(name, b"old")
    source = tmp_path / "source"
    source.write_bytes(bytes(3_000_000))
    lines = python(FULL, storage.url, source).stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"{storage.url}/{name}" for name in ("bytes", "file", "none")]
    assert all("File too large" in line for line in lines)
    assert storage.read("bytes") == storage.read("file") == b"old"
    assert not storage.exists("none")
    assert sorted(path.name for path in Path(storage.url).iterdir()) == ["bytes", "file"]


DENIED = """
import os, sys
from cluster.storage.errors import StorageError
from cluster.storage.storage import Storage
import obstore.store, obstore.exceptions
storage = Storage(sys.argv[1])
if os.geteuid() == 0:
    os.setuid(65534)
for ask in (lambda: storage.write("o", b"x"), lambda: storage.read("secret")):
    try:
        ask()
    except StorageError as error:
        print(error)
"""


def test_a_folder_without_permission_is_a_one_line_error():
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to other users above it already
        Path(folder, "secret").touch(mode=0o000)
        Path(folder).chmod(0o555)
        lines = python(DENIED, folder).stdout.splitlines()
    assert lines == [f"{folder}/{name}: access denied; check the permissions of the folder" for name in ("o", "secret")]


def test_a_path_that_begins_with_a_tilde_is_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert absolute("~/data") == f"{tmp_path}/data"
    assert Storage("~/data").url == f"{tmp_path}/data"
    assert absolute("/a/~/b") == "/a/~/b"
    assert absolute("s3://bucket/~/b") == "s3://bucket/~/b"


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_only_regular_files_are_opened(tmp_path, kind):
    """A pipe blocks whoever opens it, and a device need not end."""
    path = tmp_path / "a"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    storage = Storage(str(tmp_path))
    for read in (storage.read, storage.stat, lambda name: storage.read_range(name, 0, 5)):
        with pytest.raises(StorageError, match="a: a pipe, socket or device, not a regular file"):
            read("a")


def test_an_object_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "a").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(StorageError, match=r"a: has 1,099,511,627,776 bytes, expected at most 1,000"):
        Storage(str(tmp_path)).read("a", most=1000)
