"""Sets as img2dataset writes them are indexed and trained on as they are, with captions from .txt or from .json."""

from __future__ import annotations

import hashlib
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from datasets.config import DataConfig
from datasets.loading.build import training_batches
from datasets.loading.conditions import check_conditions
from datasets.shards.index import Index
from datasets.shards.indexing import index_shards
from tests.datasets.conditions.captioned_sets import caption, tokenizer
from tests.datasets.small_sets import write_members

COUNT = 6  # samples of a shard


def jpeg(number: int) -> bytes:
    """An image of 16 x 8 pixels whose grey level is the number."""
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 16, 3), 10 * number, np.uint8)).save(stream, "jpeg", quality=100)
    return stream.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """00000.tar, 00000.parquet, 00000_stats.json, ...; in each shard one download failed: it is in the table only."""
    folder = tmp_path_factory.mktemp("img2dataset")
    for shard in range(2):
        files, rows = [], []
        for i in range(COUNT):
            number = shard * COUNT + i
            key, failed, image = f"{shard:05d}{i:04d}", i == 3, jpeg(number)
            row = {
                "url": f"https://example.com/{number}.jpg",
                "caption": caption(number),
                "key": key,
                "status": "failed_to_download" if failed else "success",
                "error_message": "HTTP Error 404: Not Found" if failed else None,
                "width": None if failed else 16,
                "height": None if failed else 8,
                "original_width": None if failed else 160,
                "original_height": None if failed else 80,
                "exif": None if failed else "{}",
                "sha256": None if failed else hashlib.sha256(image).hexdigest(),
            }
            rows.append(row)
            if not failed:
                files += [(f"{key}.jpg", image), (f"{key}.txt", caption(number).encode())]
                files.append((f"{key}.json", json.dumps(row, indent=4).encode()))
        write_members(folder / f"{shard:05d}.tar", files)
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{shard:05d}.parquet")
        statistics = {
            "count": COUNT,
            "successes": COUNT - 1,
            "failed_to_download": 1,
            "status_dict": {"success": COUNT - 1},
        }
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps(statistics))
    return folder


@pytest.mark.parametrize("source", ["txt", "json.caption"])
def test_it_trains_as_it_is(folder, source):
    done = index_shards(str(folder), str(folder / "index"))
    assert (sum(shard.images for shard in done.shards), done.quarantine.num_rows) == (2 * (COUNT - 1), 0)
    text = {"kind": "text", "members": [source], "max_tokens": 16}
    config = DataConfig(shards=str(folder), conditions={"caption": text}, streams=1, window=16, workers=0)
    index = Index.of(config)
    check_conditions(config, index)
    words = tokenizer()
    from tokenizers import Tokenizer

    expected = Tokenizer.from_str(words)
    seen = []
    with training_batches(config, index, seed=1, batch=5, tokenizers={"caption": words}) as batches:
        for _ in range(2):  # an epoch
            batch = next(batches)
            for image, ids, length in zip(batch.images, *batch.conditions["caption"], strict=True):
                number = round(float(image.float().mean()) / 10)
                assert ids[:length].tolist() == expected.encode(caption(number)).ids
                seen.append(number)
    assert sorted(seen) == [number for number in range(2 * COUNT) if number % COUNT != 3]
    assert not batches.unknown
