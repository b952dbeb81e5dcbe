"""Snapshots: a store's content on its way to serving, as pairs of files in one folder.

Snapshot number 42 is ``000000000042.json``, its manifest, and ``000000000042-delta-1f3a9c07.arrow``, its
blob. Numbers count up by one in the order of publication, across restarts and store incarnations.
What always holds, also when a writer is killed anywhere:

- A manifest appears only after its blob is whole and on disk, and appears at once (a hard link from
  a temporary name). Two writers of one folder get two numbers; neither overwrites the other.
- A delta holds absolute values, not differences. So it may be applied to any version between its base
  and its own version, and applying it twice changes nothing: see :func:`stands_on`.
- Deleting old snapshots never breaks the way from a kept full one to the newest, nor that to a pinned one
  (:mod:`cuckooflow.models.snapshot_pin`).

A reader that lost its way asks for a full one with :func:`request_full`; who publishes looks with
:func:`full_requested` before every snapshot, and the request ends when a full one is published.

What a blob looks like inside: :mod:`cuckooflow.models.snapshot_blob`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cuckooflow.embedding_store.api import Delta, TableDelta, Version
from cuckooflow.errors import SnapshotDamaged
from cuckooflow.logs.contract import Position
from cuckooflow.models.snapshot_blob import parse_blob, write_blob
from cuckooflow.models.snapshot_pin import read_pin

_log = logging.getLogger(__name__)

#: How many append times of newly included actions a manifest carries, at most.
ARRIVALS_MAX = 256

_MANIFEST = re.compile(r"(\d{12})\.json")
_FILE = re.compile(r"(\d{12})[.-].*")
_FULL_REQUEST = "full.wanted"


class SnapshotInfo(BaseModel):
    """What the publisher says of a snapshot besides the store's content.

    Attributes:
        name: of the model, as clients ask for it.
        created_us: when it was taken, microseconds since the epoch, UTC.
        event_time_us: newest event time that was trained on; None before the first.
        model: the model's spec as JSON values, enough to build it again (``ModelSpec.model_dump``).
        features: its features' specs, likewise, in order.
        columns: input column -> type as a job spec writes it (``string``, ``list<string>``,
            ``float64``...); a scorer reads JSON values by it. Columns that are absent are inferred.
        sampling_rate: the share of all-negative examples that were kept, (0, 1], default 1.
        correction: ``log_odds``: a scorer shifts its log odds by ln(sampling_rate), for a model of one
            label; ``weight``: training made up for it; ``none``: nothing was sampled.
        arrivals_us: a sample, at most 256, of the append times of the actions that this snapshot is the first
            to contain; freshness is measured by them.
        metrics: progressive metrics at that time; a value that is not finite is null.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null", protected_namespaces=())

    name: str
    created_us: int
    event_time_us: int | None = None
    model: dict[str, object] = {}
    features: list[dict[str, object]] = []
    columns: dict[str, str] = {}
    sampling_rate: float = Field(1.0, gt=0.0, le=1.0)
    correction: Literal["none", "log_odds", "weight"] = "none"
    arrivals_us: tuple[int, ...] = Field((), max_length=ARRIVALS_MAX)
    metrics: dict[str, float | None] = {}

    @model_validator(mode="after")
    def _one_label_for_log_odds(self) -> SnapshotInfo:
        labels = self.model.get("labels", ())
        if (
            self.correction == "log_odds"
            and self.sampling_rate < 1.0
            and isinstance(labels, list | tuple)
            and len(labels) > 1
        ):
            raise ValueError(
                f"the log-odds correction is exact for one label only, received {len(labels)} labels; "
                "set negative_sampling.correction to weight"
            )
        return self


