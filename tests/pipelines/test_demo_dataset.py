"""MovieLens as a feed: the archive's checks, and the exposures made of ratings."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cuckooflow.errors import DatasetUnavailable
from cuckooflow.pipelines.demo import dataset
from cuckooflow.pipelines.demo.exposures import ITEM_SCHEMA, SHOWN, USER_SCHEMA, Exposures

DAY_S = 86_400


def tables(users: int, items: int) -> tuple[pa.Table, pa.Table]:
    user_rows = {
        "user_id": [f"u{i}" for i in range(users)],
        "age": [20 + i for i in range(users)],
        "gender": ["F"] * users,
        "occupation": ["writer"] * users,
    }
    item_rows = {
        "item_id": [f"i{i}" for i in range(items)],
        "title": [f"Film {i}" for i in range(items)],
        "genres": [["Drama"]] * items,
        "release_year": [1990] * items,
    }
    return pa.table(user_rows, schema=USER_SCHEMA), pa.table(item_rows, schema=ITEM_SCHEMA)


def ratings(rows: list[tuple[int, int, float, int]]) -> pa.Table:
    return pa.table(
        {
            "user_id": [f"u{r[0]}" for r in rows],
            "item_id": [f"i{r[1]}" for r in rows],
            "rating": [str(r[2]) for r in rows],
            "timestamp": [str(r[3]) for r in rows],
        }
    )


def random_exposures(seed: int = 3) -> tuple[Exposures, list[tuple[int, int, float, int]]]:
    rng = np.random.default_rng(seed)
    pairs = {
        (int(u), int(i)) for u, i in zip(rng.integers(0, 12, 400), rng.integers(0, 40, 400), strict=True)
    }
    rows = [(u, i, float(rng.integers(1, 6)), int(rng.integers(0, 8 * DAY_S))) for u, i in sorted(pairs)]
    users, items = tables(12, 40)
    return dataset.expose(ratings(rows), users, items, seed), rows


def test_each_rating_is_a_request_of_five_different_films() -> None:
    shown, rows = random_exposures()
    assert len(shown) == SHOWN * len(rows)
    films = shown.item.reshape(-1, SHOWN)
    assert all(len(set(row)) == SHOWN for row in films.tolist())
    assert (shown.position.reshape(-1, SHOWN) == np.arange(SHOWN)).all()
    assert (shown.clicked.reshape(-1, SHOWN).sum(axis=1) == 1).all()


def test_clicks_and_likes_are_the_ratings() -> None:
    shown, rows = random_exposures()
    clicked = np.flatnonzero(shown.clicked)
    got = sorted(
        zip(
            shown.user[clicked], shown.item[clicked], shown.time_s[clicked], shown.liked[clicked], strict=True
        )
    )
    assert got == sorted((u, i, t, rating >= 4) for u, i, rating, t in rows)
    assert not (shown.liked & ~shown.clicked).any()


def test_films_beside_the_rated_one_were_not_rated_by_the_user_that_day() -> None:
    shown, rows = random_exposures()
    rated = {(u, i, t // DAY_S) for u, i, _, t in rows}
    beside = np.flatnonzero(~shown.clicked)
    assert len(beside) > 0
    for at in beside.tolist():
        assert (int(shown.user[at]), int(shown.item[at]), int(shown.time_s[at]) // DAY_S) not in rated


def test_the_day_of_the_rating_is_preferred() -> None:
    # Day 0 shows films 0 to 9 and day 5 films 10 to 19: both have enough, so neither borrows.
    rows = [(i, i, 5.0, 100 + i) for i in range(10)] + [(i, 10 + i, 2.0, 5 * DAY_S + i) for i in range(10)]
    users, items = tables(10, 20)
    shown = dataset.expose(ratings(rows), users, items, 1)
    first_day = shown.time_s < DAY_S
    assert shown.item[first_day].max() < 10
    assert shown.item[~first_day].min() >= 10


def test_a_thin_day_borrows_from_its_neighbours() -> None:
    rows = [(0, 0, 4.0, 10)] + [(1 + i, 1 + i, 4.0, 2 * DAY_S + i) for i in range(8)]
    users, items = tables(9, 9)
    shown = dataset.expose(ratings(rows), users, items, 1)
    assert len(set(shown.item[:SHOWN].tolist())) == SHOWN


def test_too_few_films_are_refused() -> None:
    users, items = tables(2, 3)
    with pytest.raises(ValueError, match="too few for 2 ratings"):
        dataset.expose(ratings([(0, 0, 4.0, 10), (1, 1, 4.0, 20)]), users, items, 1)


def test_one_seed_one_feed() -> None:
    again, other = random_exposures()[0], random_exposures(4)[0]
    first = random_exposures()[0]
    assert (first.item == again.item).all()
    assert len(first) != len(other) or (first.item != other.item).any()


def test_archive_is_parsed(tmp_path: Path) -> None:
    wheel = tmp_path / "w.whl"
    folder = "recbole/dataset_example/ml-100k/ml-100k"
    lines = [
        f"{u}\t{i}\t{1 + (u + i) % 5}\t{1000 + 10 * u + i}" for u in range(1, 4) for i in (2 * u, 2 * u + 1)
    ]
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(
            f"{folder}.inter",
            "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + "\n".join(lines),
        )
        archive.writestr(
            f"{folder}.item",
            "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
            + "\n".join(f'{i}\tA "Film" {i}\t{1990 if i > 1 else "unkonwn"}\tDrama War' for i in range(1, 9)),
        )
        archive.writestr(
            f"{folder}.user",
            "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
            + "\n".join(f"{u}\t3{u}\tF\twriter\t123" for u in range(1, 4)),
        )
    shown = dataset.load_movielens(wheel)
    assert len(shown) == SHOWN * len(lines)
    assert shown.items["title"][0].as_py() == 'A "Film" 1'
    assert shown.items["genres"][0].as_py() == ["Drama", "War"]
    assert shown.items["release_year"].to_pylist()[:2] == [None, 1990]
    assert shown.users["age"].to_pylist() == [31, 32, 33]


def test_an_archive_without_the_data_is_a_named_error(tmp_path: Path) -> None:
    wheel = tmp_path / "w.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("other", "x")
    with pytest.raises(DatasetUnavailable, match="expected an archive with"):
        dataset.load_movielens(wheel)


def test_a_wheel_in_the_cache_is_not_downloaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / dataset.WHEEL
    cached.write_bytes(b"wheel")
    monkeypatch.setattr(dataset, "WHEEL_SHA256", hashlib.sha256(b"wheel").hexdigest())
    monkeypatch.setattr(subprocess, "run", _must_not_run)
    assert dataset.fetch_movielens(tmp_path) == cached


def test_a_changed_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", _pip_that_delivers(b"something else"))
    with pytest.raises(DatasetUnavailable, match="expected sha256"):
        dataset.fetch_movielens(tmp_path)
    assert not (tmp_path / dataset.WHEEL).exists()


def test_offline_is_a_named_error_with_pips_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(
            command, 1, "", "WARNING: retrying\nERROR: no route to the index\n"
        )

    monkeypatch.setattr(subprocess, "run", offline)
    with pytest.raises(DatasetUnavailable, match="no route to the index"):
        dataset.fetch_movielens(tmp_path)


def _must_not_run(*_: object, **__: object) -> None:
    raise AssertionError("pip was called")


def _pip_that_delivers(content: bytes):  # type: ignore[no-untyped-def]
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        folder = next(word.removeprefix("--dest=") for word in command if word.startswith("--dest="))
        (Path(folder) / dataset.WHEEL).write_bytes(content)
        return subprocess.CompletedProcess(command, 0, "", "")

    return run
