"""Metrics as JSON lines: one row an image count of the newest lineage, whatever was killed, forked or replayed."""

import json

import pytest

from cluster.storage.storage import Storage
from tests.trainer.checkpoints.commits import write_commit
from trainer.checkpoints.commit import Commit
from trainer.checkpoints.journal import read_metrics, write_rows
from trainer.checkpoints.lineage import Lineage


@pytest.fixture
def run(tmp_path):
    return Storage(str(tmp_path / "run"))


def commit(run, attempt, images, since, step=10, late=False):
    """A commit after `images` images with a row every `step` images after `since`, as a process makes it."""
    made = Commit(images, attempt)
    write_rows(run, made, [{"images": n, "attempt": attempt} for n in range(since + step, images + 1, step)])
    lineage = Lineage(run)
    if late:
        lineage.check_not_superseded = lambda attempt: None
    write_commit(lineage, made, {"progress.json": b"{}"})
    return made


def seen(run):
    return [(row["images"], row["attempt"]) for row in read_metrics(run)]


def test_rows_come_back_as_they_were_written_and_in_order(run):
    Lineage(run).claim(None)
    rows = [{"images": 10, "train/bpd": 3.25, "train/rate/z1": 1e-17}, {"images": 20, "skipped": 2}]
    write_rows(run, Commit(20, 1), rows)
    assert read_metrics(run) == rows
    text = run.read(f"metrics/{Commit(20, 1).name}.jsonl").decode()
    assert [json.loads(line) for line in text.splitlines()] == rows


def test_a_run_without_rows_has_none(run):
    assert read_metrics(run) == []
    Lineage(run).claim(None)
    write_rows(run, Commit(20, 1), [])
    assert read_metrics(run) == []
    assert list(run.list("metrics")) == []


def test_rows_of_several_attempts_have_no_gaps_and_nothing_twice(run):
    lineage = Lineage(run)
    lineage.claim(None)
    commit(run, 1, 100, 0)
    first = commit(run, 1, 200, 100)
    lineage.claim(first)
    commit(run, 2, 300, 200)
    second = commit(run, 2, 400, 300)
    lineage.claim(second)
    commit(run, 3, 450, 400)
    assert seen(run) == [(n, 1 + (n > 200) + (n > 400)) for n in range(10, 451, 10)]


def test_the_rows_of_a_part_without_a_commit_are_those_of_the_replay(run):
    """Killed between the rows and the manifest: the next attempt computes them again, on a cadence of its own."""
    lineage = Lineage(run)
    lineage.claim(None)
    start = commit(run, 1, 100, 0)
    write_rows(run, Commit(200, 1), [{"images": n, "attempt": 1} for n in range(110, 201, 10)])
    lineage.claim(start)
    commit(run, 2, 150, 100)
    commit(run, 2, 250, 150)
    assert seen(run) == [(n, 1 if n <= 100 else 2) for n in range(10, 251, 10)]


def test_the_rows_of_a_branch_left_behind_are_left_out(run):
    lineage = Lineage(run)
    lineage.claim(None)
    back = commit(run, 1, 100, 0)
    commit(run, 1, 200, 100)
    lineage.claim(Commit(200, 1))
    commit(run, 2, 300, 200)
    lineage.claim(back)  # a rollback
    commit(run, 3, 200, 100)
    commit(run, 2, 400, 300, late=True)
    assert seen(run) == [(n, 1 if n <= 100 else 3) for n in range(10, 201, 10)]


def test_rows_stay_when_their_commit_is_forgotten(run):
    lineage = Lineage(run)
    lineage.claim(None)
    made = [commit(run, 1, images, images - 100) for images in (100, 200, 300)]
    lineage.folder(made[0]).delete()
    assert [images for images, _ in seen(run)] == list(range(10, 301, 10))


def test_other_files_in_the_folder_are_left_alone(run):
    Lineage(run).claim(None)
    commit(run, 1, 100, 0)
    run.write("metrics/notes.txt", b"mine")
    run.write("metrics/000000000100-0001.jsonl.bak", b"{}")
    assert len(read_metrics(run)) == 10
