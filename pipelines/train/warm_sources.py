"""Where a job may start from: another job's newest checkpoint, or a folder of snapshots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from cuckooflow.embedding_store.api import StoreConfig
from cuckooflow.embedding_store.checkpoint import read_checkpoint
from cuckooflow.embedding_store.checkpoint_files import CheckpointReader, checkpoints
from cuckooflow.embedding_store.config_json import config_to_json
from cuckooflow.embedding_store.inspection import identity
from cuckooflow.embedding_store.native_core import NativeCore
from cuckooflow.embedding_store.warm_start import SourcePart, images_of_states, images_of_weights
from cuckooflow.errors import CheckpointDamaged, CheckpointNotFound, ConfigDiffers, NoSnapshot, SpecError
from cuckooflow.logs.contract import Position
from cuckooflow.models import registry, snapshots
from cuckooflow.models.features import FeatureSpec
from cuckooflow.models.spec import ModelSpec
from cuckooflow.models.warm_plan import Side
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.pipelines.options import model, store_config, store_folder
from cuckooflow.pipelines.spec_file import load_spec

#: log -> incarnation ("" where the source does not say) and partition -> the distinct marks of all its buckets.
SourceMarks = Mapping[str, tuple[str, Mapping[int, tuple[Position, ...]]]]


@dataclass(frozen=True)
class WarmSource:
    """What another job has learned.

    Attributes:
        name: in words.
        side: its model and its store's configuration.
        parts: read its shards, the one of the oldest event time first.
        marks: up to where it has learned.
        with_state: whether it has optimizer state and admission counts.
    """

    name: str
    side: Side
    parts: Sequence[Callable[[], SourcePart]]
    marks: SourceMarks
    with_state: bool


def open_source(place: Path) -> WarmSource:
    """Of a job spec its store's newest whole checkpoints; of a folder of snapshots the newest.

    The other job may run meanwhile.

    Raises:
        SpecError: it is neither.
        CheckpointNotFound, CheckpointDamaged, ConfigDiffers: of the other job's store.
        NoSnapshot, SnapshotDamaged: of the folder.
    """
    if place.is_file():
        return _of_job(load_spec(place), place)
    if snapshots.sequences(place):
        return _of_snapshots(place)
    raise SpecError(
        f"expected the other job's spec, whose store has a checkpoint, or a folder of snapshots, received {place}; of a "
        "store's folder alone it is not known which feature an id is of: name the job spec"
    )


def _of_job(job: JobSpec, place: Path) -> WarmSource:
    side = Side(model(job), store_config(job))
    found = [_newest(store_folder(job, shard), side.config, place) for shard in range(job.store.shards)]
    found.sort(key=lambda entry: _oldest_first(entry[1].body))
    marks: dict[str, tuple[str, dict[int, tuple[Position, ...]]]] = {}
    for _, reader in found:
        for log, entry in reader.body["marks"].items():
            known = marks.setdefault(log, (entry["incarnation"], {}))[1]
            for partition, of_buckets in entry["marks"].items():
                positions = {Position(*mark) for mark in of_buckets} | set(known.get(int(partition), ()))
                known[int(partition)] = tuple(sorted(positions))
    names = ", ".join(reader.folder.name for _, reader in found)
    parts = [partial(_read_part, data, reader.folder.name) for data, reader in found]
    return WarmSource(f"{names} of job {job.name} ({place})", side, parts, marks, True)


def _newest(data: Path, config: StoreConfig, place: Path) -> tuple[Path, CheckpointReader]:
    there, _ = identity(data)
    if config_to_json(there) != config_to_json(config):
        raise ConfigDiffers(
            f"expected in {place} the job spec that the store in {data} was trained with, received another: keep the old "
            "spec beside the new one, with the old store's folder in it"
        )
    faults = []
    for _, folder in reversed(checkpoints(data)):
        try:
            return data, CheckpointReader(folder)
        except CheckpointDamaged as error:
            faults.append(str(error))
    if faults:
        raise CheckpointDamaged(f"no checkpoint in {data} is whole: {'; '.join(faults)}")
    raise CheckpointNotFound(f"{data} holds no checkpoint yet; let its store write one")


def _oldest_first(body: Mapping[str, object]) -> int:
    time_us = body.get("event_time_us")
    return time_us if isinstance(time_us, int) else -(1 << 63)


def _read_part(data: Path, name: str) -> SourcePart:
    config, owned = identity(data)
    core, _, body = read_checkpoint(data / name, config, owned)
    dense = frozenset(n for n, each in enumerate(config.dense) if each.name in owned.dense)
    return SourcePart(config, core, dense, body.get("event_time_us"))


def _of_snapshots(folder: Path) -> WarmSource:
    way = snapshots.way_to(folder, snapshots.newest_sequence(folder))
    if not way:
        raise NoSnapshot(f"expected a whole way from a full snapshot in {folder}, found none")
    manifest = way[-1]
    try:
        spec = ModelSpec.model_validate(manifest.model)
        features = [FeatureSpec.model_validate(feature) for feature in manifest.features]
    except ValueError as error:
        raise SpecError(f"expected a model in snapshot {manifest.sequence} of {folder}: {error}") from error
    built = registry.build_model(spec, features)
    config = registry.store_config(built, counting=registry.COUNT_TABLE in manifest.tables)
    side = Side(built, config)
    marks = {
        log: ("", {partition: (Position(*mark),) for partition, mark in of_log.items()})
        for log, of_log in manifest.marks.items()
    }
    return WarmSource(
        f"snapshot {manifest.sequence} of {manifest.name} ({folder})",
        side,
        [partial(_read_snapshots, folder, way, config)],
        marks,
        False,
    )


def _read_snapshots(folder: Path, way: Sequence[snapshots.Manifest], config: StoreConfig) -> SourcePart:
    core = NativeCore.of(config)
    dense: dict[str, np.ndarray] = {}
    deltas = [snapshots.read_snapshot(folder, manifest) for manifest in way]
    for number, table in enumerate(config.tables):
        ids = np.empty(0, np.uint64)
        # The newest first: of older ones just what no newer one has, or says is gone.
        for delta in reversed(deltas):
            found = delta.tables.get(table.name)
            if found is None:
                continue
            fresh = ~np.isin(found.ids, ids)
            if table.kind == "embedding":
                images = images_of_weights(core, number, table, found.ids[fresh], found.weights[fresh])
            else:
                assert found.state is not None
                images = images_of_states(core, number, found.ids[fresh], found.state[fresh])
            core.raw.load_rows(number, images.reshape(-1))
            ids = np.concatenate([ids, found.ids[fresh], found.tombstones])
        core.raw.end_load(number)
    for delta in deltas:
        dense.update(delta.dense)
    for number, each in enumerate(config.dense):
        image = np.concatenate([np.zeros(8, np.uint8), _dense_body(each.optimizer.kind, dense[each.name])])
        core.raw.load_dense(number, image)
    return SourcePart(config, core, frozenset(range(len(config.dense))), way[-1].event_time_us)


def _dense_body(optimizer: str, value: np.ndarray) -> np.ndarray:
    """A value with slots that nobody will read."""
    arrays = {"sgd": 0, "adagrad": 1, "adam": 2, "ftrl": 2}[optimizer]
    flat = np.ascontiguousarray(value, np.float32).reshape(-1)
    return np.concatenate([flat, np.zeros(arrays * len(flat), np.float32)]).view(np.uint8)
