"""States saved and loaded: what comes back, what a newer attempt goes on from, what is kept, what is refused."""

import functools
import json
import pickle
import uuid

import pytest
import torch

from cluster.storage.errors import StorageError
from cluster.storage.storage import Storage
from tests.trainer.checkpoints.commits import read_commit, write_commit
from trainer.checkpoints.checkpointer import Checkpointer
from trainer.checkpoints.commit import Commit
from trainer.checkpoints.lineage import Lineage
from trainer.checkpoints.retention import CheckpointConfig
from trainer.checkpoints.tensor_files import from_safetensors, to_safetensors
from trainer.errors import TrainingError


def state(images):
    """A small state of a run that has seen `images` images."""
    return {
        "model": {"weight": torch.full((2, 3), float(images)), "bias": torch.tensor(1 / 3)},
        "optimizer": {},
        "progress": {"images": images, "guard": [0.1, 2.0], "sums": {"nats": None}},
        "fingerprint": {"config": {"optim.ema": 10}},
    }


class Process:
    """A process that trains: `begin` and `save`, with what it warned of and what it was asked to check."""

    def __init__(self, url, keep=2):
        self.warnings, self.checked = [], []
        self.checkpoints = Checkpointer(url, CheckpointConfig(keep=keep), self.warnings.append)

    def begin(self):
        self.loaded = None
        self.checkpoints.claim(self.checked.append)
        self.checkpoints.restore(self.take)
        return self

    def take(self, saved):
        self.loaded = saved.sections | {section: saved.tensors(section) for section in saved.layout}

    def save(self, *images):
        for count in images:
            self.checkpoints.save(count, state(count), [{"images": count}])
        return self

    @property
    def images(self):
        return self.loaded["progress"]["images"] if self.loaded else 0


@pytest.fixture(params=["local", "s3"])
def url(request, tmp_path):
    if request.param == "local":
        return str(tmp_path / "run")
    return f"{request.getfixturevalue('s3_environment').bucket('checkpoints')}/{uuid.uuid4().hex}"


@pytest.fixture
def local(tmp_path):
    return str(tmp_path / "run")


def kept(url):
    return sorted((commit.images, commit.attempt) for commit in Lineage(Storage(url)).commits())


def spoil(url, commit, how, name="model.safetensors"):
    run, path = Storage(url), f"checkpoints/{commit.name}/{name}"
    data = run.read(path)
    if how == "missing":
        run.delete(path)
    else:
        flipped = bytearray(data)
        flipped[-1] ^= 4
        run.write(path, bytes(flipped) if how == "flipped" else data[: len(data) // 2])


# ---- what comes back


def test_a_run_begins_with_nothing_and_goes_on_from_its_newest_commit(url):
    first = Process(url).begin()
    assert first.loaded is None
    assert first.checked == []
    first.save(100, 200)
    second = Process(url).begin()
    assert second.checkpoints.attempt.number == 2
    assert second.checkpoints.attempt.start == Commit(200, 1)
    assert second.checked == [{name: second.loaded[name] for name in ("optimizer", "progress", "fingerprint")}]
    expected = state(200)
    assert second.loaded.keys() == expected.keys()
    assert torch.equal(second.loaded["model"]["weight"], expected["model"]["weight"])
    assert torch.equal(second.loaded["model"]["bias"], expected["model"]["bias"])
    for section in ("optimizer", "progress", "fingerprint"):
        assert second.loaded[section] == expected[section]
    assert second.warnings == []


DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (7,), (2, 3, 4, 5)], ids=str)
def test_tensors_keep_their_type_shape_and_bits(dtype, shape):
    bits = torch.randint(0, 256, (*shape, torch.empty(0, dtype=dtype).element_size()), dtype=torch.uint8)
    tensor = bits.view(dtype).reshape(shape) if dtype != torch.bool else (bits > 127).reshape(shape)
    back = from_safetensors("x", to_safetensors({"a.b": tensor}))["a.b"]
    assert (back.dtype, back.shape) == (dtype, tensor.shape)
    assert torch.equal(back.flatten().view(torch.uint8), tensor.flatten().view(torch.uint8))  # NaNs as well