class TableRows(BaseModel):
    """How much of a table a snapshot holds. ``tombstones``: ids whose rows are gone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dim: int
    rows: int
    tombstones: int = 0


class Manifest(SnapshotInfo):
    """A published snapshot.

    Attributes:
        sequence: its number in the folder, from 1; a scorer tells it as the model's version.
        version: the store's version that it brings a replica to.
        base: the version it stands on; None for a full one.
        kind: ``full`` or ``delta``.
        blob: file name of the blob beside the manifest.
        blob_bytes: size of the blob.
        sha256: of the blob, hexadecimal.
        tables: table -> how many rows.
        marks: log -> partition -> position up to which every bucket of the store had trained.
    """

    sequence: int
    version: Version
    base: Version | None
    kind: Literal["full", "delta"]
    blob: str
    blob_bytes: int
    sha256: str
    tables: dict[str, TableRows]
    marks: dict[str, dict[int, Position]]


def stands_on(manifest: Manifest, held: Version | None) -> bool:
    """Whether a replica that holds ``held`` may apply this snapshot.

    A full one always; a delta where ``held`` lies between its base and its own version, in the same
    incarnation of the store.
    """
    if manifest.base is None:
        return True
    return (
        held is not None
        and held.incarnation == manifest.base.incarnation == manifest.version.incarnation
        and manifest.base.n <= held.n <= manifest.version.n
    )


def write_snapshot(folder: Path, delta: Delta, info: SnapshotInfo, fulls_kept: int = 2) -> Manifest:
    """Publish what changed; durable and visible when this returns.

    Args:
        folder: made if it is not there; on one file system (rename and hard links).
        delta: what the store answered; a full one where its base is None.
        info: what goes into the manifest besides.
        fulls_kept: snapshots older than this many newest full ones are deleted, at least 1. Costs
            disk; a replica that is slower than a full interval needs the second.

    Returns:
        The manifest, as :func:`list_manifests` will give it.
    """
    if fulls_kept < 1:
        raise ValueError(f"fulls_kept: expected at least 1, received {fulls_kept}")
    folder.mkdir(parents=True, exist_ok=True)
    kind: Literal["full", "delta"] = "full" if delta.base is None else "delta"
    token = secrets.token_hex(4)
    sequence = newest_sequence(folder) + 1
    blob = folder / f"{sequence:012d}-{kind}-{token}.arrow"
    size, digest = write_blob(blob, delta)
    tables = _table_rows(delta.tables)
    while True:
        manifest = Manifest(
            **dict(info),
            sequence=sequence,
            version=delta.version,
            base=delta.base,
            kind=kind,
            blob=blob.name,
            blob_bytes=size,
            sha256=digest,
            tables=tables,
            marks={log: dict(marks) for log, marks in delta.marks.items()},
        )
        if _publish(folder, manifest, token):
            break
        # Another writer took this number meanwhile: move on to the next free one.
        sequence = newest_sequence(folder) + 1
        blob = blob.rename(folder / f"{sequence:012d}-{kind}-{token}.arrow")
        _sync_folder(folder)
    if kind == "full":
        (folder / _FULL_REQUEST).unlink(missing_ok=True)
        _delete_old(folder, fulls_kept)
    return manifest


def take_in(folder: Path, manifest_json: bytes, blob: bytes, fulls_kept: int = 2) -> Manifest:
    """Put a snapshot that was published elsewhere into a folder, under its own number; durable when this returns.

    Args:
        manifest_json: as it was published.
        blob: likewise.
        fulls_kept: as of :func:`write_snapshot`.

    Raises:
        SnapshotDamaged: they are not what a publisher wrote. Nothing was put there.
    """
    try:
        manifest = Manifest.model_validate_json(manifest_json)
    except ValidationError as error:
        raise SnapshotDamaged(f"expected a snapshot's manifest for {folder}, received: {error}") from error
    whole = len(blob) == manifest.blob_bytes and hashlib.sha256(blob).hexdigest() == manifest.sha256
    if not whole or not _FILE.fullmatch(manifest.blob) or "/" in manifest.blob:
        raise SnapshotDamaged(
            f"expected blob {manifest.blob!r} of {manifest.blob_bytes} bytes and sha256 {manifest.sha256} for {folder}, "
            f"received another of {len(blob)} bytes; wait for, or publish, a full snapshot"
        )
    folder.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(4)
    temporary = folder / f"{manifest.sequence:012d}-{token}.arrow.tmp"
    with temporary.open("wb") as file:
        file.write(blob)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(folder / manifest.blob)
    _publish(folder, manifest, token)
    if manifest.kind == "full":
        (folder / _FULL_REQUEST).unlink(missing_ok=True)
        _delete_old(folder, fulls_kept)
    return manifest


def list_manifests(folder: Path, after: int = 0) -> list[Manifest]:
    """Manifests in publication order, those with a number past ``after``; none if there is no folder.

    One that cannot be read is left out with a warning; :func:`read_manifest` tells what is wrong.
    """
    found = []
    for sequence in sequences(folder):
        if sequence <= after:
            continue
        try:
            found.append(read_manifest(folder, sequence))
        except FileNotFoundError:
            continue  # deleted as too old since the folder was listed
        except SnapshotDamaged as error:
            _log.warning("event=manifest_damaged sequence=%d error=%s", sequence, error)
    return found


def sequences(folder: Path) -> list[int]:
    """The numbers of all published snapshots, ascending."""
    try:
        with os.scandir(folder) as entries:
            matches = [_MANIFEST.fullmatch(entry.name) for entry in entries]
    except FileNotFoundError:
        return []
    return sorted(int(match[1]) for match in matches if match)


def full_sequences(folder: Path) -> list[int]:
    """The numbers of full snapshots, ascending, as far as the names of their blobs tell: cheap, a hint only."""
    return sorted(int(path.name[:12]) for path in folder.glob("*-full-*.arrow") if _FILE.fullmatch(path.name))


def newest_sequence(folder: Path) -> int:
    """The highest number, 0 where nothing is published."""
    return max(sequences(folder), default=0)


def is_published(folder: Path, sequence: int) -> bool:
    """Whether this number is there; cheap, for following a folder without listing it."""
    return _manifest_path(folder, sequence).exists()


def read_manifest(folder: Path, sequence: int) -> Manifest:
    """One manifest.

    Raises:
        FileNotFoundError: there is none of this number.
        SnapshotDamaged: it is not what a publisher wrote.
    """
    path = _manifest_path(folder, sequence)
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise SnapshotDamaged(
            f"{path}: expected a snapshot's manifest, received something else ({error.error_count()} "
            f"faults, first: {error.errors()[0]['msg']}); publish a full snapshot and delete this one"
        ) from error
    if manifest.sequence != sequence or not _FILE.fullmatch(manifest.blob) or "/" in manifest.blob:
        raise SnapshotDamaged(
            f"{path}: expected number {sequence} and a blob beside it, received number "
            f"{manifest.sequence} and blob {manifest.blob!r}; publish a full snapshot and delete this one"
        )
    return manifest


def read_snapshot(folder: Path, manifest: Manifest) -> Delta:
    """A snapshot's content, checked against its manifest before anything is taken from it.

    Raises:
        SnapshotDamaged: the blob is missing, has another size or checksum, or does not hold what the
            manifest says.
    """
    path = folder / manifest.blob
    mend = "wait for, or publish, a full snapshot"
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SnapshotDamaged(f"{path}: expected a blob, received {error.strerror}; {mend}") from error
    if len(raw) != manifest.blob_bytes:
        raise SnapshotDamaged(f"{path}: expected {manifest.blob_bytes} bytes, received {len(raw)}; {mend}")
    digest = hashlib.sha256(raw).hexdigest()
    if digest != manifest.sha256:
        raise SnapshotDamaged(f"{path}: expected sha256 {manifest.sha256}, received {digest}; {mend}")
    try:
        tables, dense = parse_blob(raw)
    except (pa.ArrowException, ValueError, KeyError) as error:
        raise SnapshotDamaged(f"{path}: expected a snapshot's blob, received {error}; {mend}") from error
    counts = _table_rows(tables)
    if counts != manifest.tables:
        raise SnapshotDamaged(f"{path}: expected tables {manifest.tables}, received {counts}; {mend}")
    return Delta(
        version=manifest.version, base=manifest.base, tables=tables, dense=dense, marks=manifest.marks
    )


def request_full(folder: Path, reason: str) -> None:
    """Ask whoever publishes into this folder for a full snapshot. Idempotent.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{_FULL_REQUEST}.{secrets.token_hex(4)}.tmp"
    temporary.write_text(reason + "\n")
    temporary.rename(folder / _FULL_REQUEST)


