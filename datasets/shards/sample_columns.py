"""The column table of a shard, from its samples."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import pyarrow as pa

from datasets.shards.column_tables import KEY
from datasets.shards.json_fields import column_of, common_type
from datasets.shards.scan import HASH, Sample, ScanOptions

SCHEMA = pa.schema(
    [
        (KEY, pa.string()),
        ("width", pa.int32()),  # of the upright image, pixels
        ("height", pa.int32()),
        ("format", pa.string()),  # jpeg, png, webp or npy
        ("grey", pa.bool_()),  # one channel
        ("orientation", pa.uint8()),  # EXIF orientation, 1 to 8; 1: upright
        ("bytes", pa.int64()),  # of the encoded image
        ("crc32", pa.uint32()),  # of these
        ("label", pa.int64()),  # null: none
        ("caption_length", pa.int32()),  # characters of the .txt; null: none
    ]
)
LABEL_NAME = "label_name"  # the column of class names; null: no label
_NAMES = b"class_names"  # metadata of a schema: the class names among the labels, as JSON
_REQUESTED = b"columns"  # metadata of a table: the columns that were requested besides these


def column_table(samples: Sequence[Sample], options: ScanOptions) -> pa.Table:
    """The columns of `SCHEMA`, `LABEL_NAME` where labels are names, and those that were requested of the samples."""
    headers = [sample.header for sample in samples]
    images = [sample.members[sample.image] for sample in samples]
    values = [
        [sample.key for sample in samples],
        [header.width for header in headers],
        [header.height for header in headers],
        [header.format for header in headers],
        [header.channels == 1 for header in headers],
        [header.orientation for header in headers],
        [image.size for image in images],
        [image.crc32 for image in images],
        [None if options.labels.named else sample.label for sample in samples],
        [sample.caption for sample in samples],
    ]
    table = pa.Table.from_arrays(
        [pa.array(column, field.type) for column, field in zip(values, SCHEMA, strict=True)], schema=SCHEMA
    )
    for name in options.fields:
        table = table.append_column(name, column_of([sample.fields.get(name) for sample in samples]))
    if options.hashes:
        table = table.append_column(HASH, pa.array([sample.phash for sample in samples], pa.uint64()))
    names: set[str] = set()
    if options.labels.named:
        labels = pa.array([sample.label for sample in samples], pa.string())
        table = table.append_column(LABEL_NAME, labels)
        names = set(labels.drop_null().to_pylist())
    return table.replace_schema_metadata({_REQUESTED: "\n".join(options.columns), _NAMES: json.dumps(sorted(names))})


def class_names(schema: pa.Schema) -> set[str]:
    """The class names among the labels of the samples."""
    return set(json.loads((schema.metadata or {}).get(_NAMES, b"[]")))


def has_columns(table: pa.Table, requested: Iterable[str]) -> bool:
    """Whether a column table of an index has the columns of `SCHEMA`, and was made with those that are requested."""
    metadata = table.schema.metadata or {}
    made = metadata.get(_REQUESTED, b"").decode().split("\n")
    names = SCHEMA.names
    return table.schema.names[: len(names)] == names and set(requested) <= set(made)


def common_schema(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """The columns of all shards: those of `SCHEMA`, and the others with a type that fits all of them."""
    names: set[str] = set()
    types: dict[str, set[pa.DataType]] = {field.name: {field.type} for field in SCHEMA}
    for schema in schemas:
        names |= class_names(schema)
        for field in schema:
            types.setdefault(field.name, set()).add(field.type)
    fields = [(name, common_type(kinds)) for name, kinds in types.items()]
    return pa.schema(fields, {_NAMES: json.dumps(sorted(names))})