@pytest.mark.parametrize("make", [lambda x: x.T, lambda x: x[:, ::2], lambda x: x[0].expand(5, 4), lambda x: x[1:]])
def test_views_are_written_as_what_they_show(make):
    tensor = make(torch.arange(12.0).reshape(3, 4))
    back = from_safetensors("x", to_safetensors({"view": tensor}))["view"]
    assert torch.equal(back, tensor)
    assert back.is_contiguous()


def test_parameters_are_written_as_values():
    back = from_safetensors("x", to_safetensors(dict(torch.nn.Linear(2, 3).named_parameters())))
    assert not any(value.requires_grad for value in back.values())


def test_tied_weights_come_back_under_both_names():
    weight = torch.randn(3, 3)
    back = from_safetensors("x", to_safetensors({"encoder": weight, "decoder": weight}))
    assert torch.equal(back["encoder"], weight)
    assert torch.equal(back["decoder"], weight)


def test_numbers_in_json_come_back_to_the_bit(local):
    values = [*torch.randn(100, dtype=torch.float64).tolist(), 0.1, 1e-300, 2**53 + 1, 5e-324]
    process = Process(local).begin()
    process.checkpoints.save(100, state(100) | {"progress": {"images": 100, "values": values}}, [])
    assert Process(local).begin().loaded["progress"]["values"] == values


# ---- attempts


def test_after_a_fork_the_commits_of_the_branch_left_behind_are_never_loaded_again(url):
    Process(url).begin().save(100, 200)
    second = Process(url, keep=10).begin().save(300, 400)
    lineage = Lineage(Storage(url))
    lineage.claim(Commit(200, 1))  # attempt 3 goes back behind what attempt 2 had
    with pytest.raises(TrainingError, match="attempt 3 has taken over"):
        second.save(500)
    fourth = Process(url).begin()
    assert (fourth.images, fourth.checkpoints.attempt.number) == (200, 4)
    fourth.save(250)
    assert Process(url).begin().images == 250
    assert fourth.warnings == []


def test_a_superseded_process_stops_at_its_next_save_and_the_run_is_as_the_newer_one_made_it(url):
    old = Process(url).begin().save(100)
    new = Process(url).begin()
    assert new.images == 100
    with pytest.raises(TrainingError, match="attempt 2 has taken over this run, so attempt 1 stops here"):
        old.save(200)
    new.save(200)
    assert kept(url) == [(100, 1), (200, 2)]


def test_a_manifest_that_was_already_on_its_way_is_not_loaded(local):
    old = Process(local).begin().save(100)
    old.checkpoints.lineage.check_not_superseded = lambda attempt: None  # it had looked just before
    new = Process(local).begin()
    old.save(200, 300)
    assert (300, 1) in kept(local)
    assert Process(local).begin().images == 100
    new.checkpoints.lineage.check_not_superseded = lambda attempt: None
    new.save(150)
    assert Process(local).begin().images == 100  # attempt 2 had been superseded by attempt 3, which began at 100


def test_a_commit_between_looking_and_claiming_is_gone_on_from(url):
    """The older process goes on, and forgets what the newer one was about to start from."""
    old, new = Process(url).begin().save(100, 200), Process(url)
    claim, claimed = new.checkpoints.lineage.claim, []

    def slow_claim(start, facts):
        if not claimed:
            old.save(300, 400, 500)
        claimed.append(start)
        return claim(start, facts)

    new.checkpoints.lineage.claim = slow_claim
    new.begin()
    assert claimed == [Commit(200, 1), Commit(500, 1)]
    assert new.images == 500
    assert new.checkpoints.attempt.start == Commit(500, 1)
    assert kept(url) == [(400, 1), (500, 1)]
    assert Process(url).begin().images == 500


def test_another_run_is_refused_before_anything_is_written(local):
    Process(local).begin().save(100)
    before = [entry.path for entry in Storage(local).list()]

    def refuse(saved):
        assert saved["fingerprint"] == {"config": {"optim.ema": 10}}
        raise TrainingError("another model")

    with pytest.raises(TrainingError, match="another model"):
        Checkpointer(local, CheckpointConfig(), print).claim(refuse)
    assert [entry.path for entry in Storage(local).list()] == before


# ---- damage


