"""The trainer with streaming features: what rows see, and what the tables hold whatever is lost on the way.

Values are held against duckdb over the whole log, tables against the log's rows, counted in plain Python.
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuckooflow.embedding_store.hashing import hash_column
from cuckooflow.embedding_store.store import EmbeddedStore, open_store
from cuckooflow.errors import PendingTooMany, TrainingGap
from cuckooflow.logs.contract import Position
from cuckooflow.models.lr import LogisticRegression
from cuckooflow.models.registry import COUNT_TABLE
from cuckooflow.transforms.feature_feed import features_log
from cuckooflow.transforms.trainer import Trainer
from cuckooflow.transforms.training_options import TrainingOptions
from tests.models.streaming_oracle import FEATURES, LAG_S, SECOND, check
from tests.transforms.streaming_log import CONFIG, SPEC, Log, Recording, trainer_of


class Lossy:
    """A store in a folder that can be thrown back to its last checkpoint, as a process that is killed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.store = open_store(CONFIG, folder)

    def lose(self) -> None:
        self.store.close()
        self.store = open_store(CONFIG, self._folder)

    def __getattr__(self, verb: str) -> Any:
        return getattr(self.store, verb)


def assert_tables_hold_their_range(store: EmbeddedStore, log: Log) -> None:
    """Counts of videos and lists of users are those of the rows up to the features' mark; gradients have all."""
    (mark,) = store.marks(features_log("examples"))[0]
    rows = log.rows.slice(0, log.row(mark)).to_pylist()
    clock = np.maximum.accumulate(log.rows.column("_time").to_numpy())
    # All that the row after the last may see: clocks ascend, so it is a prefix.
    assert len(rows) == int((clock <= clock[-1] - LAG_S * SECOND).sum())
    shown: Counter[int] = Counter()
    liked: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for number, row in enumerate(rows):
        negative = row["label_click"] == 0 and not row["label_view"]
        if row["_kind"] == 0:
            shown[row["video"]] += round(1 / row["_rate"]) if negative else 1
        if row["label_click"] == 1:
            liked[row["user"]].append((row["_time"], number, row["video"]))
    videos = np.arange(30)
    found = store.lookup_at({"counter/video": hash_column(pa.array(videos))}).counters["counter/video"]
    assert found.sums[:, 0].tolist() == [shown[v] for v in videos.tolist()]
    users = [None, *(f"u{u}" for u in range(9))]
    lists = store.lookup_at({"recent/liked": hash_column(pa.array(users, pa.string()))}).recents[
        "recent/liked"
    ]
    for user, values in zip(users, lists.values.tolist(), strict=True):
        newest = [v for _, _, v in sorted(liked[user], reverse=True)[:3]]  # type: ignore[index]
        hashes = hash_column(pa.array(newest, pa.int64())).tolist()
        assert values == hashes + [0] * (3 - len(hashes))
    ids, counts = store.rows(COUNT_TABLE)
    assert counts[ids >> np.uint64(52) == 0].sum() == log.rows.num_rows  # each row's user, once


@pytest.mark.parametrize(("disorder_s", "element_rows"), [(0, 50), (8, 17)])
def test_every_row_sees_what_was_known_then(tmp_path: Path, disorder_s: int, element_rows: int) -> None:
    log = Log(tmp_path, [60, 1, 200, 40, 150, 99], disorder_s)
    store, model = EmbeddedStore(CONFIG), Recording()
    trainer = trainer_of(store, log, model)
    for element in log.elements(element_rows):
        trainer.accept(element)
    seen = pa.Table.from_batches([batch.replace_schema_metadata(None) for batch in model.seen])
    assert seen.num_rows == log.rows.num_rows
    numbered = log.rows.append_column("_offset", pa.array(np.arange(log.rows.num_rows)))
    check(seen.combine_chunks().to_batches()[0], numbered)
    assert_tables_hold_their_range(store, log)


def test_a_new_trainer_sees_the_same(tmp_path: Path) -> None:
    """After each element the trainer is another: what is pending comes from the log."""
    log = Log(tmp_path, [60, 1, 200, 40, 150, 99], 8)
    store, model = EmbeddedStore(CONFIG), Recording()
    for element in log.elements(45):
        trainer = trainer_of(store, log, model, max_delay_us=0)
        trainer.accept(element)
    seen = pa.Table.from_batches([batch.replace_schema_metadata(None) for batch in model.seen])
    numbered = log.rows.append_column("_offset", pa.array(np.arange(log.rows.num_rows)))
    check(seen.combine_chunks().to_batches()[0], numbered)
    assert_tables_hold_their_range(store, log)


@pytest.mark.deep
@pytest.mark.slow
@settings(max_examples=40)
@given(data=st.data())
def test_whatever_is_lost_every_update_counts_once(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("log")
    log = Log(folder, data.draw(st.lists(st.integers(1, 60), min_size=3, max_size=9), "sizes"))
    options = {
        "batch_size": data.draw(st.integers(5, 40), "batch_size"),
        "max_delay_us": data.draw(st.sampled_from([0, 3600 * SECOND]), "delay"),
        "marks_interval_us": data.draw(st.sampled_from([0, 3600 * SECOND]), "interval"),
        "fill_rows_max": data.draw(st.integers(5, 50), "fill"),
    }
    store: Any = Lossy(folder / "store")
    trainer = trainer_of(store, log, **options)
    for element in log.elements(data.draw(st.integers(5, 50), "rows")):
        for event in data.draw(st.lists(st.sampled_from(["save", "lose", "kill", "again"]), max_size=2)):
            if event == "save":
                store.checkpoint()
            elif event == "lose":  # what was not in a checkpoint is gone, and the trainer goes on
                store.lose()
            elif event == "kill":
                trainer = trainer_of(store, log, **options)
            else:
                trainer.accept(element)
        trainer.accept(element)
    trainer.finish(0)
    assert_tables_hold_their_range(store, log)
    assert store.marks("examples")[0] == (Position(len(log.begins) - 1),)
    store.close()


def test_too_much_that_waits_is_named(tmp_path: Path) -> None:
    log = Log(tmp_path, [100, 100])
    trainer = trainer_of(EmbeddedStore(CONFIG), log, lag_us=10**15, pending_rows_max=150)
    first, second = log.elements(100)
    trainer.accept(first)
    with pytest.raises(PendingTooMany, match=r"150 examples within training\.lag"):
        trainer.accept(second)


def test_pending_rows_that_cannot_be_read_again_are_named(tmp_path: Path) -> None:
    log = Log(tmp_path, [100, 100])
    store = EmbeddedStore(CONFIG)
    first, second = log.elements(100)
    model = LogisticRegression(SPEC, FEATURES)
    make = functools.partial(
        Trainer, store, model, None, TrainingOptions(lag_us=LAG_S * SECOND, max_delay_us=0)
    )
    make().accept(first)
    with pytest.raises(TrainingGap, match="reader"):
        make().accept(second)
