"""MovieLens-100K as a feed: every rating becomes one request of five impressions.

The data set ("The MovieLens Datasets: History and Context", Harper and Konstan, ACM TiiS 5(4), 2015; free
for research use) is taken from a wheel on PyPI that carries it as an example; the wheel is downloaded,
checked against a pinned checksum and read as an archive, never installed.

Who saw what is not in the data: the four films shown beside the rated one are drawn from what others
rated on the same day. These are *simulated exposures*; only the ratings are real.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv

from cuckooflow.errors import DatasetUnavailable
from cuckooflow.pipelines.demo.exposures import ITEM_SCHEMA, SHOWN, USER_SCHEMA, Exposures

SOURCE = "MovieLens-100K (real ratings, simulated exposures)"
REQUIREMENT = "recbole==1.2.1"
WHEEL = "recbole-1.2.1-py3-none-any.whl"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
#: A rating from here on is a like.
LIKE_FROM = 4.0
DOWNLOAD_TIMEOUT_S = 60

_FOLDER = "recbole/dataset_example/ml-100k/ml-100k"
_DAY_S = 86_400
#: How many days around its own a request draws from, and how many films, until four of them fit.
_ATTEMPTS = ((0, 12), (0, 40), (1, 40), (3, 40), (10, 40), (30, 40), (300, 400))


def fetch_movielens(cache: Path) -> Path:
    """The wheel that carries the data set, downloaded into ``cache`` unless it is there already.

    Raises:
        DatasetUnavailable: pip could not get it, or it is not the file it was.
    """
    wheel = cache / WHEEL
    if wheel.exists() and _sha256(wheel) == WHEEL_SHA256:
        return wheel
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
        command += [
            "--no-deps",
            "--only-binary=:all:",
            "--retries=1",
            "--timeout=10",
            f"--dest={folder}",
            REQUIREMENT,
        ]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DatasetUnavailable(f"expected pip to download {REQUIREMENT}, received: {error}") from error
        downloaded = Path(folder) / WHEEL
        if done.returncode != 0 or not downloaded.exists():
            reason = (done.stderr.strip().splitlines() or ["nothing was downloaded"])[-1]
            raise DatasetUnavailable(f"expected pip to download {REQUIREMENT}, received: {reason}")
        digest = _sha256(downloaded)
        if digest != WHEEL_SHA256:
            raise DatasetUnavailable(
                f"{WHEEL}: expected sha256 {WHEEL_SHA256}, received {digest}: not the file this demo knows"
            )
        downloaded.replace(wheel)
    return wheel


def load_movielens(wheel: Path, seed: int = 7) -> Exposures:
    """All 100,000 ratings as requests of five impressions, 500,000 rows, in order of time.

    Args:
        wheel: as :func:`fetch_movielens` gives it.
        seed: of the four films beside each rated one and of the order on the page.

    Raises:
        DatasetUnavailable: the archive does not hold the data set.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            ratings, items, users = (archive.read(f"{_FOLDER}.{part}") for part in ("inter", "item", "user"))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise DatasetUnavailable(
            f"{wheel}: expected an archive with {_FOLDER}.*, received: {error}"
        ) from error
    return expose(_table(ratings), _users(_table(users)), _items(_table(items)), seed)


def expose(ratings: pa.Table, users: pa.Table, items: pa.Table, seed: int) -> Exposures:
    """Make each rating a request: the rated film and four that others rated that day, shuffled.

    A film that the user rated on that day too is never shown beside the rated one. Where a day has too
    few films, the days around it help out.

    Args:
        ratings: ``user_id`` and ``item_id`` (string), ``rating`` (number), ``timestamp`` (seconds).
        users, items: as :class:`Exposures` wants them.
        seed: of everything drawn here.
    """
    time_s = ratings["timestamp"].cast(pa.float64()).cast(pa.int64()).to_numpy()
    order = np.argsort(time_s, kind="stable")
    time_s = time_s[order]
    user = pc.index_in(ratings["user_id"], users["user_id"]).to_numpy()[order].astype(np.int64)
    item = pc.index_in(ratings["item_id"], items["item_id"]).to_numpy()[order].astype(np.int64)
    liked = ratings["rating"].cast(pa.float64()).to_numpy()[order] >= LIKE_FROM

    rng = np.random.default_rng(seed)
    shown = np.column_stack([item, _others(time_s // _DAY_S, user, item, rng)])
    place = rng.permuted(np.tile(np.arange(SHOWN), (len(item), 1)), axis=1)
    rated = place == 0
    return Exposures(
        source=SOURCE,
        request=np.repeat(np.arange(len(item)), SHOWN),
        time_s=np.repeat(time_s, SHOWN),
        position=np.tile(np.arange(SHOWN), len(item)),
        user=np.repeat(user, SHOWN),
        item=np.take_along_axis(shown, place, axis=1).reshape(-1),
        clicked=rated.reshape(-1),
        liked=(rated & liked[:, None]).reshape(-1),
        users=users,
        items=items,
    )


def _others(
    day: npt.NDArray[np.int64],
    user: npt.NDArray[np.int64],
    item: npt.NDArray[np.int64],
    rng: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """(n, 4) films that others rated around each rating's day, distinct; ratings are in order of time."""
    wanted = SHOWN - 1
    films = int(item.max()) + 1
    days = int(day.max()) + 1
    own = np.unique((user * days + day) * films + item)
    chosen = np.full((len(item), wanted), -1, np.int64)
    missing = np.arange(len(item))
    for around, count in _ATTEMPTS:
        first = np.searchsorted(day, day[missing] - around, side="left")
        last = np.searchsorted(day, day[missing] + around, side="right")
        at = first[:, None] + (rng.random((len(missing), count)) * (last - first)[:, None]).astype(np.int64)
        drawn = item[at]
        fits = ~np.isin((user * days + day)[missing][:, None] * films + drawn, own)
        for column in range(1, count):
            fits[:, column] &= (drawn[:, :column] != drawn[:, column, None]).all(axis=1)
        first_fit = np.argsort(~fits, axis=1, kind="stable")[:, :wanted]
        enough = fits.sum(axis=1) >= wanted
        chosen[missing[enough]] = np.take_along_axis(drawn, first_fit, axis=1)[enough]
        missing = missing[~enough]
        if len(missing) == 0:
            return chosen
    raise ValueError(
        f"expected at least {wanted} other films within {_ATTEMPTS[-1][0]} days of each rating, "
        f"received too few for {len(missing)} ratings"
    )


def _table(raw: bytes) -> pa.Table:
    """A tab-separated file whose header reads ``name:type``; every value stays text."""
    header = raw[: raw.index(b"\n")].decode().split("\t")
    names = [column.split(":")[0].strip() for column in header]
    return csv.read_csv(
        pa.BufferReader(raw),
        read_options=csv.ReadOptions(column_names=names, skip_rows=1),
        parse_options=csv.ParseOptions(delimiter="\t", quote_char=False),
        convert_options=csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
    )


def _users(table: pa.Table) -> pa.Table:
    return table.select(["user_id", "age", "gender", "occupation"]).cast(USER_SCHEMA)


def _items(table: pa.Table) -> pa.Table:
    years = table["release_year"]
    known = pc.match_substring_regex(years, r"^\d{4}$")
    return pa.table(
        {
            "item_id": table["item_id"],
            "title": table["movie_title"],
            "genres": pc.split_pattern(table["class"], " "),
            "release_year": pc.if_else(known, years, None).cast(pa.int64()),
        },
        schema=ITEM_SCHEMA,
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
