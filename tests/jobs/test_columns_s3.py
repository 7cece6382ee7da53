"""A set, its columns, a selection by them and the selection's own shards, all in an object store."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.storage.storage import Storage
from datasets.config import DataConfig
from datasets.loading.build import evaluation_batches
from datasets.shards.index import Index
from jobs.encode import main as encode
from jobs.repack import main as repack
from jobs.select import main as select
from tests.datasets.encoding.encoders import vector_of
from tests.datasets.small_sets import number_of, write_set

NUMBERS = "tests.datasets.encoding.encoders:Numbers"


def test_columns_selections_and_copies_live_in_an_object_store(tmp_path, s3_environment, capsys):
    pytest.importorskip("duckdb")
    bucket = s3_environment.bucket("columns")
    write_set(tmp_path / "set", (16, 12, 16), labels=False)
    there = Storage(f"{bucket}/set")
    for entry in Storage(str(tmp_path / "set")).list():
        there.write(entry.path, tmp_path / "set" / entry.path)
    encode([f"{bucket}/set", "--with", NUMBERS, "--out", f"{bucket}/numbers"])
    where = ["--where", "score < 0.95 OR score >= 2.8", "--columns", f"{bucket}/numbers"]
    select([f"{bucket}/set", *where, "--out", f"{bucket}/chosen"])
    assert "26 of 44 images match" in capsys.readouterr().out
    chosen = [*range(10), *range(28, 44)]
    joined = {"clip": {"kind": "vector", "member": "clip.npy", "size": 3}}
    config = DataConfig(
        shards=f"{bucket}/set", index=f"{bucket}/chosen", columns=[f"{bucket}/numbers"], conditions=joined, workers=0
    )
    with evaluation_batches(config, Index.of(config), batch=13) as batches:
        read = list(batches)
    images = np.concatenate([batch.images.permute(0, 2, 3, 1).numpy() for batch in read])
    assert [number_of(image) for image in images] == chosen
    vectors = np.concatenate([batch.conditions["clip"].numpy() for batch in read])
    assert all(np.allclose(vectors[i], vector_of(n)) for i, n in enumerate(chosen) if n % 7 != 6)

    repack([f"{bucket}/set", "--index", f"{bucket}/chosen", "--out", f"{bucket}/new", "--shard-images", "9"])
    assert list(Index.open(f"{bucket}/new").counts) == [9, 9, 8]
    own = DataConfig(shards=f"{bucket}/new", workers=0)
    with evaluation_batches(own, Index.of(own), batch=13) as batches:
        again = np.concatenate([batch.images.permute(0, 2, 3, 1).numpy() for batch in batches])
    assert np.array_equal(again, images)
