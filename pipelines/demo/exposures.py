"""What was shown to whom and what they did with it, columnar: what a data set or a simulator yields."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

#: Items a request shows.
SHOWN = 5

USER_SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string()),
        pa.field("age", pa.int64()),
        pa.field("gender", pa.string()),
        pa.field("occupation", pa.string()),
    ]
)
ITEM_SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.string()),
        pa.field("title", pa.string()),
        pa.field("genres", pa.list_(pa.string())),
        pa.field("release_year", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Exposures:
    """Impressions in order of their time, n rows; a request's rows are neighbours.

    Attributes:
        source: what a reader should know the data as.
        request: (n,) int64, ascending; the rows of one request share it.
        time_s: (n,) int64, seconds since the epoch, UTC, ascending.
        position: (n,) int64, 0 to ``SHOWN - 1``, the place on the page.
        user, item: (n,) int64, rows of ``users`` and ``items``.
        clicked, liked: (n,) bool, what the user did in the end.
        users: :data:`USER_SCHEMA`.
        items: :data:`ITEM_SCHEMA`; ``release_year`` is null where it is not known.
    """

    source: str
    request: npt.NDArray[np.int64]
    time_s: npt.NDArray[np.int64]
    position: npt.NDArray[np.int64]
    user: npt.NDArray[np.int64]
    item: npt.NDArray[np.int64]
    clicked: npt.NDArray[np.bool_]
    liked: npt.NDArray[np.bool_]
    users: pa.Table
    items: pa.Table

    def __post_init__(self) -> None:
        columns = (self.time_s, self.position, self.user, self.item, self.clicked, self.liked)
        if any(len(column) != len(self.request) for column in columns):
            raise ValueError(
                f"expected columns of {len(self.request)} rows, received {[len(c) for c in columns]}"
            )
        if np.any(np.diff(self.time_s) < 0) or np.any(np.diff(self.request) < 0):
            raise ValueError("expected rows in order of request and time")
        if not (self.users.schema.equals(USER_SCHEMA) and self.items.schema.equals(ITEM_SCHEMA)):
            raise ValueError("expected users and items of USER_SCHEMA and ITEM_SCHEMA")

    def __len__(self) -> int:
        return len(self.request)
