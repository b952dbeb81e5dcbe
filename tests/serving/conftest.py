"""A publisher of snapshots whose every version is known, and a scorer over them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cuckooflow.embedding_store.api import Delta, Floats, TableDelta, Version
from cuckooflow.logs.contract import Position
from cuckooflow.models.features import FeatureSpec
from cuckooflow.models.registry import build_model
from cuckooflow.models.snapshots import Manifest, SnapshotInfo, write_snapshot
from cuckooflow.models.spec import ModelSpec
from cuckooflow.serving.serve import ScorerServer, ServeOptions

COLUMNS = {"user_id": "string", "genres": "list<string>", "age": "float64"}
FEATURES = (
    FeatureSpec(name="user", column="user_id"),
    FeatureSpec(name="genres", pooling="mean", max_length=4),
    FeatureSpec(name="age", kind="number", scale=10.0),
)


class Publisher:
    """Holds a logistic regression as plain dicts and publishes it as a trainer would.

    ``users[name]`` is a user's weight, one for each label; everything else is zero but the bias.
    """

    def __init__(self, folder: Path, labels: tuple[str, ...] = ("like",)) -> None:
        self.folder = folder
        self.spec = ModelSpec(kind="lr", labels=labels)
        self.model = build_model(self.spec, FEATURES)
        self.incarnation = "first"
        self.n = 0
        self.acked: Version | None = None
        self.users: dict[str, float] = {}
        self.bias = 0.0
        self.touched: set[str] = set()
        self.published: dict[int, tuple[dict[str, float], float]] = {}

    def set(self, bias: float | None = None, **users: float) -> None:
        self.users.update(users)
        self.touched |= users.keys()
        self.bias = self.bias if bias is None else bias

    def lose(self, user: str) -> None:
        """As if the store had never seen this user; what a restore from an older checkpoint does."""
        del self.users[user]
        self.touched.discard(user)

    def ids(self, users: list[str]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        return self.model.encode(pa.record_batch({"user_id": pa.array(users, pa.string())})).ids[:, 0]

    def publish(self, full: bool = False, ack: bool = True, **info: object) -> Manifest:
        self.n += 1
        version = Version(self.incarnation, self.n)
        full = full or self.acked is None
        sent = list(self.users) if full else sorted(self.touched & self.users.keys())
        width = len(self.spec.labels)
        weights = np.repeat(
            np.array([[self.users[u]] for u in sent], np.float32).reshape(-1, 1), width, axis=1
        )
        dense: dict[str, Floats] = {p.name: np.zeros(p.shape, np.float32) for p in self.model.dense}
        dense["linear/bias"] = np.full(width, self.bias, np.float32)
        delta = Delta(
            version=version,
            base=None if full else self.acked,
            tables={
                "linear": TableDelta(self.ids(sent), weights, self.ids([])),
                # What only checks read travels too; serving leaves it out.
                "_count": TableDelta(self.ids(sent), np.ones((len(sent), 1), np.float32), self.ids([])),
            },
            dense=dense,
            marks={"examples": {0: Position(self.n, 0)}},
        )
        told = {
            "name": "movies",
            "created_us": self.n * 1_000_000,
            "model": self.spec.model_dump(mode="json"),
            "features": [feature.model_dump(mode="json") for feature in FEATURES],
            "columns": COLUMNS,
            **info,
        }
        manifest = write_snapshot(self.folder, delta, SnapshotInfo.model_validate(told), fulls_kept=3)
        self.published[manifest.sequence] = (dict(self.users), self.bias)
        if ack:
            self.acked = version
            self.touched.clear()
        return manifest

    def restore(self) -> None:
        """As after a restart of the store: another incarnation, which knows no consumer."""
        self.incarnation += "+"
        self.acked = None

    def expected(self, sequence: int, user: str) -> float:
        """What a logistic regression of that snapshot says of a user about whom nothing else is known."""
        users, bias = self.published[sequence]
        return float(1.0 / (1.0 + np.exp(-(users.get(user, 0.0) + bias))))


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return Publisher(tmp_path / "snapshots")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Starts scorers over ``tmp_path / "snapshots"``; the url of each. All are stopped at the end."""
    running: list[tuple[ScorerServer, threading.Thread]] = []

    def run(**options: object) -> str:
        given: Mapping[str, object] = {"name": "movies", "listen": "127.0.0.1:0", "poll_interval_s": 0.01}
        server = ScorerServer(ServeOptions(snapshots=tmp_path / "snapshots", **{**given, **options}))
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        return f"http://{server.address}"

    yield run
    for server, thread in running:
        server.stop()
        thread.join(30)
        assert not thread.is_alive(), "a scorer did not stop"