@pytest.mark.parametrize("how", ["flipped", "truncated", "missing"])
@pytest.mark.parametrize("name", ["model.safetensors", "progress.json", "manifest.json"])
def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(local, how, name):
    Process(local).begin().save(100, 200)
    spoil(local, Commit(200, 1), how, name)
    process = Process(local).begin()
    assert process.images == 100
    assert process.checkpoints.attempt.start == Commit(100, 1)
    if (how, name) == ("missing", "manifest.json"):
        assert process.warnings == []  # that commit does not exist
    else:
        (warning,) = process.warnings
        assert f"{Commit(200, 1).name}" in warning
        assert name in warning
        assert warning.endswith("; going back to the commit before")
        assert "\n" not in warning
    # the damaged one belongs to nobody now, and the next one made at that count is another
    process.save(200)
    assert Process(local).begin().images == 200
    assert Process(local).begin().warnings == []


def test_a_damaged_checkpoint_in_a_store_is_passed_over_too(s3_environment):
    url = f"{s3_environment.bucket('checkpoints')}/{uuid.uuid4().hex}"
    Process(url).begin().save(100, 200)
    spoil(url, Commit(200, 1), "flipped")
    process = Process(url).begin()
    assert (process.images, len(process.warnings)) == (100, 1)


def test_if_all_checkpoints_are_damaged_nothing_is_begun(local):
    Process(local).begin().save(100, 200)
    for images in (100, 200):
        spoil(local, Commit(images, 1), "flipped")
    process = Process(local)
    with pytest.raises(TrainingError) as raised:
        process.begin()
    names = f"{Commit(200, 1).name}, {Commit(100, 1).name}"
    assert str(raised.value) == f"{local}: none of the checkpoints {names} can be read"
    assert len(process.warnings) == 2
    assert [*Lineage(Storage(local)).history()] == [Commit(200, 1), Commit(100, 1)]  # should one be repaired


def test_a_run_whose_checkpoints_are_gone_does_not_start_again_in_silence(local):
    Process(local).begin().save(100)
    Process(local).begin()
    run = Storage(local)
    for entry in list(run.list("checkpoints")):
        run.delete(entry.path)
    with pytest.raises(TrainingError, match="has begun, but all checkpoints are missing"):
        Process(local).begin()


def test_checkpoints_without_the_records_of_their_attempts_are_not_written_over(local):
    Process(local).begin().save(100)
    Storage(local).delete("attempts/0001.json")
    with pytest.raises(TrainingError, match="the attempt records are missing"):
        Process(local).begin()


def test_a_run_that_was_killed_before_its_first_commit_begins_again(local):
    Process(local).begin()
    again = Process(local).begin()
    assert (again.loaded, again.checkpoints.attempt.number) == (None, 2)


EXECUTED = []


def execute(what):
    EXECUTED.append(what)


class Hostile:
    def __reduce__(self):
        return execute, ("executed",)


def plant(url, commit, files):
    """A checkpoint whose manifest agrees with its files, made by somebody who means ill."""
    lineage = Lineage(Storage(url))
    lineage.check_not_superseded = lambda attempt: None
    write_commit(lineage, commit, files)


@pytest.mark.parametrize("name", ["model.safetensors", "progress.json", "model.pt", "state.pkl", "../x.json"])
@pytest.mark.parametrize("make", [pickle.dumps, "torch"], ids=["pickle", "torch"])
def test_a_hostile_checkpoint_is_refused_and_nothing_of_it_is_executed(local, tmp_path, name, make):
    Process(local).begin().save(100)
    if make == "torch":
        torch.save(Hostile(), tmp_path / "hostile")
        data = (tmp_path / "hostile").read_bytes()
    else:
        data = make(Hostile())
    good = read_commit(Lineage(Storage(local)), Commit(100, 1))
    if name == "../x.json":
        plant(local, Commit(200, 1), good)
        run, path = Storage(local), f"checkpoints/{Commit(200, 1).name}/manifest.json"
        manifest = json.loads(run.read(path))
        manifest["files"][name] = manifest["files"]["progress.json"]
        run.write(path, json.dumps(manifest).encode())
    else:
        plant(local, Commit(200, 1), good | {name: data})
    process = Process(local).begin()
    assert process.images == 100
    (warning,) = process.warnings
    assert Commit(200, 1).name in warning
    assert EXECUTED == []


def test_the_hostile_object_would_act_if_it_were_unpickled():
    pickle.loads(pickle.dumps(Hostile()))
    assert EXECUTED == ["executed"]
    EXECUTED.clear()


