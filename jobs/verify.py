"""Check shards against their index, every image decoded: python -m jobs.verify s3://bucket/train/

Exit status 0 if everything matches, else 1. Prints a line for each bad image, at most 100 per shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from cluster.storage.storage import absolute
from datasets.reading.verify import Verified, verify_shard
from datasets.shards.index import Index
from datasets.shards.indexing import list_shards
from datasets.shards.shard_list import ShardList
from jobs.cli import command_parser, progress_bar, run
from jobs.ray.tasks import each

_MOST = 100  # lines per shard


def main(arguments: Sequence[str]) -> int:
    parser = command_parser("verify", __doc__)
    parser.add_argument("url", help="folder or pattern of .tar shards")
    parser.add_argument("--index", default="", help="folder of the index (default: <folder>/index)")
    parser.add_argument("--processes", type=int, help="processes (default: one per core)")
    options = parser.parse_args(arguments)
    index = Index.open(absolute(options.url), options.index and absolute(options.index))
    images = bad = 0
    with progress_bar(index.images) as bar:
        for shard in each(partial(verify_shard, index), range(len(index)), options.processes):
            images += shard.images
            bad += len(shard.bad)
            bar.update(shard.images)
            _report(shard)
    unknown = [] if index.meta.selection else _not_indexed(absolute(options.url), index)
    for name in unknown:
        print(f"{name}: not in the index; run python -m jobs.index {options.url}")
    found = f"{bad} of them bad" if bad else "all good"
    print(
        f"verified {images:,} images in {len(index)} shards: {found}"
        + f", {len(unknown)} shards not indexed" * bool(unknown)
    )
    return 1 if bad or unknown else 0


def _not_indexed(url: str, index: Index) -> list[str]:
    """Names of shards that are not in the index."""
    return sorted(list_shards(ShardList.parse(url)).shards.keys() - {index.name(n) for n in range(len(index))})


def _report(shard: Verified) -> None:
    for key, reason in shard.bad[:_MOST]:
        print(f"{shard.shard}: {f'sample {key!r}: ' * bool(key)}{reason}")
    if len(shard.bad) > _MOST:
        print(f"{shard.shard}: and {len(shard.bad) - _MOST} more")


if __name__ == "__main__":
    run(main)
