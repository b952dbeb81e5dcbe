"""The publish gate: closed by bad figures, opened by good ones, and by nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from cuckooflow.models.progressive import LabelMetrics
from cuckooflow.models.publish_gate import GateSpec, read_closed_gate
from cuckooflow.models.snapshots import list_manifests, read_snapshot, request_full
from cuckooflow.transforms.snapshot_publisher import SnapshotPublisher
from tests.transforms.test_emit_snapshots import Shared, options, push, shared, tick

__all__ = ["shared"]
GATE = {"like": GateSpec(rows=100, auc_min=0.6, calibration_max=1.5)}


def figures(rows: int, good: bool = True, label: str = "like") -> list[dict[str, object]]:
    """Of rows that were told apart well, or just the other way."""
    labels = np.arange(rows) % 2
    found = LabelMetrics()
    found.add(np.where(labels == good, 0.8, 0.2), labels)
    return [{"label": label, **found.to_json()}]


def test_nothing_is_published_while_it_is_closed_and_all_of_it_after(tmp_path: Path, shared: Shared) -> None:
    publisher = SnapshotPublisher(shared[0], options(tmp_path, gate=GATE))
    taken = []
    for n, good in enumerate([True, False, False, True, True]):
        push(shared[0], [n])
        taken.append(publisher.tick(tick(20 * n, metrics=figures(100, good))))
        closed = read_closed_gate(tmp_path)
        assert (closed is None) == good == (publisher.gate_closed is None)
    assert closed is None and [manifest is None for manifest in taken] == [False, True, True, False, False]
    assert taken[3] is not None and taken[3].base == taken[0].version
    assert sorted(read_snapshot(tmp_path, taken[3]).tables["linear"].ids.tolist()) == [1, 2, 3]


def test_it_says_what_is_wrong_and_since_when(tmp_path: Path, shared: Shared) -> None:
    publisher = SnapshotPublisher(shared[0], options(tmp_path, gate=GATE))
    for n in range(3):
        publisher.tick(tick(20 + 20 * n, metrics=figures(100, False)))
    closed = read_closed_gate(tmp_path)
    assert closed is not None and closed.since_us == 20_000_000
    assert closed.reasons == ("like: auc 0.0000 is below 0.6",)
    request_full(tmp_path, "a new replica")
    assert publisher.publish(900_000_000, force=True) is None and not list_manifests(tmp_path)


def test_with_too_few_rows_it_stays_as_it_was(tmp_path: Path, shared: Shared) -> None:
    push(shared[0], [1])
    publisher = SnapshotPublisher(shared[0], options(tmp_path, gate=GATE))
    assert publisher.tick(tick(0, metrics=figures(98, False))) is not None
    assert publisher.tick(tick(20, metrics=figures(2, False))) is None
    push(shared[0], [2])
    another = SnapshotPublisher(shared[0], options(tmp_path, gate=GATE))
    assert another.tick(tick(40, metrics=figures(98))) is None
    assert another.tick(tick(60, metrics=figures(50, label="share"))) is None
    assert another.tick(tick(80, metrics=figures(2))) is not None
    assert read_closed_gate(tmp_path) is None


def test_a_damaged_file_is_a_closed_gate(tmp_path: Path, shared: Shared) -> None:
    (tmp_path / "gate_closed.json").write_text("{")
    push(shared[0], [1])
    publisher = SnapshotPublisher(shared[0], options(tmp_path, gate=GATE))
    assert publisher.tick(tick(0)) is None
    assert publisher.gate_closed is not None and "is damaged" in publisher.gate_closed.reasons[0]
    assert publisher.tick(tick(20, metrics=figures(100))) is not None


def test_bounds_are_needed() -> None:
    with pytest.raises(ValidationError, match="found none of them"):
        GateSpec(rows=5)
