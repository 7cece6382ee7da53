"""The JSON files of run folders and exports, validated: anyone may have written them, and a write may be torn."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from typing_extensions import TypedDict

from cluster.storage.json_files import parse_json

Count = Annotated[int, Field(strict=True, ge=0, le=1 << 53)]  # integers that a float64 holds, too
Name = Annotated[str, Field(strict=True, max_length=1 << 16)]
Dtype = Literal["BOOL", "U8", "I8", "I16", "I32", "I64", "F16", "BF16", "F32", "F64"]
Values = dict[str, Any]


class Record(BaseModel):
    """A JSON object; keys that are not listed are kept and not checked."""

    model_config = ConfigDict(extra="allow", strict=True)


class AttemptFacts(Record):
    """What of an attempt's facts later attempts use."""

    noise_salt: Count = 0
    lr_factor: Annotated[FiniteFloat, Field(gt=0)] = 1.0


class AttemptRecord(Record):
    """attempts/NUMBER.json"""

    start: Annotated[str, Field(pattern=r"^\d{12,18}-\d{4,9}$")] | None
    facts: AttemptFacts


class FileRecord(TypedDict):
    """A file that a manifest lists."""

    bytes: Count
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ManifestRecord(Record):
    """manifest.json of a commit"""

    format: int
    files: dict[Name, FileRecord]


class Progress(Record):
    """progress.json of a commit"""

    images: Count
    evaluation_owed: bool = False
    healthy: bool = True
    guard: list[float] = []
    sums: Values = {}
    posthoc_start: Count = 0


class Fingerprint(Record):
    """fingerprint.json of a commit"""

    config: Values
    changeable: Values = {}
    data: Any = None


class PieceRecord(TypedDict):
    """A piece of a tensor in layout.json."""

    file: Name
    begin: list[Count]
    shape: list[Count]
    start: Count
    crc32: Annotated[str, Field(pattern=r"^([0-9a-f]{8})*$")]


class TensorRecord(TypedDict):
    """A tensor in layout.json."""

    dtype: Dtype
    shape: list[Count]
    pieces: list[PieceRecord]


class HeaderRecord(TypedDict):
    """A tensor in the header of a safetensors file."""

    dtype: str
    shape: list[Count]
    data_offsets: Annotated[list[Count], Field(min_length=2, max_length=2)]


Side = Annotated[Count, Field(ge=1, le=1 << 16)]


class ImagesRecord(Record):
    """The images of a model."""

    channels: Annotated[Count, Field(ge=1, le=1 << 16)]
    height: Annotated[Count, Field(le=1 << 16)]
    width: Annotated[Count, Field(le=1 << 16)]
    levels: Annotated[Count, Field(ge=2, le=1 << 16)] = 256
    classes: Annotated[Count, Field(le=1 << 40)] = 0
    patches: tuple[Side, Side, list[tuple[Side, Side, Count]]] | None = None
    """Most patches, side of a patch, and (rows, columns, images) of each shape; null: images of height x width."""

    @field_validator("patches", mode="before")
    @classmethod
    def _tuples(cls, value: object) -> object:
        """JSON's lists as tuples; anything else is refused by the type."""
        if not isinstance(value, list) or len(value) != 3 or not isinstance(value[2], list):
            return value
        return (*value[:2], [tuple(grid) if isinstance(grid, list) else grid for grid in value[2]])

    @model_validator(mode="after")
    def _has_a_size(self) -> Self:
        if self.patches is None and not (self.height and self.width):
            raise ValueError("images have a height and a width of at least 1, or patches")
        return self


class BestRecord(Record):
    """The best evaluation of a run."""

    images: Count
    nats: float
    since: Count


class Description(Record):
    """model.json of a run, config.json of an export"""

    model: Values
    images: ImagesRecord
    class_names: list[str] = []
    images_seen: Count | None = None
    weights: str = "ema"
    commit: str | None = None
    best: BestRecord | None = None
    fingerprint: Fingerprint | None = None


class QuarantinedRecord(Record):
    """A quarantined image in a row of metrics."""

    epoch: Count
    position: Count
    shard: str
    key: str
    reason: str


class MetricsRow(Record):
    """A line of metrics/COMMIT.jsonl; figures by name."""

    images: Count
    rollbacks: Count = 0
    quarantined: list[QuarantinedRecord] = []
    nats: Annotated[float, Field(alias="validation/nats")] = 0.0
    seconds: Annotated[float, Field(alias="evaluation/seconds")] = 0.0
    set: Annotated[str | None, Field(alias="validation/set")] = None


Kind = Literal[
    "attempt", "manifest", "progress", "fingerprint", "layout", "header", "description", "row of metrics"
]  # fmt: skip
_ADAPTERS: dict[Kind, TypeAdapter[Any]] = {
    "attempt": TypeAdapter(AttemptRecord),
    "manifest": TypeAdapter(ManifestRecord),
    "progress": TypeAdapter(Progress),
    "fingerprint": TypeAdapter(Fingerprint),
    "layout": TypeAdapter(dict[Name, dict[Name, TensorRecord]]),
    "header": TypeAdapter(dict[Name, HeaderRecord]),
    "description": TypeAdapter(Description),
    "row of metrics": TypeAdapter(MetricsRow),
}


def parse_record(kind: Kind, data: bytes | str) -> Any:
    """The parsed JSON, as plain objects, if it is of a kind of this module. Raises ValueError, one line."""
    return check_record(kind, parse_json(data))


def check_record(kind: Kind, value: Any) -> Any:
    """The same for parsed JSON."""
    try:
        _ADAPTERS[kind].validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key, message = ".".join(map(str, first["loc"]))[:200], first["msg"]
        raise ValueError(f"{key}: {message[0].lower()}{message[1:]}" if key else message) from error
    except RecursionError:
        raise ValueError("nested too deep") from None
    return value
