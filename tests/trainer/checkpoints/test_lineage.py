"""Attempts and commits: who may go on from what, on a local disk and in an S3-compatible store alike."""

import hashlib
import json
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from cluster.storage.storage import Storage
from tests.trainer.checkpoints.commits import read_commit, write_commit
from trainer.checkpoints.commit import Commit
from trainer.checkpoints.lineage import Lineage
from trainer.errors import SupersededError, TrainingError

FILES = {"model.safetensors": b"some weights", "progress.json": b'{"images": 3}'}


@pytest.fixture(params=["local", "s3"])
def run(request, tmp_path):
    """An empty run folder."""
    if request.param == "local":
        return Storage(str(tmp_path / "run"))
    return Storage(f"{request.getfixturevalue('s3_environment').bucket('lineage')}/{uuid.uuid4().hex}")


@pytest.fixture
def local(tmp_path):
    return Storage(str(tmp_path / "run"))


def commits(lineage, attempt, *images):
    made = [Commit(count, attempt) for count in images]
    for commit in made:
        write_commit(lineage, commit, FILES)
    return made


def late_commits(run, attempt, *images):
    """Commits of a process that had looked for newer attempts just before one came: its manifests are on their way."""
    lineage = Lineage(run)
    lineage.check_not_superseded = lambda attempt: None
    return commits(lineage, attempt, *images)


# ---- names


@pytest.mark.parametrize("commit", [Commit(0, 1), Commit(12_800, 2), Commit(10**13, 12_345)])
def test_a_commit_is_known_by_the_name_of_its_folder(commit):
    assert Commit.named(commit.name) == commit


@pytest.mark.parametrize("name", ["", "final", "000000012800", "12800-0002", "000000012800-2", "000000012800-0002.tmp"])
def test_other_names_are_no_commits(name):
    assert Commit.named(name) is None


# ---- attempts


def test_eight_that_claim_at_once_get_a_number_each(run):
    start, together = commits(Lineage(run), 1, 100)[0], threading.Barrier(8)

    def claim(_):
        lineage = Lineage(Storage(run.url))
        together.wait()
        return lineage.claim(start).number

    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(claim, range(8)))
    assert sorted(numbers) == list(range(1, 9))
    attempts = Lineage(run).attempts()
    assert list(attempts) == list(range(1, 9))
    assert all(attempt.start == start for attempt in attempts.values())
    assert len({attempt.facts["id"] for attempt in attempts.values()}) == 8


def test_of_two_that_a_store_let_claim_one_number_the_one_that_was_written_over_stops(local):
    """What OpenStack Swift lets happen: its If-None-Match is not atomic."""
    first, second = Lineage(local), Lineage(local)
    first.claim(None)
    local.delete("attempts/0001.json")  # as if the first record were not there yet when the second is written
    second.claim(None)
    with pytest.raises(SupersededError, match="another process has claimed attempt 1 too"):
        commits(first, 1, 100)
    assert list(Lineage(local).history()) == []
    (made,) = commits(second, 1, 100)
    assert list(Lineage(local).history()) == [made]


def test_an_attempt_remembers_its_start_and_its_facts(run):
    assert Lineage(run).newest_attempt() == 0
    assert Lineage(run).attempts() == {}
    Lineage(run).claim(None)
    Lineage(run).claim(Commit(500, 1), {"noise_salt": 1, "lr_factor": 0.5})
    first, second = Lineage(run).attempts().values()
    assert (first.number, first.start) == (1, None)
    assert (second.number, second.start) == (2, Commit(500, 1))
    assert (second.facts["noise_salt"], second.facts["lr_factor"]) == (1, 0.5)
    assert {"host", "began"} <= second.facts.keys()
    assert Lineage(run).newest_attempt() == 2


def test_more_than_9999_attempts_stay_in_order(local):
    local.write("attempts/9999.json", json.dumps({"attempt": 9999, "start": None, "facts": {}}).encode())
    assert Lineage(local).claim(None).number == 10_000
    assert Lineage(local).newest_attempt() == 10_000
    assert list(Lineage(local).attempts()) == [9999, 10_000]


def test_what_strangers_put_into_the_folders_is_left_alone(local):
    lineage = Lineage(local)
    lineage.claim(None)
    (made,) = commits(lineage, 1, 100)
    local.write("attempts/.DS_Store", b"\0")
    local.write("attempts/notes/0007.json", b"{}")
    local.write("checkpoints/best/manifest.json", b"{}")
    local.write("checkpoints/README", b"")
    assert Lineage(local).newest_attempt() == 1
    assert list(Lineage(local).history()) == [made]