def full_requested(folder: Path) -> bool:
    """Whether a reader asked for a full snapshot since the last one was published."""
    return (folder / _FULL_REQUEST).exists()


def _manifest_path(folder: Path, sequence: int) -> Path:
    return folder / f"{sequence:012d}.json"


def _table_rows(tables: Mapping[str, TableDelta]) -> dict[str, TableRows]:
    return {
        name: TableRows(dim=table.weights.shape[1], rows=len(table.ids), tombstones=len(table.tombstones))
        for name, table in tables.items()
    }


def _publish(folder: Path, manifest: Manifest, token: str) -> bool:
    """Make the manifest visible under its number; False if the number is taken."""
    final = _manifest_path(folder, manifest.sequence)
    temporary = folder / f"{manifest.sequence:012d}-{token}.tmp"
    with temporary.open("wb") as file:
        file.write(manifest.model_dump_json(indent=1).encode())
        file.flush()
        os.fsync(file.fileno())
    try:
        _sync_folder(folder)
        os.link(temporary, final)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    _sync_folder(folder)
    return True


def way_to(folder: Path, sequence: int) -> list[Manifest]:
    """A full snapshot and the deltas after it that lead to one, in their order.

    Raises:
        SnapshotDamaged: there is no such way: a part of it was deleted, is damaged or does not follow.
    """
    way: list[Manifest] = []
    for number in range(sequence, 0, -1):
        try:
            manifest = read_manifest(folder, number)
        except FileNotFoundError:
            break
        if way and not stands_on(way[0], manifest.version):
            break
        way.insert(0, manifest)
        if manifest.kind == "full":
            return way
    raise SnapshotDamaged(
        f"{folder}: expected a full snapshot and every one after it up to {sequence}, found "
        f"{f'none before {way[0].sequence}' if way else f'no {sequence}'}; choose another of snapshot list"
    )


