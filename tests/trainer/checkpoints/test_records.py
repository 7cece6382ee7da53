"""Files of a run folder with wrong contents are one line; rows of metrics that are whole count."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.storage.storage import Storage
from trainer.checkpoints.checkpointer import Checkpointer
from trainer.checkpoints.commit import Commit
from trainer.checkpoints.journal import read_metrics
from trainer.checkpoints.lineage import Lineage
from trainer.checkpoints.reading import SavedState
from trainer.checkpoints.retention import CheckpointConfig
from trainer.errors import DamagedError, TrainingError

BAD_JSON = ["", "[]", "null", "7", "{", "[" * 200_000, '"' + "x" * 9, "\0" * 500, "{" + '"a":{' * 50_000]
ROWS = [{"images": 50, "train/nats": 2.0}, {"images": 100, "train/nats": 1.0}]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with commits after 100 and 200 images."""
    url = str(tmp_path / "run")
    checkpoints = Checkpointer(url, CheckpointConfig())
    checkpoints.claim(lambda sections: None)
    checkpoints.save(100, {"model": {}, "progress": {"images": 100}}, ROWS)
    checkpoints.save(200, {"model": {}, "progress": {"images": 200}}, [{"images": 200}])
    return tmp_path / "run"


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("text", BAD_JSON)
def test_an_attempt_that_is_none_is_named(run, text):
    (run / "attempts" / "0001.json").write_text(text)
    with pytest.raises(TrainingError, match=r"attempts/0001\.json: not the record of an attempt \(.*\)") as caught:
        list(Lineage(Storage(str(run))).history())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"start": 5},
        {"start": "../../x"},
        {"start": "9" * 4000 + "-0001"},
        {"facts": None},
        {"facts": []},
        {"facts": {"noise_salt": 1 << 64}},
        {"facts": {"lr_factor": "much"}},
        {"facts": {"lr_factor": -1.0}},
    ],
)
def test_a_wrong_value_in_an_attempt_is_named(run, values):
    change(run / "attempts" / "0001.json", **values)
    with pytest.raises(TrainingError, match=rf"not the record of an attempt \({next(iter(values))}"):
        list(Lineage(Storage(str(run))).history())


def test_an_attempt_that_starts_from_itself_does_not_go_on_forever(run):
    change(run / "attempts" / "0001.json", start="000000000100-0001")
    with pytest.raises(TrainingError, match="starts from a later attempt"):
        Lineage(Storage(str(run))).segments()


def test_an_attempt_of_terabytes_is_not_read(run):
    with (run / "attempts" / "0001.json").open("r+b") as file:
        file.truncate(1 << 42)
    with pytest.raises(TrainingError, match="has 4,398,046,511,104 bytes, expected at most"):
        Lineage(Storage(str(run))).segments()


@pytest.mark.parametrize(
    "content",
    [
        *BAD_JSON,
        json.dumps({"format": 2, "files": {"a.json": {"bytes": -1, "sha256": "0" * 64}}}),
        json.dumps({"format": 2, "files": {"a.json": {"bytes": 1.5, "sha256": "0" * 64}}}),
        json.dumps({"format": 2, "files": {"a.json": {"bytes": 1 << 70, "sha256": "0" * 64}}}),
        json.dumps({"format": 2, "files": {"a.json": {"bytes": 1, "sha256": 5}}}),
        json.dumps({"format": 2, "files": ["a.json"]}),
        json.dumps({"format": [2], "files": {}}),
    ],
)
def test_a_manifest_with_wrong_contents_is_damage(run, content):
    folder = Lineage(Storage(str(run))).folder(Commit(200, 1))
    (run / folder.path / "manifest.json").write_text(content)
    with pytest.raises(DamagedError, match="not the manifest of a checkpoint") as caught:
        SavedState(folder)
    assert "\n" not in str(caught.value)


def test_a_sparse_checkpoint_file_is_not_read(run):
    """It is of another size than the manifest says."""
    folder = Lineage(Storage(str(run))).folder(Commit(200, 1))
    with (run / folder.path / "progress.json").open("r+b") as file:
        file.truncate(1 << 42)
    with pytest.raises(DamagedError, match=r"progress\.json: its content is not what the manifest says"):
        SavedState(folder)


@pytest.mark.parametrize("damage", ["torn", "zeros", "cut", "no row", "deep", "binary"])
def test_the_whole_rows_of_a_damaged_part_count(run, damage, caplog):
    path = run / "metrics" / "000000000100-0001.jsonl"
    data = path.read_bytes()
    first = data.splitlines(keepends=True)[0]
    path.write_bytes(
        {
            "torn": data[:-9],
            "zeros": first + bytes(4096),
            "cut": first,
            "no row": first
            + b'[1]\n"x"\n{"images": "100"}\n{"images": 1e3}\n{"images": 5, "validation/nats": "low"}\n',
            "deep": first + b"[" * 100_000,
            "binary": first + b"\xff\xfe\x00\n",
        }[damage]
    )
    assert read_metrics(Storage(str(run))) == [ROWS[0], {"images": 200}]
    warned = [record.getMessage() for record in caplog.records]
    assert warned == [] if damage == "cut" else "are damaged and left out" in warned[0]


def test_an_empty_part_has_no_rows(run):
    (run / "metrics" / "000000000100-0001.jsonl").write_bytes(b"")
    assert read_metrics(Storage(str(run))) == [{"images": 200}]
