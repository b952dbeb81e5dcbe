"""KuaiRand-Pure's feed log as a benchmark takes it: rows in time order, and features.

The data lies under ``../shared/data`` or where ``CUCKOOFLOW_DATA`` says; it is not part of the project.
Rows are sorted by (time_ms, row), and a row's position in the log is its index.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from cuckooflow.models.features import FeatureSpec

LABELS = ("is_click", "long_view")
#: One-hot encoded profile columns that the reference learner used.
_PROFILE = tuple(f"onehot_feat{n}" for n in (0, 1, 2, 4, 5, 6, 7, 9, 10, 11))
_RANGES = ("follow_user_num_range", "fans_user_num_range", "register_days_range")
#: The columns of the profile that are features.
USER_COLUMNS = ("user_active_degree", *_PROFILE, *_RANGES)

#: floor(2 * log2(1 + seconds)) as bucket boundaries.
_DURATIONS = tuple(2 ** (k / 2) - 1 for k in range(1, 40))

FEATURES: tuple[FeatureSpec, ...] = (
    FeatureSpec(name="user", column="user_id"),
    FeatureSpec(name="video", column="video_id"),
    FeatureSpec(name="author", column="author_id"),
    FeatureSpec(name="tags", column="tag", pooling="mean", max_length=4),
    FeatureSpec(name="tab"),
    FeatureSpec(name="hour", kind="hour", zone="Asia/Shanghai"),
    FeatureSpec(name="upload_type"),
    FeatureSpec(name="duration", column="duration_s", kind="bucket", boundaries=_DURATIONS),
    *(FeatureSpec(name=name) for name in USER_COLUMNS),
)


#: The job spec of the streaming features.
STREAMING_JOB = Path(__file__).resolve().parent.parent / "examples" / "kuairand_streaming.yaml"


@dataclass(frozen=True)
class Feed:
    """The whole log.

    Attributes:
        batch: all rows with the columns that :data:`FEATURES` and :data:`STREAMING_JOB` read, ``_time``, ``_append``, ``_offset``,
            ``_row`` and one ``label_<name>`` for each of :data:`LABELS`.
        repeated: (n,) bool: rows that repeat an earlier row's (user, video, time).
    """

    batch: pa.RecordBatch
    repeated: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return self.batch.num_rows


def data_folder() -> Path:
    """Where the data should lie; it may not."""
    shared = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    return Path(os.environ.get("CUCKOOFLOW_DATA", shared)) / "kuairand"


def load(folder: Path, rows: int | None = None) -> Feed:
    """Read, join and sort; with ``rows`` only the first so many.

    Raises:
        FileNotFoundError: the data is not there.
    """
    log = pa.csv.read_csv(folder / "log_standard_0425_0508.csv.gz")
    log = log.append_column("_read", pa.array(np.arange(log.num_rows)))
    log = log.sort_by([("time_ms", "ascending"), ("_read", "ascending")])
    if rows is not None:
        log = log.slice(0, rows)
    users = pa.csv.read_csv(folder / "user_features_pure.csv.gz")
    videos = pa.csv.read_csv(folder / "video_features_basic_pure.csv.gz")
    columns: dict[str, pa.Array] = {
        "user_id": _flat(log["user_id"]),
        "video_id": _flat(log["video_id"]),
        "tab": _flat(log["tab"]),
        "duration_s": pc.divide(_flat(log["duration_ms"]).cast(pa.float64()), 1000.0),
    }
    user_at = pc.index_in(log["user_id"].combine_chunks(), users["user_id"].combine_chunks())
    columns |= {name: _flat(users[name]).take(user_at) for name in USER_COLUMNS}
    video_at = pc.index_in(log["video_id"].combine_chunks(), videos["video_id"].combine_chunks())
    columns |= {name: _flat(videos[name]).take(video_at) for name in ("author_id", "upload_type")}
    tags = _flat(videos["tag"]).cast(pa.string()).take(video_at)
    columns["tag"] = pc.split_pattern(pc.if_else(pc.equal(tags, ""), None, tags), ",")
    columns["first_tag"] = pc.list_element(columns["tag"], 0)
    seconds = columns["duration_s"].to_numpy()
    columns["duration_step"] = pa.array(np.searchsorted(_DURATIONS, seconds, side="right"))
    time_us = np.asarray(log["time_ms"]).astype(np.int64) * 1000
    columns["_time"] = columns["_append"] = pa.array(time_us)
    columns["_offset"] = pa.array(np.arange(log.num_rows))
    columns["_row"] = pa.array(np.zeros(log.num_rows, np.int32))
    for label in LABELS:
        columns[f"label_{label}"] = _flat(log[label]).cast(pa.uint8())
    event = np.stack([np.asarray(log[name]) for name in ("user_id", "video_id", "time_ms")])
    _, first = np.unique(event, axis=1, return_index=True)
    repeated = np.ones(log.num_rows, np.bool_)
    repeated[first] = False
    return Feed(pa.record_batch(columns), repeated)


def _flat(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks()