@pytest.mark.parametrize("record", [b"", b"{}", b"[]", b'{"attempt": 1', b'{"start": 3, "facts": {}}', b"\xff"])
def test_a_broken_record_is_told_in_one_line(local, record):
    local.write("attempts/0001.json", record)
    with pytest.raises(TrainingError, match=r"attempts/0001\.json: not the record of an attempt") as raised:
        list(Lineage(local).history())
    assert "\n" not in str(raised.value)


def test_a_missing_record_that_a_later_attempt_builds_on_is_told(local):
    lineage = Lineage(local)
    lineage.claim(None)
    (start,) = commits(lineage, 1, 100)
    lineage.claim(start)
    local.delete("attempts/0001.json")
    with pytest.raises(TrainingError, match=r"attempts/0001\.json: is missing"):
        list(Lineage(local).history())


# ---- which commits count


def test_the_history_is_the_newest_attempt_and_what_it_started_from(run):
    lineage = Lineage(run)
    lineage.claim(None)
    a1, a2, a3 = commits(lineage, 1, 100, 200, 300)
    assert list(lineage.history()) == [a3, a2, a1]
    lineage.claim(a3)
    b4, b5 = commits(lineage, 2, 400, 500)
    assert list(lineage.history()) == [b5, b4, a3, a2, a1]
    lineage.claim(a2)  # goes back: what came after a2 is no longer part of it
    assert list(lineage.history()) == [a2, a1]
    (c4,) = commits(lineage, 3, 400)
    late_commits(run, 2, 600)
    late_commits(run, 1, 700)
    assert list(Lineage(run).history()) == [c4, a2, a1]
    assert Lineage(run).segments() == [(1, 0, 200), (3, 200, None)]
    assert list(lineage.history(before=3)) == [Commit(600, 2), b5, b4, a3, a2, a1]
    assert list(lineage.history(before=1)) == []


def test_a_rival_that_started_from_nothing_has_no_past(run):
    lineage = Lineage(run)
    lineage.claim(None)
    lineage.claim(None)
    late_commits(run, 1, 100)
    assert list(lineage.history()) == []
    (own,) = commits(lineage, 2, 50)
    assert list(lineage.history()) == [own]


def test_a_commit_at_the_very_image_count_of_the_start_belongs_to_the_start(local):
    lineage = Lineage(local)
    lineage.claim(None)
    (a1,) = commits(lineage, 1, 100)
    lineage.claim(a1)
    lineage.claim(a1)
    late_commits(local, 2, 200)
    (c2,) = commits(lineage, 3, 200)
    assert list(lineage.history()) == [c2, a1]


def test_without_a_manifest_there_is_no_commit(run):
    lineage = Lineage(run)
    lineage.claim(None)
    (whole,) = commits(lineage, 1, 100)
    (half,) = commits(lineage, 1, 200)
    run.delete(f"checkpoints/{half.name}/manifest.json")
    assert lineage.commits() == {whole}
    assert list(lineage.history()) == [whole]
    with pytest.raises(TrainingError, match="not the manifest of a checkpoint"):
        read_commit(lineage, half)


def test_the_manifest_is_written_last(local, monkeypatch):
    written = []
    write = Storage.write
    monkeypatch.setattr(Storage, "write", lambda self, path, data: (written.append(path), write(self, path, data)))
    lineage = Lineage(local)
    lineage.claim(None)
    commits(lineage, 1, 100)
    assert [path.rsplit("/", 1)[1] for path in written] == [*FILES, "manifest.json"]


def test_a_superseded_attempt_is_told_and_leaves_no_commit(run):
    lineage = Lineage(run)
    first = lineage.claim(None)
    lineage.check_not_superseded(first.number)
    (a1,) = commits(lineage, 1, 100)
    Lineage(run).claim(a1)
    with pytest.raises(TrainingError) as raised:
        write_commit(lineage, Commit(200, 1), FILES)
    assert str(raised.value) == (
        f"{run.url}: attempt 2 has taken over this run, so attempt 1 stops here; "
        "nothing it wrote after that will be used"
    )
    assert lineage.commits() == {a1}
    commits(lineage, 2, 200)  # the newer one goes on


# ---- a commit's files


def test_files_come_back_as_they_were_written(run):
    lineage = Lineage(run)
    lineage.claim(None)
    files = FILES | {"empty.json": b"", "ema.safetensors": bytes(range(256)) * 100}
    write_commit(lineage, Commit(100, 1), files)
    assert read_commit(lineage, Commit(100, 1)) == files
    assert read_commit(lineage, Commit(100, 1), ["progress.json"]) == {"progress.json": FILES["progress.json"]}
    with pytest.raises(TrainingError, match=r"it has no other\.json"):
        read_commit(lineage, Commit(100, 1), ["other.json"])