def test_a_header_that_lies_about_its_size_is_refused_in_one_line():
    for data in (b"", b"\xff" * 8, (2**63 - 1).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"{"):
        with pytest.raises(TrainingError, match=r"^somewhere: is not a safetensors file \(") as raised:
            from_safetensors("somewhere", data)
        assert "\n" not in str(raised.value)


# ---- what is kept


@pytest.mark.parametrize(("keep", "expected"), [(1, [400, 500]), (2, [400, 500]), (3, [300, 400, 500]), (9, None)])
def test_the_newest_commits_are_kept_and_at_least_two(local, keep, expected):
    Process(local, keep).begin().save(100, 200, 300, 400, 500)
    assert [images for images, _ in kept(local)] == (expected or [100, 200, 300, 400, 500])


def test_the_commit_that_the_newest_attempt_started_from_is_kept(local):
    Process(local).begin().save(100, 200)
    Process(local).begin().save(300, 400, 500)
    assert kept(local) == [(200, 1), (400, 2), (500, 2)]
    Process(local).begin().save(600, 700)
    assert kept(local) == [(500, 2), (600, 3), (700, 3)]


def test_a_process_that_was_just_superseded_does_not_delete_what_the_newer_one_started_from(local):
    old = Process(local).begin().save(100, 200)
    old.checkpoints.lineage.check_not_superseded = lambda attempt: None
    lineage = Lineage(Storage(local))
    lineage.claim(Commit(100, 1))
    old.save(300, 400, 500)
    assert (100, 1) in kept(local)
    assert Process(local).begin().images == 100


def test_a_deleted_commit_leaves_no_files_behind(local):
    Process(local).begin().save(100, 200, 300)
    folders = {entry.path.split("/")[1] for entry in Storage(local).list("checkpoints")}
    assert folders == {Commit(200, 1).name, Commit(300, 1).name}


# ---- a store that fails


def test_a_full_disk_leaves_the_last_good_checkpoint_and_can_be_saved_to_again(local, monkeypatch):
    process = Process(local).begin().save(100)
    write = Storage.write

    def full(self, path, data, names=("progress.json",)):
        if path.endswith(names):
            raise OSError(28, "No space left on device")
        write(self, path, data)

    for names in (("progress.json",), ("manifest.json",), (".jsonl",), ("model.safetensors",)):
        with monkeypatch.context() as patch:
            patch.setattr(Storage, "write", functools.partialmethod(full, names=names))
            with pytest.raises(OSError, match="No space left"):
                process.save(200)
        assert kept(local) == [(100, 1)]
    process.save(300)
    assert kept(local) == [(100, 1), (300, 1)]
    assert Process(local).begin().images == 300


def test_rows_are_there_before_the_manifest_that_they_belong_to(local, monkeypatch):
    written = []
    write = Storage.write
    monkeypatch.setattr(Storage, "write", lambda self, path, data: (written.append(path), write(self, path, data)))
    Process(local).begin().save(100)
    assert written[-2] == f"metrics/{Commit(100, 1).name}.jsonl"
    assert written[-1] == f"checkpoints/{Commit(100, 1).name}/manifest.json"


def test_a_checkpoint_that_did_not_fit_leaves_nothing_on_the_disk(tmp_path, monkeypatch):
    """Else the next ones find the disk as full as it was."""
    checkpoints = Checkpointer(str(tmp_path), CheckpointConfig(), lambda line: None)
    checkpoints.claim(lambda sections: None)
    checkpoints.save(100, state(100), [])
    write = Storage.write

    def full(storage, path, data):
        if path.endswith("layout.json") and "000000000200" in path:
            raise StorageError(f"{path}: No space left on device")
        write(storage, path, data)

    monkeypatch.setattr(Storage, "write", full)
    with pytest.raises(StorageError, match="No space"):
        checkpoints.save(200, state(200), [])
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["000000000100-0001"]


def test_a_new_attempt_frees_the_disk_of_what_a_killed_one_left(tmp_path):
    checkpoints = Checkpointer(str(tmp_path), CheckpointConfig(), lambda line: None)
    checkpoints.claim(lambda sections: None)
    checkpoints.save(100, state(100), [])
    left = tmp_path / "checkpoints" / "000000000200-0001"
    left.mkdir()
    (left / "model.safetensors#1").write_bytes(bytes(1000))
    Checkpointer(str(tmp_path), CheckpointConfig(), lambda line: None).claim(lambda sections: None)
    assert not left.exists()
