"""A scorer sees of the past what a trainer saw of it for the same row at the same moment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from cuckooflow.embedding_store.store import EmbeddedStore
from cuckooflow.models.base import distinct
from cuckooflow.models.registry import predict_batch
from cuckooflow.models.snapshots import SnapshotInfo, write_snapshot
from cuckooflow.serving.client import ScorerClient
from tests.models.streaming_oracle import FEATURES, LAG_S, SECOND
from tests.transforms.streaming_log import CONFIG, SPEC, Log, Recording, trainer_of

COLUMNS = {"user": "string", "video": "int64", "tab": "int64", "time": "time[s]"}
LAST = 40  # rows at the log's end, that the scorer is asked for


def test_the_scorer_sees_what_the_trainer_saw(start: Callable[..., str], tmp_path: Path) -> None:
    log = Log(tmp_path, [100, 250, LAST], last_at_s=100_000)
    store, model = EmbeddedStore(CONFIG), Recording()
    trainer = trainer_of(store, log, model, batch_size=1)
    for element in log.elements(125):
        trainer.accept(element)
    # The last rows lie within the lag of each other and long after all others: each saw just the others, and so
    # do the tables now.
    seen = pa.Table.from_batches([batch.replace_schema_metadata(None) for batch in model.seen])
    last = seen.combine_chunks().to_batches()[0].slice(seen.num_rows - LAST)
    times = last.column("_time").to_numpy()
    assert times.max() - times.min() < LAG_S * SECOND

    delta = store.delta("snapshots", True)
    info = SnapshotInfo(
        name="movies",
        created_us=1,
        model=SPEC.model_dump(mode="json"),
        features=[feature.model_dump(mode="json") for feature in FEATURES],
        columns=COLUMNS,
    )
    manifest = write_snapshot(tmp_path / "snapshots", delta, info)
    encoded = model.encode(last)
    lookup = distinct(encoded)
    expected = model.predict(encoded, lookup, *store.pull(model.wanted(lookup))[:2])[:, 0]
    rows = [
        {"user": row["user"], "video": row["video"], "tab": row["tab"], "time": row["_time"] // SECOND}
        for row in last.to_pylist()
    ]
    with ScorerClient(start(), "movies") as client:
        client.wait_ready(120, version=manifest.sequence)
        answer = np.array(client.predict(rows).values)
    np.testing.assert_allclose(answer, expected, atol=2e-6)
    # And it matters what is seen.
    plain = last.select(["user", "video", "tab", "_time"])
    assert np.abs(predict_batch(model, plain, store.pull)["click"] - expected).max() > 1e-2