def _delete_old(folder: Path, fulls_kept: int) -> None:
    """Delete what lies before the oldest full one that is kept, manifests first, newest last."""
    first_kept = _oldest_kept(folder, fulls_kept)
    if first_kept is None:
        return
    try:
        pin = read_pin(folder)
        pinned = (
            {manifest.sequence for manifest in way_to(folder, pin.sequence)} if pin is not None else set()
        )
    except SnapshotDamaged as error:
        _log.warning("event=old_snapshots_kept folder=%s error=%s", folder, error)
        return
    doomed = [
        path
        for path in folder.iterdir()
        if (match := _FILE.fullmatch(path.name))
        and int(match[1]) < first_kept
        and int(match[1]) not in pinned
    ]
    for path in sorted(doomed, key=lambda path: (not _MANIFEST.fullmatch(path.name), path.name)):
        path.unlink(missing_ok=True)


def _oldest_kept(folder: Path, fulls_kept: int) -> int | None:
    """Number of the ``fulls_kept``-th newest full snapshot, None if there are fewer."""
    # A blob without a manifest was left by a killed writer and counts for nothing.
    found = 0
    for sequence in reversed(full_sequences(folder)):
        try:
            found += read_manifest(folder, sequence).kind == "full"
        except (FileNotFoundError, SnapshotDamaged):
            continue
        if found == fulls_kept:
            return sequence
    return None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
