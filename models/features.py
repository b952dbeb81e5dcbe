"""Which columns become features, and how: the ``features`` section of a job.

A feature id is 64 bits: the feature's slot in the high :data:`~cuckooflow.embedding_store.api.SLOT_BITS`
bits, the hash of its value below. The slot is the feature's place in the list unless it is given, so
features are appended to a running job, never inserted; one that is taken away leaves its number unused
by giving the others theirs explicitly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Self
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from cuckooflow.embedding_store.api import SLOT_BITS
from cuckooflow.errors import SpecError
from cuckooflow.models.duration import DurationUs

#: Slots that a job can have.
MAX_SLOTS = 1 << SLOT_BITS

#: Features that follow from earlier examples; see :mod:`cuckooflow.models.streaming`.
STREAMING = ("rate", "count", "age", "since_last", "recent")
#: Key columns of a streaming feature, at most.
BY_MAX = 8

Kind = Literal["id", "bucket", "number", "hour", "cross", "rate", "count", "age", "since_last", "recent"]


#: Options that only some kinds know.
_OF_KINDS = {
    "by": STREAMING,
    "label": ("rate", "count", "recent"),
    "when": ("recent",),
    "half_life": ("rate", "count"),
    "prior": ("rate",),
    "prior_weight": ("rate",),
    "like": ("recent",),
}


class FeatureSpec(BaseModel):
    """One feature.

    Attributes:
        name: unique within the job.
        kind: ``id`` (any hashable value; the default), ``bucket`` (a number cut at ``boundaries``),
            ``number`` (a dense input of the model, no row in any table), ``hour`` (hour of the day of a
            time column, 0 to 23), ``cross`` (one id for the combination of ``columns``; the default
            where ``columns`` is given). Streaming features follow from the examples before, of the same ``by``:
            ``rate`` (how often ``label`` was positive, old examples counting less), ``count`` (how many there
            were), ``age`` (time since the first), ``since_last`` (time since the last), ``recent`` (the
            last values of ``column``).
        column: the column it reads; default: the feature's name, for ``hour`` the event time ``_time``. Of
            ``recent``: the column whose values are listed, required.
        columns: the columns of a cross, at least two, none of them lists.
        pooling: for a column that holds lists: ``mean`` or ``sum`` of its elements' rows. Default None:
            the column holds single values. Of ``recent``: default ``mean``.
        max_length: elements of a list that count, from its start; default 16, at most 256. Each one
            costs a place in every row of a batch, used or not. Of ``recent``: how many values are kept.
        boundaries: of ``bucket``, ascending; a value equal to a boundary belongs above it. n boundaries
            make n + 1 buckets.
        zone: of ``hour``, an IANA name; default UTC.
        log: ``number`` only: take sign(x) * log(1 + abs(x)) first; default off.
        center, scale: ``number`` only: the model sees (x - center) / scale; default 0 and 1.
        slot: 0 to 4095; default: the place in the list.
        admission: occurrences before an id of this feature gets a row; default None: the model's.
        ttl: rows of this feature that no example touched for so long, in event time, are evicted; default
            None: the model's. Streaming features of the same ``by`` share rows, and the longest of their ttls.
        by: key columns of a streaming feature, 1 to 8; each combination of their values has figures of its own.
        label: of ``rate``, required: the label whose share of positives it is. Of ``count``: count positives of
            it only. Of ``recent``: list only examples in which it is as ``when`` says. Any label that is
            joined, learned or not.
        when: of ``recent`` with a label: ``positive`` (default) or ``negative``.
        half_life: of ``rate``, required: an example so long ago counts half. Of ``count``: the same, default None:
            all count alike.
        prior, prior_weight: of ``rate``: it begins as if ``prior_weight`` examples (default 10) had been seen with
            this share of positives (default 0.5); the label's usual share is right.
        like: of ``recent``: the name of a feature of kind ``id`` whose rows its values use; default None: rows of
            its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    kind: Kind = "id"
    column: str | None = None
    columns: tuple[str, ...] = ()
    pooling: Literal["mean", "sum"] | None = None
    max_length: int = Field(default=16, ge=1, le=256)
    boundaries: tuple[float, ...] = ()
    zone: str = "UTC"
    log: bool = False
    center: float = 0.0
    scale: float = Field(default=1.0, gt=0)
    slot: int | None = Field(default=None, ge=0, lt=MAX_SLOTS)
    admission: int | None = Field(default=None, ge=1)
    ttl: DurationUs | None = None
    by: tuple[str, ...] = Field(default=(), max_length=BY_MAX)
    label: str | None = None
    when: Literal["positive", "negative"] = "positive"
    half_life: DurationUs | None = Field(default=None, ge=1_000)
    prior: float = Field(default=0.5, gt=0, lt=1)
    prior_weight: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    like: str | None = None

    @field_validator("zone")
    @classmethod
    def _known_zone(cls, zone: str) -> str:
        try:
            ZoneInfo(zone)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(f"expected an IANA zone such as Asia/Shanghai, received {zone!r}") from error
        return zone

    @model_validator(mode="before")
    @classmethod
    def _columns_mean_cross(cls, data: object) -> object:
        if isinstance(data, dict) and data.get("columns") and "kind" not in data:
            return {**data, "kind": "cross"}
        if isinstance(data, dict) and data.get("kind") == "recent":
            return {"pooling": "mean", **data}
        return data

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        if (self.kind == "cross") != bool(self.columns):
            raise ValueError("columns and kind cross belong together: give both or neither")
        if self.kind == "cross" and (len(self.columns) < 2 or self.column is not None):
            raise ValueError("a cross needs at least two columns, in columns, and no column")
        if (self.kind == "bucket") != bool(self.boundaries):
            raise ValueError("boundaries and kind bucket belong together: give both or neither")
        if any(not math.isfinite(b) for b in self.boundaries):
            raise ValueError("boundaries must be finite numbers")
        if any(a >= b for a, b in zip(self.boundaries, self.boundaries[1:], strict=False)):
            raise ValueError(f"boundaries must ascend, received {list(self.boundaries)}")
        if self.pooling is not None and self.kind not in ("id", "recent"):
            raise ValueError(f"pooling goes with kind id or recent, received kind {self.kind}")
        if self.kind != "number" and (self.log or self.center != 0.0 or self.scale != 1.0):
            raise ValueError(f"log, center and scale go with kind number, received kind {self.kind}")
        if not (math.isfinite(self.center) and math.isfinite(self.scale)):
            raise ValueError("center and scale must be finite")
        return self

    @model_validator(mode="after")
    def _fits_stream(self) -> Self:
        for name, kinds in _OF_KINDS.items():
            if self.kind not in kinds and getattr(self, name) != FeatureSpec.model_fields[name].default:
                raise ValueError(f"{name} goes with kind {' or '.join(kinds)}, received kind {self.kind}")
        if not self.streaming:
            return self
        if not self.by or len(set(self.by)) != len(self.by):
            raise ValueError(f"{self.kind} needs key columns in by, each once, received {list(self.by)}")
        if (self.kind == "recent") != (self.column is not None):
            raise ValueError(
                "column goes with kind recent, which lists its values, and with no other streaming kind"
            )
        if self.kind == "rate" and (self.label is None or self.half_life is None):
            raise ValueError("rate needs a label and a half_life")
        if self.kind == "recent" and self.pooling is None:
            raise ValueError("recent needs pooling: mean or sum")
        if self.when == "negative" and self.label is None:
            raise ValueError("when: negative needs a label")
        return self

    @property
    def streaming(self) -> bool:
        """Whether it follows from earlier examples."""
        return self.kind in STREAMING

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns of a row that it reads; of a streaming feature, the key."""
        if self.streaming:
            return self.by
        if self.kind == "cross":
            return self.columns
        return (self.column or ("_time" if self.kind == "hour" else self.name),)

    @property
    def width(self) -> int:
        """Places it takes in a row of ids; 0 for a number."""
        if self.numbers:
            return 0
        return self.max_length if self.pooling is not None else 1

    @property
    def numbers(self) -> int:
        """Dense inputs that it makes; 0 for ids."""
        return {"number": 2, "rate": 2, "count": 1, "age": 2, "since_last": 2}.get(self.kind, 0)


def slots(features: Sequence[FeatureSpec]) -> dict[str, int]:
    """Feature name -> slot.

    Raises:
        SpecError: two features have one name or one slot, or there are none, or too many.
    """
    if not features:
        raise SpecError("features: expected at least one feature, received none")
    if len(features) > MAX_SLOTS:
        raise SpecError(f"features: expected at most {MAX_SLOTS}, received {len(features)}")
    taken: dict[int, str] = {}
    result: dict[str, int] = {}
    for place, feature in enumerate(features):
        slot = place if feature.slot is None else feature.slot
        if feature.name in result:
            raise SpecError(f"features: the name {feature.name!r} is given twice; rename one of the two")
        if slot in taken:
            raise SpecError(
                f"features: {feature.name!r} and {taken[slot]!r} have slot {slot}; give one of them another"
            )
        taken[slot] = feature.name
        result[feature.name] = slot
    return result


def id_slots(features: Sequence[FeatureSpec]) -> dict[str, int]:
    """Feature name -> the slot of its ids: its own, or that of the feature which it is ``like``.

    Raises:
        SpecError: as :func:`slots`, or it is like a feature that has no ids, or is not there.
    """
    own = slots(features)
    plain = [feature.name for feature in features if feature.kind == "id"]
    for feature in features:
        if feature.like is not None and feature.like not in plain:
            raise SpecError(
                f"features: {feature.name!r} is like {feature.like!r}; allowed: a feature of kind id: "
                f"{', '.join(plain) or 'there is none'}"
            )
    return {feature.name: own[feature.like or feature.name] for feature in features}


def input_columns(features: Sequence[FeatureSpec]) -> tuple[str, ...]:
    """Every column that some feature reads, once each, in first-use order."""
    return tuple(dict.fromkeys(column for feature in features for column in feature.inputs))