def spoil(run, path, how):
    data = run.read(path)
    if how == "missing":
        run.delete(path)
    else:
        flipped = bytearray(data)
        flipped[len(data) // 2] ^= 1
        run.write(path, {"flipped": bytes(flipped), "shorter": data[:-1], "longer": data + b" ", "empty": b""}[how])


@pytest.mark.parametrize("how", ["flipped", "shorter", "longer", "empty", "missing"])
@pytest.mark.parametrize("name", FILES)
def test_files_that_are_not_what_was_written_are_refused(local, name, how):
    lineage = Lineage(local)
    lineage.claim(None)
    (commit,) = commits(lineage, 1, 100)
    spoil(local, f"checkpoints/{commit.name}/{name}", how)
    with pytest.raises(TrainingError, match=f"{commit.name}.*{name}") as raised:
        read_commit(lineage, commit)
    assert "\n" not in str(raised.value)


def test_no_single_flipped_byte_of_a_manifest_is_taken_for_another_checkpoint(local):
    """Each either is refused in one line, or changes nothing that is read."""
    lineage = Lineage(local)
    lineage.claim(None)
    (commit,) = commits(lineage, 1, 100)
    path = f"checkpoints/{commit.name}/manifest.json"
    data, errors = local.read(path), []
    for i in range(len(data)):
        for bit in (0, 3, 7):
            local.write(path, data[:i] + bytes([data[i] ^ (1 << bit)]) + data[i + 1 :])
            try:
                assert read_commit(lineage, commit) == FILES
            except TrainingError as error:
                errors.append(str(error))
    assert len(errors) > 2 * len(data)
    assert not any("\n" in error for error in errors)


@pytest.mark.parametrize(
    "manifest",
    [
        "null",
        "[]",
        "3",
        '{"format": 1}',
        '{"files": {}}',
        '{"format": 1, "files": []}',
        '{"format": 1, "files": ["model.safetensors"]}',
        '{"format": 1, "files": {"model.safetensors": 12}}',
        '{"format": 1, "files": {"model.safetensors": {"bytes": 12}}}',
    ],
)
def test_a_manifest_of_another_shape_is_refused_in_one_line(local, manifest):
    lineage = Lineage(local)
    lineage.claim(None)
    (commit,) = commits(lineage, 1, 100)
    local.write(f"checkpoints/{commit.name}/manifest.json", manifest.encode())
    with pytest.raises(TrainingError, match="not the manifest of a checkpoint") as raised:
        read_commit(lineage, commit)
    assert "\n" not in str(raised.value)


def test_a_format_of_another_version_is_refused(local):
    lineage = Lineage(local)
    lineage.claim(None)
    (commit,) = commits(lineage, 1, 100)
    path = f"checkpoints/{commit.name}/manifest.json"
    local.write(path, local.read(path).replace(b'"format": 2', b'"format": 3'))
    with pytest.raises(TrainingError, match=r"is in format 3, this version reads \(1, 2\)"):
        read_commit(lineage, commit)


@pytest.mark.parametrize(
    "name",
    [
        "../../secret.json",
        "../000000000200-0001/progress.json",
        "/etc/hostname.json",
        "a/b.json",
        "..",
        "",
        "model.pt",
        "model.safetensors.pkl",
        "model.json\n",
        "x\\y.json",
        "%2e%2e/secret.json",
    ],
)
def test_a_manifest_that_lists_other_than_its_own_files_is_refused_before_anything_is_read(local, name, monkeypatch):
    lineage = Lineage(local)
    lineage.claim(None)
    (commit,) = commits(lineage, 1, 100)
    secret = b"{}"
    local.write("secret.json", secret)
    listed = {name: {"bytes": len(secret), "sha256": hashlib.sha256(secret).hexdigest()}}
    local.write(f"checkpoints/{commit.name}/manifest.json", json.dumps({"format": 1, "files": listed}).encode())
    read = []
    original = Storage.read
    monkeypatch.setattr(Storage, "read", lambda self, path, *most: (read.append(path), original(self, path, *most))[1])
    with pytest.raises(TrainingError, match="which is no file of a checkpoint") as raised:
        read_commit(lineage, commit)
    assert "\n" not in str(raised.value)
    assert read == [f"checkpoints/{commit.name}/manifest.json"]


def test_a_deleted_commit_loses_its_manifest_first_and_then_everything(run, monkeypatch):
    lineage = Lineage(run)
    lineage.claim(None)
    a1, a2 = commits(lineage, 1, 100, 200)
    deleted = []
    delete = Storage.delete
    monkeypatch.setattr(Storage, "delete", lambda self, path: (deleted.append(path), delete(self, path)))
    lineage.folder(a1).delete()
    assert deleted[0] == f"checkpoints/{a1.name}/manifest.json"
    assert [entry.path for entry in run.list(f"checkpoints/{a1.name}")] == []
    assert list(lineage.history()) == [a2]
